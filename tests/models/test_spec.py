"""Specs from config.json and from GGUF metadata: the same, and refused where they are not ours."""

import numpy as np
import pytest
import tiny_models
from tiny_models import SPEC, changed

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models import spec
from prompt_tuning_jax.models.positions import frequencies

LLAMA3 = spec.RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


def config(**changes):
    return {**tiny_models.config(SPEC), **changes}


def metadata(**changes):
    """GGUF fields of the small spec; a key's dots are written as double underscores."""
    fields = {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "llama.context_length": 128,
        "llama.embedding_length": 24,
        "llama.feed_forward_length": 36,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 10,
        "llama.attention.value_length": 10,
        "llama.rope.dimension_count": 10,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": SPEC.vocabulary,
    }
    fields |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in fields.items() if value is not None}


@pytest.mark.parametrize("wanted", [SPEC, changed(tied_head=False, rope_scaling=LLAMA3)])
def test_config(wanted):
    assert spec.from_config(tiny_models.config(wanted), "it") == wanted
    assert hash(wanted) == hash(spec.from_config(tiny_models.config(wanted), "it"))


def test_config_of_transformers_5_keeps_rope_in_one_entry():
    rope = {
        "rope_theta": 500.0,
        "rope_type": "llama3",
        "factor": 8,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 64,
    }
    found = spec.from_config(config(rope_theta=None, rope_parameters=rope), "it")
    assert found == changed(rope_theta=500.0, rope_scaling=LLAMA3)
    plain = {"rope_theta": 500.0, "rope_type": "default"}
    found = spec.from_config(config(rope_theta=None, rope_parameters=plain), "it")
    assert found == changed(rope_theta=500.0)


def test_where_a_config_says_rope_twice_as_transformers_5():
    """What earlier versions wrote, and the positions that stand outside."""
    scaling = config_of_scaling()
    parameters = {"rope_type": "default", "rope_theta": 7.0}
    both = config(rope_theta=500.0, rope_scaling=scaling, rope_parameters=parameters)
    assert spec.from_config(both, "it") == changed(rope_theta=500.0, rope_scaling=LLAMA3)
    for inside in ({}, {"original_max_position_embeddings": 32}):
        outside = config(
            rope_scaling={**config_of_scaling(original_max_position_embeddings=None), **inside},
            original_max_position_embeddings=64,
        )
        assert spec.from_config(outside, "it") == changed(rope_scaling=LLAMA3)


def config_of_scaling(**changes):
    return {**tiny_models.config(changed(rope_scaling=LLAMA3))["rope_scaling"], **changes}


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor"])
@pytest.mark.parametrize("value", [1e-320, 1e-7, 2.0**52])
def test_no_scaling_makes_frequencies_that_are_none(key, value):
    """They are refused, or finite without a warning of numpy."""
    scaled = config(rope_scaling=config_of_scaling(**{key: value}), rope_theta=1e15)
    try:
        found = frequencies(spec.from_config(scaled, "it"))
    except UserError as error:
        assert "llama3's factor, low_freq_factor" in str(error)
        return
    assert np.isfinite(found).all() and (found >= 0).all()


@pytest.mark.parametrize("factor", [0.0, 1e-40, np.nan, np.inf])
def test_gguf_factors_that_are_none(factor):
    factors = np.full(5, factor, np.float32)
    with pytest.raises(UserError, match="is not llama3's scaling"):
        spec.from_gguf(metadata(), True, factors, "it")


def test_what_a_config_may_leave_out():
    left_out = ("head_dim", "num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps")
    short = {key: value for key, value in config().items() if key not in left_out}
    wanted = changed(head_size=6, kv_heads=4, norm_epsilon=1e-6)
    assert spec.from_config(short, "it") == wanted
    # An earlier spelling.
    assert spec.from_config({**short, "rope_scaling": {"type": "default"}}, "it") == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"it is a model of type 'gpt2'; supported: llama\."),
        ({"model_type": None}, "of type None; supported: llama"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: 'silu'"),
        ({"attention_bias": True}, "attention_bias is True; supported: False"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "'yarn'; supported: default, llama3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear'; supported: default, llama3"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "it does not say factor"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "supported: default, llama3"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\], expected an object"),
        ({"hidden_size": None}, "it does not say hidden_size"),
        ({"hidden_size": "24"}, "hidden_size is '24', expected a whole number above 0"),
        ({"hidden_size": 24.0}, "expected a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"vocab_size": 2**62}, "vocab_size is 4611686018427387904"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a number above 0"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": 1e-300}, "rotary embedding's base is 1e-300; expected at least 1"),
        ({"rope_theta": 1e300}, r"rope_theta is 1e\+300"),
        (
            {"rope_scaling": config_of_scaling(low_freq_factor=4.0)},
            "are 8, 4 and 4; expected .* the second below the third",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor is 0\.5"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', expected true"),
        ({"num_key_value_heads": 3}, "4 query heads and 3 key heads; expected a multiple"),
        ({"head_dim": 9}, "head size is 9; .* an even one"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        spec.from_config(config(**changes), "it")


def test_gguf_metadata():
    assert spec.from_gguf(metadata(), True, None, "it") == SPEC
    assert spec.from_gguf(metadata(), False, None, "it") == changed(tied_head=False)


def test_gguf_metadata_of_no_scaling():
    factor = {"llama__rope__scaling__factor": 4.0}
    for changes in (
        {"llama__rope__scaling__type": "none", **factor},
        {"llama__rope__scale_linear": 1.0, "llama__rope__scaling__factor": 0.0},
        {"llama__attention__causal": True},
    ):
        assert spec.from_gguf(metadata(**changes), True, None, "it") == SPEC


def test_what_gguf_metadata_may_leave_out():
    short = metadata(
        llama__attention__key_length=None,
        llama__attention__value_length=None,
        llama__attention__head_count_kv=None,
        llama__rope__freq_base=None,
        llama__vocab_size=None,
        tokenizer__ggml__tokens=["a", "b"],
    )
    wanted = changed(kv_heads=4, vocabulary=2)
    assert spec.from_gguf(short, True, None, "it") == wanted
    del short["llama.rope.dimension_count"]
    assert spec.from_gguf(short, True, None, "it").head_size == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "gpt2"}, r"it is a model of type 'gpt2'; supported: llama\."),
        ({"llama__rope__scaling__type": "yarn"}, "'yarn'; supported: default, llama3"),
        ({"llama__rope__scaling__factor": 4.0}, "'linear'; supported: default, llama3"),
        ({"llama__rope__scale_linear": 4.0}, "'linear'; supported: default, llama3"),
        ({"llama__attention__causal": False}, "attends to what follows; supported: causal llama"),
        ({"llama__expert_count": 8}, "mixture of experts; supported: dense"),
        ({"llama__rope__dimension_count": 6}, "rotates 6 of 10 dimensions"),
        ({"llama__attention__value_length": 12}, "its values differ in size"),
        ({"llama__block_count": None}, r"does not say llama\.block_count"),
        ({"llama__attention__head_count": [4, 4, 4]}, r"expected a whole number above 0"),
    ],
)
def test_gguf_metadata_that_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        spec.from_gguf(metadata(**changes), True, None, "it")
