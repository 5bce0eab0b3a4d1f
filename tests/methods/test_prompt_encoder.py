"""The prompt encoder: its formula, and where it starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_methods import adapt, first, make
from tiny_models import SPEC

SIZE = 4
KEY = jax.random.key(0)


def method(hidden_size=5, **settings):
    return make(name="prompt_encoder", num_virtual_tokens=SIZE, hidden_size=hidden_size, **settings)


def vectors(made, tree):
    return np.asarray(adapt(made, tree).sites["prompt/vectors"])


@pytest.mark.parametrize("init", ["text", "vocabulary", "labels", "uniform"])
@pytest.mark.parametrize("hidden_size", [0, 5])
def test_it_starts_at_the_soft_prompt_of_the_same_init(init, hidden_size):
    settings = {"init": init, "init_text": "ab the"}
    made = method(hidden_size, **settings)
    tree = first(made)
    wanted = first(make(num_virtual_tokens=SIZE, **settings))["vectors"]
    np.testing.assert_array_equal(vectors(made, tree), wanted)
    kernel = tree["network"]["layers_0"]["kernel"]
    assert kernel.shape == (SPEC.width, hidden_size or SPEC.width)
    assert kernel.std() == pytest.approx(SPEC.width**-0.5, rel=0.3)


def test_a_virtual_token_is_its_input_and_what_the_network_makes_of_it():
    made, rng = method(), np.random.default_rng(0)
    tree = first(made)
    tree = jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), tree)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    inner, last = weights["network"]["layers_0"], weights["network"]["layers_2"]
    for token, given in enumerate(weights["inputs"]):
        hidden = np.maximum(given @ inner["kernel"] + inner["bias"], 0)
        wanted = given + hidden @ last["kernel"] + last["bias"]
        np.testing.assert_allclose(vectors(made, tree)[token], wanted, rtol=1e-5, atol=1e-5)
