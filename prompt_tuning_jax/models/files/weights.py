"""Reads frozen weights as a tree of numpy arrays, from GGUF or a Hugging Face folder.

Every tensor of a file is used or refused by name. The stacks `[L-1, ...]` are allocated once and
filled tensor by tensor, so the peak of memory is the model and one tensor.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.models.files.find import find_model, read_json
from prompt_tuning_jax.models.files.gguf import dequantize, read_gguf, unpermute
from prompt_tuning_jax.models.memory import free_bytes
from prompt_tuning_jax.models.spec import Spec, spec_from_config, spec_from_gguf
from prompt_tuning_jax.models.weight_names import (
    EMBEDDING,
    FAMILIES,
    HEAD,
    leaf_shape,
    param_shapes,
    part_of,
    tensor_names,
)
from prompt_tuning_jax.safetensors_file import DTYPES as STORED
from prompt_tuning_jax.safetensors_file import read_header, read_tensors
from prompt_tuning_jax.storage import sha256

DTYPES = {dtype.name: dtype for dtype in STORED.values()}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"[A-Za-z0-9_. -]{1,200}\.safetensors")  # what an index may name
BUFFERS = (".rotary_emb.inv_freq",)  # tables in some files that the spec already says
ROPE_FACTORS = "rope_freqs.weight"
GGUF_HEAD = "output.weight"  # if it is missing, the head is tied


class Weights(NamedTuple):
    """A model's spec, its tree of arrays (never to be written to), and the fingerprint of the files
    that it came from: SHA-256, the same for every dtype."""

    spec: Spec
    params: dict[str, Any]
    fingerprint: str


def read_weights(path: str, dtype: str, most: float = math.inf) -> Weights:
    """Reads a packaged model ('smollm2-135m-instruct'), a GGUF file, or a Hugging Face folder.

    Every leaf has the `dtype`: 'float32', 'bfloat16' or 'float16'. Matrices are `[out, in]`. Those
    of all layers but the last are stacked: `layers/attention/q/weight [L-1, H*d, D]`,
    `last/attention/q/weight [H*d, D]`. Raises a UserError for a model that is damaged, not
    supported, or larger than the free memory or than `most` bytes.
    """
    found = find_model(path)
    most = min(most, free_bytes())
    return (_read_folder if found.is_dir() else _read_gguf)(found, DTYPES[dtype], most)


def _read_folder(folder: Path, dtype: np.dtype, most: float) -> Weights:
    """Reads `config.json`, and safetensors in one file or in the files that an index names."""
    spec = spec_from_config(read_json(folder / "config.json"), str(folder / "config.json"))
    headers = {file: read_header(file) for file in weight_files(folder)}
    shapes: dict[str, tuple[int, ...]] = {}
    for file, entries in headers.items():
        for name in entries.keys() & shapes.keys():
            raise UserError(f"{file}: the tensor {short(name)} is in another file too.")
        shapes |= {name: entry.shape for name, entry in entries.items()}
    # Some files repeat a tied embedding as the head: both must be the same, byte for byte.
    names = {leaf.path: leaf.folder for leaf in FAMILIES[spec.family]}
    twins = {names[EMBEDDING], names[HEAD]} if spec.tied_head else set()
    ignored = {name for name in shapes if name.endswith(BUFFERS) or name in twins}
    _check_shapes(spec, "folder", shapes, ignored, folder)
    _check_size(spec, dtype, most, folder)
    digests, ties = [], set()
    leaves = _allocate(spec, dtype)
    places = {
        name: part_of(leaves, spec, leaf, layer)
        for name, leaf, layer in tensor_names(spec, "folder")
    }
    for file, entries in headers.items():
        digests.append(sha256(file))
        for name, array in read_tensors(file, entries):
            if name in places:
                _fill(places[name], array, f"{file}: the tensor '{name}'")
            if name in twins and names[HEAD] in shapes:
                ties.add(hashlib.sha256(array.view(np.uint8).data).digest())
    if len(ties) > 1:
        raise UserError(
            f"{folder}: config.json ties the head to the embedding, but '{names[HEAD]}' differs "
            f"from '{names[EMBEDDING]}'; set tie_word_embeddings to false."
        )
    digests.append(sha256(folder / "config.json"))
    whole = hashlib.sha256(b"".join(map(bytes.fromhex, digests)))
    return Weights(spec, _finish(leaves), whole.hexdigest())


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder in the order of their names."""
    single, index = folder / SINGLE, folder / INDEX
    if single.exists():
        return [single]
    if not index.exists():
        raise UserError(
            f"the model folder '{folder}' holds neither {SINGLE} nor {INDEX}; expected weights as "
            "safetensors."
        )
    weight_map = read_json(index).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    if not names or not all(isinstance(name, str) and SHARD.fullmatch(name) for name in names):
        raise UserError(f"{index}: weight_map does not name files of its own folder.")
    return [folder / name for name in sorted(set(names))]


def _read_gguf(path: Path, dtype: np.dtype, most: float) -> Weights:
    """Reads a GGUF file and dequantises it tensor by tensor."""
    file = read_gguf(path)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    factors = None
    with path.open("rb") as data:
        if ROPE_FACTORS in shapes:
            factors = dequantize(data, ROPE_FACTORS, file.tensors[ROPE_FACTORS])
        spec = spec_from_gguf(file.fields, GGUF_HEAD not in shapes, factors, str(path))
        _check_shapes(spec, "gguf", shapes, {ROPE_FACTORS}, path)
        _check_size(spec, dtype, most, path)
        leaves = _allocate(spec, dtype)
        for name, leaf, layer in tensor_names(spec, "gguf"):
            array = dequantize(data, name, file.tensors[name])
            if leaf.rotary:
                array = unpermute(array, array.shape[0] // spec.head_size)
            _fill(part_of(leaves, spec, leaf, layer), array, f"{path}: the tensor '{name}'")
    return Weights(spec, _finish(leaves), sha256(path))


def _finish(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the tree of leaves, which are read-only from now on."""
    for leaf in leaves.values():
        leaf.flags.writeable = False
    return traverse_util.unflatten_dict(leaves, sep="/")


def _check_shapes(
    spec: Spec, source: str, shapes: Mapping[str, tuple[int, ...]], ignored: set[str], path: Path
) -> None:
    """Refuses a tensor that is missing, of another shape, or has no place in the model and is not
    `ignored`, before any memory is taken. `source` says whose names they have."""
    wanted = set()  # not from the spec at once: a damaged one may say 2**31 layers
    for name, leaf, _ in tensor_names(spec, source):
        shape = leaf_shape(spec, leaf)
        if name not in shapes:
            raise UserError(f"{path}: the tensor '{name}' is missing, expected of shape {shape}.")
        if shapes[name] != shape:
            raise UserError(f"{path}: '{name}' has shape {shapes[name]}, expected {shape}.")
        wanted.add(name)
    for name in shapes:
        if name not in wanted and name not in ignored:
            raise UserError(
                f"{path}: the tensor {short(name)} has no place in a {spec.family} model of "
                f"{spec.layers} layers{', whose head is tied' if spec.tied_head else ''}."
            )


def _check_size(spec: Spec, dtype: np.dtype, most: float, path: Path) -> None:
    """Refuses a model that takes more than `most` bytes, before any are taken."""
    numbers = sum(map(math.prod, param_shapes(spec).values()))
    needed, half = numbers * dtype.itemsize, numbers * DTYPES["bfloat16"].itemsize
    if needed > most:
        other = "give --config.model.dtype=bfloat16" if half <= most else "give a smaller model"
        raise UserError(
            f"the model {path} takes {needed / 1e9:,.1f} GB as {dtype.name}, and "
            f"{most / 1e9:,.1f} GB of memory are free: {other}, or a machine with more."
        )


def _allocate(spec: Spec, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Returns empty leaves by path."""
    return {path: np.empty(shape, dtype) for path, shape in param_shapes(spec).items()}


def _fill(place: np.ndarray, array: np.ndarray, what: str) -> None:
    """Copies a tensor into its place, cast, and refuses numbers that are not finite then."""
    with np.errstate(over="ignore"):
        place[...] = array
    if not np.isfinite(place).all():
        fault = "not finite: get the file again"
        if np.isfinite(array).all():
            fault = f"too large for {place.dtype.name}: give --config.model.dtype=bfloat16"
        raise UserError(f"{what} holds numbers that are {fault}.")
