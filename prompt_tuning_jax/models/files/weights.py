"""Frozen weights as a tree of numpy arrays, from GGUF or a Hugging Face folder, without torch.

Every tensor of a file is consumed or refused by name. The stacks `[L-1, ...]` are made once and
filled tensor by tensor: peak memory is the model and one tensor. What is converted from GGUF is
kept under the cache folder with its SHA-256.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from numpy.typing import DTypeLike

from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.models import memory
from prompt_tuning_jax.models import spec as specs
from prompt_tuning_jax.models.files import gguf as gguf_file
from prompt_tuning_jax.models.files import safetensors as safetensors_file
from prompt_tuning_jax.models.files.packaged_models import EMBEDDED, find
from prompt_tuning_jax.models.spec import Spec
from prompt_tuning_jax.models.weight_names import (
    EMBEDDING,
    FAMILIES,
    HEAD,
    Slot,
    axes,
    rows,
    wanted,
)
from prompt_tuning_jax.storage import cache_folder, warn

DTYPES = {dtype.name: dtype for dtype in safetensors_file.DTYPES.values()}
FOLDER = "a folder with config.json and safetensors"
LAYOUT = 2  # of converted files; raise it when the tree or the conversion changes
STALE = 3600  # seconds after which the unfinished file of a conversion is nobody's
SHARD = re.compile(r"[A-Za-z0-9_. -]{1,200}\.safetensors")  # what an index may name
# Tables that some files carry and the spec says already.
BUFFERS = (".rotary_emb.inv_freq",)
ROPE_FACTORS = "rope_freqs.weight"
GGUF_HEAD = "output.weight"  # where it is missing, the head is tied

log = logging.getLogger(__name__)


class Weights(NamedTuple):
    """A model's spec, its tree of arrays (never to be written to), and the fingerprint of the files
    that it came from: SHA-256, the same whatever dtype they are read as."""

    spec: Spec
    params: dict[str, Any]
    fingerprint: str


def read(path: str, dtype: DTypeLike, most: float = math.inf) -> Weights:
    """Reads a model.

    Args:
      path: an embedded name ('smollm2-135m-instruct'), a GGUF file, or a Hugging Face folder.
      dtype: of every leaf: float32, bfloat16 or float16.
      most: bytes that there are for it elsewhere, on the device that it is meant for.

    Returns:
      Spec, params and fingerprint. Matrices are `[out, in]`, those of layers but the last stacked:
      `layers/attention/q/weight [L-1, H*d, D]`, `last/attention/q/weight [H*d, D]`.

    Raises:
      UserError: nothing is there, it is damaged, the model is not supported, or is larger than the
        memory that is free.
    """
    kind = DTYPES.get(dtype if isinstance(dtype, str) else np.dtype(dtype).name)
    if kind is None:
        raise UserError(f"weights cannot be read as {dtype}; expected {', '.join(DTYPES)}.")
    found = locate(path)
    most = min(most, memory.available())
    return (read_folder if found.is_dir() else read_gguf)(found, kind, most)


def locate(path: str) -> Path:
    """The GGUF file or the folder that a model's path or embedded name stands for.

    Raises:
      UserError: it is not there, or is neither.
    """
    if path in EMBEDDED:
        return locate_embedded(path)
    found, expected = Path(os.path.expanduser(path)), f"a GGUF file, {FOLDER}"
    try:
        if found.is_dir():
            problem = "" if (found / "config.json").exists() else "is a folder without config.json"
            if odd := [path for path in found.iterdir() if path.exists() and not is_plain(path)]:
                problem = f"holds {short(odd[0].name)}, which is neither a file nor a folder"
        elif found.exists():
            plain = is_plain(found) and gguf_file.is_gguf(found)
            problem = "" if plain else "is not a GGUF file"
        else:
            problem, expected = "does not exist", f"{expected} or {', '.join(EMBEDDED)}"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    if problem:
        raise UserError(f"the model {short(path, 200)} {problem}; expected {expected}.")
    return found


def is_plain(path: Path) -> bool:
    """Whether it is a file or a folder: a pipe would be waited for, a device has no end."""
    return path.is_file() or path.is_dir()


def locate_embedded(name: str) -> Path:
    """The file inside the installed package, which is not imported."""
    found = find(name)
    if found is None:
        raise UserError(f"the embedded model '{name}' is not installed; {EMBEDDED[name].install}.")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: the file is missing or is something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, expected a JSON object.")
    return value


def read_folder(folder: Path, dtype: np.dtype, most: float) -> Weights:
    """A Hugging Face folder: `config.json`, and safetensors in one file or sharded by an index."""
    spec = specs.from_config(read_json(folder / "config.json"), str(folder / "config.json"))
    headers = {file: safetensors_file.read_header(file) for file in weight_files(folder)}
    shapes: dict[str, tuple[int, ...]] = {}
    for file, entries in headers.items():
        for name, entry in entries.items():
            if name in shapes:
                raise UserError(
                    f"{file}: the tensor {short(name)} is in another file of the model too."
                )
            shapes[name] = entry.shape
    # Some files spell a tie out: the head may be there if it is the embedding, byte for byte.
    names = {row.ours: row.folder for row in FAMILIES[spec.family]}
    twins = {names[EMBEDDING], names[HEAD]} if spec.tied_head else set()
    ignored = {name for name in shapes if name.endswith(BUFFERS) or name in twins}
    slots = match(spec, "folder", shapes, ignored, folder)
    check_size(spec, dtype, most, folder)
    leaves, digests, ties = allocate(spec, dtype), [], set()
    for file, entries in headers.items():
        digests.append(hashlib.sha256())
        for name, array in safetensors_file.read_tensors(file, entries, digests[-1]):
            if name in slots:
                fill(leaves, spec, slots[name], array, f"{file}: the tensor '{name}'")
            if name in twins and names[HEAD] in shapes:
                ties.add(hashlib.sha256(array.view(np.uint8).data).digest())
    if len(ties) > 1:
        raise UserError(
            f"{folder}: config.json ties the head to the embedding, but '{names[HEAD]}' differs "
            f"from '{names[EMBEDDING]}'; set tie_word_embeddings to false."
        )
    digests.append(hashlib.sha256((folder / "config.json").read_bytes()))
    whole = hashlib.sha256(b"".join(digest.digest() for digest in digests))
    return Weights(spec, traverse_util.unflatten_dict(leaves, sep="/"), whole.hexdigest())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in the order of their names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise UserError(
            f"the model folder '{folder}' holds neither model.safetensors nor "
            "model.safetensors.index.json; expected weights as safetensors."
        )
    table = read_json(index).get("weight_map")
    names = table.values() if isinstance(table, dict) else ()
    if not names or not all(isinstance(name, str) and SHARD.fullmatch(name) for name in names):
        raise UserError(f"{index}: weight_map does not name files of its own folder.")
    return [folder / name for name in sorted(set(names))]


def read_gguf(path: Path, dtype: np.dtype, most: float) -> Weights:
    """A GGUF file, converted once for each dtype."""
    file = gguf_file.read(path)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    factors = None
    if ROPE_FACTORS in shapes:
        with path.open("rb") as data:
            factors = gguf_file.load(data, ROPE_FACTORS, file.tensors[ROPE_FACTORS])
    spec = specs.from_gguf(file.fields, GGUF_HEAD not in shapes, factors, str(path))
    slots = match(spec, "gguf", shapes, {ROPE_FACTORS}, path)
    check_size(spec, dtype, most, path)
    with path.open("rb") as data:
        fingerprint = hashlib.file_digest(data, "sha256").hexdigest()
    folder = cache_folder() / "models" / f"{fingerprint[:16]}-{dtype.name}"
    manifest = {"layout": LAYOUT, "source": fingerprint, "dtype": dtype.name}
    leaves = read_converted(folder, manifest)
    if leaves is None:
        leaves = convert(file, spec, slots, dtype)
        keep_converted(folder, manifest, leaves)
    return Weights(spec, traverse_util.unflatten_dict(leaves, sep="/"), fingerprint)


def convert(
    file: gguf_file.Gguf, spec: Spec, slots: Mapping[str, Slot], dtype: np.dtype
) -> dict[str, np.ndarray]:
    """Dequantises a GGUF file tensor by tensor: leaves by path."""
    leaves = allocate(spec, dtype)
    with file.path.open("rb") as data:
        for name, slot in slots.items():
            array = gguf_file.load(data, name, file.tensors[name])
            if slot.name.rotary:
                array = gguf_file.unpermute(array, array.shape[0] // spec.head_size)
            fill(leaves, spec, slot, array, f"{file.path}: the tensor '{name}'")
    return leaves


def match(
    spec: Spec,
    source: str,
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str],
    path: Path,
) -> dict[str, Slot]:
    """The slot of every tensor in the file, before any memory is taken.

    Args:
      spec: what the tensors should be.
      source: the column of the table that names them: 'folder' or 'gguf'.
      shapes: of the tensors that are there.
      ignored: tensors that may be there and are not read.
      path: how errors name the file.

    Raises:
      UserError: a tensor is missing, of another shape, or has no place in the model.
    """
    slots: dict[str, Slot] = {}
    for name, slot in wanted(spec, source):
        shape = axes(spec, slot.name.axes)
        if name not in shapes:
            raise UserError(f"{path}: the tensor '{name}' is missing, expected of shape {shape}.")
        if shapes[name] != shape:
            raise UserError(
                f"{path}: the tensor '{name}' has shape {shapes[name]}, expected {shape}."
            )
        slots[name] = slot
    for name in shapes:
        if name not in slots and name not in ignored:
            raise UserError(
                f"{path}: the tensor {short(name)} has no place in a {spec.family} model of "
                f"{spec.layers} layers{', whose head is tied' if spec.tied_head else ''}."
            )
    return slots


def check_size(spec: Spec, dtype: np.dtype, most: float, path: Path):
    """Raises a UserError for a model that takes more than so many bytes, before any are taken."""
    numbers = sum(
        math.prod(axes(spec, row.axes)) * (spec.layers if "{}" in row.folder else 1)
        for row in rows(spec)
    )
    needed, half = numbers * dtype.itemsize, numbers * DTYPES["bfloat16"].itemsize
    if needed > most:
        other = "give --config.model.dtype=bfloat16" if half <= most else "give a smaller model"
        raise UserError(
            f"the model {path} takes {gigabytes(needed)} as {dtype.name}, and {gigabytes(most)} of "
            f"memory are free: {other}, or a machine with more."
        )


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def allocate(spec: Spec, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Empty leaves by path: layers but the last stacked, the last and the rest on their own."""
    leaves = {}
    for row in rows(spec):
        shape = axes(spec, row.axes)
        if "{}" in row.folder:
            leaves[f"layers/{row.ours}"] = np.empty((spec.layers - 1, *shape), dtype)
            leaves[f"last/{row.ours}"] = np.empty(shape, dtype)
        else:
            leaves[row.ours] = np.empty(shape, dtype)
    return leaves


def fill(leaves: Mapping[str, np.ndarray], spec: Spec, slot: Slot, array: np.ndarray, what: str):
    """Puts a tensor into its place, cast.

    Raises:
      UserError: it holds numbers that are not finite, or are not once they are cast; begins with
        `what`.
    """
    if slot.layer is None:
        place = leaves[slot.name.ours]
    elif slot.layer == spec.layers - 1:
        place = leaves[f"last/{slot.name.ours}"]
    else:
        place = leaves[f"layers/{slot.name.ours}"][slot.layer]
    with np.errstate(over="ignore"):
        place[...] = array
    if not np.isfinite(place).all():
        if np.isfinite(array).all():
            fault = f"too large for {place.dtype.name}: give --config.model.dtype=bfloat16"
        else:
            fault = "not finite: get the file again"
        raise UserError(f"{what} holds numbers that are {fault}.")


def read_converted(folder: Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """Leaves of an earlier conversion; None where there is none, or it is not what it was."""
    record, weights = folder / "manifest.json", folder / "model.safetensors"
    try:
        if any(file.exists() and not file.is_file() for file in (record, weights)):
            raise ValueError("a pipe would be waited for")
        kept = json.loads(record.read_bytes())
        leaves, digest = safetensors_file.read_whole(weights)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, UserError):
        kept, leaves, digest = None, {}, ""
    if kept == {**manifest, "sha256": digest}:
        return leaves
    log.warning("The converted model in %s is damaged or old; converting it again.", folder)
    return None


def keep_converted(folder: Path, manifest: Mapping[str, Any], leaves: Mapping[str, np.ndarray]):
    """Writes a conversion. Two processes at once write the same bytes, so either may come last."""
    weights, record = (
        (folder / name, folder / f"{name}.{os.getpid()}.tmp")
        for name in ("model.safetensors", "manifest.json")
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob("*.tmp"):
            if time.time() - unfinished.stat().st_mtime > STALE:
                unfinished.unlink(missing_ok=True)
        digest = safetensors_file.write(weights[1], leaves)
        os.replace(weights[1], weights[0])
        record[1].write_text(json.dumps({**manifest, "sha256": digest}))
        os.replace(record[1], record[0])
    except OSError as error:
        with contextlib.suppress(OSError):
            for _, unfinished in (weights, record):
                unfinished.unlink(missing_ok=True)
        warn(error)
