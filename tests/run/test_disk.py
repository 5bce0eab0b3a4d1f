"""Whole runs on a full disk, with a few of their writes; `slow/test_disk.py` has all of them."""

import os
import re
import signal

import full_disk
import pytest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves if there is room."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with full_disk.compiled_once():
        found = full_disk.typed(run)
        assert found.status == 0 and found.calls.refused == []
        yield full_disk.left(run)


@pytest.mark.parametrize(
    "call",
    [
        r"write \.config.*",
        r"write metrics.*",
        r"rename checkpoints/6\.[\w-]*",
        r"write \.artifact\.partial/adapt.*",
    ],
)
def test_one_write_finds_no_room(whole, tmp_path, call):
    left = [call]

    def first(number, made):
        return bool(left and re.fullmatch(left[0], made) and left.pop())

    assert full_disk.survives(tmp_path / "run", first, whole) == 1


def test_from_a_write_on_there_is_no_room(whole, tmp_path):
    assert full_disk.survives(tmp_path / "run", lambda number, _: number >= 30, whole)


def test_stopped_without_room_to_save_it_does_not_say_saved(whole, tmp_path):
    run, full = tmp_path / "run", []

    def stop(number, call):
        if call == "mkdir checkpoints/4.orbax-checkpoint-tmp":
            full.append(call)
            os.kill(os.getpid(), signal.SIGTERM)
        return bool(full)

    found = full_disk.typed(run, stop)
    assert found.status == 1 and "saved; " not in found.out
    assert "stopped and not saved: free disk space; this goes on from the last save: " in found.err
    assert full_disk.newest(run) == 2
    full_disk.goes_on(found, run, whole)
