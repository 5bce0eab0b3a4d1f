"""The inputs of both sides: a model's folder, and the examples of each update."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prompt_tuning_jax.models.sites import PREFIX, Given, sites
from prompt_tuning_jax.models.spec import axis_sizes

QUICKSTART = str(Path(__file__).resolve().parent.parent / "configs" / "quickstart.py")


class Shape(NamedTuple):
    """The shape of a Llama with random weights; the defaults are those of SmolLM2-135M."""

    layers: int = 30
    width: int = 576
    heads: int = 9
    kv_heads: int = 3
    feedforward: int = 1536
    vocabulary: int = 49152


def random_llama(folder: str, shape: Shape, seed: int = 0) -> str:
    """Writes a Hugging Face folder (config, float32 safetensors, tokenizer); returns `folder`.

    It does not use torch, so that our side runs without it. Weights are normal with deviation 0.02,
    as in transformers; norms are 1, and the head is the embedding.
    """
    from safetensors.numpy import save_file

    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(_llama_config(shape), file)
    rng = np.random.default_rng(seed)
    tensors = {
        name: np.ones(size, np.float32)
        if len(size) == 1
        else rng.standard_normal(size, np.float32) * np.float32(0.02)
        for name, size in _llama_tensors(shape)
    }
    save_file(tensors, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    _write_tokenizer(folder, shape.vocabulary)
    return folder


def _llama_config(shape: Shape) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
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
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def _llama_tensors(shape: Shape):
    """Yields name and size of every tensor; matrices are `[out, in]`."""
    width, wide = shape.width, shape.feedforward
    keys = width // shape.heads * shape.kv_heads
    yield "model.embed_tokens.weight", (shape.vocabulary, width)
    yield "model.norm.weight", (width,)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (width,)
        yield at + "post_attention_layernorm.weight", (width,)
        for name, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            yield f"{at}self_attn.{name}_proj.weight", (rows, width)
        yield at + "mlp.gate_proj.weight", (wide, width)
        yield at + "mlp.up_proj.weight", (wide, width)
        yield at + "mlp.down_proj.weight", (width, wide)


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
