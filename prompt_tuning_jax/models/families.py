"""The specs of model families, from the fields of a `config.json`: a function and a row of
`FAMILIES` each, see docs/new_family.md. An option that the decoder does not compute is refused."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from prompt_tuning_jax.errors import UserError, nearest
from prompt_tuning_jax.models import name_tables
from prompt_tuning_jax.models.fields import Fields
from prompt_tuning_jax.models.spec import FAR, Rope, Spec

SLIDING, FULL = "sliding_attention", "full_attention"  # in `layer_types`
MOST_LAYERS = 1000  # tables by layer are made before the files are read
LEAST_FACTOR = 1e-6  # a smaller one gives frequencies that float32 cannot hold
SCALINGS = ("linear", "llama3", "yarn", "longrope")
ACTIVATIONS = {name: name for name in ("silu", "relu", "gelu")} | {"swish": "silu"}
ACTIVATIONS |= dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu_tanh")


def spec_from_config(config: Mapping[str, Any], source: str, names: Mapping[str, str] = {}) -> Spec:
    """Returns the spec in a `config.json`; a UserError names `source`, and fields by `names`."""
    fields = Fields(config, source, names)
    family = fields.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        hint = nearest(family, FAMILIES) if isinstance(family, str) else ""
        raise fields.refuse("model_type", ", ".join(FAMILIES), f"{hint}; supported:")
    fields.check("quantization_config", None)
    found = FAMILIES[family].spec(fields)
    try:
        return Spec(**found)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _common(fields: Fields, **more: Any) -> dict[str, Any]:
    """Returns the options that most families give by the same names; `more` replaces some."""
    heads, width = fields.number("num_attention_heads"), fields.number("hidden_size")
    activation = fields.under(hidden_act="silu").check("hidden_act", *ACTIVATIONS)
    fields.check("is_causal", True, None)
    if (layers := fields.number("num_hidden_layers")) > MOST_LAYERS:
        raise fields.refuse("num_hidden_layers", f"at most {MOST_LAYERS}")
    found = {
        "family": fields.get("model_type"),
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": fields.number("num_key_value_heads", default=heads),
        "head_size": fields.number("head_dim", default=width // heads),
        "feedforward": fields.number("intermediate_size"),
        "vocabulary": fields.number("vocab_size"),
        "max_positions": fields.number("max_position_embeddings", default=2048),
        "activation": ACTIVATIONS[activation],
        "tied_head": fields.flag("tie_word_embeddings"),
        "biases": ("q", "k", "v", "o") if fields.flag("attention_bias") else (),
        "norm_epsilon": fields.number("rms_norm_eps", float, 1e-6),
    }
    if "ropes" not in more:
        rope, most = _rope(fields)
        found |= {"ropes": (rope,), "max_positions": most}
    return found | more


def _rope(fields: Fields, part: float = 0, entry: Any = None) -> tuple[Rope, int]:
    """Returns a rotary embedding, and the most positions that it has. `part` is the default of the
    share of a head that turns, or 0 if all of it must. transformers 5 keeps base and scaling in one
    entry, earlier versions in two. If a file has both, those of the earlier versions count."""
    entry = entry or fields.entry("rope_scaling") or fields.entry("rope_parameters")
    inside = fields.over(entry)
    most = fields.number("max_position_embeddings", default=2048)
    if not part:
        inside.check("partial_rotary_factor", 1, None)
    whole = fields.number("hidden_size") // fields.number("num_attention_heads")
    whole = fields.number("head_dim", default=whole)
    size = int(whole * inside.number("partial_rotary_factor", float, part or 1.0))
    theta = inside.number("rope_theta", float, 10000.0)
    kind = inside.get("rope_type", entry.get("type", "default"))
    # Dynamic scaling changes only positions beyond the model's last, which are refused.
    if kind == "dynamic" or (kind == "linear" and inside.get("factor") == 1):
        kind = "default"
    kind = "longrope" if kind == "su" else kind
    inside.over({"rope_type": kind}).check("rope_type", "default", *SCALINGS)
    if kind == "default":
        return Rope(theta, size), most
    # transformers 5 prefers the one outside.
    nested = inside.number("original_max_position_embeddings", default=most)
    original = fields.number("original_max_position_embeddings", default=nested)
    if kind in ("yarn", "longrope") and (theta == 1 or original == 1):
        raise UserError(f"{fields.source}: {kind} needs a base and positions above 1.")
    numbers = _scaling(kind, inside, size, original, most)
    if kind == "yarn":  # a file may say how many positions there were before it
        most = max(most, int(numbers[0] * original))
    return Rope(theta, size, kind, numbers), original if kind == "longrope" else most


def _scaling(kind: str, fields: Fields, size: int, original: int, most: int) -> tuple[Any, ...]:
    """Returns the numbers of a `Rope` of a kind, from the fields of its scaling."""
    default = most / original if kind in ("yarn", "longrope") else None
    factor = fields.number("factor", float, default)
    if factor < LEAST_FACTOR:
        raise fields.refuse("factor", f"at least {LEAST_FACTOR:g}")
    if kind == "linear":
        return (factor,)
    if kind == "llama3":
        low, high = (fields.number(f"{each}_freq_factor", float) for each in ("low", "high"))
        if not LEAST_FACTOR <= low < high:
            least = f"at least {LEAST_FACTOR:g}"
            raise fields.refuse("low_freq_factor", f"{least} and below high_freq_factor, {high:g}")
        return factor, low, high, original
    if kind == "yarn":
        fields.check("truncate", True, None)
        fast, slow = fields.number("beta_fast", float, 32.0), fields.number("beta_slow", float, 1.0)
        scales = [fields.get("mscale"), fields.get("mscale_all_dim")]
        if any(scales):  # DeepSeek's
            fields.check("mscale", scales[1])
        magnitude = 1.0 if any(scales) or factor <= 1 else 0.1 * math.log(factor) + 1
        return factor, fast, slow, original, fields.number("attention_factor", float, magnitude)
    factors = fields.get("short_factor")
    real = isinstance(factors, list) and {*map(type, factors)} <= {int, float}
    real = real and all(LEAST_FACTOR <= each < 2**53 for each in factors)
    if not real or len(factors) != size // 2:
        raise fields.refuse("short_factor", f"{size // 2} numbers above 0")
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return tuple(map(float, factors)), fields.number("attention_factor", float, magnitude)


def _windows(fields: Fields, kinds: list[str], window: int | None = None) -> tuple[int, ...]:
    """Returns how many positions each layer sees; `kinds` and `window` are defaults."""
    kinds = fields.get("layer_types", kinds)
    if not isinstance(kinds, list) or not all(kind in (SLIDING, FULL) for kind in kinds):
        raise fields.refuse("layer_types", f"a list of {SLIDING!r} and {FULL!r}")
    window = fields.number("sliding_window", default=window)
    return tuple(window if kind == SLIDING else FAR for kind in kinds)


def _llama(fields: Fields) -> dict[str, Any]:
    """Llama 1 to 3, SmolLM2, TinyLlama and others of their form."""
    found = _common(fields)
    found["biases"] += ("gate", "up", "down") if fields.flag("mlp_bias") else ()
    return found


def _mistral(fields: Fields, **more: Any) -> dict[str, Any]:
    """Mistral 7B, NeMo and Large: Llama, with a window in the first versions."""
    found = _common(fields, **{"biases": (), **more})
    fields = fields.by_default(sliding_window=4096)
    if fields.get("sliding_window") is not None:
        found["layer_windows"] = (fields.number("sliding_window"),) * found["layers"]
    return found


def _qwen2(fields: Fields, **more: Any) -> dict[str, Any]:
    """Qwen 1.5, 2 and 2.5, without experts: Llama with biases of queries, keys and values."""
    found = _common(fields, **{"biases": ("q", "k", "v"), **more})
    fields = fields.by_default(sliding_window=4096, max_window_layers=28)
    if fields.flag("use_sliding_window") and fields.get("sliding_window") is not None:
        # Layers below `max_window_layers` see all positions.
        first = fields.get("max_window_layers", found["layers"])
        if type(first) is not int:
            raise fields.refuse("max_window_layers", "a whole number")
        kinds = [SLIDING if number >= first else FULL for number in range(found["layers"])]
        found["layer_windows"] = _windows(fields, kinds)
    return found


def _qwen3(fields: Fields) -> dict[str, Any]:
    """Qwen 3, without experts: queries and keys are normalised in each head."""
    biases = ("q", "k", "v", "o") if fields.flag("attention_bias") else ()
    return _qwen2(fields.under(head_dim=128), qk_norm="head", biases=biases)


def _phi3(fields: Fields) -> dict[str, Any]:
    """Phi-3, 3.5 and 4, without experts: Llama; positions up to where the short factors reach."""
    fields = fields.under(rms_norm_eps=1e-5, original_max_position_embeddings=4096)
    rope, most = _rope(fields, 1.0)
    return _mistral(fields.by_default(sliding_window=None), ropes=(rope,), max_positions=most)


def _olmo2(fields: Fields) -> dict[str, Any]:
    """OLMo 2: norms on the output of each half, and of whole queries and keys."""
    return _common(fields.under(rms_norm_eps=1e-5), placement="output", qk_norm="row")


def _smollm3(fields: Fields) -> dict[str, Any]:
    """SmolLM3: Llama, with no rotary embedding in every fourth layer."""
    fields = fields.under(tie_word_embeddings=True, rope_theta=2000000.0)
    found = _llama(fields)
    every = fields.number("no_rope_layer_interval", default=4)
    # 1 means that a layer has a rotary embedding, whatever the name says.
    turned = fields.get("no_rope_layers") or [
        int((number + 1) % every != 0) for number in range(found["layers"])
    ]
    if not isinstance(turned, list) or not all(each in (0, 1) for each in turned):
        raise fields.refuse("no_rope_layers", "a list of 0 and 1")
    if fields.flag("use_sliding_window") and fields.get("sliding_window") is not None:
        kinds = [FULL if each else SLIDING for each in turned]
        found["layer_windows"] = _windows(fields, kinds)
    return found | {"layer_ropes": tuple(1 - each for each in turned)}


def _gemma(fields: Fields, **more: Any) -> dict[str, Any]:
    """Gemma 1: scaled embeddings, norms of 1 + w, a gated GELU."""
    fields.check("use_bidirectional_attention", False, None)
    act = fields.get("hidden_act")
    # Its first release says 'gelu' there and means the tanh one.
    act = fields.get("hidden_activation", "gelu_pytorch_tanh" if act in (None, "gelu") else act)
    fields = fields.under(tie_word_embeddings=True, head_dim=256).over({"hidden_act": act})
    scale = fields.number("hidden_size") ** 0.5
    return _common(fields, norm_offset=1.0, embedding_scale=scale, **more)


def _gemma2(fields: Fields, every: int = 2, **more: Any) -> dict[str, Any]:
    """Gemma 2: norms on both sides, capped scores, every second layer sees a window."""
    fields = fields.by_default(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    found = _gemma(fields, placement="both", **more)
    kinds = [SLIDING if (number + 1) % every else FULL for number in range(found["layers"])]
    for cap, key in (("attention_cap", "attn"), ("final_cap", "final")):
        if fields.get(f"{key}_logit_softcapping"):
            found[cap] = fields.number(f"{key}_logit_softcapping", float)
    scale = fields.number("query_pre_attn_scalar", float, 256.0) ** -0.5
    return found | {"scale": scale, "layer_windows": _windows(fields, kinds, 4096)}


def _gemma3(fields: Fields) -> dict[str, Any]:
    """Gemma 3 for text, 270M and 1B: five layers of six see a window, with another rotary base."""
    # Layers that see all positions have a base of their own; transformers 5 nests the two.
    nested = Fields(fields.entry("rope_parameters"), fields.source)
    full = {"rope_theta": fields.get("rope_theta", 1e6), **nested.entry(FULL)}
    full |= fields.entry("rope_scaling")
    local = {"rope_theta": fields.get("rope_local_base_freq", 1e4), **nested.entry(SLIDING)}
    fields = fields.by_default(attn_logit_softcapping=None, final_logit_softcapping=None)
    fields.check("attn_logit_softcapping", None)  # which transformers does not read here
    plain = fields.under(head_dim=256).over({"rope_theta": None})
    ropes = tuple(_rope(plain, entry=entry)[0] for entry in (full, local))
    every = fields.number("sliding_window_pattern", default=6)
    found = _gemma2(fields, every, qk_norm="head", ropes=ropes)
    return found | {"layer_ropes": tuple(int(each != FAR) for each in found["layer_windows"])}


# What transformers takes by default for the text part of Gemma 3, and files may leave out.
TEXT_DEFAULTS: dict[str, Any] = {"vocab_size": 262208, "max_position_embeddings": 131072}
TEXT_DEFAULTS |= {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
TEXT_DEFAULTS |= {"num_attention_heads": 8, "num_key_value_heads": 4}


def _gemma3_multimodal(fields: Fields) -> dict[str, Any]:
    """Gemma 3, 4B to 27B: the text part of a model that sees images too."""
    inside = {**TEXT_DEFAULTS, **fields.entry("text_config")}
    return _gemma3(Fields({**inside, "model_type": "gemma3_text"}, fields.source))


ALL = ("q", "k", "v", "o", "up", "down")
LEARNED: dict[str, Any] = {"ropes": (), "learned_positions": True, "biases": ALL}


def _layer_norms(fields: Fields, key: str, **more: Any) -> dict[str, Any]:
    """The options of families with LayerNorm and without gates."""
    epsilon = fields.number(key, float, 1e-5)
    return _common(fields, norm="layer", gated=False, norm_epsilon=epsilon, **more)


def _gpt_neox(fields: Fields) -> dict[str, Any]:
    """GPT-NeoX, Pythia, Dolly 2: attention and feed-forward side by side, LayerNorm."""
    fields = fields.renamed(rotary_pct="partial_rotary_factor", rotary_emb_base="rope_theta")
    fields = fields.under(hidden_act="gelu")
    rope, _ = _rope(fields, 0.25)
    biases = ALL if fields.flag("attention_bias", True) else ("up", "down")
    parallel = fields.flag("use_parallel_residual", True)
    return _layer_norms(fields, "layer_norm_eps", ropes=(rope,), biases=biases, parallel=parallel)


GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
}


def _gpt2(fields: Fields) -> dict[str, Any]:
    """GPT-2, all sizes, and DistilGPT-2: learned positions, LayerNorm, biases everywhere."""
    fields.check("scale_attn_by_inverse_layer_idx", False, None)
    fields.check("add_cross_attention", False, None)
    fields.check("scale_attn_weights", True, None)
    fields = fields.renamed(**GPT2_NAMES).under(hidden_act="gelu_new", tie_word_embeddings=True)
    sizes = {"intermediate_size": 4 * fields.number("hidden_size"), "max_position_embeddings": 1024}
    return _layer_norms(fields.under(**sizes), "layer_norm_epsilon", **LEARNED)


def _opt(fields: Fields) -> dict[str, Any]:
    """OPT, all sizes: learned positions, LayerNorm, ReLU."""
    fields.check("enable_bias", True, None)
    fields.check("layer_norm_elementwise_affine", True, None)
    fields = fields.renamed(ffn_dim="intermediate_size", activation_function="hidden_act")
    fields = fields.under(hidden_act="relu", tie_word_embeddings=True)
    before, width = fields.flag("do_layer_norm_before", True), fields.number("hidden_size")
    inner = fields.number("word_embed_proj_dim", default=width)
    found = _layer_norms(
        fields.over({"layer_norm_eps": 1e-5}),
        "layer_norm_eps",
        **LEARNED,
        position_offset=2,
        placement="before" if before else "after",
        final_norm=before and not fields.flag("_remove_final_layer_norm"),
        embedding_width=0 if inner == width else inner,
    )
    if found["embedding_width"] and not found["tied_head"]:
        raise fields.refuse("tie_word_embeddings", "true with word_embed_proj_dim")
    return found


class Family(NamedTuple):
    """What a family is."""

    spec: Callable[[Fields], dict[str, Any]]
    table: name_tables.Table  # the names of its tensors
    architecture: str  # the class of transformers, which some programs look for in config.json


FAMILIES = {
    "llama": Family(_llama, name_tables.LLAMA, "LlamaForCausalLM"),
    "mistral": Family(_mistral, name_tables.LLAMA, "MistralForCausalLM"),
    "qwen2": Family(_qwen2, name_tables.LLAMA, "Qwen2ForCausalLM"),
    "qwen3": Family(_qwen3, name_tables.LLAMA, "Qwen3ForCausalLM"),
    "phi3": Family(_phi3, name_tables.PHI3, "Phi3ForCausalLM"),
    "olmo2": Family(_olmo2, name_tables.GEMMA2, "Olmo2ForCausalLM"),
    "smollm3": Family(_smollm3, name_tables.LLAMA, "SmolLM3ForCausalLM"),
    "gemma": Family(_gemma, name_tables.LLAMA, "GemmaForCausalLM"),
    "gemma2": Family(_gemma2, name_tables.GEMMA2, "Gemma2ForCausalLM"),
    "gemma3_text": Family(_gemma3, name_tables.GEMMA2, "Gemma3ForCausalLM"),
    "gemma3": Family(_gemma3_multimodal, name_tables.GEMMA2, "Gemma3ForCausalLM"),
    "gpt2": Family(_gpt2, name_tables.GPT2, "GPT2LMHeadModel"),
    "gpt_neox": Family(_gpt_neox, name_tables.GPT_NEOX, "GPTNeoXForCausalLM"),
    "opt": Family(_opt, name_tables.OPT, "OPTForCausalLM"),
}
