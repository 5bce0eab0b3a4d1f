"""Optimizers and schedules at the numbers that a config names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning_jax import config as configs
from prompt_tuning_jax import optimizers
from prompt_tuning_jax.config.schema import OPTIMIZERS, SCHEDULES
from prompt_tuning_jax.errors import UserError

# Lester et al. 2021, with the released runs' step counter going on from T5's own training.
LESTER = (
    "--config.steps=30000",
    "--config.learning_rate=0.3",
    "--config.schedule.name=constant",
    "--config.schedule.warmup_steps=0",
    "--config.optimizer.name=adafactor",
    "--config.optimizer.clip_norm=0",
    "--config.optimizer.weight_decay=1e-5",
    "--config.optimizer.decay_offset=-1100000",
)
SGD = (
    "--config.optimizer.name=sgd",
    "--config.optimizer.b1=0",
    "--config.schedule.name=constant",
    "--config.schedule.warmup_steps=0",
    "--config.learning_rate=0.5",
)


def config(*overrides):
    return configs.load(None, overrides)


def updates(made, gradients, parameters):
    """The updates that one gradient after another makes."""
    state, found = made.init(parameters), []
    for gradient in gradients:
        update, state = jax.jit(made.update)(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, update)
        found.append(jax.tree.map(np.asarray, update))
    return found


def test_adafactor_as_lester_et_al_ran_it_takes_steps_of_their_learning_rate():
    rng = np.random.default_rng(0)
    gradients = [rng.normal(0, scale, (100, 64)).astype(np.float32) for scale in (1e-3, 5.0, 0.1)]
    parameters = jnp.asarray(rng.normal(0, 10, (100, 64)), jnp.float32)
    for found in updates(optimizers.make(config(*LESTER)), gradients, parameters):
        np.testing.assert_allclose(np.sqrt((found**2).mean()), 0.3, rtol=1e-2)


def test_adafactor_without_their_offset_does_not():
    """What the offset is for: the second gradient is smaller, and so is its step."""
    overrides = [word for word in LESTER if "offset" not in word]
    gradients = [jnp.full((4, 8), 1.0), jnp.full((4, 8), 0.1)]
    first, second = updates(optimizers.make(config(*overrides)), gradients, jnp.zeros((4, 8)))
    np.testing.assert_allclose(first, -0.3, rtol=1e-3)
    assert np.abs(second).max() < 0.1


def test_adafactor_decays_weights_and_scales_by_them_where_asked():
    gradient, parameters = [jnp.zeros((4, 8))], jnp.full((4, 8), 2.0)
    (found,) = updates(optimizers.make(config(*LESTER)), gradient, parameters)
    np.testing.assert_allclose(found, -2e-5, rtol=1e-4)
    scaled = config(*LESTER, "--config.optimizer.multiply_by_parameter_scale=true")
    (found,) = updates(optimizers.make(scaled), [jnp.ones((4, 8))], parameters)
    np.testing.assert_allclose(found, -0.6 - 2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        # Steps 0, 1, 3, 4 (the rise is over), 12 (half of the rest), 19 (the last), 20.
        ("constant", [0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.2, 0.4, 0.8, 1.0, 0.5, 1 / 16, 0.0]),
        ("cosine", [0.2, 0.4, 0.8, 1.0, 0.5, (1 + np.cos(np.pi * 15 / 16)) / 2, 0.0]),
    ],
)
def test_schedules_rise_then_fall(name, values):
    rate = optimizers.schedule(
        config(
            f"--config.schedule.name={name}",
            "--config.schedule.warmup_steps=4",
            "--config.steps=20",
            "--config.learning_rate=3",
        )
    )
    found = [float(rate(step)) for step in (0, 1, 3, 4, 12, 19, 20)]
    np.testing.assert_allclose(found, 3 * np.array(values), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 5])
def test_schedules_without_a_rise_or_a_rest(name, warmup):
    rate = optimizers.schedule(
        config(
            f"--config.schedule.name={name}",
            f"--config.schedule.warmup_steps={warmup}",
            "--config.steps=5",
            "--config.learning_rate=1",
        )
    )
    rates = [float(rate(step)) for step in range(5)]
    assert all(0 < value <= 1 for value in rates)
    assert rates[0] == pytest.approx(1.0 if warmup == 0 else 1 / 6)


@pytest.mark.parametrize(
    ("clip_norm", "factor"), [(1.0, 1 / 5), (2.5, 1 / 2), (5.0, 1.0), (0.0, 1.0)]
)
def test_gradients_are_clipped_by_their_norm_over_all_leaves(clip_norm, factor):
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    made = optimizers.make(config(*SGD, f"--config.optimizer.clip_norm={clip_norm}"))
    (found,) = updates(made, [gradient], jax.tree.map(jnp.zeros_like, gradient))
    np.testing.assert_allclose(found["a"], [-1.5 * factor, 0], rtol=1e-5)
    np.testing.assert_allclose(found["b"], [[-2.0 * factor]], rtol=1e-5)


def test_sgd_adam_and_adamw_are_their_formulas():
    gradient, parameters = [jnp.array([2.0]), jnp.array([-1.0])], jnp.array([10.0])
    plain = ("--config.optimizer.clip_norm=0", *SGD[2:])

    def made(name, *more):
        given = config(*plain, f"--config.optimizer.name={name}", *more)
        return [float(found[0]) for found in updates(optimizers.make(given), gradient, parameters)]

    momentum = made("sgd", "--config.optimizer.b1=0.5")
    np.testing.assert_allclose(momentum, [-0.5 * 2.0, -0.5 * (0.5 * 2.0 - 1.0)])
    # The second step's moments without their bias: (0.5 * 2 * 0.5 - 0.5) / 0.75, and so on.
    betas = ("--config.optimizer.b1=0.5", "--config.optimizer.b2=0.75")
    first = (0.5 * 0.5 * 2.0 + 0.5 * -1.0) / (1 - 0.5**2)
    second = (0.75 * 0.25 * 4.0 + 0.25 * 1.0) / (1 - 0.75**2)
    wanted = [-0.5, -0.5 * first / np.sqrt(second)]
    np.testing.assert_allclose(made("adam", *betas), wanted, atol=1e-6)
    decayed = made("adamw", *betas, "--config.optimizer.weight_decay=0.1")
    shrunk = [10.0, 10.0 - 0.5 - 0.5 * 0.1 * 10.0]
    wanted = [step - 0.5 * 0.1 * value for step, value in zip(wanted, shrunk, strict=True)]
    np.testing.assert_allclose(decayed, wanted, rtol=1e-6)


def test_every_optimizer_of_the_config_can_be_made():
    for name in OPTIMIZERS:
        made = optimizers.make(config(f"--config.optimizer.name={name}"))
        (found,) = updates(made, [jnp.ones((2, 3))], jnp.ones((2, 3)))
        assert (found < 0).all(), name


def test_an_unknown_optimizer_is_refused_with_those_there_are():
    unlocked = config().unlock()
    unlocked.optimizer.name = "lion"
    with pytest.raises(UserError, match=r"'lion'; it can be adamw, adam, sgd, adafactor"):
        optimizers.make(unlocked)
