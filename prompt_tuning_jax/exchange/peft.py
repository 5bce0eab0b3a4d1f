"""Adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

What PEFT calls a layer is its name in a Hugging Face folder behind 'base_model.model.', which the
table of weight names gives. Both files are data: no name in them is imported or opened.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.models.files.find import read_json
from prompt_tuning_jax.models.sites import PREFIX, PROMPT, SCALED_INPUT
from prompt_tuning_jax.models.spec import Spec, linear_layers
from prompt_tuning_jax.models.weight_names import module_name
from prompt_tuning_jax.safetensors_file import read_header, read_tensors, write_safetensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BASE, EMBEDDINGS = "base_model.model.", "prompt_embeddings"
MOST_BYTES = 1 << 20  # of the config
# Options of PEFT under which an adapter is something that we do not hold, and their plain values.
PLAIN = {
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "prefix_projection": (False, None),
    "num_transformer_submodules": (1, None),
    "target_parameters": ([], None),
}


class Adapter(NamedTuple):
    """An adapter: the method that makes its kind here, and what the model is given by site."""

    method: str
    sites: dict[str, Any]


def write_adapter(folder: Path, spec: Spec, sites: Mapping[str, Any], base: str) -> str:
    """Writes arrays by site as a folder that PEFT loads, and returns PEFT's name of their kind. All
    of a soft prompt stands in front of the text. `base` names the model, for people."""
    kinds = {path.partition("/")[0] for path in sites}
    if len(kinds) != 1 or not kinds <= _WRITERS.keys():
        held = ", ".join(sorted(kinds)).replace("params", "weights of the model") or "no tensors"
        raise UserError(
            f"the artifact holds {held}: PEFT's adapters are of one kind: a soft prompt, a prefix,"
            " LoRA or IA3; export weights to hf"
        )
    arrays = {path: np.asarray(leaf, np.float32) for path, leaf in sites.items()}
    kind, tensors, settings = _WRITERS[kinds.pop()](spec, arrays)
    plain = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    config = {"peft_type": kind, "fan_in_fan_out": False, **plain, **settings}
    contiguous = {name: np.ascontiguousarray(leaf) for name, leaf in tensors.items()}
    write_safetensors(folder / TENSORS, contiguous)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    return kind


def read_adapter(folder: Path, spec: Spec) -> Adapter:
    """Reads a folder that PEFT wrote. Whether its shapes are the model's is not checked."""
    config, path = _read_config(folder / CONFIG), folder / TENSORS
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise UserError(
            f"{folder / CONFIG}: peft_type is {short(kind)}; supported: {', '.join(_READERS)}"
        )
    for name, plain in PLAIN.items():
        if name in config and config[name] not in plain:
            raise UserError(
                f"{folder / CONFIG}: {name} is {short(config[name])}; supported: {plain[0]!r}"
            )
    found = read_tensors(path, read_header(path))
    arrays = {name: leaf.astype(np.float32) for name, leaf in found}
    method, read = _READERS[kind]
    sites = read(path, spec, arrays, config)
    if arrays:
        names = sorted({re.sub(r"\d+", "{}", name) for name in arrays})
        raise UserError(f"{path} holds {short(names, 200)}, for which the model has no place")
    return Adapter(method, sites)


def _read_config(path: Path) -> dict[str, Any]:
    for each in (path, path.with_name(TENSORS)):
        if not each.is_file():  # a pipe would be waited for
            raise UserError(f"{each} cannot be read, as it is no file: give a folder of PEFT")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES:,} bytes: save the adapter again")
    return read_json(path)


def _write_prompt(spec: Spec, arrays):
    vectors = arrays[PROMPT]
    settings = {"num_virtual_tokens": len(vectors), "token_dim": spec.prompt_width}
    return "PROMPT_TUNING", {EMBEDDINGS: vectors}, settings | _sizes(spec, spec.heads)


def _write_prefix(spec: Spec, arrays):
    # For each virtual token: keys and values of the first layer, of the second, ...
    pair = np.stack([arrays[path] for path in PREFIX.values()], axis=1)
    flat = pair.transpose(2, 0, 1, 3, 4).reshape(pair.shape[2], -1)
    width = spec.kv_heads * spec.head_size
    settings = {"num_virtual_tokens": len(flat), "token_dim": width, "encoder_hidden_size": width}
    return "PREFIX_TUNING", {EMBEDDINGS: flat}, settings | _sizes(spec, spec.kv_heads)


def _sizes(spec: Spec, heads: int) -> dict[str, Any]:
    counts = {"num_layers": spec.layers, "num_attention_heads": heads}
    return {**counts, "num_transformer_submodules": 1}


def _read_prompt(path: Path, spec: Spec, arrays, config):
    return {PROMPT: _take_embeddings(path, arrays)}


def _read_prefix(path: Path, spec: Spec, arrays, config):
    flat = _take_embeddings(path, arrays)
    shape = (spec.layers, 2, spec.kv_heads, spec.head_size)
    if flat.ndim != 2 or flat.shape[1] != np.prod(shape):
        raise UserError(
            f"{path} has shape {flat.shape}; a prefix of the model has {np.prod(shape)} numbers a"
            " position (2 x layers x key heads x their size): it belongs to another model"
        )
    pair = flat.reshape(-1, *shape).transpose(2, 1, 0, 3, 4)
    return dict(zip(PREFIX.values(), pair, strict=True))


def _take_embeddings(path: Path, arrays) -> np.ndarray:
    if EMBEDDINGS not in arrays:
        raise UserError(f"{path} holds {short(list(arrays), 200)}, expected '{EMBEDDINGS}'")
    return arrays.pop(EMBEDDINGS)


def _names(spec: Spec, collection: str) -> dict[str, str]:
    """Returns PEFT's name, with {} for the layer, of every site of LoRA or of IA3."""
    names = {}
    for layer in linear_layers(spec):
        module = module_name(spec, layer)
        if module is None:
            continue
        if collection == "scale":
            names[f"scale/decoder/{layer}"] = f"{BASE}{module}.ia3_l"
        else:
            for factor in "ab":
                name = f"{BASE}{module}.lora_{factor.upper()}.weight"
                names[f"lora/decoder/{layer}/{factor}"] = name
    return names


def _write_layers(spec: Spec, arrays, collection: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the tensors by PEFT's names, and the ends of the names of their modules."""
    names, tensors = _names(spec, collection), dict[str, np.ndarray]()
    fused = [path for path in arrays if path not in names]
    if fused:
        raise UserError(
            f"the artifact changes '{fused[0]}', which a {spec.family} model of PEFT has in one"
            " matrix with others: train with method.targets of layers that stand alone"
        )
    for path, stack in arrays.items():
        tensors |= {names[path].format(number): leaf for number, leaf in enumerate(stack)}
    modules = {"/".join(path.split("/")[2:4]) for path in arrays}
    return tensors, sorted(str(module_name(spec, each)).split(".")[-1] for each in modules)


def _read_layers(path: Path, spec: Spec, arrays, collection: str) -> dict[str, np.ndarray]:
    """Takes the stacks of all sites out of `arrays`."""
    sites = {}
    for site, name in _names(spec, collection).items():
        found = {each: arrays.pop(each, None) for each in map(name.format, range(spec.layers))}
        missing = [each for each, leaf in found.items() if leaf is None]
        if len(missing) == len(found):
            continue
        if missing:
            raise UserError(
                f"{path} lacks {missing[0]!r}: an adapter of some layers cannot be held"
            )
        if len({leaf.shape for leaf in found.values()}) > 1:
            raise UserError(f"{path}: {name!r} has another shape in some layers")
        sites[site] = np.stack(list(found.values()))
    return sites


def _write_lora(spec: Spec, arrays):
    tensors, modules = _write_layers(spec, arrays, "lora")
    ranks = {stack.shape[1 if path.endswith("/a") else 2] for path, stack in arrays.items()}
    # B holds the scale.
    settings = {"r": max(ranks), "lora_alpha": max(ranks), "bias": "none", "lora_dropout": 0.0}
    return "LORA", tensors, settings | {"target_modules": modules}


def _read_lora(path: Path, spec: Spec, arrays, config):
    sites = _read_layers(path, spec, arrays, "lora")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    ranks = {stack.shape[1:2] for site, stack in sites.items() if site.endswith("/a")}
    real = type(alpha) in (int, float) and abs(alpha) < 1e9
    if type(rank) is not int or ranks != {(rank,)} or not real:
        shown = sorted(size for sizes in ranks for size in sizes)
        raise UserError(
            f"{path.with_name(CONFIG)}: r is {short(rank)} and lora_alpha {short(alpha)}, and the"
            f" matrices have the ranks {shown}: save the adapter again"
        )
    scale = np.float32(alpha / (rank**0.5 if config.get("use_rslora") else rank))
    return {site: stack * scale if site.endswith("/b") else stack for site, stack in sites.items()}


def _write_ia3(spec: Spec, arrays):
    inner = f"scale/decoder/{SCALED_INPUT}"
    shaped = {
        path: stack[:, None] if path == inner else stack[..., None]
        for path, stack in arrays.items()
    }
    tensors, modules = _write_layers(spec, shaped, "scale")
    own = [str(module_name(spec, SCALED_INPUT)).split(".")[-1]] if inner in arrays else []
    return "IA3", tensors, {"target_modules": modules, "feedforward_modules": own}


def _read_ia3(path: Path, spec: Spec, arrays, config):
    sites = _read_layers(path, spec, arrays, "scale")
    inner = f"scale/decoder/{SCALED_INPUT}"
    for site, stack in sites.items():
        if stack.ndim != 3 or stack.shape[1 if site == inner else 2] != 1:
            raise UserError(
                f"{path}: the scales of '{site}' have shape {stack.shape[1:]}: only what"
                f" {SCALED_INPUT} reads and what other layers give can be scaled"
            )
    return {site: stack.reshape(len(stack), -1) for site, stack in sites.items()}


_WRITERS = {
    "prompt": _write_prompt,
    "prefix": _write_prefix,
    "lora": _write_lora,
    "scale": _write_ia3,
}
# The method that has the same kind of tensors, and the reader, by PEFT's name.
_READERS = {
    "PROMPT_TUNING": ("soft_prompt", _read_prompt),
    "P_TUNING": ("soft_prompt", _read_prompt),
    "PREFIX_TUNING": ("prefix", _read_prefix),
    "LORA": ("lora", _read_lora),
    "IA3": ("ia3", _read_ia3),
}
