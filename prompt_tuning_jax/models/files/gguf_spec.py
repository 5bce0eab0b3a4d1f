"""The spec of the model in a GGUF file, by way of the `config.json` that it would have."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.families import GPT2_NAMES, LEAST_FACTOR, spec_from_config
from prompt_tuning_jax.models.fields import Fields
from prompt_tuning_jax.models.spec import Spec

# GGUF's names of families, and of fields, which it has behind the family's.
ARCHITECTURES = {n: n for n in ("llama", "qwen2", "qwen3", "gpt2")} | {"gemma3": "gemma3_text"}
GGUF_NAMES = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "vocab_size": "vocab_size",
}
# GGUF holds only the factors that llama3's scaling gives. Every released model used these numbers.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL_MAX_POSITIONS = 8192


def spec_from_gguf(
    fields: Mapping[str, Any], tied_head: bool, factors: np.ndarray | None, source: str
) -> tuple[Spec, dict[str, Any]]:
    """Returns the spec that a GGUF file's metadata describes, and the `config.json` of such a
    model. Frequencies are divided by float32[d/2] `factors` (`rope_freqs.weight`), if any."""
    given = Fields(fields, source)
    architecture = given.check("general.architecture", *ARCHITECTURES)
    prefix = f"{architecture}."
    given.check(f"{prefix}expert_count", 0, None)
    given.check(f"{prefix}attention.causal", True, None)
    names = {ours: f"{prefix}{name}" for ours, name in GGUF_NAMES.items()}
    config = {ours: given.get(name) for ours, name in names.items()}
    config["model_type"] = ARCHITECTURES[architecture]
    tokens = fields.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        config["vocab_size"] = config["vocab_size"] or len(tokens)
    read = Fields(config, source, names)
    width, heads = read.number("hidden_size"), read.number("num_attention_heads")
    rotary = f"{prefix}rope.dimension_count"
    rotated = given.number(rotary, default=width // heads)
    size = read.number("head_dim", default=rotated)
    rotated = given.number(rotary, default=size)  # Gemma's files do not say it
    if {rotated, given.number(f"{prefix}attention.value_length", default=size)} != {size}:
        problem = f"turns {rotated} dimensions of heads of {size}, or values have another size"
        raise UserError(f"{source} {problem}; expected equal sizes.")
    theta = read.number("rope_theta", float, 10000.0)
    length = f"{prefix}rope.scaling.original_context_length"
    original = given.number(length, default=ORIGINAL_MAX_POSITIONS)
    scaling = _find_scaling(factors, size // 2, theta, original, source)
    scaling = scaling or _gguf_scaling(given, f"{prefix}rope.")
    config |= {"head_dim": size, "tie_word_embeddings": tied_head, "rope_scaling": scaling}
    if architecture == "gemma3":
        # Not in the file: the 27B alone takes D / H.
        scalar = width // heads if read.number("num_hidden_layers") == 62 else size
        config["query_pre_attn_scalar"] = scalar
    if architecture == "gpt2":
        for key, ours in GPT2_NAMES.items():
            config[key], names[key] = config.pop(ours, None), names.get(ours, ours)
    names["model_type"] = "general.architecture"
    found = {key: value for key, value in config.items() if value is not None}
    return spec_from_config(config, source, names), found


def _gguf_scaling(given: Fields, rope: str) -> dict[str, Any] | None:
    # llama.cpp takes a factor without a type as linear, under both keys. 0 means no factor.
    kind = given.get(f"{rope}scaling.type", "linear")
    factors = [given.get(f"{rope}{key}", 1) for key in ("scaling.factor", "scale_linear")]
    factor = next((each for each in factors if each not in (0, 1)), None)
    if kind == "none" or (kind == "linear" and factor is None):
        return None
    given.check(f"{rope}scaling.type", "none", "linear", None)
    return {"rope_type": "linear", "factor": factor}


def _find_scaling(
    factors: np.ndarray | None, half: int, theta: float, original: int, source: str
) -> dict[str, Any] | None:
    """Returns the llama3 scaling that gives float32[d/2] factors, or None if all are 1."""
    if factors is None or (factors.shape == (half,) and np.all(factors == 1)):
        return None
    factor, (low, high) = float(factors.max()), LLAMA3.values()
    with np.errstate(all="ignore"):  # a number that is not finite is not close either
        turns = original * theta ** (-np.arange(half) / half) / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        scaled = 1 / (kept + (1 - kept) / np.float64(factor))
    fits = factors.shape == (half,) and LEAST_FACTOR <= factor < np.inf
    if not fits or not np.allclose(factors, scaled, rtol=1e-4):
        raise UserError(
            f"{source}: the tensor 'rope_freqs.weight' of shape {factors.shape} is not llama3's "
            f"scaling of {original} positions by {factor:g} for {half} frequencies."
        )
    scaling = {"rope_type": "llama3", "factor": factor, **LLAMA3}
    return {**scaling, "original_max_position_embeddings": original}
