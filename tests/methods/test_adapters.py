"""LoRA, IA3 and fine-tuning: where they start, their formulas, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_model
import pytest
from tiny_methods import KEY, LM, PLAIN, TASK, adapt, first, make
from tiny_models import SPEC

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.batch import Shape, pack_batch
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.sites import PROMPT, VISIBLE, without_leaves
from prompt_tuning_jax.step import Frozen, Parts, compile_step, init_state

LAYERS = [f"attention/{name}" for name in "qkvo"]
LAYERS += [f"feedforward/{name}" for name in ("gate", "up", "down")]
BATCH = pack_batch(plain_model.random_examples(0, 4, ()), 0, [Shape(4, 10, 4, 4)], ranked=False)


def layers(given):
    """The linear layers that something is given for, in order."""
    return list(dict.fromkeys("/".join(path.split("/")[2:4]) for path in given.sites))


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        ((), LAYERS),
        (("q", "v"), ["attention/q", "attention/v"]),
        (("attention/*",), LAYERS[:4]),
        (("decoder/feedforward/down", "q"), ["attention/q", "feedforward/down"]),
    ],
)
def test_lora_stands_where_the_patterns_say(targets, wanted):
    method = make(name="lora", targets=targets, rank=2)
    assert layers(adapt(method, first(method))) == wanted


@pytest.mark.parametrize(("stabilised", "scale"), [(False, 12 / 4), (True, 12 / 2)])
def test_lora_is_its_formula(stabilised, scale):
    method = make(name="lora", rank=4, alpha=12.0, rank_stabilised=stabilised)
    tree = first(method)
    rng = np.random.default_rng(0)
    tree = {path: jnp.float32(rng.normal(size=leaf.shape)) for path, leaf in tree.items()}
    found = adapt(method, tree, train=False)
    for layer in LAYERS:
        a, b = (np.asarray(found.sites[f"lora/decoder/{layer}/{name}"]) for name in "ab")
        one, other = (np.asarray(tree[f"decoder/{layer}/{name}"]) for name in "ab")
        np.testing.assert_allclose(b @ a, scale * (other @ one), rtol=1e-5, atol=1e-4)


def test_lora_begins_as_pytorch_begins_a_linear_layer():
    tree = first(make(name="lora", rank=6))
    for path, leaf in tree.items():
        bound = leaf.shape[-1] ** -0.5
        if path.endswith("/b"):
            assert not leaf.any()
        else:
            assert 0.95 * bound < np.abs(leaf).max() <= bound


def test_dropout_of_lora_leaves_out_whole_inputs_in_training_alone():
    method = make(name="lora", rank=3, dropout=0.5)
    tree = first(method)
    plain, other = adapt(method, tree, train=False), adapt(method, tree, jax.random.key(1))
    shares = []
    for path, leaf in adapt(method, tree).sites.items():
        if path.endswith("/a"):
            left = np.asarray(leaf) / np.asarray(plain.sites[path])
            assert set(np.unique(left.round(5))) <= {0.0, 2.0}
            assert (left == left[:, :1]).all(), "a column is left out or stays"
            assert (left != left[:1]).any(), "each layer has columns of its own"
            shares.append((left == 0).mean())
            assert (np.asarray(other.sites[path]) != np.asarray(leaf)).any()
    assert 0.3 < np.mean(shares) < 0.7


def test_ia3_scales_keys_values_and_activations():
    method = make(name="ia3")
    found = adapt(method, first(method))
    assert layers(found) == ["attention/k", "attention/v", "feedforward/down"]
    assert all((leaf == 1).all() for leaf in found.sites.values())
    assert found.sites["scale/decoder/feedforward/down"].shape == (SPEC.layers, SPEC.feedforward)
    assert layers(adapt(make(name="ia3", targets=("*",)), {})) == []
    everywhere = make(name="ia3", targets=("*",))
    assert layers(adapt(everywhere, first(everywhere))) == LAYERS


@pytest.mark.parametrize(
    ("leaves", "count"),
    [((), 20), (("*norm/scale", "final_norm/scale"), 5), (("last/*",), 9), (("embed/*",), 1)],
)
def test_fine_tuning_trains_the_leaves_that_patterns_name(leaves, count):
    method = make(name="fine_tuning", leaves=leaves)
    tree, fixed = method.init(KEY, LM, TASK)
    assert len(tree) == count
    given = method.adapt(tree, fixed, LM.params, KEY, True)
    assert not given.sites and given.params.keys() == tree.keys()
    for leaf in tree.values():
        assert leaf.dtype == jnp.float32
    # A copy: a step takes the memory of what is trained.
    path, leaf = next(iter(tree.items()))
    leaf.delete()
    held = LM.params
    for name in path.split("/"):
        held = held[name]
    assert np.isfinite(held).all()


def test_a_trained_leaf_is_in_the_frozen_argument_no_more():
    """Measured as the bytes of the compiled step's arguments."""

    def arguments(**settings):
        method = make(**settings)
        trained, fixed = method.init(KEY, LM, TASK)
        given = method.adapt(trained, fixed, LM.params, KEY, True)
        frozen = Frozen(without_leaves(LM.params, given.params), fixed)
        parts = Parts(LM.module, method, optax.sgd(0.1))
        compiled = compile_step(parts, "jit", jax.devices()[:1])
        args = init_state(parts, trained), frozen, compiled.place_batch(BATCH)
        size = compiled.step.lower(*args).compile().memory_analysis().argument_size_in_bytes
        return size, sum(leaf.nbytes for leaf in jax.tree.leaves(trained))

    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(LM.params))
    few, own = arguments(name="ia3")
    assert whole + own <= few < whole + own + 20_000
    all_of_it, own = arguments(name="fine_tuning")
    assert own == whole and whole <= all_of_it < whole + 20_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lora", "targets": ("attention/x",)}, r"'attention/x', which matches none of"),
        ({"name": "lora", "targets": ("atention/q",)}, r"did you mean '.*attention/q'.*down"),
        ({"name": "ia3", "targets": ("mlp",)}, "none of the linear layers"),
        ({"name": "fine_tuning", "leaves": ("bias",)}, r"none of the weights.*embed/embedding"),
    ],
)
def test_what_fits_nothing_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        first(make(**settings))


@pytest.mark.parametrize(
    ("name", "rate"), [("lora", 0.001), ("ia3", 0.01), ("fine_tuning", 0.0001), ("prefix", 0.02)]
)
def test_a_method_has_its_own_learning_rate_unless_a_config_gives_one(name, rate):
    assert configs.build({"method": {"name": name}}).learning_rate == rate
    given = {"method": {"name": name}, "learning_rate": 0.5}
    assert configs.build(given).learning_rate == 0.5


def test_dropout_of_a_prefix_hides_positions_in_training_alone():
    method = make(name="prefix", num_virtual_tokens=100, dropout=0.3)
    tree = first(method)
    assert VISIBLE not in adapt(method, tree, train=False).sites
    seen = [np.asarray(adapt(method, tree, jax.random.key(n)).sites[VISIBLE]) for n in range(3)]
    assert all(set(np.unique(each)) == {0.0, 1.0} for each in seen)
    assert (seen[0] != seen[1]).any() and np.mean(seen) == pytest.approx(0.7, abs=0.08)


def test_dropout_of_a_soft_prompt_leaves_vectors_out_in_training_alone():
    method = make(num_virtual_tokens=100, dropout=0.3)
    tree = first(method)
    found = [
        np.asarray(adapt(method, tree, jax.random.key(n)).sites[PROMPT] / tree["vectors"])
        for n in range(3)
    ]
    assert all(set(np.unique(each)) == {0.0, 1.0} for each in found)
    assert all((each == each[:, :1]).all() for each in found)
    assert (found[0] != found[1]).any() and np.mean(found) == pytest.approx(0.7, abs=0.08)
    assert adapt(method, tree, train=False).sites[PROMPT] is tree["vectors"]


@pytest.mark.parametrize("kind", ["low_rank", "superposition"])
def test_what_is_fixed_is_drawn_again_from_the_seed_and_not_trained(kind):
    method = make(name="prompt_encoder", num_virtual_tokens=4, kind=kind, hidden_size=6)
    trained, fixed = method.init(KEY, LM, TASK)
    again = method.init(KEY, LM, TASK)
    jax.tree.map(np.testing.assert_array_equal, (trained, fixed), again)
    other = method.init(jax.random.key(1), LM, TASK)[1]
    assert any((fixed[name] != other[name]).any() for name in fixed)
    soft = first(make(num_virtual_tokens=4))["vectors"]
    found = method.adapt(trained, fixed, LM.params, KEY, True).sites["prompt/vectors"]
    np.testing.assert_allclose(found, soft, rtol=0, atol=1e-6)
    text = [1, -1, -2, -3, -4, 40, 41]
    given = method.adapt(trained, fixed, LM.params, KEY, False)
    assert np.isfinite(plain_model.states(PLAIN, text, given)).all()
