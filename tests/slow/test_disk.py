"""A disk that is full at any moment of a run: what is lost is said, and nothing else is lost."""

import contextlib
import errno
import os
import resource
import sys

import pytest
import test_train
import tiny_runs

from prompt_tuning_jax import artifact, main, workdir

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """What this process writes below a folder, counted, and refused from `first` to `last`: files
    opened or made, folders, new names. An audit hook cannot be taken out again, so there is one."""

    def __init__(self):
        self.folder, self.first, self.last, self.count = None, 0, 0, 0
        sys.addaudithook(self.look)

    def look(self, event, arguments):
        if self.folder is None or not _writes(event, arguments):
            return
        if not str(arguments[0]).startswith(self.folder):
            return
        self.count += 1
        if self.first <= self.count <= self.last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    @contextlib.contextmanager
    def full(self, folder, first=0, last=0):
        self.folder, self.first, self.last, self.count = str(folder), first, last, 0
        try:
            yield
        finally:
            self.folder = None


def _writes(event, arguments):
    if event == "open":
        return isinstance(arguments[2], int) and arguments[2] & WRITES
    return event in ("os.mkdir", "os.rename", "os.truncate")


@pytest.fixture(scope="module")
def disk():
    return Disk()


@pytest.fixture
def home(monkeypatch):
    with tiny_runs.at_home(monkeypatch):
        yield


def train(run):
    return main.run(tiny_runs.training(run, *tiny_runs.FEW, "--config.evaluate_every=4"))


def refused(output):
    return [line for line in output.splitlines() if "No space left" in line]


def test_no_space_at_any_write(disk, home, tmp_path, capfd):
    with disk.full(tmp_path / "whole"):
        assert train(tmp_path / "whole") == 0
    writes, whole = disk.count, test_train.left_behind(tmp_path / "whole")
    statuses = []
    for first in range(1, writes + 1):
        for last in (first, sys.maxsize):
            run = tmp_path / f"{first}-{last}"
            capfd.readouterr()
            with disk.full(run, first, last):
                status = train(run)
            said = refused("".join(capfd.readouterr()))
            statuses.append(status)
            if status == 0:
                # All that a single failure can cost a run that ends well is a checkpoint.
                assert last == first and len(said) <= 1
                assert (run / workdir.REPORT).exists() and artifact.load(run / workdir.ARTIFACT)
            else:
                assert [line.split(":")[0] for line in said].count("error") == 1
            lost = [line for line in said if not line.startswith("error: ")]
            assert all(line.startswith("warning: the checkpoint of step") for line in lost)
            assert train(run) == 0, "without the fault the same command goes on"
            assert test_train.left_behind(run) == whole
    # Refused at the start, gone on without a checkpoint, failed at the end: each was seen.
    assert {0, 1, 2} == set(statuses) and statuses.count(0) > writes / 2


def test_a_limit_of_the_size_of_files(tmp_path):
    """All that a process writes ends at a limit, tensorstore's files too: the first has room for a
    config and none for the artifact, the second for the artifact and none for the curves."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    test_train.finish(tiny_runs.train(whole))
    manifest = (whole / workdir.ARTIFACT / artifact.MANIFEST).stat().st_size

    def limited(size):
        process = tiny_runs.start(
            tiny_runs.train(run),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )
        return process.communicate(timeout=test_train.PATIENCE)[0], process.returncode

    output, status = limited(manifest - 1)
    assert status == 1 and not (run / workdir.ARTIFACT).exists(), output
    assert "warning: the metrics of step 45 are not on disk yet" in output
    assert "step 45/45" in output and f"'{run / workdir.ARTIFACT}' could not be written" in output
    output, status = limited(manifest)
    assert status == 1 and artifact.load(run / workdir.ARTIFACT), output
    assert f"'{run / workdir.CURVES}' could not be written (File too large)" in output, output
    test_train.finish(tiny_runs.train(run))
    left, expected = test_train.left_behind(run), test_train.left_behind(whole)
    # Lines for which there never was room are lost, as was said of each.
    assert expected.pop("metrics").startswith(left.pop("metrics"))
    assert left == expected
