"""The numbers of parameters of public checkpoints are those that are published.

Nothing is allocated: the shapes alone are computed. The configs hold the keys that a size needs.
"""

import math

import pytest

from prompt_tuning_jax.models.decoder import param_shapes
from prompt_tuning_jax.models.families import FAMILIES, spec_from_config


def config(family, width, layers, heads, feedforward, vocabulary, kv_heads=None, **more):
    return {
        "model_type": family,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": feedforward,
        "vocab_size": vocabulary,
    } | more


def gpt2(width, layers, heads):
    sizes = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 1024}
    return {"model_type": "gpt2", "vocab_size": 50257} | sizes


def opt(width, layers, heads):
    more = {"ffn_dim": 4 * width, "max_position_embeddings": 2048}
    return config("opt", width, layers, heads, None, 50272, **more)


# The largest checkpoint of each family, and some that differ from it otherwise. A count is exact,
# or as it is rounded in the name or the paper. Sources: (c) the model's card, (h) the count that
# the hub shows for its safetensors files, (k) the table `backbone_presets` of keras-hub, (l) the
# `n_params` that llama.cpp prints of its GGUF file, (p) the paper.
PUBLISHED = {
    "Llama 3.1 405B": (  # (h)
        config("llama", 16384, 126, 128, 53248, 128256, 8),
        405_853_388_800,
    ),
    "Mistral 7B v0.3": (  # (k)
        config("mistral", 4096, 32, 32, 14336, 32768, 8),
        7_248_023_552,
    ),
    "Mistral Large 2407": (  # (c)
        config("mistral", 12288, 88, 96, 28672, 32768, 8, head_dim=128),
        "123B",
    ),
    "Qwen2.5 72B": (  # (k)
        config("qwen2", 8192, 80, 64, 29568, 152064, 8),
        72_706_203_648,
    ),
    "Qwen3 32B": (  # (h)
        config("qwen3", 5120, 64, 64, 25600, 151936, 8, head_dim=128),
        32_762_123_264,
    ),
    "Phi-3 mini": (  # (k)
        config("phi3", 3072, 32, 32, 8192, 32064, 32),
        3_821_079_552,
    ),
    "Phi-4": (  # (h)
        config("phi3", 5120, 40, 40, 17920, 100352, 10),
        14_659_507_200,
    ),
    "OLMo 2 13B": (  # (h)
        config("olmo2", 5120, 40, 40, 13824, 100352, 40),
        13_716_198_400,
    ),
    "OLMo 2 32B": (  # (c)
        config("olmo2", 5120, 64, 40, 27648, 100352, 8),
        "32B",
    ),
    "SmolLM3 3B": (  # (h)
        config("smollm3", 2048, 36, 16, 11008, 128256, 4),
        3_075_098_624,
    ),
    "Gemma 7B": (  # (k)
        config("gemma", 3072, 28, 16, 24576, 256000, 16, head_dim=256),
        8_537_680_896,
    ),
    "Gemma 2 27B": (  # (k)
        config("gemma2", 4608, 46, 32, 36864, 256000, 16, head_dim=128),
        27_227_128_320,
    ),
    "Gemma 3 270M": (  # (k)
        config("gemma3_text", 640, 18, 4, 2048, 262144, 1, head_dim=256),
        268_098_176,
    ),
    "Gemma 3 1B": (  # (k)
        config("gemma3_text", 1152, 26, 4, 6912, 262144, 1, head_dim=256),
        999_885_952,
    ),
    "Gemma 3 27B, its text part": (  # (l)
        {
            "model_type": "gemma3",
            "text_config": config(None, 5376, 62, 32, 21504, 262208, 16, head_dim=128),
        },
        27_009_346_304,
    ),
    "GPT-2 XL": (gpt2(1600, 48, 25), 1_557_611_200),  # (k)
    "GPT-NeoX 20B": (  # (c)
        config("gpt_neox", 6144, 44, 64, 24576, 50432),
        20_554_567_680,
    ),
    "Pythia 12B": (  # (c)
        config("gpt_neox", 5120, 36, 40, 20480, 50688),
        11_846_072_320,
    ),
    "OPT 125M": (opt(768, 12, 12), 125_239_296),  # (h)
    "OPT 66B": (opt(9216, 64, 72), "66B"),  # (p)
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_has_as_many_parameters_as_published(name):
    given, published = PUBLISHED[name]
    shapes = param_shapes(spec_from_config(given, name))
    count = sum(map(math.prod, shapes.values()))
    assert (count if isinstance(published, int) else f"{count / 1e9:.0f}B") == published


def test_every_family_is_counted():
    assert {given["model_type"] for given, _ in PUBLISHED.values()} == set(FAMILIES)
