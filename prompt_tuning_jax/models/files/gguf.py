"""Reads GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), and compares every
count with the file's size before it is believed. `gguf.GGUFReader` hangs on an array that declares
2**40 elements, and takes ten times as long for a vocabulary."""

import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from prompt_tuning_jax.errors import UserError, short

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
# Codes of the `struct` module for the types of numbers, by their number in the format.
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
MAX_TEXT = 1 << 24  # bytes in a string
MAX_ITEMS = 1 << 20  # in an array: the largest vocabularies have a quarter of that
MAX_DIMENSIONS = 4


class Tensor(NamedTuple):
    """Where a tensor lies: shape as numpy orders it, quantisation type, first byte, bytes."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class Gguf(NamedTuple):
    """Metadata by key, as plain values and lists of them, and tensors by name."""

    fields: dict[str, Any]
    tensors: dict[str, Tensor]


class Cursor:
    """Takes values from the file one after another, and refuses to go past its end."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        self.left = os.fstat(file.fileno()).st_size

    def take(self, size: int) -> bytes:
        if size > self.left:
            self.refuse(f"{size} more bytes and {self.left} are left")
        self.left -= size
        return self.file.read(size)

    def number(self, code: str) -> Any:
        return self.values(code, 1)[0]

    def values(self, code: str, count: int) -> tuple[Any, ...]:
        layout = f"<{count}{code}"
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def text(self) -> str:
        size = self.number("Q")
        if size > MAX_TEXT:
            self.refuse(f"a string of {size} bytes")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            self.refuse("a string that is not UTF-8")

    def value(self) -> Any:
        kind, count = self.number("I"), None
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if count > MAX_ITEMS:
                self.refuse(f"an array of {count} values")
        if kind == STRING:
            return self.text() if count is None else [self.text() for _ in range(count)]
        if kind not in NUMBERS:
            self.refuse(f"a value of type {kind}")
        if count is not None:
            return list(self.values(NUMBERS[kind], count))
        value = self.number(NUMBERS[kind])
        # Written as float32: 9.999999747378752e-06 means 1e-05.
        return float(str(np.float32(value))) if NUMBERS[kind] == "f" else value

    def refuse(self, what: str) -> NoReturn:
        raise UserError(f"{self.path} is cut short or damaged: it declares {what}; get it again.")


def is_gguf(path: Path) -> bool:
    """Tells whether the file begins as GGUF does, whatever its name is."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def read_gguf(path: Path) -> Gguf:
    """Reads the metadata and the places of the tensors, but no tensor. Raises a UserError for a
    file that is damaged, or of another version or byte order."""
    with path.open("rb") as file:
        cursor = Cursor(file, path)
        cursor.take(len(MAGIC))  # checked by `find_model`
        version = cursor.number("I")
        if version not in (2, 3):
            raise UserError(f"{path} is GGUF of version {version}, expected little-endian 2 or 3.")
        tensor_count, field_count = cursor.number("Q"), cursor.number("Q")
        fields: dict[str, Any] = {}
        for _ in range(field_count):
            key = cursor.text()
            if key in fields:
                cursor.refuse(f"the key {short(key)} twice")
            fields[key] = cursor.value()
        parts = fields.get("split.count", 1)
        if parts not in (0, 1):
            join = "join them with `llama-gguf-split --merge FIRST_FILE NEW_FILE`"
            problem = f"is one of {short(parts)} files of a split model"
            raise UserError(f"{path} {problem}: {join}, and give the new file.")
        tensors: dict[str, Tensor] = {}
        for _ in range(tensor_count):
            name = cursor.text()
            if name in tensors:
                cursor.refuse(f"the tensor {short(name)} twice")
            tensors[name] = _read_entry(cursor, f"the tensor {short(name)}")
        return Gguf(fields, _place(cursor, tensors, fields.get("general.alignment", 32)))


def _read_entry(cursor: Cursor, what: str) -> Tensor:
    """Reads a tensor's shape, type and offset. GGUF writes the fastest dimension first."""
    from gguf.constants import GGML_QUANT_SIZES

    dimensions = cursor.number("I")
    if dimensions > MAX_DIMENSIONS:
        cursor.refuse(f"{dimensions} dimensions for {what}")
    shape = cursor.values("Q", dimensions)[::-1]
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in GGML_QUANT_SIZES:
        cursor.refuse(f"type {kind} for {what}")
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if not math.prod(shape) or not shape or shape[-1] % block:
        cursor.refuse(f"shape {shape} for {what}, in blocks of {block}")
    return Tensor(shape, kind, offset, math.prod(shape) // block * block_bytes)


def _place(cursor: Cursor, tensors: dict[str, Tensor], alignment: Any) -> dict[str, Tensor]:
    """Counts from the start of the file, and checks that each tensor lies inside it and that no two
    share bytes: a small file would be a model of any size."""
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        cursor.refuse(f"an alignment of {short(alignment)}")
    begin = -(-cursor.file.tell() // alignment) * alignment
    end, last = cursor.file.tell() + cursor.left, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start < last:
            cursor.refuse(f"the tensor {short(name)} over another one")
        last = tensor.start + tensor.size
        if begin + last > end:
            cursor.refuse(f"the tensor {short(name)} up to byte {begin + last} of {end}")
    return {name: tensor._replace(start=begin + tensor.start) for name, tensor in tensors.items()}


def dequantize(file: BinaryIO, name: str, tensor: Tensor) -> np.ndarray:
    """Reads one tensor as float32, or raises a UserError if its quantisation is not supported."""
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    file.seek(tensor.start)
    kind = GGMLQuantizationType(tensor.kind)
    data = np.fromfile(file, np.uint8, tensor.size).reshape(*tensor.shape[:-1], -1)
    try:
        return quants.dequantize(data, kind).reshape(tensor.shape)
    except NotImplementedError:
        problem = f"is quantised as {kind.name}, which cannot be read"
        use = "use a file in Q8_0, F16, BF16 or F32"
        raise UserError(f"the tensor {short(name)} {problem}; {use}.") from None


def tensor_names(architecture: str, layers: int) -> Any:
    """Returns the gguf package's map from names of a Hugging Face folder to those of GGUF."""
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    number = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return get_tensor_name_map(number, layers)


def unpermute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Puts the rows `[heads * d, in]` of a query or key in the order that `rotate` expects:
    llama.cpp rotates neighbours, so its converter interleaves the two halves of d."""
    rows = weights.reshape(heads, weights.shape[0] // heads // 2, 2, -1)
    return rows.swapaxes(1, 2).reshape(weights.shape)
