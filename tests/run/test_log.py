"""The log of a run: lines of metrics that a kill or a full disk cannot spoil, and what it says."""

import json
import resource
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run import log as run_logs
from prompt_tuning_jax.run.folder import METRICS, TENSORBOARD
from prompt_tuning_jax.run.log import RunLog, read_metrics

BATCH = SimpleNamespace(shared=np.zeros(3), segments=np.ones((2, 4)))


def logged(losses, start=0, folder=None, **settings):
    """What is logged of losses that follow each other from step `start` on."""
    log = []
    config = configs.build({"steps": 500, "log_every": 1, **settings})
    with RunLog(config, folder, log.append, start) as run_log:
        for step, loss in enumerate(losses, start + 1):
            run_log.add(step, {"loss": np.float32(loss), "refused_in_a_row": 0.0}, BATCH)
            if step % 3 == 0:
                run_log.flush()
                run_log.add_validation(step, {"loss": float(step)}, 0.0)
        run_log.flush()
    return [line for line in log if "warning" in line]


def train(folder, start, stop, **settings):
    """Logs the steps after `start` up to `stop`; returns the warnings."""
    return logged([1 / step for step in range(start + 1, stop + 1)], start, folder, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The lines of a run of twelve steps."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, 0, 12) == []
    return (folder / METRICS).read_bytes().splitlines(keepends=True)


@given(
    saved=st.integers(0, 12),
    cut=st.integers(0, 2000),
    damage=st.sampled_from((b"", b'{"step": 13', b"\0\0\0\n", b'"text"\n', b"[1]\n")),
)
def test_a_resumed_file_equals_one_that_never_stopped(tmp_path_factory, whole, saved, cut, damage):
    folder = tmp_path_factory.mktemp("m")
    kept = b"".join(line for line in whole if json.loads(line)["step"] <= saved)
    # Whatever a kill left after the lines of the last checkpoint.
    (folder / METRICS).write_bytes(kept + b"".join(whole)[len(kept) :][:cut] + damage)
    train(folder, saved, 12)
    assert (folder / METRICS).read_bytes() == b"".join(whole)


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 2, "tra',
        b"\xff\x00",
        b"[" * 100_000,
        b'{"step": 2, "train/loss": "a"}',
        b"[2]",
        b'{"step": -' + b"9" * 23 + b"}",
        b'{"step": 2, "train/loss": ' + b"9" * 400 + b"}",
        b'{"step": 2, "train/loss": NaN}',
    ],
)
def test_a_damaged_line_is_left_out_and_counted_and_the_others_stay(tmp_path, whole, damage):
    lines = [whole[0], damage + b"\n", *whole[2:]]
    (tmp_path / METRICS).write_bytes(b"".join(lines) + b'{"step": 13')
    assert train(tmp_path, 12, 12) == [f"warning: 1 damaged lines of {METRICS} are left out"]
    assert (tmp_path / METRICS).read_bytes() == b"".join(lines[:1] + lines[2:])


def test_numbers_that_are_not_finite_are_null(tmp_path):
    logged([1.0, float("nan"), float("inf")], folder=tmp_path)
    found = [line.get("train/loss") for line in read_metrics(tmp_path / METRICS)]
    assert found == [1.0, None, None, None] and b"null" in (tmp_path / METRICS).read_bytes()


@pytest.fixture
def limited():
    """Sets how large files can grow."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_lines_that_a_full_disk_refused_are_written_when_there_is_room(tmp_path, whole, limited):
    log = []
    config = configs.build({"steps": 500, "log_every": 1})
    with RunLog(config, tmp_path, log.append) as run_log:
        for step in range(1, 5):
            limited(10 + len(whole[0]) if step in (2, 3) else resource.RLIM_INFINITY)
            run_log.add(step, {"loss": np.float32(1 / step), "refused_in_a_row": 0.0}, BATCH)
            run_log.flush()
            assert len(read_metrics(tmp_path / METRICS)) == (1 if step in (2, 3) else step)
    assert log == [f"warning: the newest lines are not in {METRICS} yet (File too large)."]


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
    train(tmp_path, 0, 7)
    (first,) = (tmp_path / TENSORBOARD).iterdir()
    first.rename(first.with_name("events.out.tfevents.1234567890.here"))  # not in the same second
    train(tmp_path, 4, 9)
    lines = [
        (line["step"], name, np.float32(value))
        for line in read_metrics(tmp_path / METRICS)
        for name, value in line.items()
        if name != "step"
    ]
    assert events(tmp_path / TENSORBOARD) == lines
    assert len(lines) == 9 + 3


# The event file that could not be flushed cannot be closed either.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_for_tensorboard_alone_is_one_warning(tmp_path, monkeypatch, limited):
    monkeypatch.setattr(run_logs, "_as_text", lambda line: b"\n")
    limited(20_000)
    [warning] = train(tmp_path, 0, 400)
    assert warning == "warning: TensorBoard's files lack the newest steps (File too large)."


def test_files_that_cannot_be_made_are_refused(tmp_path):
    (tmp_path / TENSORBOARD).touch()
    with pytest.raises(UserError, match=r"cannot be written \(File exists\)"):
        train(tmp_path, 0, 1)


def test_a_loss_that_has_not_moved_fifty_steps_after_the_warm_up_is_said_once():
    # The fallen loss of step 65 is among the last twenty and not enough.
    still = [*[2.0] * 64, 1.9, *[2.0] * 200]
    settings = {"schedule": {"warmup_steps": 20}}
    assert logged(still[:69], **settings) == []
    [line] = logged(still, **settings)
    assert line.startswith("warning: after 70 steps the loss has not moved, from 2.000 to 1.995: ")
    [line] = logged(still, schedule={"warmup_steps": 0})
    assert "after 50 steps" in line


def test_a_loss_that_moved_or_whose_first_values_are_not_known_is_not_said():
    assert logged(np.linspace(2.0, 1.9, 200)) == []
    assert logged([2.0] * 200, start=1) == []


def test_the_time_left_is_that_to_the_step_where_it_ends_for_now():
    log = []
    with RunLog(configs.build({"steps": 9}), None, log.append, end=4) as run_log:
        run_log._said -= 99
        run_log.add(4, {"loss": np.float32(1), "refused_in_a_row": 0.0}, BATCH)
        run_log.flush()
    assert log[0].startswith("step 4/9 ") and log[0].endswith("0:00 left")


def test_a_warning_is_given_once_of_each_kind():
    log = []
    with RunLog(configs.build({}), None, log.append) as run_log:
        for kind, sentence in (("a", ""), ("a", "one"), ("b", "two"), ("a", "three")):
            run_log.warn(kind, sentence)
    assert log == ["warning: one", "warning: two"]
