"""Every write of a run finds no room, once alone and once with all that follow."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import full_disk
import pytest


@pytest.mark.parametrize("for_ever", [False, True])
def test_every_write(tmp_path, for_ever):
    with full_disk.compiled_once():
        assert full_disk.typed(tmp_path / "whole").status == 0
        whole = full_disk.left(tmp_path / "whole")
        for first in itertools.count(1):
            last = sys.maxsize if for_ever else first
            refused = range(first, last + 1)
            run = tmp_path / str(first)
            if not full_disk.survives(
                run, lambda number, _, refused=refused: number in refused, whole
            ):
                break
    assert first > 80


def test_disks_that_are_really_full(tmp_path):
    """Linux alone; as root, or where users may have namespaces of their own."""
    (tmp_path / "disk").mkdir()
    program = Path(__file__).with_name("full_tmpfs.py")
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, str(program), str(tmp_path / "disk")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused = dict(line.split() for line in done.stdout.splitlines())
    assert set(refused) == {"size", "nr_inodes"} and all(
        int(each) > 10 for each in refused.values()
    )
