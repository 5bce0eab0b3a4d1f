"""The run folder: one writer, one config, and metrics that a kill cannot spoil."""

import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.run.folder import Metrics, atomic_write, claim, read_metrics, settle

_HOLDS = """
import sys, time
from prompt_tuning_jax.workdir import claim

with claim(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_within_two_seconds_and_told_whose_it_is(tmp_path, holder):
    began = time.monotonic()
    with pytest.raises(UserError) as caught, claim(tmp_path / "run"):
        pass
    assert time.monotonic() - began < 2
    assert f"process {holder.pid} on {socket.gethostname()}" in str(caught.value)
    assert holder.poll() is None


@pytest.mark.parametrize(
    "owner", [os.mkfifo, os.mkdir, b"[" * 100_000, b"7", b'{"pid": 1, "host": "a\\n\\u001b[2J"}']
)
def test_an_owner_that_is_damaged_is_not_waited_for_nor_shown(tmp_path, holder, owner):
    path = tmp_path / "run" / ".owner"
    path.unlink()
    path.write_bytes(owner) if isinstance(owner, bytes) else owner(path)
    with pytest.raises(UserError, match="a run is in progress") as caught, claim(tmp_path / "run"):
        pass
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [*workdir._FILES, *workdir._FOLDERS])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused(tmp_path, name, fresh):
    makers = [os.mkfifo] + [os.mkdir] * (name in workdir._FILES)
    for make in makers:
        make(tmp_path / name)
        with pytest.raises(UserError, match=name), claim(tmp_path) as run:
            settle(run, configs.load(None), fresh)
        os.rmdir(tmp_path / name) if make is os.mkdir else os.unlink(tmp_path / name)


def test_a_folder_in_place_of_the_owner_is_refused(tmp_path):
    (tmp_path / ".owner").mkdir()
    with pytest.raises(UserError, match="cannot be written"), claim(tmp_path):
        pass


def test_a_killed_run_gives_its_folder_back(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claim(tmp_path / "run") as folder:
        assert folder == tmp_path / "run"


def test_what_a_killed_run_wrote_in_half_is_removed_once_the_folder_is_held(tmp_path, holder):
    for name in (".owner.123.partial", "..config.json.123.partial", "notes.partial"):
        (tmp_path / "run" / name).touch()
    before = {*os.listdir(tmp_path / "run")}
    with pytest.raises(UserError), claim(tmp_path / "run"):
        pass
    assert {*os.listdir(tmp_path / "run")} == before
    holder.kill()
    holder.wait()
    with claim(tmp_path / "run"):
        assert {*os.listdir(tmp_path / "run")} == {".lock", ".owner", "notes.partial"}


def test_a_folder_is_claimed_once_in_a_process_and_given_back(tmp_path):
    with claim(tmp_path / "a b ü" / "run"):
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            with claim(tmp_path / "a b ü" / "run"):
                pass
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "a b ü" / "run"):
        raise ZeroDivisionError
    with claim(tmp_path / "a b ü" / "run") as folder:
        assert workdir.CONFIG not in os.listdir(folder)


def test_a_folder_in_which_nothing_was_begun_is_as_it_was(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "new/one"):
        with pytest.raises(UserError, match="the model is missing"), claim(tmp_path / place):
            raise UserError("the model is missing")
    assert [*map(str, tmp_path.rglob("*"))] == [str(tmp_path / "empty")]
    with claim(tmp_path / "new" / "one") as folder:
        (folder / workdir.METRICS).touch()
    assert sorted(os.listdir(tmp_path / "new" / "one")) == [".lock", workdir.METRICS]
    (folder / workdir.METRICS).unlink()
    with claim(folder):
        pass
    assert os.listdir(folder) == [".lock"]
    (tmp_path / "empty" / "notes").touch()
    with claim(tmp_path / "empty"):
        pass
    assert os.listdir(tmp_path / "empty") == ["notes"]


def test_a_folder_that_is_removed_meanwhile_hides_no_error_and_can_be_claimed_again(tmp_path):
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "run") as folder:
        shutil.rmtree(folder)
        raise ZeroDivisionError
    with claim(tmp_path / "run"):
        pass


@pytest.mark.parametrize("place", ("file", "file/below", "/proc/run"))
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("here before")
    with pytest.raises(UserError, match=r"cannot be written.*another --workdir"):
        with claim(tmp_path / place):
            pass
    assert (tmp_path / "file").read_text() == "here before"


def test_a_remote_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="remote"), claim("gs://bucket/run"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_changed_config_is_refused_with_the_difference_until_fresh(tmp_path):
    config = configs.load(None)
    settle(tmp_path, config)
    settle(tmp_path, config)
    for name in (workdir.CHECKPOINTS, workdir.ARTIFACT, workdir.TENSORBOARD):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in (workdir.METRICS, workdir.REPORT, workdir.CURVES, workdir.RUN, "notes.txt"):
        (tmp_path / name).touch()
    before = sorted(os.listdir(tmp_path))

    changed = configs.load(None, ["--config.steps=7", "--config.method.num_virtual_tokens=3"])
    with pytest.raises(UserError) as caught:
        settle(tmp_path, changed)
    for part in ("config.steps", "7", "config.method.num_virtual_tokens", "3", "--fresh"):
        assert part in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before
    settle(tmp_path, config)

    settle(tmp_path, changed, fresh=True)
    assert sorted(os.listdir(tmp_path)) == [workdir.CONFIG, "notes.txt"]
    settle(tmp_path, changed)
    again = configs.load(str(tmp_path / workdir.CONFIG))
    assert configs.to_json(again) == configs.to_json(changed)


@pytest.mark.parametrize(
    "damage", ['{"steps": 3', "\0", "[]", "[" * 100_000, '{"steps": ' + "9" * 5000]
)
def test_a_damaged_config_is_named_by_its_path(tmp_path, damage):
    (tmp_path / workdir.CONFIG).write_text(damage)
    with pytest.raises(UserError, match="--fresh") as caught:
        settle(tmp_path, configs.load(None))
    assert f"'{tmp_path / workdir.CONFIG}'" in str(caught.value)
    assert "saved" not in str(caught.value) and str(caught.value).isprintable()
    settle(tmp_path, configs.load(None), fresh=True)


def test_fresh_removes_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    run = tmp_path / "run"
    run.mkdir()
    for name in workdir._FOLDERS:
        (run / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (run / workdir.REPORT).symlink_to(tmp_path / "nowhere")
    settle(run, configs.load(None), fresh=True)
    assert os.listdir(run) == [workdir.CONFIG]
    assert (tmp_path / "elsewhere" / "file").exists()


def test_what_fresh_cannot_remove_is_named_and_the_config_stays(tmp_path, monkeypatch):
    settle(tmp_path, configs.load(None))
    (tmp_path / workdir.CHECKPOINTS).mkdir()

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(UserError, match=r"checkpoints' cannot be removed \(Permission denied\)"):
        settle(tmp_path, configs.load(None), fresh=True)
    assert (tmp_path / workdir.CONFIG).exists()


def test_checkpoints_without_a_config_are_refused(tmp_path):
    (tmp_path / workdir.CHECKPOINTS).mkdir()
    with pytest.raises(UserError, match="--fresh"):
        settle(tmp_path, configs.load(None))
    settle(tmp_path, configs.load(None), fresh=True)
    assert os.listdir(tmp_path) == [workdir.CONFIG]


def limited(size, write):
    """Calls `write` while no file can grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        return write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    atomic_write(tmp_path / "f", b"old")
    with pytest.raises(OSError):
        limited(100, lambda: atomic_write(tmp_path / "f", b"x" * 200))
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(os, "replace", lambda *_: 1 / 0)
        atomic_write(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]
    atomic_write(str(tmp_path / "f"), b"new")
    assert (tmp_path / "f").read_bytes() == b"new"


def write_run(path, start, stop, tensorboard=None):
    metrics = Metrics(path, start, tensorboard)
    for step in range(start + 1, stop + 1):
        assert metrics.write(step, {"train/loss": 1 / step, "train/targets": 16}) == ""
        if step % 3 == 0:
            assert metrics.write(step, {"validation/loss": np.float32(step)}) == ""
    metrics.close()
    return path.read_bytes()


@given(
    saved=st.integers(0, 12),
    cut=st.integers(0, 2000),
    damage=st.sampled_from((b"", b'{"step": 13', b"\0\0\0\n", b'"text"\n', b"[1]\n")),
)
def test_a_resumed_file_equals_one_that_never_stopped(tmp_path_factory, saved, cut, damage):
    folder = tmp_path_factory.mktemp("m")
    whole = write_run(folder / "whole", 0, 12)
    # Whatever a kill left behind the lines of the last checkpoint.
    kept = b"".join(
        line for line in whole.splitlines(keepends=True) if json.loads(line)["step"] <= saved
    )
    (folder / "cut").write_bytes(kept + whole[len(kept) :][:cut] + damage)
    assert write_run(folder / "cut", saved, 12) == whole


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 2, "tra',
        b"\xff\x00",
        b"[" * 100_000,
        b'{"step": 2, "train/loss": "a"}',
        b"[2]",
        b'{"step": -' + b"9" * 23 + b"}",
        b'{"step": -1}',
        b'{"step": 2, "train/loss": ' + b"9" * 400 + b"}",
        b'{"step": 2, "train/loss": NaN}',
    ],
)
def test_a_damaged_line_is_left_out_and_counted_and_the_others_stay(tmp_path, damage):
    lines = write_run(tmp_path / "m", 0, 4).splitlines(keepends=True)
    lines[1] = damage + b"\n"
    (tmp_path / "m").write_bytes(b"".join(lines) + b'{"step": 5')
    metrics = Metrics(tmp_path / "m", 4, tmp_path / "tensorboard")
    metrics.close()
    assert metrics.damaged == 1
    assert (tmp_path / "m").read_bytes() == b"".join(lines[:1] + lines[2:])


def test_damaged_lines_at_the_end_are_counted_up_to_a_later_step(tmp_path):
    lines = write_run(tmp_path / "m", 0, 2).splitlines(keepends=True)
    for after, damaged in ((b"\0\n[]\n", 2), (b'\0\n{"step": 3}\n[]\n', 1), (b'{"step": 2', 0)):
        (tmp_path / "m").write_bytes(b"".join(lines) + after)
        metrics = Metrics(tmp_path / "m", 2)
        metrics.close()
        assert metrics.damaged == damaged
        assert (tmp_path / "m").read_bytes() == b"".join(lines)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    metrics = Metrics(tmp_path / "m", 0)
    metrics.write(1, {"a": float("nan"), "b": np.float32("inf"), "c": np.int32(3), "d": 0.5})
    metrics.close()
    assert (tmp_path / "m").read_text() == '{"step": 1, "a": null, "b": null, "c": 3.0, "d": 0.5}\n'
    assert read_metrics(tmp_path / "m") == [{"step": 1, "a": None, "b": None, "c": 3.0, "d": 0.5}]


def test_lines_that_a_full_disk_refused_are_written_when_there_is_room(tmp_path):
    metrics = Metrics(tmp_path / "m", 0)
    assert metrics.write(1, {"loss": 1.0}) == ""
    size = (tmp_path / "m").stat().st_size
    for step in (2, 3):
        warning = limited(size + 5, lambda step=step: metrics.write(step, {"loss": 1.0}))
        assert f"step {step}" in warning
        assert [line["step"] for line in read_metrics(tmp_path / "m")] == [1]
        assert (tmp_path / "m").stat().st_size == size
    assert metrics.write(4, {"loss": 1.0}) == ""
    metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path / "m")] == [1, 2, 3, 4]


def events(folder):
    """The scalars of the one event file in a folder: (step, name, value)."""
    from tensorboardX.proto import event_pb2

    (path,) = folder.iterdir()
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        place += length + 16
    return found


def test_tensorboard_shows_what_the_lines_say_also_after_a_resume(tmp_path):
    write_run(tmp_path / "m", 0, 7, tmp_path / "tensorboard")
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.rename(first.with_name("events.out.tfevents.1234567890.here"))  # not in the same second
    write_run(tmp_path / "m", 4, 9, tmp_path / "tensorboard")
    lines = [
        (line["step"], name, np.float32(value))
        for line in read_metrics(tmp_path / "m")
        for name, value in line.items()
        if name != "step"
    ]
    assert events(tmp_path / "tensorboard") == lines
    assert len(lines) == 9 * 2 + 3


# The event file that could not be flushed cannot be closed either.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_for_tensorboard_alone_is_one_warning(tmp_path):
    metrics = Metrics(tmp_path / "m", 0, tmp_path / "tensorboard")
    names = [f"name{number}" for number in range(20)]

    def write():
        warnings = [metrics.write(step, dict.fromkeys(names, 1.0)) for step in range(1, 60)]
        metrics.close()
        return warnings

    warnings = limited(40_000, write)
    (warning,) = filter(None, warnings)
    assert "TensorBoard" in warning
    assert [line["step"] for line in read_metrics(tmp_path / "m")] == list(range(1, 60))
