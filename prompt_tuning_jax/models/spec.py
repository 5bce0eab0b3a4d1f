"""What a frozen model is: its sizes and options, read from a config.json or from GGUF metadata.

They are parsed here and nowhere else, so no other code acts on an unchecked config. A family is a
row of `FAMILIES`. An option that the decoder does not compute is refused, not ignored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning_jax.errors import UserError, short

FAMILIES = ("llama",)
ROPE_SCALINGS = ("default", "llama3")

# GGUF holds only the factors that llama3's scaling gives. Every released model used these numbers.
LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, ORIGINAL_MAX_POSITIONS = 1.0, 4.0, 8192
LEAST_FACTOR = 1e-6  # a smaller one gives frequencies that float32 cannot hold


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretching of the rotary embedding's long wavelengths (kind 'llama3', Llama 3.1)."""

    kind: str
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class Spec:
    """Sizes and options of a decoder-only model. Hashable, so that a module can hold it.

    Attributes:
      family: the table of weight names, e.g. 'llama'.
      layers, width, heads, kv_heads, head_size, feedforward, vocabulary: L, D, H, K, d, F, V.
      max_positions: how many positions the model was trained to see.
      rope_theta: base of the rotary embedding.
      rope_scaling: how its wavelengths are stretched, if they are.
      norm_epsilon: added to the mean square in RMSNorm.
      tied_head: whether the head's matrix is the embedding.
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    feedforward: int
    vocabulary: int
    max_positions: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_epsilon: float
    tied_head: bool

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise UserError(
                f"{self.heads} query heads and {self.kv_heads} key heads; expected a multiple."
            )
        if self.head_size % 2:
            raise UserError(f"the head size is {self.head_size}; expected an even one.")
        if self.rope_theta < 1:
            # Frequencies would rise above one radian a position, and out of float32.
            raise UserError(f"the rotary base is {self.rope_theta:g}; expected at least 1.")


def spec_from_config(config: Mapping[str, Any], source: str) -> Spec:
    """Returns the spec that a Hugging Face `config.json` describes; a UserError names `source`."""
    _check(source, "model_type", config.get("model_type"), *FAMILIES)
    width = _positive(config, "hidden_size", int, source)
    heads = _positive(config, "num_attention_heads", int, source)
    max_positions = _positive(config, "max_position_embeddings", int, source, 2048)
    # transformers 5 keeps base and scaling in one entry, earlier versions in two. If a file has
    # both, it takes the earlier one.
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"{source}: rope_scaling is {short(rope)}, expected an object or null.")
    _refuse_options({**config, **rope}, source)
    original = config.get("original_max_position_embeddings")
    if original is not None:  # transformers 5 prefers it to the one inside
        rope = {**rope, "original_max_position_embeddings": original}
    return Spec(
        family=config["model_type"],
        layers=_positive(config, "num_hidden_layers", int, source),
        width=width,
        heads=heads,
        kv_heads=_positive(config, "num_key_value_heads", int, source, heads),
        head_size=_positive(config, "head_dim", int, source, width // heads),
        feedforward=_positive(config, "intermediate_size", int, source),
        vocabulary=_positive(config, "vocab_size", int, source),
        max_positions=max_positions,
        rope_theta=_positive({**config, **rope}, "rope_theta", float, source, 10000.0),
        rope_scaling=_read_scaling(rope, max_positions, source),
        norm_epsilon=_positive(config, "rms_norm_eps", float, source, 1e-6),
        tied_head=config.get("tie_word_embeddings") is True,
    )


def spec_from_gguf(
    fields: Mapping[str, Any], tied_head: bool, factors: np.ndarray | None, source: str
) -> Spec:
    """Returns the spec that a GGUF file's metadata describes. The head is tied if the file has none
    of its own. Frequencies are divided by float32[d/2] `factors` (`rope_freqs.weight`), if any."""
    family = fields.get("general.architecture")
    _check(source, "general.architecture", family, *FAMILIES)

    def read(key, kind, default=None):
        return _positive(fields, f"{family}.{key}", kind, source, default)

    _check(source, "expert_count", fields.get(f"{family}.expert_count") or 0, 0)
    _check(source, "attention.causal", fields.get(f"{family}.attention.causal", True) is True, True)
    # A file that names a factor but no type is linear to llama.cpp, under the earlier key too. A
    # factor of 0 means none.
    scaling = fields.get(f"{family}.rope.scaling.type", "linear")
    stretches = [
        fields.get(f"{family}.rope.{key}", 1) for key in ("scaling.factor", "scale_linear")
    ]
    if scaling == "linear" and all(factor in (0, 1) for factor in stretches):
        scaling = "none"
    _check(source, "rope.scaling.type", scaling, "none")
    width, heads = read("embedding_length", int), read("attention.head_count", int)
    rotated = read("rope.dimension_count", int, width // heads)
    head_size = read("attention.key_length", int, rotated)
    if {rotated, head_size, read("attention.value_length", int, head_size)} != {head_size}:
        raise UserError(
            f"{source} rotates {rotated} of {head_size} dimensions of a head, or its values differ "
            "in size from its keys; expected all three to be equal."
        )
    tokens = fields.get("tokenizer.ggml.tokens")
    theta = read("rope.freq_base", float, 10000.0)
    original = read("rope.scaling.original_context_length", int, ORIGINAL_MAX_POSITIONS)
    return Spec(
        family=str(family),
        layers=read("block_count", int),
        width=width,
        heads=heads,
        kv_heads=read("attention.head_count_kv", int, heads),
        head_size=head_size,
        feedforward=read("feed_forward_length", int),
        vocabulary=read("vocab_size", int, len(tokens) if isinstance(tokens, list) else None),
        max_positions=read("context_length", int),
        rope_theta=theta,
        rope_scaling=_find_scaling(factors, head_size // 2, theta, original, source),
        norm_epsilon=read("attention.layer_norm_rms_epsilon", float),
        tied_head=tied_head,
    )


def _check(source: str, key: str, value: Any, *supported: Any) -> None:
    """Refuses an option that the decoder does not compute."""
    if value not in supported:
        listed = ", ".join(map(repr, supported))
        raise UserError(f"{source}: {key} is {short(value)}; supported: {listed}.")


def _refuse_options(config: Mapping[str, Any], source: str) -> None:
    """Refuses what a Llama config can switch on and the decoder does not compute."""
    _check(source, "hidden_act", config.get("hidden_act", "silu"), "silu", "swish")
    for key in ("attention_bias", "mlp_bias"):
        _check(source, key, config.get(key), False, None)
    _check(source, "partial_rotary_factor", config.get("partial_rotary_factor"), 1, None)
    _check(source, "quantization_config", config.get("quantization_config"), None)
    tied = config.get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise UserError(f"{source}: tie_word_embeddings is {short(tied)}, expected true or false.")


def _positive(
    fields: Mapping[str, Any], key: str, kind: type, source: str, default: Any = None
) -> Any:
    """Returns the finite number above 0 under `key` as `kind`; `default` if the key is missing."""
    value = default if fields.get(key) is None else fields[key]
    if value is None:
        raise UserError(f"{source} does not say {key}.")
    number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < 2**53:
        name = "a whole number" if kind is int else "a number"
        raise UserError(f"{source}: {key} is {short(value)}, expected {name} above 0.")
    return kind(value)


def _read_scaling(rope: Mapping[str, Any], max_positions: int, source: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    # Dynamic scaling begins behind the last position that the model has.
    if kind == "dynamic" or (kind == "linear" and rope.get("factor") == 1):
        kind = "default"
    _check(source, "rope_type", kind, *ROPE_SCALINGS)
    if kind == "default":
        return None
    original = _positive(rope, "original_max_position_embeddings", int, source, max_positions)
    factor, low, high = (
        _positive(rope, key, float, source)
        for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    if not LEAST_FACTOR <= min(factor, low) or not low < high:
        raise UserError(
            f"{source}: llama3's factor, low_freq_factor and high_freq_factor are {factor:g}, "
            f"{low:g} and {high:g}; expected at least {LEAST_FACTOR:g}, the second below the third."
        )
    return RopeScaling("llama3", factor, low, high, original)


def _find_scaling(
    factors: np.ndarray | None, half: int, theta: float, original: int, source: str
) -> RopeScaling | None:
    """Returns the llama3 scaling that gives float32[d/2] factors, or None if none is not 1."""
    if factors is None or (factors.shape == (half,) and np.all(factors == 1)):
        return None
    factor = float(factors.max())
    with np.errstate(all="ignore"):  # a number that is not finite is not close either
        turns = original * theta ** (-np.arange(half) / half) / (2 * np.pi)
        kept = np.clip((turns - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR), 0, 1)
        scaled = 1 / (kept + (1 - kept) / np.float64(factor))
    fits = factors.shape == (half,) and LEAST_FACTOR <= factor < np.inf
    if not fits or not np.allclose(factors, scaled, rtol=1e-4):
        raise UserError(
            f"{source}: the tensor 'rope_freqs.weight' of shape {factors.shape} is not llama3's "
            f"scaling of {original} positions by {factor:g} for {half} frequencies."
        )
    return RopeScaling("llama3", factor, LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, original)
