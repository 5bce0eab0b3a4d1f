"""The prefix: what it starts from, what its network is, and the positions that it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest
from ml_collections import ConfigDict
from tiny_methods import LM, PLAIN, TASK, adapt, first, keep, make
from tiny_models import SPEC

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.cached import bake
from prompt_tuning_jax.models.sites import PREFIX
from prompt_tuning_jax.run.artifact import load_start
from prompt_tuning_jax.score import encode_for

SIZE, HIDDEN = 4, 5
SHAPE = (SPEC.layers, SIZE, SPEC.kv_heads, SPEC.head_size)
REST = [99, 98, 97, 96]
KEY = jax.random.key(0)


def made(seed=0, lm=LM, size=SIZE, **settings):
    """What the model is handed first."""
    method = make(name="prefix", num_virtual_tokens=size, **settings)
    return adapt(method, first(method, jax.random.key(seed), lm), lm=lm)


def pair(given):
    """The keys and the values."""
    return {name: given.sites[path] for name, path in PREFIX.items()}


def trained(seed=0, **settings):
    """A method with a network, and a tree all of whose leaves are random."""
    method = make(name="prefix", num_virtual_tokens=SIZE, hidden_size=HIDDEN, **settings)
    tree = first(method)
    rng = np.random.default_rng(seed)
    return method, jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), tree)


@pytest.mark.parametrize("hidden_size", [0, HIDDEN])
@pytest.mark.parametrize("text", ["ab thet", "a"])
def test_a_text_becomes_its_own_keys_and_values(text, hidden_size):
    """Repeated or cut to P, and read by the model that knows no prefix but the numpy one."""
    ids = np.resize(LM.tokenizer.encode(text)[0], SIZE).tolist()
    given = made(init="text", init_text=text, hidden_size=hidden_size)
    wanted = plain_model.states(PLAIN, ids + REST)[SIZE:]
    found = plain_model.states(PLAIN, REST, given)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_random_has_the_deviation_that_was_asked_for():
    found = pair(made(size=100, init="random", init_scale=0.3))
    for leaf in found.values():
        assert leaf.mean() == pytest.approx(0, abs=0.02)
        assert leaf.std() == pytest.approx(0.3, rel=0.05)
    assert (found["k"] != found["v"]).all()


def test_zero_is_zero_with_a_network_too():
    for hidden_size in (0, HIDDEN):
        for leaf in pair(made(init="zero", hidden_size=hidden_size)).values():
            assert leaf.shape == SHAPE and not leaf.any()


def test_another_seed_is_another_prefix():
    for init in ("random", "vocabulary"):
        first, again, other = (pair(made(seed, init=init))["k"] for seed in (0, 0, 1))
        assert (first == again).all() and (first != other).any()


def test_the_first_prefix_of_a_half_precision_model_is_float32():
    half = LM._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), LM.params))
    found, wanted = (pair(made(lm=lm, init="text", init_text="ab the")) for lm in (half, LM))
    for name, leaf in found.items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, wanted[name], atol=0.1)


def test_an_earlier_prefix_is_where_training_goes_on(tmp_path):
    earlier = plain_model.random_given(0, SPEC, "prefix", size=SIZE)
    folder = keep(tmp_path / "earlier", earlier)
    jax.tree.map(np.testing.assert_array_equal, made(init="file", init_file=folder), earlier)
    message = r"a prefix of {'k': \(3, 4, 2, 10\).*}: expected 'k' and 'v' of \(3, 2, 2, 10\)"
    with pytest.raises(UserError, match=message):
        made(size=2, init="file", init_file=folder)


@pytest.mark.parametrize("kind", ["artifact", "npy"])
def test_an_earlier_soft_prompt_becomes_a_prefix(tmp_path, kind):
    prompt = plain_model.random_given(0, SPEC, "prompt", size=SIZE)
    if kind == "npy":
        path = str(tmp_path / "prompt.npy")
        np.save(path, prompt.sites["prompt/vectors"])
    else:
        path = keep(tmp_path / "prompt", prompt)
    wanted = pair(bake(LM, -1 - np.arange(SIZE), prompt))
    found = pair(made(init="file", init_file=path))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_start_is_found_at_home_and_a_missing_one_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "prompt.npy", np.ones((2, 3)))
    settings = ConfigDict({"init": "file", "init_file": "~/prompt.npy"})
    assert load_start(settings)["prompt/vectors"].shape == (2, 3)
    settings.init_file = str(tmp_path / "promt.npy")
    fault = r"config\.method\.init_file .* does not exist \(did you mean '.*/prompt\.npy'\?\)"
    with pytest.raises(UserError, match=fault):
        load_start(settings)


def test_a_prefix_that_leaves_no_position_is_refused_before_it_takes_memory():
    for init, size in (("zero", 128), ("random", 10**12), ("vocabulary", 10**12)):
        with pytest.raises(UserError, match=rf"num_virtual_tokens is {size}: expected fewer than"):
            made(size=size, init=init)


def test_the_network_adds_to_what_is_trained_beside_it():
    method, tree = trained()
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    inner, last = weights["network"]["layers_0"], weights["network"]["layers_2"]
    found = pair(adapt(method, tree))
    for token in range(SIZE):
        hidden = np.tanh(weights["inputs"][token] @ inner["kernel"] + inner["bias"])
        keys, values = np.split(hidden @ last["kernel"] + last["bias"], 2)
        for name, part in (("k", keys), ("v", values)):
            for layer, of_layer in enumerate(np.split(part, SPEC.layers)):
                wanted = weights[name][layer, token].ravel() + of_layer
                ours = found[name][layer, token].ravel()
                np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def encoded(size, text="a", max_length=0):
    """The example of a text behind a prefix."""
    prefix = plain_model.random_given(0, SPEC, "prefix", size=size)
    return encode_for(LM, TASK, [{"text": text}], prefix, max_length)[0]


@pytest.mark.parametrize("size", [1, 50, 110])
def test_a_long_text_has_the_positions_that_a_prefix_leaves(size):
    example = encoded(size, "a" * 500)
    fed = len(example.trunk) + max(map(len, example.tails)) - 1
    assert fed == SPEC.max_positions - size and example.dropped > 0
    assert min(example.trunk) >= 0, "there are no slots"


def test_the_tasks_own_limit_counts_the_text_alone():
    lengths = [len(encoded(size, "a" * 500, 30).trunk) for size in (1, 50)]
    assert lengths[0] == lengths[1] <= 30


def test_a_prefix_that_leaves_too_few_positions_is_refused():
    with pytest.raises(UserError, match=r"1 are allowed.*fewer virtual tokens"):
        encoded(127)
    for size in (128, 200):
        message = rf"the prefix takes {size} positions and the model has 128"
        with pytest.raises(UserError, match=message):
            encoded(size)
