"""Optimizers and schedules at the numbers that a config names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.optimizers import OPTIMIZERS, SCHEDULE_KEYS, make_optimizer, make_schedule

PLAIN = "schedule.name=constant schedule.warmup_steps=0 optimizer.clip_norm=0 learning_rate=0.5"
# Lester et al. 2021, with the released runs' step counter going on from T5's own training.
LESTER = f"{PLAIN} learning_rate=0.3 optimizer.name=adafactor optimizer.weight_decay_rate=1e-5"
OFFSET = "optimizer.decay_offset=-1100000"


def config(*words):
    return configs.load(None, [f"--config.{word}" for word in " ".join(words).split()])


def optimizer(*words):
    return make_optimizer(config(*words))


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
    for found in updates(optimizer(LESTER, OFFSET), gradients, parameters):
        np.testing.assert_allclose(np.sqrt((found**2).mean()), 0.3, rtol=1e-2)


def test_adafactor_without_their_offset_takes_a_smaller_step_for_a_smaller_gradient():
    gradients = [jnp.full((4, 8), 1.0), jnp.full((4, 8), 0.1)]
    first, second = updates(optimizer(LESTER), gradients, jnp.zeros((4, 8)))
    np.testing.assert_allclose(first, -0.3, rtol=1e-3)
    assert np.abs(second).max() < 0.1


def test_adafactor_decays_weights_and_scales_by_them_where_asked():
    gradient, parameters = [jnp.zeros((4, 8))], jnp.full((4, 8), 2.0)
    (found,) = updates(optimizer(LESTER, OFFSET), gradient, parameters)
    np.testing.assert_allclose(found, -2e-5, rtol=1e-4)
    scaled = optimizer(LESTER, OFFSET, "optimizer.multiply_by_parameter_scale=true")
    (found,) = updates(scaled, [jnp.ones((4, 8))], parameters)
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
    given = config(f"schedule.name={name} schedule.warmup_steps=4 steps=20 learning_rate=3")
    rate = make_schedule(given)
    found = [float(rate(step)) for step in (0, 1, 3, 4, 12, 19, 20)]
    np.testing.assert_allclose(found, 3 * np.array(values), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULE_KEYS["name"].names)
@pytest.mark.parametrize("warmup", [0, 5])
def test_schedules_without_a_rise_or_a_rest(name, warmup):
    given = config(f"schedule.name={name} schedule.warmup_steps={warmup} steps=5 learning_rate=1")
    rate = make_schedule(given)
    rates = [float(rate(step)) for step in range(5)]
    assert all(0 < value <= 1 for value in rates)
    assert rates[0] == pytest.approx(1.0 if warmup == 0 else 1 / 6)


@pytest.mark.parametrize(
    ("clip_norm", "factor"), [(1.0, 1 / 5), (2.5, 1 / 2), (5.0, 1.0), (0.0, 1.0)]
)
def test_gradients_are_clipped_by_their_norm_over_all_leaves(clip_norm, factor):
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    made = optimizer(f"{PLAIN} optimizer.name=sgd optimizer.clip_norm={clip_norm}")
    (found,) = updates(made, [gradient], jax.tree.map(jnp.zeros_like, gradient))
    np.testing.assert_allclose(found["a"], [-1.5 * factor, 0], rtol=1e-5)
    np.testing.assert_allclose(found["b"], [[-2.0 * factor]], rtol=1e-5)


def test_sgd_adam_and_adamw_are_their_formulas():
    gradient, parameters = [jnp.array([2.0]), jnp.array([-1.0])], jnp.array([10.0])

    def made(name, *more):
        given = optimizer(f"{PLAIN} optimizer.name={name}", *more)
        return [float(found[0]) for found in updates(given, gradient, parameters)]

    momentum = made("sgd", "optimizer.momentum=0.5")
    np.testing.assert_allclose(momentum, [-0.5 * 2.0, -0.5 * (0.5 * 2.0 - 1.0)])
    # The second step's moments without their bias: (0.5 * 2 * 0.5 - 0.5) / 0.75, and so on.
    betas = "optimizer.b1=0.5 optimizer.b2=0.75"
    first = (0.5 * 0.5 * 2.0 + 0.5 * -1.0) / (1 - 0.5**2)
    second = (0.75 * 0.25 * 4.0 + 0.25 * 1.0) / (1 - 0.75**2)
    wanted = [-0.5, -0.5 * first / np.sqrt(second)]
    np.testing.assert_allclose(made("adam", betas), wanted, atol=1e-6)
    decayed = made("adamw", betas, "optimizer.weight_decay=0.1")
    shrunk = [10.0, 10.0 - 0.5 - 0.5 * 0.1 * 10.0]
    wanted = [step - 0.5 * 0.1 * value for step, value in zip(wanted, shrunk, strict=True)]
    np.testing.assert_allclose(decayed, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_against_the_gradient(name):
    (found,) = updates(optimizer(f"optimizer.name={name}"), [jnp.ones((2, 3))], jnp.ones((2, 3)))
    assert (found < 0).all()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("optimizer.name=lio", r"'lio': expected one of 'adamw', .* \(did you mean 'lion'\?\)"),
        ("optimizer.name=lion optimizer.b2=1", "b2 is 1.0: expected a number of at least 0 and be"),
        ("optimizer.name=sgd optimizer.nesterov=2", "nesterov is '2': expected true or false"),
        ("optimizer.name=sgd optimizer.momentun=0.1", "did you mean 'optimizer.momentum'"),
        ("optimizer.mu_dtype=float16", "is not a known key"),
        ("optimizer.name=adafactor optimizer.decay_offset=1", "a whole number of at most 0"),
    ],
)
def test_what_an_optimizer_cannot_take_is_refused(words, fault):
    with pytest.raises(UserError, match=fault):
        config(words)
