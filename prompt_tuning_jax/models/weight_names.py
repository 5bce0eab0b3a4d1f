"""The tensors of a family's Hugging Face folder, and how they make our leaves."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.models.decoder import param_shapes
from prompt_tuning_jax.models.families import FAMILIES
from prompt_tuning_jax.models.spec import Spec


class Tensor(NamedTuple):
    """A tensor of a file, and what it makes of our leaves."""

    name: str  # in the file
    shape: tuple[int, ...]  # in the file
    # Paths, as in `param_shapes`; several if the tensor holds one below the other.
    leaves: tuple[str, ...]
    layer: int | None  # which layer's part of a stack it is, or None: the leaf is no stack
    how: str | int  # 'T' if it is transposed, or how many heads its rows are in order of, or ''


def tensors(spec: Spec) -> Iterator[Tensor]:
    """Yields what a folder of the model holds."""
    shapes = param_shapes(spec)
    for ours, (theirs, *cut) in FAMILIES[spec.family].table.items():
        place, _, names = ours.rpartition("/")
        modules = [f"{place}/{name}".lstrip("/") for name in names.split(",")]
        kinds = [path.rpartition("/") for path in shapes]
        for leaf in [leaf for module, _, leaf in kinds if module == modules[0]]:
            parts = [f"{module}/{leaf}" for module in modules]
            sizes = [shapes[path] for path in parts]
            shape = (sum(size[0] for size in sizes), *sizes[0][1:])
            how: str | int = spec.heads if "heads" in cut else ""
            if "T" in cut and len(shape) == 2:
                how, shape = "T", shape[::-1]
            name = theirs + (".bias" if leaf == "bias" else ".weight")
            stacks = [path.replace("last/", "layers/", 1) for path in parts]
            for number in range(spec.layers - 1) if stacks != parts else ():
                yield Tensor(name.format(number), shape, tuple(stacks), number, how)
            yield Tensor(name.format(spec.layers - 1), shape, tuple(parts), None, how)


def split(tensor: Tensor, array: np.ndarray, rows: Sequence[int]) -> list[np.ndarray]:
    """Cuts a file's array into the parts of its leaves, of so many rows each."""
    if tensor.how == "T":
        array = array.T
    if isinstance(tensor.how, int):  # [H, 3, d, ...]
        parts = array.reshape(tensor.how, len(rows), -1, *array.shape[1:])
        return [part.reshape(-1, *array.shape[1:]) for part in parts.swapaxes(0, 1)]
    ends = [0, *itertools.accumulate(rows)]
    return [array[begin:end] for begin, end in itertools.pairwise(ends)]


def join(tensor: Tensor, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Puts the parts together as the file has them: undoes `split`."""
    if isinstance(tensor.how, int):
        cut = [part.reshape(tensor.how, -1, *part.shape[1:]) for part in parts]
        return np.concatenate(cut, axis=1).reshape(tensor.shape)
    whole = np.concatenate(parts)
    return np.ascontiguousarray(whole.T if tensor.how == "T" else whole)


def parts_of(leaves: Mapping[str, Any], tensor: Tensor) -> list[Any]:
    """Returns the arrays of a tensor's leaves, or the parts of their stacks."""
    found = [leaves[path] for path in tensor.leaves]
    return found if tensor.layer is None else [stack[tensor.layer] for stack in found]


def module_name(spec: Spec, layer: str) -> str | None:
    """Returns a linear layer's name in a folder, {} for its number; None if fused or transposed."""
    row = FAMILIES[spec.family].table.get(f"last/{layer}")
    return row[0] if row is not None and len(row) == 1 else None
