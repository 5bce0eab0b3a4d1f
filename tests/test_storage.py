import errno
import os
import signal
import subprocess
import sys
import tempfile

import pytest
from safetensors import SafetensorError

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.storage import cache_folder, new_folder, publish


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PROMPT_TUNING_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_folder()) == "/home/somebody/.cache/prompt_tuning_jax"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    for name in ("PROMPT_TUNING_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # whom the system does not know
    with pytest.raises(UserError, match="PROMPT_TUNING_CACHE"):
        cache_folder()


def test_an_existing_folder_is_not_built_again(tmp_path):
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
from prompt_tuning_jax.storage import publish
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
    assert sorted(os.listdir(tmp_path)) == sorted(["made", left])  # it may be still at work


def test_of_two_processes_at_once_the_first_wins_whole(tmp_path):
    first, second = (start(tmp_path / "made", word) for word in ("first", "second"))
    for process in (first, second):
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    assert {path.read_text() for path in (tmp_path / "made").iterdir()} == {"first"}
    assert os.listdir(tmp_path) == ["made"]


def test_without_a_cache_the_result_lasts_as_long_as_the_process(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    program = f"{SLOW}\nprint(len(list(pathlib.Path(sys.argv[3]).glob('*/two'))))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file" / "made"), "word", "temporary"],
        input="\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PROMPT_TUNING_CACHE": str(tmp_path / "file"),
            "TMPDIR": str(tmp_path / "temporary"),
        },
    )
    assert done.stdout.split() == ["begun", "1"], done.stderr
    assert done.stderr.count("\n") == 1
    assert "/file' cannot be written (" in done.stderr
    assert "set PROMPT_TUNING_CACHE" in done.stderr
    assert os.listdir(tmp_path / "temporary") == []


def test_a_disk_that_fills_while_building_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path))

    def build(folder):
        if folder.parent == tmp_path:
            (folder / "half").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        (folder / "whole").touch()

    assert os.listdir(publish(tmp_path / "made", build)) == ["whole"]
    assert os.listdir(tmp_path) == []


def test_if_nothing_can_be_written_the_error_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"temporary folder .*set PROMPT_TUNING_CACHE"):
        publish(tmp_path / "file" / "made", lambda folder: None)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("Full")])
def test_a_folder_that_cannot_be_filled_is_one_sentence_and_not_there(tmp_path, error):
    with pytest.raises(UserError, match=r"cannot be written \((No space left.*|Full)\): give"):
        with new_folder(tmp_path / "new") as folder:
            (folder / "first").touch()
            raise error
    assert not list(tmp_path.iterdir())
