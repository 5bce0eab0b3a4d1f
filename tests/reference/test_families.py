"""Every family against transformers on torch, on random models that `save_pretrained` wrote, that
we write, and that llama.cpp's converter would write.

All parameters are random, biases and norms too: transformers starts them at 0 and 1, where a
mistake does not show.
"""

import re
import runpy

import family_cases
import gguf
import make_fixtures
import numpy as np
import parity
import pytest
import tiny_models
import tiny_runs
import torch
from family_cases import CASES
from transformers import AutoConfig, AutoModelForCausalLM

from prompt_tuning_jax.exchange.folder import write_model
from prompt_tuning_jax.models import families
from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.files.tokenizer import Facts, Tokenizer
from prompt_tuning_jax.models.files.weights import read_weights
from prompt_tuning_jax.models.language_model import LanguageModel

# The cases of families that GGUF files are read of, with their names there.
GGUF_CASES = {"qwen2": "qwen2", "qwen3": "qwen3", "gemma3, linear": "gemma3", "gpt2": "gpt2"}


def make_model(name, family, options):
    torch.manual_seed(len(name))
    config = AutoConfig.for_model(family, **options)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            scale = "norm" in path or "ln_" in path
            center = float(scale and path.endswith("weight") and not family.startswith("gemma"))
            parameter.copy_(center + 0.25 * torch.randn_like(parameter))
    return model


class Made:
    """A random model of one case: of torch with its numbers, and what we read of its folder."""

    def __init__(self, folder, name, case):
        self.name, self.model = name, make_model(name, *case)
        self.model.save_pretrained(folder)
        self.kept = make_fixtures.compute(self.model, 3)._asdict()
        self.read = read_weights(str(folder), "float32")


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory):
    return Made(tmp_path_factory.mktemp("family"), request.param, CASES[request.param])


def check_numbers(found, kept):
    """The logits and the gradient of a prompt are those of torch."""
    module = Decoder(found.spec, precision="highest")
    parity.check_prompt((module, found.params), kept, shared_slots=3)


def check_written(found, made, folder):
    """transformers reads from a folder of ours the model of torch."""
    folder.mkdir()
    words = Tokenizer(tiny_models.tokenizer_json(), Facts(1, 2, 0, True, None))
    module = Decoder(found.spec)
    lm = LanguageModel({}, found.spec, module, found.params, words, "", found.config)
    write_model(folder, lm, tiny_models.flatten(found.params))
    check_theirs(made, folder)


def check_theirs(made, folder, **options):
    theirs, problems = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    assert not any(problems.values()), problems
    assert type(theirs) is type(made.model)
    tensors = made.model.state_dict()
    for key, tensor in theirs.state_dict().items():
        np.testing.assert_allclose(tensor, tensors[key], atol=1e-6, err_msg=key)
    theirs.set_attn_implementation("eager")
    tokens, kept = made.kept["tokens"], made.kept["right"]
    mask = np.arange(tokens.shape[1]) < made.kept["lengths"][:, None]
    np.testing.assert_allclose(make_fixtures.run(theirs.eval(), tokens, mask), kept, atol=1e-4)


def test_logits_and_the_gradient_of_a_prompt_are_those_of_transformers(made):
    assert type(made.model).__name__ == families.FAMILIES[CASES[made.name][0]].architecture
    check_numbers(made.read, made.kept)


def test_transformers_reads_the_folder_that_we_write(made, tmp_path):
    check_written(made.read, made, tmp_path / "written")


@pytest.mark.parametrize("made", GGUF_CASES, indirect=True)
def test_a_gguf_file_is_the_same_model(made, tmp_path):
    """As we read it, as we write it again, and where transformers reads it as it reads the rest."""
    path = tmp_path / "model.gguf"
    write_gguf(path, made.model, GGUF_CASES[made.name])
    found = read_weights(str(path), "float32")
    assert found.spec == made.read.spec
    check_numbers(found, made.kept)
    check_written(found, made, tmp_path / "written")
    if made.name == "qwen2":
        check_theirs(made, tmp_path, gguf_file=path.name)


def test_the_family_that_the_docs_add_in_forty_lines_is_that_of_transformers(tmp_path, monkeypatch):
    page = (tiny_runs.ROOT / "docs" / "new_family.md").read_text(encoding="utf-8")
    family, cases = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert (family + cases).count("\n") < 40
    monkeypatch.setitem(families.FAMILIES, "starcoder2", None)  # and undone behind the test
    for name, code in (("family", family), ("cases", cases)):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    runpy.run_path(str(tmp_path / "family.py"), vars(families))
    added = {}
    runpy.run_path(str(tmp_path / "cases.py"), {**vars(family_cases), "CASES": added})
    assert len(added) == 2
    for number, (name, case) in enumerate(added.items()):
        made = Made(tmp_path / str(number), name, case)
        check_numbers(made.read, made.kept)
        check_written(made.read, made, tmp_path / name)


def write_gguf(path, model, architecture):
    """Writes a model as llama.cpp's `convert_hf_to_gguf.py` does, without a useful tokenizer."""
    config = model.config
    layers = config.num_hidden_layers
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if architecture == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        ropes = config.rope_parameters
        rope = ropes.get("full_attention", ropes)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<{number}>" for number in range(config.vocab_size)])
    number = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if (
            architecture == "gpt2"
            and name.endswith("weight")
            and (".attn." in name or "mlp" in name)
        ):
            tensor = tensor.T
        if architecture == "gemma3" and name.endswith("norm.weight"):
            tensor = tensor + 1
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
