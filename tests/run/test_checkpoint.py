"""Checkpoints: what comes back is bit for bit what was saved, or an older one, or a refusal."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import full_disk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.checkpoint import Checkpoints


class State(NamedTuple):
    step: Any
    trainable: Any
    optimizer_state: Any
    best: Any
    refused: Any


def make(step, seed=0):
    """A state as a run has it: jax arrays, optax's named tuples, counts, unusual floats."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((4, 6)).astype(np.float32)
    vectors[0] = [np.nan, np.inf, -0.0, 1e-42, np.finfo(np.float32).max, 0.1]
    trainable = {"vectors": jnp.asarray(vectors), "half": jnp.ones((3,), jnp.bfloat16)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(
        jnp.asarray(step, jnp.int32),
        trainable,
        optimizer.init(trainable),
        {"vectors": vectors[::-1]},
        np.zeros((), np.int32),
    )


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def fill(folder, steps, keep=2):
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, make(step, seed=step), {"best_loss": step / 3}) == ""


def test_nothing_is_there_at_first(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.restore(make(0)) is None


def test_the_newest_state_comes_back_bit_for_bit(tmp_path):
    extra = {"best_loss": float("inf"), "best_step": 0, "seconds": 0.1, "list": [1, None, "é"]}
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step in (5, 10):
            assert checkpoints.save(step, make(step, seed=step), extra) == ""
        assert checkpoints.latest() == 10
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(make(0))
    assert (restored.step, restored.extra, restored.warning) == (10, extra, "")
    assert_same(restored.state, make(10, seed=10))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored.state))


def test_the_newest_two_are_kept(tmp_path):
    fill(tmp_path, (1, 2, 3, 4))
    assert sorted(os.listdir(tmp_path)) == ["3", "4"]


def files_of(step: Path):
    return sorted(path.relative_to(step) for path in step.rglob("*") if path.is_file())


def test_any_damaged_file_gives_the_right_values_or_an_older_checkpoint(tmp_path, capfd, caplog):
    fill(tmp_path / "sound", (1, 2))
    fell_back = 0
    for name in files_of(tmp_path / "sound" / "2"):
        data = (tmp_path / "sound" / "2" / name).read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        for damage in (None, data[: len(data) // 2], bytes(flipped)):
            folder = tmp_path / "damaged"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "sound", folder)
            (folder / "2" / name).unlink()
            if damage is not None:
                (folder / "2" / name).write_bytes(damage)
            with Checkpoints(folder) as checkpoints:
                restored = checkpoints.restore(make(0))
                assert_same(restored.state, make(restored.step, seed=restored.step))
                assert restored.extra == {"best_loss": restored.step / 3}
                if restored.step == 1:
                    fell_back += 1
                    assert "step 2" in restored.warning and "from step 1" in restored.warning
                    assert checkpoints.latest() == 1
                else:
                    assert restored.warning == ""
    assert fell_back >= 6
    assert caplog.records == [] and capfd.readouterr() == ("", "")


def test_only_callbacks_into_a_closed_event_loop_are_kept_quiet(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    closed, other = (
        SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "no")
    )
    with Checkpoints(tmp_path):
        sys.unraisablehook(closed)
        sys.unraisablehook(other)
    assert heard == [other]
    sys.unraisablehook(closed)
    assert heard == [other, closed]


def test_a_run_goes_on_after_a_damaged_checkpoint(tmp_path):
    fill(tmp_path, (1, 2))
    shutil.rmtree(tmp_path / "2" / "state")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make(0)).step == 1
        assert checkpoints.save(2, make(2, seed=7), {}) == ""
        assert_same(checkpoints.restore(make(0)).state, make(2, seed=7))


def test_values_that_were_changed_with_valid_checksums_of_orbax_are_not_used(tmp_path):
    fill(tmp_path / "a", (1, 2))
    fill(tmp_path / "b", (1,))
    with Checkpoints(tmp_path / "b") as checkpoints:
        checkpoints.save(2, make(2, seed=8), {"best_loss": 2 / 3})
    shutil.rmtree(tmp_path / "a" / "2" / "state")
    shutil.copytree(tmp_path / "b" / "2" / "state", tmp_path / "a" / "2" / "state")
    with Checkpoints(tmp_path / "a") as checkpoints:
        assert checkpoints.restore(make(0)).step == 1


def test_a_checkpoint_under_the_name_of_another_step_is_not_used(tmp_path):
    fill(tmp_path, (1, 2))
    shutil.copytree(tmp_path / "1", tmp_path / "7")
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(make(0))
        assert restored.step == 2 and "step 7" in restored.warning
        assert_same(restored.state, make(2, seed=2))
    shutil.rmtree(tmp_path / "2")
    (tmp_path / "1").rename(tmp_path / "3")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="renamed"):
        checkpoints.restore(make(0))


@pytest.mark.parametrize(
    "other",
    (
        make(0)._replace(best={"vectors": np.zeros((5, 6), np.float32)}),
        make(0)._replace(best={"vectors": np.zeros((4, 6), np.float16)}),
        make(0)._replace(best={"vector": np.zeros((4, 6), np.float32)}),
        make(0)._replace(optimizer_state=()),
    ),
    ids=("shape", "dtype", "name", "structure"),
)
def test_checkpoints_of_another_state_are_refused_and_left_alone(tmp_path, other):
    fill(tmp_path, (1, 2))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="--fresh"):
        checkpoints.restore(other)
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make(0)).step == 2


def test_a_disk_that_refuses_is_a_warning_and_older_checkpoints_stay(tmp_path, capfd):
    big = make(3)._replace(best={"vectors": np.random.default_rng(0).bytes(1 << 20)})
    big = big._replace(best={"vectors": np.frombuffer(big.best["vectors"], np.uint8)})
    fill(tmp_path, (1, 2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 4):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))
            try:
                warning = checkpoints.save(step, big, {})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert f"step {step}" in warning and "File too large" in warning
            assert "\n" not in warning
            assert sorted(os.listdir(tmp_path)) == ["1", "2"]
        assert checkpoints.restore(make(0)).step == 2
        assert checkpoints.save(5, make(5, seed=5), {}) == ""
        assert_same(checkpoints.restore(make(0)).state, make(5, seed=5))
    assert capfd.readouterr() == ("", "")


def test_what_a_failed_save_goes_on_with_leaves_and_says_nothing(tmp_path, capfd, caplog):
    for number in range(10):
        folder = tmp_path / str(number)
        with Checkpoints(folder) as checkpoints:
            # One of two parts that are written at once; the other does not hear of it.
            extra = folder / "1.orbax-checkpoint-tmp" / "extra.orbax-checkpoint-tmp"
            with full_disk.refusing(extra, lambda number, call: call == "open metadata") as calls:
                assert "No space left" in checkpoints.save(1, make(1), {})
            assert calls.refused and os.listdir(folder) == []
        assert os.listdir(folder) == []
    assert caplog.records == [] and capfd.readouterr() == ("", "")


_SAVES_UNTIL_KILLED = """
import sys
import numpy as np
from prompt_tuning_jax.checkpoint import Checkpoints

with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(1, 100000):
        state = {"values": np.full((64, 64), step, np.float32), "step": np.int32(step)}
        assert checkpoints.save(step, state, {"step": step}) == ""
        print(step, flush=True)
"""


@pytest.mark.parametrize("delay", (0.0, 0.031))
def test_a_kill_while_saving_leaves_the_last_whole_checkpoint(tmp_path, delay):
    process = subprocess.Popen(
        [sys.executable, "-c", _SAVES_UNTIL_KILLED, str(tmp_path / "c")],
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [process.stdout.readline() for _ in range(3)]
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    said = int((lines + process.stdout.readlines())[-1])
    process.wait()
    process.stdout.close()
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(
            {"values": np.zeros((64, 64), np.float32), "step": np.int32(0)}
        )
        assert restored.step in (said, said + 1) and restored.warning == ""
        assert restored.extra == {"step": restored.step} and restored.state["step"] == restored.step
        np.testing.assert_array_equal(restored.state["values"], restored.step)
        assert not [name for name in os.listdir(tmp_path / "c") if "tmp" in name]
