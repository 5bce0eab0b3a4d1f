"""Reads and writes safetensors files with the safetensors package."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from prompt_tuning_jax.errors import UserError, short

DTYPES = {
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Of the tensors in a file, by name: the type as the format names it, and the shape.
Entries = dict[str, tuple[str, tuple[int, ...]]]


def read_header(path: Path) -> Entries:
    """Reads the types and shapes of the tensors, by name and in their order in the file."""
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.offset_keys()}
        return {name: (part.get_dtype(), (*part.get_shape(),)) for name, part in parts.items()}


def read_tensors(path: Path, entries: Entries) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each tensor with its name, in its own type."""
    with _opened(path) as file:
        for name, (dtype, _) in entries.items():
            if dtype not in DTYPES:
                what = f"the tensor {short(name)} is of type {short(dtype)}"
                raise UserError(f"{path}: {what}; supported: {', '.join(DTYPES)}.")
            yield name, file.get_tensor(name)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe or a device
            raise UserError(f"{path} is neither a file nor a folder: get it again.")
        with path.open("rb"):  # its errors say more than the package's
            pass
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        problem = f"is not a valid safetensors file, or is cut short ({short(str(error), 200)})"
        raise UserError(f"{path} {problem}: get it again.") from error
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Writes arrays, and returns the file's SHA-256."""
    data = save({name: np.ascontiguousarray(leaf) for name, leaf in arrays.items()})
    path.write_bytes(data)  # whose errors say more than the package's
    return hashlib.sha256(data).hexdigest()
