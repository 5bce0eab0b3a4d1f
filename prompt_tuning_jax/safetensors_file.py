"""Reads and writes safetensors files one tensor at a time.

The safetensors package maps the file, so that the model is in memory twice, and to write a file it
builds the whole in memory. Files written here are plain safetensors.
The format: https://github.com/huggingface/safetensors#format
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
MAX_HEADER = 100 << 20  # as in the safetensors package
MAX_DIMENSIONS = 8  # the product of many large sizes takes hours


class Entry(NamedTuple):
    """A tensor in a file: type as the format names it, shape, first byte, end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, Entry]:
    """Reads where the tensors lie, by name and in their order; they fill the file without a gap.

    Raises:
      UserError: the file is missing, cut short, or not safetensors.
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
    return _parse_header(header, size, path)


def _parse_header(header: bytes, size: int, path: Path) -> dict[str, Entry]:
    end = 8 + len(header)
    try:
        table = json.loads(header)
        table.pop("__metadata__", None)
        entries = {name: _parse_entry(entry, end) for name, entry in table.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(
            f"{path} is not a valid safetensors file: its header cannot be read."
        ) from None
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    for name, entry in entries.items():
        whole = entry.dtype not in DTYPES or entry.stop - entry.start == (
            math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        )
        if entry.start != end or entry.stop < entry.start or not whole:
            raise UserError(f"{path} is not a valid safetensors file: {short(name)} is misplaced.")
        end = entry.stop
    if end != size:
        raise UserError(
            f"{path} is cut short or damaged: its tensors end at byte {end}, the file at {size}; "
            "download it again."
        )
    return entries


def _parse_entry(entry: Any, begin: int) -> Entry:
    shape = tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    # The format's own limit of 64 bits counts: Python refuses to print a number of 5,000 digits.
    if len(shape) > MAX_DIMENSIONS or not all(
        type(number) is int and 0 <= number < 2**64 for number in (*shape, start, stop)
    ):
        raise ValueError
    return Entry(str(entry["dtype"]), shape, begin + start, begin + stop)


def read_tensors(
    path: Path, entries: Mapping[str, Entry], digest: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each tensor with its name, in its own type, and feeds the file's bytes to `digest`."""
    with path.open("rb") as file:
        digest.update(file.read(min((entry.start for entry in entries.values()), default=0)))
        for name, entry in entries.items():
            if entry.dtype not in DTYPES:
                raise UserError(
                    f"{path}: the tensor {short(name)} is of type {short(entry.dtype)}; supported: "
                    f"{', '.join(DTYPES)}."
                )
            data = np.fromfile(file, np.uint8, entry.stop - entry.start)
            digest.update(data)
            yield name, data.view(DTYPES[entry.dtype]).reshape(entry.shape)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Writes arrays, the largest first, and returns the file's SHA-256."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].nbytes, item[0]))
    table, end = {}, 0
    for name, array in ordered:
        offsets = [end, end + array.nbytes]
        table[name] = {"dtype": names[array.dtype], "shape": array.shape, "data_offsets": offsets}
        end += array.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % 64)  # readers that map the file want aligned data
    header = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(header)
        digest.update(header)
        for _, array in ordered:
            data = array.reshape(-1).view(np.uint8).data
            file.write(data)
            digest.update(data)
    return digest.hexdigest()
