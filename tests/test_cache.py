import os
import signal
import subprocess
import sys
import time

import pytest

from prompt_tuning_jax.cache import cache_folder, publish
from prompt_tuning_jax.errors import UserError


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PROMPT_TUNING_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_folder()) == "/home/somebody/.cache/prompt_tuning_jax"


def test_what_is_there_is_not_built_again(tmp_path):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "file").write_text("content")

    for _ in range(2):
        folder = publish(tmp_path / "a b" / "made", build)
        assert (folder / "file").read_text() == "content"
    assert len(calls) == 1
    assert os.listdir(tmp_path / "a b") == ["made"]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("")
        raise UserError("no such package")

    with pytest.raises(UserError, match="no such package"):
        publish(tmp_path / "made", build)
    assert os.listdir(tmp_path) == []


SLOW = """
import pathlib, sys, time
from prompt_tuning_jax.cache import publish
def build(folder):
    (folder / 'one').write_text(sys.argv[2])
    print('begun', flush=True)
    sys.stdin.readline()
    (folder / 'two').write_text(sys.argv[2])
publish(pathlib.Path(sys.argv[1]), build)
"""


def start(folder, word):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(folder), word],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_process_killed_midway_leaves_no_half_filled_folder(tmp_path):
    process = start(tmp_path / "made", "killed")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "made").exists()
    (left,) = os.listdir(tmp_path)

    folder = publish(tmp_path / "made", lambda folder: (folder / "two").touch())
    assert os.listdir(folder) == ["two"]
    # It may belong to a process that is still at work, until it is a day old.
    assert (tmp_path / left).exists()
    yesterday = time.time() - 25 * 3600
    os.utime(tmp_path / left, (yesterday, yesterday))
    os.rename(folder, tmp_path / "other")
    publish(folder, lambda folder: None)
    assert sorted(os.listdir(tmp_path)) == ["made", "other"]


def test_of_two_processes_at_once_the_first_wins_whole(tmp_path):
    first, second = (start(tmp_path / "made", word) for word in ("first", "second"))
    for process in (first, second):
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    assert {path.read_text() for path in (tmp_path / "made").iterdir()} == {"first"}
    assert os.listdir(tmp_path) == ["made"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cache folder .*file.*set PROMPT_TUNING_CACHE"):
        publish(tmp_path / "file" / "made", lambda folder: None)
