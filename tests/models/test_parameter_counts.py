"""The numbers of parameters of public checkpoints are those that are published.

Nothing is allocated: the shapes alone are computed.
"""

import math

import pytest

from prompt_tuning_jax.models.decoder import param_shapes
from prompt_tuning_jax.models.families import FAMILIES, spec_from_config

# The largest checkpoint of each family, and some that differ from it: the count, exact or as it is
# rounded in the checkpoint's name, the family, and from its config D, L, H, F, V, and K and d if
# they are there.
PUBLISHED = {
    # The parameters of the safetensors files, as the hub counts them.
    "Llama 3.1 405B": (405_853_388_800, "llama", 16384, 126, 128, 53248, 128256, 8),
    "Qwen3 32B": (32_762_123_264, "qwen3", 5120, 64, 64, 25600, 151936, 8, 128),
    "Phi-4": (14_659_507_200, "phi3", 5120, 40, 40, 17920, 100352, 10),
    "OLMo 2 13B": (13_716_198_400, "olmo2", 5120, 40, 40, 13824, 100352, 40),
    "SmolLM3 3B": (3_075_098_624, "smollm3", 2048, 36, 16, 11008, 128256, 4),
    "OPT 125M": (125_239_296, "opt", 768, 12, 12, 3072, 50272),
    # `params` in the `backbone_presets` of keras-hub.
    "Mistral 7B v0.3": (7_248_023_552, "mistral", 4096, 32, 32, 14336, 32768, 8),
    "Qwen2.5 72B": (72_706_203_648, "qwen2", 8192, 80, 64, 29568, 152064, 8),
    "Phi-3 mini": (3_821_079_552, "phi3", 3072, 32, 32, 8192, 32064, 32),
    "Gemma 7B": (8_537_680_896, "gemma", 3072, 28, 16, 24576, 256000, 16, 256),
    "Gemma 2 27B": (27_227_128_320, "gemma2", 4608, 46, 32, 36864, 256000, 16, 128),
    "Gemma 3 270M": (268_098_176, "gemma3_text", 640, 18, 4, 2048, 262144, 1, 256),
    "Gemma 3 1B": (999_885_952, "gemma3_text", 1152, 26, 4, 6912, 262144, 1, 256),
    "GPT-2 XL": (1_557_611_200, "gpt2", 1600, 48, 25, None, 50257),
    # `n_params` that llama.cpp says of the GGUF file.
    "Gemma 3 27B's text part": (27_009_346_304, "gemma3", 5376, 62, 32, 21504, 262208, 16, 128),
    # The card on the hub.
    "GPT-NeoX 20B": (20_554_567_680, "gpt_neox", 6144, 44, 64, 24576, 50432),
    "Pythia 12B": (11_846_072_320, "gpt_neox", 5120, 36, 40, 20480, 50688),
    # Rounded.
    "Mistral Large 2407": ("123B", "mistral", 12288, 88, 96, 28672, 32768, 8, 128),
    "OLMo 2 32B": ("32B", "olmo2", 5120, 64, 40, 27648, 100352, 8),
    "OPT 66B": ("66B", "opt", 9216, 64, 72, 36864, 50272),
}
NAMES = "hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size".split()
NAMES += ["num_key_value_heads", "head_dim"]
GPT2 = ["n_embd", "n_layer", "n_head", "n_inner", "vocab_size"]
OTHERS = {"gpt2": {"n_positions": 1024}, "opt": {"max_position_embeddings": 2048}}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_has_as_many_parameters_as_published(name):
    published, family, *sizes = PUBLISHED[name]
    config = dict(zip(GPT2 if family == "gpt2" else NAMES, sizes, strict=False))
    if family == "gemma3":
        config = {"text_config": config}
    if family == "opt":
        config["ffn_dim"] = config.pop("intermediate_size")
    config |= {"model_type": family, **OTHERS.get(family, {})}
    shapes = param_shapes(spec_from_config(config, name))
    count = sum(map(math.prod, shapes.values()))
    assert (count if isinstance(published, int) else f"{count / 1e9:.0f}B") == published


def test_every_family_is_counted():
    assert {row[1] for row in PUBLISHED.values()} == set(FAMILIES)
