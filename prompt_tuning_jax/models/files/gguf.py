"""Reading GGUF files, whose every count is compared with the file's size before it is believed.

`gguf.GGUFReader` hangs on an array that declares 2**40 elements, and takes two seconds for a
vocabulary. What has to be walked to check it is kept as it goes by: 0.2 s, and one kind of error.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from prompt_tuning_jax.errors import UserError, short

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
MAX_TEXT = 1 << 24  # bytes of one string
MAX_ITEMS = 1 << 20  # of one array: the largest vocabularies have a quarter of it
MAX_DIMENSIONS = 4


class Tensor(NamedTuple):
    """Where a tensor lies: shape as numpy orders it, quantisation type, first byte, bytes."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class Gguf(NamedTuple):
    """Metadata by key, as plain values and lists of them, and tensors by name."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]


class Cursor:
    """Takes values off the file in turn and refuses to go past its end."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        self.left = os.fstat(file.fileno()).st_size

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise UserError(
                f"{self.path} is cut short or damaged: it declares {size} more bytes where "
                f"{self.left} are left; download or convert it again."
            )
        self.left -= size
        return self.file.read(size)

    def number(self, code: str) -> Any:
        value = struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]
        # Written as float32: 1e-05 is meant where 9.999999747378752e-06 is read.
        return float(str(np.float32(value))) if code == "f" else value

    def text(self) -> str:
        size = self.number("Q")
        if size > MAX_TEXT:
            self.refuse(f"a string of {size} bytes")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            self.refuse("a string that is not UTF-8")
            raise

    def array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind != STRING and kind not in NUMBERS:
            self.refuse(f"an array of type {kind}")
        if count > min(MAX_ITEMS, self.left):
            self.refuse(f"an array of {count} values")
        if kind == STRING:
            return [self.text() for _ in range(count)]
        code = NUMBERS[kind]
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))

    def value(self) -> Any:
        kind = self.number("I")
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.array()
        if kind not in NUMBERS:
            self.refuse(f"a value of type {kind}")
        return self.number(NUMBERS[kind])

    def refuse(self, what: str):
        raise UserError(f"{self.path} is not a sound GGUF file: it declares {what}.")


def is_gguf(path: Path) -> bool:
    """Whether the file begins as GGUF does, whatever it is called."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def read(path: Path) -> Gguf:
    """Metadata and places of the tensors; no tensor is read.

    Raises:
      UserError: not GGUF, another version or byte order, cut short, or damaged.
    """
    with path.open("rb") as file:
        cursor = Cursor(file, path)
        if cursor.take(4) != MAGIC:
            raise UserError(f"{path} is not a GGUF file: it does not begin with 'GGUF'.")
        version = cursor.number("I")
        if version not in VERSIONS:
            raise UserError(
                f"{path} is GGUF of version {version}; supported: 2 and 3, little-endian."
            )
        tensor_count, field_count = cursor.number("Q"), cursor.number("Q")
        fields: dict[str, Any] = {}
        for _ in range(field_count):
            key = cursor.text()
            if key in fields:
                cursor.refuse(f"the key {short(key)} twice")
            fields[key] = cursor.value()
        found = [read_entry(cursor) for _ in range(check_count(cursor, tensor_count))]
        return Gguf(path, fields, place(cursor, found, fields.get("general.alignment", 32)))


def check_count(cursor: Cursor, count: int) -> int:
    if count > cursor.left // 24:  # what the shortest entry takes
        cursor.refuse(f"{count} tensors")
    return count


def read_entry(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor. GGUF writes the fastest dimension first."""
    name, dimensions = cursor.text(), cursor.number("I")
    if dimensions > MAX_DIMENSIONS:
        cursor.refuse(f"{dimensions} dimensions for the tensor {short(name)}")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    return name, shape, cursor.number("I"), cursor.number("Q")


def place(cursor: Cursor, found: list, alignment: Any) -> dict[str, Tensor]:
    """Tensors by name, each inside the file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        cursor.refuse(f"an alignment of {short(alignment)}")
    end = cursor.file.tell() + cursor.left
    begin = -(-cursor.file.tell() // alignment) * alignment
    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    known = {int(kind) for kind in GGMLQuantizationType}
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset in found:
        if name in tensors:
            cursor.refuse(f"the tensor {short(name)} twice")
        if kind not in known:
            cursor.refuse(f"type {kind} for the tensor {short(name)}")
        block, block_bytes = sizes[kind]
        if not shape or shape[-1] % block:
            cursor.refuse(f"shape {shape} for the tensor {short(name)}, in blocks of {block}")
        size = math.prod(shape) // block * block_bytes
        if begin + offset + size > end:
            raise UserError(
                f"{cursor.path} is cut short: the tensor {short(name)} ends at byte "
                f"{begin + offset + size} of {end}; download or convert it again."
            )
        tensors[name] = Tensor(shape, kind, begin + offset, size)
    check_apart(cursor, tensors)
    return tensors


def check_apart(cursor: Cursor, tensors: dict[str, Tensor]):
    """Refuses tensors that share bytes: a small file would be a model of any size."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.size and tensor.start < end:
            cursor.refuse(f"the tensor {short(name)} over another one")
        end = max(end, tensor.start + tensor.size)


def load(file: BinaryIO, name: str, tensor: Tensor) -> np.ndarray:
    """One tensor, dequantised: float32 of its shape.

    Raises:
      UserError: a quantisation that the gguf package cannot undo.
    """
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    file.seek(tensor.start)
    kind = GGMLQuantizationType(tensor.kind)
    data = np.fromfile(file, np.uint8, tensor.size).reshape(*tensor.shape[:-1], -1)
    try:
        return quants.dequantize(data, kind).reshape(tensor.shape)
    except NotImplementedError:
        raise UserError(
            f"the tensor {short(name)} is quantised as {kind.name}, which cannot be read; use a "
            "file in Q8_0, F16, BF16 or F32."
        ) from None


def unpermute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows `[heads * d, in]` of a query or key in the order in which halves of d are the pairs.

    llama.cpp rotates neighbours, so its converter interleaves them. Nothing fails where this is
    forgotten; the model is only worse.
    """
    rows = weights.reshape(heads, weights.shape[0] // heads // 2, 2, -1)
    return rows.swapaxes(1, 2).reshape(weights.shape)
