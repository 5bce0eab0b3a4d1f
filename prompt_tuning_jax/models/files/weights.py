"""Reads frozen weights as a tree of numpy arrays, from GGUF or a Hugging Face folder.

Every tensor of a file is used or refused by name. The stacks `[L-1, ...]` are allocated once and
filled tensor by tensor, so the peak of memory is the model and one tensor.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.memory import free_bytes
from prompt_tuning_jax.models.decoder import param_shapes
from prompt_tuning_jax.models.families import FAMILIES, spec_from_config
from prompt_tuning_jax.models.files.find import find_model, read_json
from prompt_tuning_jax.models.files.gguf import dequantize, read_gguf, tensor_names, unpermute
from prompt_tuning_jax.models.files.gguf_spec import spec_from_gguf
from prompt_tuning_jax.models.spec import Spec
from prompt_tuning_jax.models.weight_names import Tensor, parts_of, split, tensors
from prompt_tuning_jax.safetensors_file import DTYPES as STORED
from prompt_tuning_jax.safetensors_file import read_header, read_tensors
from prompt_tuning_jax.sharding import WHOLE, Layout, own_parts
from prompt_tuning_jax.storage import sha256

DTYPES = {dtype.name: dtype for dtype in STORED.values()}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"[A-Za-z0-9_. -]{1,200}\.safetensors")  # what an index may name
# Tensors that are skipped: they repeat the spec, or belong to the part for images.
IGNORED = re.compile(
    r".*\.(rotary_emb\.inv_freq|attn\.bias|attention\.bias|(attn|attention)\.masked_bias)"
    r"|(.*\.)?(vision_tower|multi_modal_projector)\..*"
)
ROPE_FACTORS = "rope_freqs.weight"
GGUF_HEAD = "output.weight"  # if it is missing, the head is tied
ROTARY = re.compile(r"blk\.\d+\.attn_[qk]\.(weight|bias)")  # in a GGUF file of a llama


class Weights(NamedTuple):
    """What the files of a model hold."""

    spec: Spec
    params: dict[str, Any]  # never to be written to
    fingerprint: str  # SHA-256 of the files, the same for every dtype
    config: dict[str, Any]  # its `config.json`


def read_weights(path: str, dtype: str, most: float = math.inf, layout: Layout = WHOLE) -> Weights:
    """Reads a packaged model ('smollm2-135m-instruct'), a GGUF file, or a Hugging Face folder.
    Every leaf has the `dtype`: 'float32', 'bfloat16' or 'float16'. Matrices are `[out, in]`, those
    of all layers but the last in stacks: `layers/attention/q/weight [L-1, H*d, D]`,
    `last/attention/q/weight [H*d, D]`. Of a leaf that is divided only this process's parts are
    filled; the rest takes no memory. Raises a UserError for a model that is damaged, not supported,
    or larger than the free memory or than `most` bytes."""
    found = find_model(path)
    read = _read_folder if found.is_dir() else _read_gguf
    flat = read(found, DTYPES[dtype], most, layout)
    for leaf in flat.params.values():
        leaf.flags.writeable = False
    return flat._replace(params=traverse_util.unflatten_dict(flat.params, sep="/"))


def _read_folder(folder: Path, dtype: np.dtype, most: float, layout: Layout) -> Weights:
    """Reads `config.json`, and safetensors in one file or in the files that an index names."""
    config = read_json(folder / "config.json")
    spec = spec_from_config(config, str(folder / "config.json"))
    headers = {file: read_header(file) for file in weight_files(folder)}
    names = _standard_names(spec, itertools.chain(*headers.values()))
    # Some files repeat a tied embedding as the head, and some hold the head alone.
    table = FAMILIES[spec.family].table
    head, embedding = (f"{table[each][0]}.weight" for each in ("head", "embed"))
    if spec.tied_head and embedding not in names.values():
        names = {own: embedding if name == head else name for own, name in names.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (_, shape) in itertools.chain(*(entries.items() for entries in headers.values())):
        if names.get(name) in shapes:
            raise UserError(f"{folder}: the tensor {short(name)} is there twice.")
        if name in names:
            shapes[names[name]] = shape
    # Both must be the same, byte for byte.
    twins = {head, embedding} if spec.tied_head else set()
    wanted = _check_shapes(spec, tensors(spec), shapes, twins, folder)
    leaves = _allocate(spec, dtype, most, layout, folder)
    whole, ties = hashlib.sha256(), set()
    for file, entries in headers.items():
        whole.update(bytes.fromhex(sha256(file)))
        kept = {name: entry for name, entry in entries.items() if name in names}
        for name, array in read_tensors(file, kept):
            if names[name] in wanted:
                _fill(leaves, layout, wanted[names[name]], array, f"{file}: the tensor '{name}'")
            if names[name] in twins and head in shapes:
                ties.add(hashlib.sha256(array.view(np.uint8).data).digest())
    if len(ties) > 1:
        wrong = f"config.json ties the head to the embedding, but '{head}' differs from it"
        raise UserError(f"{folder}: {wrong}; set tie_word_embeddings to false.")
    whole.update(bytes.fromhex(sha256(folder / "config.json")))
    return Weights(spec, leaves, whole.hexdigest(), config)


def _standard_names(spec: Spec, found: Iterable[str]) -> dict[str, str]:
    """Returns for names of tensors those of the family's table: a file may hold the model without
    its head, whose names lack their beginning, or the text part of a larger one."""
    table = FAMILIES[spec.family].table
    head, base = f"{table['head'][0]}.weight", f"{table['embed'][0].split('.')[0]}."
    front, names = re.compile(rf"(language_model\.|{re.escape(base)})*"), {}
    for name in found:
        if not IGNORED.fullmatch(name):
            is_head = name.endswith((head, "lm_head.weight"))
            names[name] = head if is_head else base + front.sub("", name, count=1)
    return names


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder in the order of their names."""
    single, index = folder / SINGLE, folder / INDEX
    if single.exists():
        return [single]
    if not index.exists():
        neither = f"neither {SINGLE} nor {INDEX}; expected weights as safetensors"
        raise UserError(f"the model folder '{folder}' holds {neither}.")
    weight_map = read_json(index).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    if not names or not all(isinstance(name, str) and SHARD.fullmatch(name) for name in names):
        raise UserError(f"{index}: weight_map does not name files of its own folder.")
    return [folder / name for name in sorted(set(names))]


def read_spec(path: str) -> tuple[Spec, dict[str, Any]]:
    """Returns the spec of a model and its `config.json`, from that file or a GGUF file's header."""
    found = find_model(path)
    if found.is_dir():
        config = read_json(found / "config.json")
        return spec_from_config(config, str(found / "config.json")), config
    with found.open("rb") as data:
        return _gguf_spec(read_gguf(found), data, found)


def _gguf_spec(file: Any, data: Any, path: Path) -> tuple[Spec, dict[str, Any]]:
    found = file.tensors.get(ROPE_FACTORS)
    factors = found and dequantize(data, ROPE_FACTORS, found)
    return spec_from_gguf(file.fields, GGUF_HEAD not in file.tensors, factors, str(path))


def _read_gguf(path: Path, dtype: np.dtype, most: float, layout: Layout) -> Weights:
    """Reads a GGUF file and dequantises it tensor by tensor."""
    file = read_gguf(path)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    with path.open("rb") as data:
        spec, config = _gguf_spec(file, data, path)
        names = tensor_names(file.fields["general.architecture"], spec.layers)
        renamed = (_as_gguf(tensor, names) for tensor in tensors(spec))
        wanted = _check_shapes(spec, renamed, shapes, {ROPE_FACTORS}, path)
        leaves = _allocate(spec, dtype, most, layout, path)
        for name, tensor in wanted.items():
            array = dequantize(data, name, file.tensors[name])
            if file.fields["general.architecture"] == "llama" and ROTARY.fullmatch(name):
                array = unpermute(array, array.shape[0] // spec.head_size)
            if spec.norm_offset and "norm" in name:
                array = array - np.float32(spec.norm_offset)  # the converter has added it
            _fill(leaves, layout, tensor, array, f"{path}: the tensor '{name}'")
    return Weights(spec, leaves, sha256(path), config)


def _as_gguf(tensor: Tensor, names: Any) -> Tensor:
    """Returns a tensor as a GGUF file has it: renamed, never transposed, its parts in order."""
    shape = tensor.shape[::-1] if tensor.how == "T" else tensor.shape
    name = names.get_name(tensor.name, (".weight", ".bias"))
    return tensor._replace(name=name or tensor.name, shape=shape, how="")


def _check_shapes(
    spec: Spec,
    wanted: Iterable[Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: set[str],
    path: Path,
) -> dict[str, Tensor]:
    """Returns the tensors that are wanted by name. Refuses one that is missing or of another shape,
    and then one in the file that has no place in the model and is not `ignored`."""
    found: dict[str, Tensor] = {}
    for tensor in wanted:  # one by one: a damaged file may say 2**31 layers
        name, shape = tensor.name, tensor.shape
        if name not in shapes:
            raise UserError(f"{path}: the tensor '{name}' is missing, expected of shape {shape}.")
        if shapes[name] != shape:
            raise UserError(f"{path}: '{name}' has shape {shapes[name]}, expected {shape}.")
        found[name] = tensor
    for name in shapes:
        if name not in found and name not in ignored:
            model = f"a {spec.family} model of {spec.layers} layers"
            model += ", whose head is tied" if spec.tied_head else ""
            raise UserError(f"{path}: the tensor {short(name)} has no place in {model}.")
    return found


def _allocate(spec: Spec, dtype: Any, most: float, layout: Layout, path: Path) -> dict[str, Any]:
    """Returns empty leaves by path; refuses a model of over `most` bytes, or over what is free."""
    shapes = param_shapes(spec)
    numbers = sum(map(math.prod, shapes.values()))
    parts = ((shape, own_parts(layout, leaf, shape)) for leaf, shape in shapes.items())
    held = sum(np.broadcast_to(0, shape)[part].size for shape, own in parts for part in own)
    room = free_bytes() * numbers / held  # other processes hold the rest
    needed, half = numbers * dtype.itemsize, numbers * DTYPES["bfloat16"].itemsize
    if needed > (least := min(most, room)):
        other = "give --config.model.dtype=bfloat16" if half <= least else "give a smaller model"
        if most < room:  # of the devices, not of the machine
            other += ", --config.parallel.model=N for N devices, --config.model.quantize=int8"
        takes = f"takes {needed / 1e9:,.1f} GB as {dtype.name}"
        free = f"{least / 1e9:,.1f} GB of memory are free"
        raise UserError(f"the model {path} {takes}, and {free}: {other}, or a machine with more.")
    return {leaf: np.empty(shape, dtype) for leaf, shape in shapes.items()}


def _fill(leaves: dict[str, Any], layout: Layout, tensor: Tensor, array: Any, what: str) -> None:
    """Copies a tensor into its places, cast, and refuses numbers that are not finite then."""
    places, first = parts_of(leaves, tensor), 0 if tensor.layer is None else 1
    cut = split(tensor, array, [len(place) for place in places])
    parts = (
        (place[index[first:]], part[index[first:]])
        for leaf, place, part in zip(tensor.leaves, places, cut, strict=True)
        for index in own_parts(layout, leaf, leaves[leaf].shape)
    )
    for place, part in parts:
        with np.errstate(over="ignore"):
            place[...] = part
        if not np.isfinite(place).all():
            why = f"that are not finite, or too large for {place.dtype.name}"
            again = "give --config.model.dtype=bfloat16, or get the file again"
            raise UserError(f"{what} holds numbers {why}: {again}.")
