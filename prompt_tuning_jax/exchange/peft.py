"""Adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

What PEFT calls a layer is its name in a Hugging Face folder behind 'base_model.model.', which the
table of weight names gives. Both files are data: no name in them is imported or opened.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.models.fields import Fields
from prompt_tuning_jax.models.files.find import read_json
from prompt_tuning_jax.models.sites import PREFIX, PROMPT, SCALED_INPUT
from prompt_tuning_jax.models.spec import Spec, linear_layers
from prompt_tuning_jax.models.weight_names import module_name
from prompt_tuning_jax.safetensors_file import read_header, read_tensors, write_safetensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BASE, EMBEDDINGS = "base_model.model.", "prompt_embeddings"
TEXT_PART = "language_model."  # of a model that sees images too
INNER = f"scale/decoder/{SCALED_INPUT}"
MOST_BYTES = 1 << 20  # of the config
# Options of PEFT that an artifact cannot hold, and the only value, beside null, that is accepted.
PLAIN: dict[str, Any] = {
    **dict.fromkeys(("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out"), False),
    **dict.fromkeys(("layer_replication", "trainable_token_indices", "alora_invocation_tokens")),
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": [],
    "target_parameters": [],
    "bias": "none",
    "num_transformer_submodules": 1,
}


def write_adapter(
    folder: Path, spec: Spec, sites: Mapping[str, Any], base: str, inside: str = ""
) -> str:
    """Writes arrays by site as a folder that PEFT loads, and returns PEFT's name of their kind. All
    of a soft prompt stands in front of the text. `base` names the model, for people. PEFT changes
    the whole model: `inside` is where in it ours lies, '' or `TEXT_PART`."""
    held = sorted({path.partition("/")[0] for path in sites})
    known = [(kind, write) for kind, (own, _, write, _) in _KINDS.items() if [own] == held]
    if not known:
        shown = ", ".join(held).replace("params", "weights of the model") or "no tensors"
        kinds = "are of one kind: a soft prompt, a prefix, LoRA or IA3; export weights to hf"
        raise UserError(f"the artifact holds {shown}: PEFT's adapters {kinds}")
    arrays = {path: np.asarray(leaf, np.float32) for path, leaf in sites.items()}
    kind, write = known[0]
    tensors, settings = write(spec, arrays)
    plain = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    config = {"peft_type": kind, **plain, **settings}
    if inside and "target_modules" in config:
        own = f"{BASE}model."
        tensors = {name.replace(own, own + inside): leaf for name, leaf in tensors.items()}
        # A regular expression, as the part for images has modules of the same names.
        ends = "|".join(config["target_modules"])
        config["target_modules"] = rf".*\.{re.escape(inside)}.*\.({ends})"
    write_safetensors(folder / TENSORS, tensors)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    return kind


def read_adapter(folder: Path, spec: Spec) -> tuple[str, dict[str, Any]]:
    """Reads a folder that PEFT wrote. Returns the method that makes its kind here, and arrays by
    site, whose shapes are not compared with the model's."""
    named, path = folder / CONFIG, folder / TENSORS
    for each in (named, path):
        if not each.is_file():  # a pipe would be waited for
            advice = "give a folder of PEFT with safetensors, as a .bin file can run code"
            raise UserError(f"{each} cannot be read, as it is no file: {advice}")
    if named.stat().st_size > MOST_BYTES:
        raise UserError(f"{named} has more than {MOST_BYTES:,} bytes: save the adapter again")
    config = Fields(read_json(named), str(named))
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise config.refuse("peft_type", ", ".join(_KINDS), "; supported:")
    for name, plain in PLAIN.items():
        config.check(name, *[plain] * (plain is not None), None)
    read_all = read_tensors(path, read_header(path))
    arrays = {name.replace(TEXT_PART, ""): leaf.astype(np.float32) for name, leaf in read_all}
    _, method, _, read = _KINDS[kind]
    sites = read(path, spec, arrays, config)
    if arrays:
        names = sorted({re.sub(r"\d+", "{}", name) for name in arrays})
        raise UserError(f"{path} holds {short(names, 200)}, for which the model has no place")
    return method, sites


def _write_prompt(spec: Spec, arrays):
    return _write_embeddings(spec, arrays[PROMPT], spec.heads, {"token_dim": spec.prompt_width})


def _write_prefix(spec: Spec, arrays):
    # For each virtual token: keys and values of the first layer, of the second, ...
    pair = np.stack([arrays[path] for path in PREFIX.values()], axis=1)
    flat = pair.transpose(2, 0, 1, 3, 4).reshape(pair.shape[2], -1)
    sizes = dict.fromkeys(("token_dim", "encoder_hidden_size"), spec.kv_heads * spec.head_size)
    return _write_embeddings(spec, flat, spec.kv_heads, sizes)


def _write_embeddings(spec: Spec, vectors: np.ndarray, heads: int, sizes: Mapping[str, int]):
    counts = {"num_virtual_tokens": len(vectors), "num_transformer_submodules": 1}
    counts |= {"num_layers": spec.layers, "num_attention_heads": heads}
    return {EMBEDDINGS: vectors}, {**counts, **sizes}


def _read_prompt(path: Path, spec: Spec, arrays, config: Fields):
    if EMBEDDINGS not in arrays:
        raise UserError(f"{path} holds {short(list(arrays), 200)}, expected '{EMBEDDINGS}'")
    return {PROMPT: arrays.pop(EMBEDDINGS)}


def _read_prefix(path: Path, spec: Spec, arrays, config: Fields):
    flat = _read_prompt(path, spec, arrays, config)[PROMPT]
    shape = (spec.layers, 2, spec.kv_heads, spec.head_size)
    if flat.ndim != 2 or flat.shape[1] != np.prod(shape):
        expected = f"a prefix of the model has {np.prod(shape)} numbers a position"
        raise UserError(f"{path} has shape {flat.shape}; {expected}: it belongs to another model")
    pair = flat.reshape(-1, *shape).transpose(2, 1, 0, 3, 4)
    return dict(zip(PREFIX.values(), pair, strict=True))


def _names(spec: Spec, collection: str) -> dict[str, str]:
    """Returns PEFT's name, with {} for the layer, of every site of LoRA or of IA3."""
    of_lora = {"/a": "lora_A.weight", "/b": "lora_B.weight"}
    leaves = of_lora if collection == "lora" else {"": "ia3_l"}
    return {
        f"{collection}/decoder/{layer}{ours}": f"{BASE}{module}.{theirs}"
        for layer in linear_layers(spec)
        if (module := module_name(spec, layer))
        for ours, theirs in leaves.items()
    }


def _write_layers(spec: Spec, arrays, collection: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the tensors by PEFT's names, and the ends of the names of their modules."""
    names, tensors = _names(spec, collection), dict[str, np.ndarray]()
    if fused := [path for path in arrays if path not in names]:
        alone = ", ".join(layer for layer in linear_layers(spec) if module_name(spec, layer))
        advice = f"train with method.targets of {alone}" if alone else "export it with --to hf"
        raise UserError(
            f"the artifact changes '{fused[0]}', which a {spec.family} model of PEFT has transposed"
            f" or in one matrix with others: {advice}"
        )
    for path, stack in arrays.items():
        tensors |= {names[path].format(number): leaf for number, leaf in enumerate(stack)}
    return tensors, sorted({_module_end(spec, path) for path in arrays})


def _module_end(spec: Spec, path: str) -> str:
    return str(module_name(spec, "/".join(path.split("/")[2:4]))).split(".")[-1]


def _read_layers(path: Path, spec: Spec, arrays, collection: str) -> dict[str, np.ndarray]:
    """Takes the stacks of all sites out of `arrays`."""
    sites = {}
    for site, name in _names(spec, collection).items():
        names = [name.format(number) for number in range(spec.layers)]
        missing = [each for each in names if each not in arrays]
        if missing == names:
            continue
        if missing:
            raise UserError(f"{path} lacks {missing[0]!r}: only adapters of all layers can be read")
        leaves = [arrays.pop(each) for each in names]
        if len({leaf.shape for leaf in leaves}) > 1:
            raise UserError(f"{path}: {name!r} has another shape in some layers")
        sites[site] = np.stack(leaves)
    return sites


def _write_lora(spec: Spec, arrays):
    tensors, modules = _write_layers(spec, arrays, "lora")
    rank = max(stack.shape[1 if path.endswith("/a") else 2] for path, stack in arrays.items())
    # B holds the scale.
    settings = {"r": rank, "lora_alpha": rank, "bias": "none", "lora_dropout": 0.0}
    return tensors, settings | {"target_modules": modules}


def _read_lora(path: Path, spec: Spec, arrays, config: Fields):
    # With the other ways to begin, PEFT changes the model's own weights too.
    config.check("init_lora_weights", True, False, None, "gaussian", "eva", "orthogonal", "mica")
    sites = _read_layers(path, spec, arrays, "lora")
    rank, alpha = config.number("r"), config.number("lora_alpha", float)
    ranks = {stack.shape[1:2] for site, stack in sites.items() if site.endswith("/a")}
    if sites and ranks != {(rank,)}:
        shown = sorted(size for sizes in ranks for size in sizes)
        raise config.refuse("r", f"{shown}: save the adapter again", ", and the ranks are")
    scale = np.float32(alpha / (rank**0.5 if config.get("use_rslora") else rank))
    return {site: stack * scale if site.endswith("/b") else stack for site, stack in sites.items()}


def _write_ia3(spec: Spec, arrays):
    shaped = {
        path: stack[:, None] if path == INNER else stack[..., None]
        for path, stack in arrays.items()
    }
    tensors, modules = _write_layers(spec, shaped, "scale")
    own = [_module_end(spec, INNER)] if INNER in arrays else []
    return tensors, {"target_modules": modules, "feedforward_modules": own}


def _read_ia3(path: Path, spec: Spec, arrays, config: Fields):
    sites = _read_layers(path, spec, arrays, "scale")
    for site, stack in sites.items():
        if stack.ndim != 3 or stack.shape[1 if site == INNER else 2] != 1:
            raise UserError(
                f"{path}: the scales of '{site}' have shape {stack.shape[1:]}: only what"
                f" {SCALED_INPUT} reads and what other layers give can be scaled"
            )
    return {site: stack.reshape(len(stack), -1) for site, stack in sites.items()}


# By PEFT's name of a kind: the collection of its sites, the method that makes such tensors here,
# the writer and the reader. The first of a collection is written.
_KINDS: dict[str, tuple[str, str, Callable, Callable]] = {
    "PROMPT_TUNING": ("prompt", "soft_prompt", _write_prompt, _read_prompt),
    "P_TUNING": ("prompt", "soft_prompt", _write_prompt, _read_prompt),
    "PREFIX_TUNING": ("prefix", "prefix", _write_prefix, _read_prefix),
    "LORA": ("lora", "lora", _write_lora, _read_lora),
    "IA3": ("scale", "ia3", _write_ia3, _read_ia3),
}
