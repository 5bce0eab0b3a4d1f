"""Reading and writing safetensors a tensor at a time.

The safetensors package maps the file (a second model in resident memory by the end) and builds the
whole file in memory to write it; neither fits models that fill the machine. Files written here are
plain safetensors. The format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from prompt_tuning_jax.errors import UserError, short

DTYPES = {
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
MAX_HEADER = 100 << 20  # as the safetensors package
BLOCK = 8 << 20
MAX_DIMENSIONS = 8  # the product of many large sizes takes hours
ALIGNMENT = 64  # XLA on CPU takes a host array as it is where it begins at a multiple of this


class Entry(NamedTuple):
    """A tensor of a file: type as the format names it, shape, first byte and end in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, Entry]:
    """Tensors by name in the order in which they lie, checked to fill the file without a gap.

    Raises:
      UserError: the file is missing, cut short, or is not safetensors.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise UserError(
                    f"{path} is not a safetensors file or is cut short: it declares a header of "
                    f"{length} bytes in a file of {size}."
                )
            header = file.read(length)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    return parse(header, size, path)


def parse(header: bytes, size: int, path: Path) -> dict[str, Entry]:
    try:
        table = json.loads(header)
        table.pop("__metadata__", None)
        entries = {name: parse_entry(entry, 8 + len(header)) for name, entry in table.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(
            f"{path} is not a sound safetensors file: its header cannot be read."
        ) from None
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 8 + len(header)
    for name, entry in entries.items():
        whole = entry.dtype not in DTYPES or entry.stop - entry.start == (
            math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        )
        if entry.start != end or entry.stop < entry.start or not whole:
            raise UserError(f"{path} is not a sound safetensors file: {short(name)} is misplaced.")
        end = entry.stop
    if end != size:
        raise UserError(
            f"{path} is cut short or damaged: its tensors end at byte {end}, the file at {size}; "
            "download it again."
        )
    return entries


def parse_entry(entry: Any, begin: int) -> Entry:
    shape = tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    numbers = (*shape, start, stop)
    # Not above what the format's own types hold: Python refuses to print a number of 5,000 digits.
    if len(shape) > MAX_DIMENSIONS or not all(
        type(number) is int and 0 <= number < 2**64 for number in numbers
    ):
        raise ValueError
    return Entry(str(entry["dtype"]), shape, begin + start, begin + stop)


def read_tensors(
    path: Path, entries: Mapping[str, Entry], digest: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor in turn, in its own type, while `digest` takes in every byte of the file."""
    with path.open("rb") as file:
        first = min((entry.start for entry in entries.values()), default=0)
        digest.update(file.read(first))
        for name, entry in entries.items():
            data = np.fromfile(file, np.uint8, entry.stop - entry.start)
            digest.update(data)
            yield name, as_array(data, name, entry, path)


def as_array(data: np.ndarray, name: str, entry: Entry, path: Path) -> np.ndarray:
    if entry.dtype not in DTYPES:
        raise UserError(
            f"{path}: the tensor {short(name)} is of type {short(entry.dtype)}; supported: "
            f"{', '.join(DTYPES)}."
        )
    return data.view(DTYPES[entry.dtype]).reshape(entry.shape)


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Writes arrays as they are, largest first, and gives back the file's SHA-256."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].nbytes, item[0]))
    table, end = {}, 0
    for name, array in ordered:
        offsets = [end, end + array.nbytes]
        table[name] = {"dtype": names[array.dtype], "shape": array.shape, "data_offsets": offsets}
        end += array.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    header = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256(header)
    with path.open("wb") as file:
        file.write(header)
        for _, array in ordered:
            data = array.reshape(-1).view(np.uint8).data
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def read_whole(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """All arrays of a file as read-only views of one aligned buffer, and the file's SHA-256.

    Read and not mapped: the bytes in use are the bytes that were summed, whatever becomes of the
    file. 0.5 s for 540 MB.
    """
    size = path.stat().st_size
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    begin = -buffer.ctypes.data % ALIGNMENT
    buffer = buffer[begin : begin + size]
    digest, done, view = hashlib.sha256(), 0, buffer.data
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view[done : done + BLOCK]):
            digest.update(view[done : done + count])
            done += count
    buffer.flags.writeable = False
    length = int.from_bytes(buffer[:8].tobytes(), "little")
    entries = parse(buffer[8 : 8 + min(length, size)].tobytes(), size, path)
    arrays = {
        name: as_array(buffer[entry.start : entry.stop], name, entry, path)
        for name, entry in entries.items()
    }
    return arrays, digest.hexdigest()
