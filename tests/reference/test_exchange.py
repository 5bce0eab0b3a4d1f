"""Exchange with PEFT and transformers on torch, live: the same logits both ways, the same texts."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import parity
import plain_model
import pytest
import tiny_models
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tiny_methods import TASK
from tiny_models import SPEC
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from prompt_tuning_jax import config as configs
from prompt_tuning_jax import exchange
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.generate import Settings, generate
from prompt_tuning_jax.models.language_model import load
from prompt_tuning_jax.models.sites import NOTHING, from_tensors, to_tensors, virtual_tokens
from prompt_tuning_jax.run.artifact import Artifact, make_manifest

IDS = [40, 41, 42, 90, 91]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = {
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "projected prefix": PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8
    ),
    "lora": LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=LINEAR[:4]),
    "rank-stabilised": LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=LINEAR, use_rslora=True
    ),
    "ia3": IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_models.write_folder(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder, dtype="float32", matmul_precision="highest")


def ours(lm, given):
    """float32[T, V] at the ids behind a prompt or a prefix."""
    slots = -1 - np.arange(virtual_tokens(given))
    tokens, positions, segments = parity.right_padded([IDS])
    inputs = tokens, positions + len(slots), segments, slots, given
    return np.asarray(parity.compute_logits((lm.module, lm.params), *inputs))[0]


def theirs(model):
    """The same on torch."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor([IDS])).logits[0].numpy()
    return logits[-len(IDS) :]


def written(lm, given, count=8):
    """The ids that we write behind the ids."""
    slots = [-1 - slot for slot in range(virtual_tokens(given))]
    example = Example(np.array([*slots, *IDS], np.int32), (), -1, len(slots), 0)
    return next(generate(lm, [example], given, Settings(max_new_tokens=count))).ids


def base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "lora", "scale"])
def test_peft_loads_our_adapter(lm, folder, tmp_path, kind):
    given = plain_model.random_given(0, SPEC, kind)
    task = TASK._replace(template="{soft}<|bos|>{text}")
    artifact = Artifact(to_tensors(given), make_manifest(lm, task, configs.build({}), {}))
    exchange.export_adapter(lm, task, artifact, tmp_path / "a")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Unexpected keyword")  # PEFT does not know a key
        model = PeftModel.from_pretrained(base(folder), tmp_path / "a")
    np.testing.assert_allclose(theirs(model), ours(lm, given), rtol=0, atol=1e-4)
    assert np.abs(ours(lm, given) - ours(lm, NOTHING)).max() > 1e-2
    mask = torch.ones(1, len(IDS), dtype=torch.long)
    with torch.no_grad():
        found = model.generate(
            input_ids=torch.tensor([IDS]),
            attention_mask=mask,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
        )[0, -8:].tolist()
    wanted = written(lm, given)
    assert found[: len(wanted)] == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_we_load_pefts_adapter(lm, folder, tmp_path, name):
    torch.manual_seed(0)
    model = get_peft_model(base(folder), CONFIGS[name])
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn(weight.shape))
    model.save_pretrained(tmp_path / "a")
    artifact = exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / "a")
    found = ours(lm, from_tensors(artifact.tensors))
    np.testing.assert_allclose(found, theirs(model), rtol=0, atol=1e-4)
    assert np.abs(found - ours(lm, NOTHING)).max() > 1e-2


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_transformers_loads_our_folder(folder, tmp_path, source):
    path = folder
    if source == "gguf":
        path = str(tiny_models.write_gguf(tmp_path / "model.gguf"))
    lm = load(path, dtype="float32", matmul_precision="highest")
    given = plain_model.random_given(1, SPEC, "lora", "scale")
    artifact = Artifact(to_tensors(given), make_manifest(lm, TASK, configs.build({}), {}))
    exchange.export_model(lm, artifact, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    np.testing.assert_allclose(theirs(model), ours(lm, given), rtol=0, atol=1e-4)
    words = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = "in the end 12, é"
    bos = [lm.tokenizer.bos_id] * lm.tokenizer.add_bos
    assert words(text)["input_ids"] == [*bos, *lm.tokenizer.encode(text)[0]]
    assert (words.bos_token_id, words.eos_token_id) == (lm.tokenizer.bos_id, lm.tokenizer.eos_id)


def test_peft_and_we_change_the_text_part_of_a_model_that_sees_images(folder, tmp_path):
    text = tiny_models.config(SPEC) | {"model_type": "gemma3_text", "rope_scaling": None}
    sees = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 8}
    sees |= {"num_attention_heads": 2, "patch_size": 4}
    sizes = {"mm_tokens_per_image": 4, "image_token_index": 5}
    config = Gemma3Config(text_config=text, vision_config=sees, **sizes)
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "gemma")
    for path in Path(folder).glob("tokenizer*"):
        shutil.copy(path, tmp_path / "gemma")
    lm = load(str(tmp_path / "gemma"), dtype="float32", matmul_precision="highest")
    for kind in ("lora", "scale"):
        given = plain_model.random_given(0, SPEC, kind)
        artifact = Artifact(to_tensors(given), make_manifest(lm, TASK, configs.build({}), {}))
        exchange.export_adapter(lm, TASK, artifact, tmp_path / kind)
        model = PeftModel.from_pretrained(base(tmp_path / "gemma"), tmp_path / kind)
        np.testing.assert_allclose(theirs(model), ours(lm, given), rtol=0, atol=1e-4)
        assert np.abs(ours(lm, given) - ours(lm, NOTHING)).max() > 1e-2
        model.save_pretrained(tmp_path / f"{kind} of PEFT")
        again = exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / f"{kind} of PEFT")
        np.testing.assert_allclose(
            ours(lm, from_tensors(again.tensors)), ours(lm, given), rtol=1e-5
        )
