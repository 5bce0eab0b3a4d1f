"""Checkpoints: what comes back is bit for bit what was saved, or an older one, or a refusal."""

import os
import resource
import shutil
import time
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


def make(step, seed=0):
    """A state like that of a run: jax arrays, optax's named tuples, counts, unusual floats."""
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
    )


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def fill(folder, steps):
    checkpoints = Checkpoints(folder)
    for step in steps:
        assert checkpoints.save(step, make(step, seed=step), {"best_loss": step / 3}) == ""
    return checkpoints


def test_the_newest_of_two_states_comes_back_bit_for_bit(tmp_path):
    extra = {"best_loss": float("inf"), "best_step": 0, "seconds": 0.1, "list": [1, None, "é"]}
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(make(0)) is None
    for step in (1, 5, 10):
        assert checkpoints.save(step, make(step, seed=step), extra) == ""
    assert sorted(os.listdir(tmp_path)) == ["10", "5"]
    restored = Checkpoints(tmp_path).restore(make(0))
    assert (restored.step, restored.extra, restored.warning) == (10, extra, "")
    assert_same(restored.state, make(10, seed=10))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored.state))


def test_any_damaged_file_gives_the_right_values_or_an_older_checkpoint(tmp_path, capfd, caplog):
    fill(tmp_path / "sound", (1, 2))
    fell_back = 0
    newest = tmp_path / "sound" / "2"
    for name in [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]:
        data = (newest / name).read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        for damage in (None, data[: len(data) // 2], bytes(flipped)):
            folder = tmp_path / "damaged"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "sound", folder)
            (folder / "2" / name).unlink()
            if damage is not None:
                (folder / "2" / name).write_bytes(damage)
            checkpoints = Checkpoints(folder)
            restored = checkpoints.restore(make(0))
            assert_same(restored.state, make(restored.step, seed=restored.step))
            assert restored.extra == {"best_loss": restored.step / 3}
            if restored.step == 1:
                fell_back += 1
                assert "step 2" in restored.warning and "from step 1" in restored.warning
                assert checkpoints.steps() == [1]
            else:
                assert restored.warning == ""
    assert fell_back >= 6
    assert caplog.records == [] and capfd.readouterr() == ("", "")


def test_a_run_goes_on_after_a_damaged_checkpoint(tmp_path):
    checkpoints = fill(tmp_path, (1, 2))
    (tmp_path / "2" / "_METADATA").unlink()
    assert checkpoints.restore(make(0)).step == 1
    assert checkpoints.save(2, make(2, seed=7), {}) == ""
    assert_same(checkpoints.restore(make(0)).state, make(2, seed=7))


def test_changed_values_are_not_used_though_orbax_accepts_them(tmp_path):
    checkpoints = fill(tmp_path, (1, 2))
    saved = checkpoints._orbax.restore(tmp_path / "2")
    saved["bytes"][9] ^= 1
    checkpoints._orbax.save(tmp_path / "2", saved, force=True)
    assert checkpoints.restore(make(0)).step == 1


def test_a_checkpoint_under_the_name_of_another_step_is_not_used(tmp_path):
    checkpoints = fill(tmp_path, (1, 2))
    shutil.copytree(tmp_path / "1", tmp_path / "7")
    restored = checkpoints.restore(make(0))
    assert restored.step == 2 and "step 7" in restored.warning
    assert_same(restored.state, make(2, seed=2))
    shutil.rmtree(tmp_path / "2")
    (tmp_path / "1").rename(tmp_path / "3")
    with pytest.raises(UserError, match="renamed"):
        checkpoints.restore(make(0))


@pytest.mark.parametrize(
    "other",
    (
        make(0)._replace(best={"vectors": np.zeros((5, 6), np.float32)}),
        make(0)._replace(best={"vectors": np.zeros((6, 4), np.float32)}),
        make(0)._replace(best={"vectors": np.zeros((4, 6), np.float16)}),
        make(0)._replace(best={"vector": np.zeros((4, 6), np.float32)}),
        make(0)._replace(optimizer_state=()),
    ),
    ids=("size", "shape", "dtype", "name", "structure"),
)
def test_checkpoints_of_another_state_are_refused_and_kept(tmp_path, other):
    checkpoints = fill(tmp_path, (1, 2))
    with pytest.raises(UserError, match="--fresh"):
        checkpoints.restore(other)
    assert checkpoints.restore(make(0)).step == 2


def test_a_full_disk_is_one_warning_and_older_checkpoints_stay(tmp_path, capfd, caplog):
    noise = np.frombuffer(np.random.default_rng(0).bytes(1 << 20), np.uint8)
    big = make(3)._replace(best={"vectors": noise})
    checkpoints = fill(tmp_path, (1, 2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (1 << 18, 1 << 10, 100):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            warning = checkpoints.save(3, big, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert warning == "the checkpoint of step 3 could not be saved (File too large)."
        assert sorted(os.listdir(tmp_path)) == ["1", "2"]
    for number in range(1, 20):
        with full_disk.refusing(tmp_path, lambda place, _, number=number: place == number) as calls:
            warning = checkpoints.save(3, make(3), {})
        if not calls.refused:
            break
        assert "No space left" in warning and sorted(os.listdir(tmp_path)) == ["1", "2"]
    assert number > 5 and checkpoints.restore(make(0)).step == 3
    time.sleep(0.1)  # for what a thread of orbax might still say
    assert caplog.records == [] and capfd.readouterr() == ("", "")
