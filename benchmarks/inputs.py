"""The inputs of both sides: a model's folder, and the examples of each update."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prompt_tuning_jax.models.families import FAMILIES, spec_from_config
from prompt_tuning_jax.models.sites import PREFIX, Given, sites
from prompt_tuning_jax.models.spec import axis_sizes
from prompt_tuning_jax.models.weight_names import tensors

QUICKSTART = str(Path(__file__).resolve().parent.parent / "configs" / "quickstart.py")


class Shape(NamedTuple):
    """The shape of a Llama with random weights; the defaults are those of SmolLM2-135M."""

    layers: int = 30
    width: int = 576
    heads: int = 9
    kv_heads: int = 3
    feedforward: int = 1536
    vocabulary: int = 49152


# The shapes of other models, as their config.json has them.
CONFIGS = {
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
}


def llama_config(shape: Shape) -> dict:
    """Returns the config.json of a Llama."""
    return {
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.feedforward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.width // shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    }


def random_model(folder: str, config: dict, seed: int = 0) -> str:
    """Writes a Hugging Face folder (config, float32 safetensors, tokenizer); returns `folder`.

    It does not use torch, so that our side runs without it. Weights are normal with deviation 0.02,
    as in transformers; norms are 1 and biases 0.
    """
    from safetensors.numpy import save_file

    spec, rng = spec_from_config(config, "benchmark"), np.random.default_rng(seed)
    named = {"bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}
    named["architectures"] = [FAMILIES[spec.family].architecture]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config | named, file)
    arrays = {
        each.name: np.full(each.shape, each.name.endswith("weight"), np.float32)
        if len(each.shape) == 1
        else rng.standard_normal(each.shape, np.float32) * np.float32(0.02)
        for each in tensors(spec)
    }
    save_file(arrays, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    _write_tokenizer(folder, spec.vocabulary)
    return folder


def _write_tokenizer(folder: str, vocabulary: int) -> None:
    """Writes a tokenizer of the words `w0`, `w1`, …, which a model folder needs."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{index}": index for index in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w1", "eos_token": "w2"}
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(settings, file)


class Case(NamedTuple):
    """One example without slots, as PEFT's side takes it and as a file can hold it.

    Attributes:
      ids: int[n] tokens of the text and its target.
      targets: how many of the last ids are the target.
      constant: how many of the first ids the template gives, the same for every example.
    """

    ids: Sequence[int]
    targets: int
    constant: int = 0


def random_updates(
    batch_size: int, length: int, targets: int, vocabulary: int, seed: int = 0
) -> list[list[Case]]:
    """Makes one update: rows of `length` random tokens, the last `targets` of them to predict."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, (batch_size, length))
    return [[Case(row.tolist(), targets) for row in ids]]


def prompt_ids(num_virtual_tokens: int, vocabulary: int) -> np.ndarray:
    """Returns int64[P] tokens; their embeddings are the first prompt of both sides."""
    return np.random.default_rng(1).integers(0, vocabulary, num_virtual_tokens)


def random_prefix(num_virtual_tokens: int, spec) -> Given:
    """Returns the first keys and values of both sides, float32[L, P, K, d] each."""
    rng = np.random.default_rng(1)
    shape = (spec.layers, num_virtual_tokens, spec.kv_heads, spec.head_size)
    return Given({path: rng.standard_normal(shape, np.float32) / 10 for path in PREFIX.values()})


def adapters(method: str, spec) -> Given:
    """Returns what 'lora' of rank 8 or 'ia3' begins with, on both sides."""
    rng, size, found = np.random.default_rng(1), axis_sizes(spec), {}
    scaled = ("attention/k", "attention/v", "feedforward/down")
    for path, letters in sites(spec).items():
        shape = [size.get(letter, 8) for letter in letters.split()]
        if method == "lora" and path.startswith("lora/"):
            bound = shape[-1] ** -0.5
            first = rng.uniform(-bound, bound, shape) if path.endswith("/a") else np.zeros(shape)
            found[path] = first.astype(np.float32)
        elif method == "ia3" and path.startswith("scale/") and path.endswith(scaled):
            found[path] = np.ones(shape, np.float32)
    return Given(found)


def case(example, *, answered: bool = True) -> Case:
    """Returns the tokens of our `Example` without the slots in front.

    Raises ValueError if the slots are elsewhere: those of PEFT stand before everything.
    """
    trunk = example.trunk.tolist()
    slots = sum(index < 0 for index in trunk)
    if any(index < 0 for index in trunk[slots:]):
        raise ValueError("PEFT's virtual tokens stand before everything: begin with {soft}")
    constant = max(example.constant - slots, 0)
    tail = example.tails[example.answer].tolist() if answered else []
    return Case(trunk[slots:] + tail, len(tail), constant)


def padded(cases: Sequence[Case], pad_id: int = 0) -> dict[str, np.ndarray]:
    """Returns `input_ids`, `attention_mask` and `labels`, int64[B, longest], padded on the right.

    As with `tokenizer.pad` and a collator, every label but those of targets is -100.
    """
    longest = max(len(each.ids) for each in cases)
    ids = np.full((len(cases), longest), pad_id)
    mask, labels = np.zeros_like(ids), np.full_like(ids, -100)
    for row, each in enumerate(cases):
        end = len(each.ids)
        ids[row, :end], mask[row, :end] = each.ids, 1
        labels[row, end - each.targets : end] = each.ids[end - each.targets :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
