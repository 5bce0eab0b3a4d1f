"""Whole runs on a full disk, of each kind of write one; `slow/test_disk.py` has every one."""

import re

import full_disk
import pytest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves that had room."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with full_disk.compiled_once():
        found = full_disk.typed(run)
        assert found.status == 0 and found.calls.refused == []
        yield full_disk.left(run)


@pytest.mark.parametrize(
    "call",
    [
        r"open \.lock",
        r"replace \.\.owner.*",
        r"write \.config.*",
        r"mkdir checkpoints",
        r"open tensorboard/.*",
        r"write metrics.*",
        r"write checkpoints/2\..*/metadata",
        r"rename checkpoints/6\.[\w-]*",
        r"fsync tensorboard/.*",
        r"write \.artifact\.partial/adapt.*",
        r"replace \.artifact.partial",
        r"write \.report.*",
        r"write \.artifact\.card",
        r"replace \.curves.*",
        r"fsync \.run.*",
    ],
)
def test_one_write_finds_no_room(whole, tmp_path, call):
    left = [call]

    def first(number, made):
        return bool(left and re.fullmatch(left[0], made) and left.pop())

    assert full_disk.survives(tmp_path / "run", first, whole) == 1


@pytest.mark.parametrize("first", [1, 17, 30, 80])
def test_from_a_write_on_there_is_no_room(whole, tmp_path, first):
    assert full_disk.survives(tmp_path / "run", lambda number, _: number >= first, whole)
