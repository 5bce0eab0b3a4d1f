"""Small configs of every family and of its options: what all models are tested on."""

from typing import Any

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": False}
ODD = {**GROUPED, "head_dim": 10}
GEMMA = {**ODD, "tie_word_embeddings": True}
WINDOW = {"sliding_window": 5}


def rope(kind="default", theta=10000.0, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


def scaled(**more):
    return {"rope_parameters": rope(**more)}


# The family, and the fields of a config.json, which transformers completes.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with biases": ("llama", {**ODD, "attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("llama", {**GROUPED, **scaled(kind="linear", factor=4.0)}),
    "mistral": ("mistral", {**ODD, "sliding_window": None}),
    "mistral, window": ("mistral", {**GROUPED, **WINDOW}),
    "qwen2": ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2, window": (
        "qwen2",
        {**GROUPED, **WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    ),
    "qwen2, yarn": (
        "qwen2",
        {**GROUPED, **scaled(kind="yarn", factor=4.0, original_max_position_embeddings=16)},
    ),
    "qwen3": ("qwen3", ODD),
    "phi3": ("phi3", GROUPED),
    "phi3, part": ("phi3", {**GROUPED, "hidden_size": 32, **scaled(partial_rotary_factor=0.75)}),
    "phi3, longrope": (
        "phi3",
        {
            **GROUPED,
            "original_max_position_embeddings": 40,
            **scaled(kind="longrope", short_factor=[1.0, 1.1, 1.3], long_factor=[1.0, 2.0, 4.0]),
        },
    ),
    "olmo2": ("olmo2", GROUPED),
    "smollm3": ("smollm3", {**GROUPED, "num_hidden_layers": 5, "no_rope_layer_interval": 2}),
    "smollm3, window": ("smollm3", {**GROUPED, **WINDOW, "use_sliding_window": True}),
    "gemma": ("gemma", GEMMA),
    "gemma2": (
        "gemma2",
        {
            **GEMMA,
            **WINDOW,
            "query_pre_attn_scalar": 7,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **GEMMA,
            **WINDOW,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 7,
            "sliding_window_pattern": 3,
            "final_logit_softcapping": None,
        },
    ),
    "gemma3, linear": (
        "gemma3_text",
        {
            **GEMMA,
            **WINDOW,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 10,
            "rope_parameters": {
                "full_attention": rope("linear", 2e5, factor=8.0),
                "sliding_attention": rope(),
            },
        },
    ),
    "gpt2": (
        "gpt2",
        {"vocab_size": 61, "n_embd": 24, "n_layer": 4, "n_head": 4, "n_positions": 64},
    ),
    "gpt_neox": ("gpt_neox", {**SIZES, "hidden_size": 32, **scaled(partial_rotary_factor=0.5)}),
    "gpt_neox, serial": ("gpt_neox", {**SIZES, "hidden_size": 32, "use_parallel_residual": False}),
    "opt": ("opt", {**SIZES, "ffn_dim": 36}),
    "opt, norms after": (
        "opt",
        {**SIZES, "ffn_dim": 36, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    ),
}
