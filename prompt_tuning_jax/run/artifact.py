"""Artifacts: an adaptation on disk, with a manifest that says what it belongs to.

An artifact is a folder. `adaptation.safetensors` holds what the model is given, each tensor under
its path (`models/sites.py`). `manifest.json` is data and names no code to run. Each has a SHA-256,
as safetensors has none. Reading checks sizes before it takes memory, and opens nothing outside the
folder. `README.md` is for people: no more is done with it than to copy it to a hub.
"""

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.data.rows import open_file
from prompt_tuning_jax.errors import UserError, nearest, short
from prompt_tuning_jax.run.card import CARD, render_card
from prompt_tuning_jax.run.environment import versions
from prompt_tuning_jax.run.folder import ARTIFACT
from prompt_tuning_jax.run.report import Row
from prompt_tuning_jax.safetensors_file import DTYPES, read_header, read_tensors, write_safetensors
from prompt_tuning_jax.storage import atomic_write, sha256, sync

FORMAT = 1
MANIFEST, TENSORS = "manifest.json", "adaptation.safetensors"

# No real artifact comes near these bounds; they make a hostile one cheap to refuse.
_MANIFEST_BYTES = 1 << 20
_DIMENSIONS, _DEPTH = 8, 8
_LEAF = re.compile(r"[A-Za-z0-9_]{1,99}(/[A-Za-z0-9_]{1,99}){1,9}")
_METHOD = re.compile(r"[A-Za-z0-9_-]+")
_KINDS: dict[str, type] = {
    "format": int,
    "method": str,
    "model": dict,
    "tokenizer": str,
    "template": str,
    "labels": list,
    "max_length": int,
    "add_bos": bool,
    "config": dict,
    "metrics": dict,
    "versions": dict,
    "tensors_sha256": str,
    "demonstrations": list,
    "calibration": dict,
    "continues": bool,  # whether texts go on behind the virtual tokens, see `data.task.Task`
}
PROMPTED = "demonstrations"  # an artifact of a written prompt alone has them, if only as []
# Names of earlier versions.
_RENAMED = {f"prefix/{name}": f"prefix/decoder/attention/{name}" for name in ("k", "v")}
_MODEL = {"name": str, "fingerprint": str, "spec": dict}
_AGAIN = "copy the artifact again, or train it again"
# A full or broken disk; any other error of a write is the fault of the folder that was given.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_PACKAGES = ("jax", "flax", "optax", "numpy")


class Artifact(NamedTuple):
    """An adaptation and its manifest."""

    # Arrays of finite numbers by their path, such as 'prompt/vectors'; none for a written prompt.
    tensors: dict[str, Any]
    manifest: dict[str, Any]  # JSON values by the names in `make_manifest`


def make_manifest(lm: Any, task: Any, config: Any, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the manifest of what was trained on a `LanguageModel` for a `Task`, with the settings
    that `lm` was loaded with. `metrics` are numbers by name, or by split and name."""
    spec = dataclasses.asdict(lm.spec)
    return {
        "format": FORMAT,
        "method": config.method.name,
        "model": {"name": lm.name, "fingerprint": lm.fingerprint, "spec": spec},
        "tokenizer": lm.tokenizer.fingerprint,
        "template": task.template,
        "labels": [list(label) for label in task.labels],
        "max_length": config.task.max_length,
        "add_bos": lm.tokenizer.add_bos,
        **({"continues": True} if task.continues else {}),
        "config": config.to_dict() | {"model": dict(lm.settings)},
        "metrics": dict(metrics),
        "versions": versions(_PACKAGES),
    }


def save_artifact(artifact: Artifact, folder: str | os.PathLike) -> None:
    """Writes an artifact whole or not at all, in place of an earlier one in the folder. That one
    stays if there is an error: an OSError if the disk is full, or else a UserError."""
    folder = Path(folder).expanduser().resolve()
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in artifact.tensors.items()}
    _check_arrays(arrays, folder, PROMPTED in artifact.manifest)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        _check_replaceable(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        digest = write_safetensors(partial / TENSORS, arrays)
        (partial / MANIFEST).write_bytes(_seal(artifact.manifest, digest, folder))
        (partial / CARD).write_text(_card(artifact, partial, folder.name), encoding="utf-8")
        for path in (partial / TENSORS, partial / MANIFEST, partial):
            sync(path)
        _move(partial, folder)
    except OSError as error:
        if error.errno in _DISK:
            raise
        problem = f"the artifact '{folder}' cannot be written ({error.strerror})"
        raise UserError(f"{problem}: give another folder.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_card(artifact: Artifact, folder: str | os.PathLike, rows: Sequence[Row]) -> None:
    """Writes the card of a saved artifact again, with the rows of a report."""
    folder = Path(folder).resolve()
    atomic_write(folder / CARD, _card(artifact, folder, folder.name, rows).encode())


def _card(artifact: Artifact, written: Path, name: str, rows: Sequence[Row] = ()) -> str:
    leaves = {path: (str(leaf.dtype), leaf.shape) for path, leaf in artifact.tensors.items()}
    return render_card(artifact.manifest, leaves, (written / TENSORS).stat().st_size, name, rows)


def _check_replaceable(folder: Path) -> None:
    """Raises a UserError if the folder holds files that are no part of an artifact."""
    found = set(os.listdir(folder)) if folder.exists() else set()
    # A README alone belongs to somebody else.
    ours = {MANIFEST, TENSORS, CARD} if found & {MANIFEST, TENSORS} else set()
    others = sorted(name for name in found - ours if not name.endswith(".partial"))
    if others:
        lost = f"'{others[0]}', which is no part of an artifact and would be lost"
        raise UserError(f"'{folder}' holds {lost}: give a folder of its own.")


def _move(partial: Path, folder: Path) -> None:
    """Renames `partial` to `folder`, in two steps, as a folder with files cannot be replaced."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(partial, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    try:
        sync(folder.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def load_artifact(folder: str | os.PathLike) -> Artifact:
    """Reads an artifact, without the code of its method. Raises a UserError that names the file if
    it is missing, damaged, hostile, or of a later version."""
    folder = Path(os.path.expanduser(folder))
    if not os.path.isdir(folder):  # unlike Path's, false for what one may not read
        raise UserError(f"the artifact '{folder}' does not exist: give the folder of an artifact.")
    try:
        manifest = _read_manifest(folder / MANIFEST)
        digest, prompted = manifest.pop("tensors_sha256"), PROMPTED in manifest
        arrays = _read_tensors(folder / TENSORS, digest, prompted)
    except OSError as error:
        inside = folder / ARTIFACT
        hint = inside if os.path.isfile(inside / MANIFEST) else "the folder of an artifact"
        problem = f"{error.filename} cannot be read ({error.strerror})"
        raise UserError(f"{problem}, so '{folder}' is not an artifact: give {hint}.") from error
    return Artifact({_RENAMED.get(name, name): leaf for name, leaf in arrays.items()}, manifest)


def load_start(settings: Any) -> dict[str, Any]:
    """Reads the tensors in `method.init_file`: an artifact's, or [P, D] numbers in a .npy file.
    There are none if `method.init` in the section `method` of a config is not 'file'."""
    if settings.get("init") != "file":
        return {}
    path, key = settings.init_file, "config.method.init_file"
    if not path.endswith(".npy"):
        return load_artifact(path).tensors
    with open_file(path, key) as file:
        try:
            # Mapped, so that its size is checked before memory is taken.
            return {"prompt/vectors": np.load(file.name, mmap_mode="r", allow_pickle=False)}
        except (OSError, ValueError, EOFError) as error:
            fault = f"{key} is '{path}', which is not a .npy array of numbers."
            raise UserError(fault) from error


def check_artifact(artifact: Artifact, lm: Any) -> None:
    """Raises a UserError if an artifact was made for another `LanguageModel`. Whether the model has
    a place for each tensor is checked by `sites.check_given`."""
    made_for = artifact.manifest["model"]
    # As JSON has them: with lists for tuples.
    specs = made_for["spec"], dataclasses.asdict(lm.spec)
    theirs, ours = (json.loads(json.dumps(spec)) for spec in specs)
    # Older manifests lack options that were added to the spec later.
    same = all(theirs[name] == ours[name] for name in theirs.keys() & ours.keys())
    if made_for["fingerprint"] != lm.fingerprint or not same:
        raise UserError(
            "the artifact is for the model "
            f"{_model(made_for['name'], theirs, made_for['fingerprint'])}, and this is "
            f"{_model(lm.name, ours, lm.fingerprint)}: load the model that it was trained on."
        )
    if artifact.manifest["tokenizer"] != lm.tokenizer.fingerprint:
        raise UserError(
            f"the artifact is for the tokenizer {short(artifact.manifest['tokenizer'][:12])}, and "
            f"'{lm.name}' has {lm.tokenizer.fingerprint[:12]}: load the one it was trained with."
        )


def _model(name: str, spec: Mapping[str, Any], fingerprint: str) -> str:
    layers, width = spec.get("layers"), spec.get("width")
    sizes = f"{short(layers)} layers of width {short(width)}"
    return f"{short(name, 200)} ({sizes}, fingerprint {short(fingerprint[:12])})"


def _dump(manifest: Mapping[str, Any]) -> bytes:
    """Writes a manifest in the one way that is accepted when it is read."""
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _seal(manifest: Mapping[str, Any], tensors_sha256: str, path: Path) -> bytes:
    content = json.loads(json.dumps(manifest))  # tuples to lists, as reading it gives them
    content["tensors_sha256"] = tensors_sha256
    _check_manifest(content, path)
    try:
        made = _dump({**content, "sha256": hashlib.sha256(_dump(content)).hexdigest()})
    except ValueError as error:
        raise UserError(f"the manifest of '{path}' cannot be written as JSON ({error}).") from error
    if len(made) > _MANIFEST_BYTES:
        wrong = f"the manifest of '{path}' has {len(made):,} bytes, expected at most"
        raise UserError(f"{wrong} {_MANIFEST_BYTES:,}: give fewer or shorter demonstrations.")
    return made


def _read_manifest(path: Path) -> dict[str, Any]:
    _check_file(path, _MANIFEST_BYTES)
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
        del manifest["sha256"]
        whole = _dump({**manifest, "sha256": hashlib.sha256(_dump(manifest)).hexdigest()}) == data
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged and cannot be read; {_AGAIN}.") from error
    if not whole:
        raise UserError(f"{path} is damaged or was edited: its checksum is wrong; {_AGAIN}.")
    if type(manifest.get("format")) is int and manifest["format"] != FORMAT:
        wrong = f"{path} is of format {short(manifest['format'])} and this version reads {FORMAT}"
        raise UserError(f"{wrong}: use the version of prompt-tuning-jax that wrote it.")
    _check_manifest(manifest, path)
    return manifest


def _check_file(path: Path, most: float) -> None:
    """Checks for a regular file: a link could lead anywhere, and a pipe could wait for ever."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        get = "`cp -rL`, or from a hub by `hf download NAME --local-dir FOLDER`"
        raise UserError(f"{path} is a link, which is not followed: copy the artifact with {get}.")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file; {_AGAIN}.")
    if status.st_size > most:
        size = f"{status.st_size:,} bytes, expected at most {most:,}"
        raise UserError(f"{path} has {size}; {_AGAIN}.")


def _check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    fault = next(_faults(manifest), None)
    if fault is not None:
        raise UserError(f"{path} is not the manifest of an artifact: {fault}.")


def _faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yields the faults in order: each check relies on those before it."""
    if not _shallow(manifest, _DEPTH):
        yield f"it is nested more than {_DEPTH} deep"
    unknown = sorted(manifest.keys() - _KINDS)
    yield from (f"{short(key)} is not a known key{nearest(key[:99], _KINDS)}" for key in unknown)
    for name, kind in _KINDS.items():
        missing = kind() if name in (PROMPTED, "calibration", "continues") else None
        if type(manifest.get(name, missing)) is not kind:
            yield f"{name!r} is {short(manifest.get(name))}, expected a {kind.__name__}"
    if not _METHOD.fullmatch(manifest["method"]):
        yield f"'method' is {short(manifest['method'])}, expected the name of a method"
    if {name: type(value) for name, value in manifest["model"].items()} != _MODEL:
        yield f"'model' is {short(manifest['model'])}, expected {', '.join(_MODEL)}"
    yield from _odd_additions(manifest)
    pairs = [pair for pair in manifest["labels"] if _types(pair) != [str, str]]
    yield from (f"'labels' has {short(pair)}, expected pairs of texts" for pair in pairs)
    if any(len(set(part)) < len(part) for part in zip(*manifest["labels"], strict=True)):
        yield "'labels' has a value or a word twice"
    if manifest["max_length"] < 0:
        yield f"'max_length' is {short(manifest['max_length'])}, expected at least 0"


def _odd_additions(manifest: Mapping[str, Any]) -> Iterator[str]:
    numbers, held = [float] * len(manifest["labels"]), manifest.get("calibration")
    wanted = {"by": str, "examples": int, "scale": numbers, "bias": numbers}
    if held is not None and wanted != {name: _types(value) for name, value in held.items()}:
        yield f"'calibration' is {short(held)}, expected {', '.join(wanted)}, with a number a label"
    for row in manifest.get(PROMPTED, ()):
        if not isinstance(row, dict) or {*map(type, row.values())} - {str}:
            yield f"'demonstrations' has {short(row)}, expected texts by field"


def _types(value: Any) -> Any:
    return [*map(type, value)] if isinstance(value, list) else type(value)


def _shallow(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_shallow(item, depth - 1) for item in inside)


def _read_tensors(path: Path, digest: str, prompted: bool) -> dict[str, np.ndarray]:
    _check_file(path, math.inf)
    entries = read_header(path)
    for name, (dtype, shape) in entries.items():
        _check_leaf(name, dtype, shape, path)
    arrays = dict(read_tensors(path, entries))
    if sha256(path) != digest:
        problem = "is damaged or belongs to another manifest: its checksum is wrong"
        raise UserError(f"{path} {problem}; {_AGAIN}.")
    _check_arrays(arrays, path, prompted)
    return arrays


def _check_leaf(name: str, dtype: str, shape: Sequence[int], path: Path) -> None:
    if not _LEAF.fullmatch(name):
        raise UserError(f"{path}: {short(name)} is not a name such as 'prompt/vectors'.")
    if dtype not in DTYPES:
        expected = f"expected one of {', '.join(DTYPES)}"
        raise UserError(f"{path}: '{name}' is of type {short(dtype)}, {expected}.")
    if len(shape) > _DIMENSIONS or any(size >= 2**31 for size in shape):
        raise UserError(f"{path}: '{name}' has the impossible shape {short(list(shape))}.")


def _check_arrays(arrays: Mapping[str, np.ndarray], path: Path, prompted: bool) -> None:
    if prompted == bool(arrays):
        wanted = "none for a written prompt" if prompted else "at least one"
        raise UserError(f"{path} holds {len(arrays)} tensors, expected {wanted}.")
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, array in arrays.items():
        _check_leaf(name, names.get(array.dtype, str(array.dtype)), array.shape, path)
        if not np.isfinite(array).all():
            raise UserError(f"{path}: '{name}' has values that are not finite; train it again.")
        if any(other.startswith(f"{name}/") for other in arrays):
            raise UserError(f"{path}: '{name}' is both a leaf and a branch; {_AGAIN}.")
