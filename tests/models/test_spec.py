"""Specs from config.json and from GGUF metadata: the same; what we do not compute is refused."""

import family_models
import numpy as np
import pytest
import tiny_models
from tiny_models import LLAMA3, SPEC, SPECS, changed, unscaled
from transformers import AutoConfig, Gemma3TextConfig

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.families import FULL, SLIDING, spec_from_config
from prompt_tuning_jax.models.files.gguf_spec import spec_from_gguf
from prompt_tuning_jax.models.positions import frequencies
from prompt_tuning_jax.models.spec import FAR, Rope


def config(**changes):
    return {**tiny_models.config(SPEC), **changes}


def scaling(**changes):
    """The entry `rope_scaling` of a config."""
    return {**tiny_models.config(changed(scaling=LLAMA3))["rope_scaling"], **changes}


def metadata(**changes):
    """GGUF fields of the small spec: '__' is a dot, 'llama.' is added, None removes a key."""
    fields = tiny_models.gguf_fields(SPEC)
    for key, value in changes.items():
        key = key.replace("__", ".")
        fields[key if key.startswith(("general.", "tokenizer.")) else f"llama.{key}"] = value
    return {key: value for key, value in fields.items() if value is not None}


@pytest.mark.parametrize("name", SPECS)
def test_a_config_gives_the_spec(name):
    found = spec_from_config(tiny_models.config(SPECS[name]), "it")
    assert found == SPECS[name] and hash(found) == hash(SPECS[name])


@pytest.mark.parametrize("name", SPECS)
def test_gguf_metadata_gives_the_spec_but_for_the_scaling(name):
    spec = SPECS[name]
    found, made = spec_from_gguf(tiny_models.gguf_fields(spec), spec.tied_head, None, "it")
    assert found == unscaled(spec) == spec_from_config(made, "it")


OUTSIDE = {"rope_theta": 500.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}, ()),
        ({"rope_parameters": {"rope_theta": 500.0, **scaling()}}, LLAMA3),
        # Both entries: what earlier versions wrote counts.
        (
            {
                "rope_theta": 500.0,
                "rope_scaling": scaling(),
                "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
            },
            LLAMA3,
        ),
        ({**OUTSIDE, "rope_scaling": scaling(original_max_position_embeddings=None)}, LLAMA3),
        ({**OUTSIDE, "rope_scaling": scaling(original_max_position_embeddings=64)}, LLAMA3),
    ],
)
def test_rope_is_read_where_transformers_5_reads_it(changes, wanted):
    found = spec_from_config(config(**{"rope_theta": None, "rope_scaling": None} | changes), "it")
    assert found == changed(500.0, wanted)


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor"])
@pytest.mark.parametrize("value", [1e-320, 1e-7, 2.0**52])
def test_a_scaling_gives_finite_frequencies_or_is_refused(key, value):
    """Without a warning of numpy."""
    scaled = config(rope_scaling=scaling(**{key: value}), rope_theta=1e15)
    try:
        found, _ = frequencies(spec_from_config(scaled, "it").ropes[0])
    except UserError as error:
        assert "factor is" in str(error)
        return
    assert np.isfinite(found).all() and (found >= 0).all()


@pytest.mark.parametrize("factor", [0.0, 1e-40, np.nan, np.inf])
def test_gguf_factors_that_cannot_be_are_refused(factor):
    factors = np.full(5, factor, np.float32)
    with pytest.raises(UserError, match="is not llama3's scaling"):
        spec_from_gguf(metadata(), True, factors, "it")


def test_a_config_may_leave_out_what_has_a_default():
    left_out = ("head_dim", "num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps")
    short = {key: value for key, value in config().items() if key not in left_out}
    wanted = changed(head_size=6, kv_heads=4, norm_epsilon=1e-6)
    assert spec_from_config(short, "it") == wanted
    # An earlier spelling.
    assert spec_from_config({**short, "rope_scaling": {"type": "default"}}, "it") == wanted


@pytest.mark.parametrize(
    ("name", "key", "read"),
    [
        ("gemma2", "attn_logit_softcapping", lambda spec: spec.attention_cap),
        ("gemma2", "final_logit_softcapping", lambda spec: spec.final_cap),
        ("mistral, window", "sliding_window", lambda spec: spec.layer_windows[0]),
        ("gpt2", "n_positions", lambda spec: spec.max_positions),
        ("olmo2", "rms_norm_eps", lambda spec: spec.norm_epsilon),
        ("phi3", "rms_norm_eps", lambda spec: spec.norm_epsilon),
        ("phi3, longrope", "original_max_position_embeddings", lambda spec: spec.max_positions),
    ],
)
def test_a_key_that_is_missing_has_the_default_of_transformers(name, key, read):
    fields = family_models.config(name)
    del fields[key]
    wanted = getattr(AutoConfig.for_model(fields["model_type"]), key)
    assert read(spec_from_config(fields, "it")) == wanted


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("gemma2", {"sliding_window_pattern": 3}),
        ("mistral, window", {"attention_bias": True}),
        ("phi3", {"attention_bias": True}),
    ],
)
def test_a_key_that_transformers_does_not_read_in_a_family_changes_nothing(name, given):
    fields = family_models.config(name)
    assert spec_from_config({**fields, **given}, "it") == spec_from_config(fields, "it")
    with pytest.raises(UserError, match="attn_logit_softcapping is 50"):
        spec_from_config({**family_models.config("gemma3"), "attn_logit_softcapping": 50}, "it")


def test_what_a_family_has_by_default_is_off_if_it_is_null():
    caps = {f"{name}_logit_softcapping": None for name in ("attn", "final")}
    found = spec_from_config({**family_models.config("gemma2"), **caps}, "it")
    assert (found.attention_cap, found.final_cap) == (0, 0)
    fields = {**family_models.config("mistral, window"), "sliding_window": None}
    assert spec_from_config(fields, "it").layer_windows == ()
    fields = family_models.config("qwen2, window")
    assert spec_from_config({**fields, "sliding_window": None}, "it").layer_windows == ()
    del fields["sliding_window"]  # 4096 in transformers
    assert min(spec_from_config(fields, "it").layer_windows) == 4096
    del (
        fields["layer_types"],
        fields["max_window_layers"],
    )  # 28 in transformers, and this model has fewer layers
    assert {*spec_from_config(fields, "it").layer_windows} <= {FAR}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_parameters": {kind: {"rope_type": "default"} for kind in (FULL, SLIDING)}},
    ],
)
def test_gemma_3_has_the_rotary_embeddings_of_transformers(changes):
    fields = {**family_models.config("gemma3"), **changes}
    ropes = spec_from_config(fields, "it").ropes
    theirs = Gemma3TextConfig(**fields).rope_parameters  # changes the entries in `fields`
    for rope, their in zip(ropes, (theirs[FULL], theirs[SLIDING]), strict=True):
        assert (rope.kind, rope.theta) == (their["rope_type"], their["rope_theta"])
        assert rope.numbers == ((their["factor"],) if "factor" in their else ())


def test_only_gemma_1_calls_the_tanh_gelu_gelu():
    fields = {**family_models.config("gemma2"), "hidden_activation": "gelu"}
    assert spec_from_config(fields, "it").activation == "gelu"


def test_gguf_metadata_may_leave_out_what_has_a_default():
    short = metadata(
        attention__key_length=None,
        attention__value_length=None,
        attention__head_count_kv=None,
        rope__freq_base=None,
        vocab_size=None,
        tokenizer__ggml__tokens=["a", "b"],
    )
    assert spec_from_gguf(short, True, None, "it")[0] == changed(kv_heads=4, vocabulary=2)
    del short["llama.rope.dimension_count"]
    assert spec_from_gguf(short, True, None, "it")[0].head_size == 6


def test_gemma_3_in_gguf_may_say_what_its_released_models_do_not():
    given = metadata(attention__sliding_window=5, rope__dimension_count=None)
    given = {key.replace("llama.", "gemma3."): value for key, value in given.items()}
    given["general.architecture"] = "gemma3"
    spec, _ = spec_from_gguf(given, True, None, "it")
    assert (spec.head_size, spec.final_cap, spec.layer_windows) == (10, 0, (5, 5, 5))
    assert spec.ropes == (Rope(10000.0, 10), Rope(10000.0, 10))
    more = {"attention.sliding_window_pattern": 2, "rope.freq_base_swa": 500.0}
    more |= {"final_logit_softcapping": 30.0}
    given |= {f"gemma3.{key}": value for key, value in more.items()}
    spec, _ = spec_from_gguf(given, True, None, "it")
    assert (spec.final_cap, spec.attention_cap, spec.layer_windows) == (30, 0, (5, FAR, 5))
    assert spec.ropes == (Rope(10000.0, 10), Rope(500.0, 10))


def test_gguf_metadata_may_say_that_nothing_is_scaled():
    for changes in (
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0},
        {"rope__scale_linear": 1.0, "rope__scaling__factor": 0.0},
        {"attention__causal": True},
    ):
        assert spec_from_gguf(metadata(**changes), True, None, "it")[0] == SPEC


def test_gguf_metadata_may_say_that_positions_are_stretched_evenly():
    for key in ("rope__scaling__factor", "rope__scale_linear"):
        found, made = spec_from_gguf(metadata(**{key: 4.0}), True, None, "it")
        assert found == changed(scaling=("linear", (4.0,))) == spec_from_config(made, "it")


def test_a_config_may_say_that_nothing_is_scaled():
    for scaled in (
        {"type": "linear", "factor": 1.0},
        {"rope_type": "linear", "factor": 1},
        {"type": "dynamic", "factor": 2.0},  # which acts behind the last position alone
    ):
        found = spec_from_config(config(rope_scaling=scaled), "it")
        assert found == SPEC


@pytest.mark.parametrize("most", [SPEC.max_positions // 4, SPEC.max_positions])
def test_yarn_reaches_as_many_positions_whether_or_not_a_config_counts_them(most):
    """Qwen 2.5 says how many it had before."""
    original = {"original_max_position_embeddings": SPEC.max_positions // 4}
    scaled = {"type": "yarn", "factor": 4.0} | original
    made = config(rope_scaling=scaled, max_position_embeddings=most)
    assert spec_from_config(made, "it").max_positions == SPEC.max_positions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen"}, r"is 'qwen' \(did you mean 'qwen3'\?\); supported: llama, mis"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]; supported: llama"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'; supported: 'silu'"),
        ({"attention_bias": 1}, "attention_bias is 1, expected true or false"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "ntk", "factor": 2}}, "'ntk'; supported: 'default', 'linear'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "it does not say factor"),
        ({"rope_scaling": {"type": "linear", "factor": 1e-9}}, "factor is 1e-09, expected at lea"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1]}}, "expected 5 numbers above 0"),
        ({"rope_scaling": {"type": "yarn", "mscale": 2}}, "mscale is 2; supported: None"),
        ({"rope_scaling": scaling(low_freq_factor=4.0)}, "is 4.0, .* below high_freq_factor, 4"),
        ({"is_causal": False}, "is_causal is False; supported: True"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "attention is True"),
        ({"hidden_size": None}, "it does not say hidden_size"),
        ({"num_hidden_layers": 2**20}, "num_hidden_layers is 1048576, expected at most 1000"),
        ({"vocab_size": 3 * 10**9}, "is 3000000000, expected a whole .* and below 16,777,216"),
        ({"head_dim": 10**12}, "head_dim is 1000000000000, expected a whole number above 0 and be"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a number above 0"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": 1e-300}, "rotary base is 1e-300; expected at least 1"),
        ({"num_key_value_heads": 3}, "it: 4 query heads and 3 key heads: the first must be"),
        ({"head_dim": 9}, "9 dimensions of a head of size 9 turn; expected an even"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        spec_from_config(config(**changes), "it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "bert"}, "general.architecture is 'bert'; supported: 'llama'"),
        ({"rope__scaling__type": "yarn"}, "scaling.type is 'yarn'; supported: 'none', 'linear'"),
        ({"rope__scaling__factor": [4.0]}, r"factor is \[4\.0\], expected a number above 0"),
        ({"attention__causal": False}, "llama.attention.causal is False; supported: True"),
        ({"expert_count": 8}, "llama.expert_count is 8; supported: 0"),
        ({"rope__dimension_count": 6}, "turns 6 dimensions of heads of 10"),
        ({"attention__value_length": 12}, "or values have another size"),
        ({"block_count": None}, r"does not say llama\.block_count"),
        ({"attention__head_count": [4, 4, 4]}, r"expected a whole number above 0"),
    ],
)
def test_gguf_metadata_that_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        spec_from_gguf(metadata(**changes), True, None, "it")
