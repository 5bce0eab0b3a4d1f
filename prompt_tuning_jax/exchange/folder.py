"""Writes a model as a Hugging Face folder that transformers loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from flax import traverse_util
from safetensors.numpy import save_file
from tokenizers import processors

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.families import FAMILIES, TEXT_DEFAULTS
from prompt_tuning_jax.models.files.tokenizer import Tokenizer
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import SCALED_INPUT, Given
from prompt_tuning_jax.models.spec import Spec, linear_layers
from prompt_tuning_jax.models.weight_names import join, parts_of, tensors


def merge(spec: Spec, params: Mapping[str, Any], given: Given) -> dict[str, np.ndarray]:
    """Returns the leaves of the model by path, in its dtype, with what is given merged into them:
    other leaves, LoRA's products, IA3's scales. Raises a UserError for a soft prompt or prefix."""
    whole = [path for path in given.sites if path.split("/")[0] not in ("lora", "scale")]
    if whole:
        problem = f"the artifact holds '{whole[0]}', which cannot be merged into weights"
        raise UserError(f"{problem}: export it to peft")
    flat = traverse_util.flatten_dict(params, sep="/")
    leaves = {
        path: np.asarray(given.params.get(path, flat[path]), flat[path].dtype) for path in flat
    }
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
                bias = f"{stack}/{layer}/bias"
                if bias in leaves and not read:
                    leaves[bias] = (leaves[bias] * scale).astype(leaves[bias].dtype)
            leaves[path] = weight.astype(leaves[path].dtype)
    return leaves


def write_model(folder: Path, lm: LanguageModel, leaves: Mapping[str, np.ndarray]) -> None:
    """Writes `config.json`, `model.safetensors`, and the files of the tokenizer."""
    made = {each.name: join(each, parts_of(leaves, each)) for each in tensors(lm.spec)}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    own = lm.config.get("text_config")
    config = lm.config if own is None else TEXT_DEFAULTS | own
    config = {key: value for key, value in config.items() if key not in ("auto_map", "dtype")}
    words, family = lm.tokenizer, lm.spec.family
    ids = {f"{name}_token_id": getattr(words, f"{name}_id") for name in ("bos", "eos", "pad")}
    # transformers refuses one that has no embedding.
    ids = {key: number for key, number in ids.items() if (number or 0) < lm.spec.vocabulary}
    config |= {"model_type": family, "architectures": [FAMILIES[family].architecture], **ids}
    config["torch_dtype"] = next(iter(made.values())).dtype.name
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {**ids, "eos_token_id": words.end_ids or None})
    _write_tokenizer(folder, words)


def _write_tokenizer(folder: Path, words: Tokenizer) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    library = tokenizers.Tokenizer.from_str(json.dumps(words.vocabulary))
    tokens = {
        f"{name}_token": library.id_to_token(number)
        for name in ("bos", "eos", "pad")
        if (number := getattr(words, f"{name}_id")) is not None
    }
    if words.add_bos and words.bos_id not in library.encode("a").ids:
        bos = tokens["bos_token"]
        library.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, words.bos_id)]
        )
    library.save(str(folder / "tokenizer.json"))
    chat = {"chat_template": words.chat_template} if words.chat_template else {}
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, **chat}
    _write(folder / "tokenizer_config.json", named)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
