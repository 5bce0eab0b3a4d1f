"""Writes a model as a Hugging Face folder that transformers loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files.tokenizer import Tokenizer
from prompt_tuning_jax.models.sites import SCALED_INPUT, Given
from prompt_tuning_jax.models.spec import Spec
from prompt_tuning_jax.models.weight_names import linear_layers, part_of, tensor_names


def merge(spec: Spec, params: Mapping[str, Any], given: Given) -> dict[str, np.ndarray]:
    """Returns the leaves of the model by path, in its dtype, with what is given merged into them:
    other leaves, LoRA's products, IA3's scales. Raises a UserError for a soft prompt or prefix."""
    whole = [path for path in given.sites if path.split("/")[0] not in ("lora", "scale")]
    if whole:
        raise UserError(
            f"the artifact holds '{whole[0]}', which cannot be merged into weights: export it to"
            " peft"
        )
    flat = {**traverse_util.flatten_dict(params, sep="/"), **given.params}
    leaves = {path: np.asarray(leaf) for path, leaf in flat.items()}
    for layer in linear_layers(spec):
        for stack, part in (("layers", slice(0, -1)), ("last", -1)):
            path = f"{stack}/{layer}/weight"
            weight = leaves[path].astype(np.float32)
            if f"lora/decoder/{layer}/a" in given.sites:
                a, b = (given.sites[f"lora/decoder/{layer}/{each}"][part] for each in "ab")
                weight = weight + np.asarray(b, np.float32) @ np.asarray(a, np.float32)
            if f"scale/decoder/{layer}" in given.sites:
                scale = np.asarray(given.sites[f"scale/decoder/{layer}"][part], np.float32)
                read = layer == SCALED_INPUT
                weight = weight * (scale[..., None, :] if read else scale[..., None])
            leaves[path] = weight.astype(leaves[path].dtype)
    return leaves


def write_model(
    folder: Path, spec: Spec, leaves: Mapping[str, np.ndarray], tokenizer: Tokenizer
) -> None:
    """Writes `config.json`, `model.safetensors`, and the files of the tokenizer."""
    tensors = {
        name: np.ascontiguousarray(part_of(leaves, spec, leaf, layer))
        for name, leaf, layer in tensor_names(spec, "folder")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = next(iter(tensors.values())).dtype.name
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    _write(folder / "config.json", {**_config(spec), **ids, "torch_dtype": dtype})
    _write(folder / "generation_config.json", {**ids, "eos_token_id": tokenizer.end_ids or None})
    tokenizer.write(folder)


def _config(spec: Spec) -> dict[str, Any]:
    """Returns what `spec_from_config` reads."""
    scaling = spec.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": spec.family,
        "hidden_act": "silu",
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "intermediate_size": spec.feedforward,
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.max_positions,
        "rope_theta": spec.rope_theta,
        "rms_norm_eps": spec.norm_epsilon,
        "tie_word_embeddings": spec.tied_head,
        "rope_scaling": scaling
        and {
            "rope_type": scaling.kind,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        },
    }


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
