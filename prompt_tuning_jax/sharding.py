"""Frozen weights over several devices, and what makes them whole again where they are used.

A mesh has the axes `data` and `model`. Rows lie over both. A frozen matrix is the same on all of
`data` and lies in parts over `model`. In the forward and in the backward pass, a layer gathers its
matrices when it is computed, so that one layer is whole at a time, beside the last one and the
embeddings.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning_jax.config.key import Key, all_texts, among, whole
from prompt_tuning_jax.errors import UserError

AXES = ("data", "model")
MODEL = "model"
_LETTERS = ("V", "E", "D", "Hd", "Kd", "F")
KEYS = {
    # 'jit' over a mesh of devices, or 'pmap', for data parallelism alone.
    "name": among("jit", ("jit", "pmap")),
    # Devices that share the frozen weights.
    "model": whole(1, 1).if_fits(
        "1, because config.parallel.name is 'pmap', which has the weights whole on each device",
        lambda value, section: value == 1 or section["name"] == "jit",
    ),
    # Letters of the axes of matrices, see `spec.matrices`: a matrix is divided along the first of
    # its axes that is named here and whose size is a multiple of `model`. With r, LoRA's too.
    "axes": Key(
        _LETTERS,
        f"some of {', '.join(_LETTERS)}, and r to divide LoRA's matrices too",
        lambda value: all_texts(value) and {"r"} < {*value, "r"} <= {*_LETTERS, "r"},
    ),
}


class Layout(NamedTuple):
    """How the weights lie: over how many devices, and by path the `PartitionSpec` of a matrix that
    is divided. Hashable."""

    shards: int = 1
    divided: tuple[tuple[str, PartitionSpec], ...] = ()

    def specs(self, tree: Any) -> Any:
        """Returns the `PartitionSpec` of each leaf of a tree of whole arrays: of frozen weights, of
        trained ones by their path, or of an optimizer's numbers for these."""
        known = dict(self.divided)

        def spec(place: tuple[Any, ...], leaf: Any) -> PartitionSpec:
            names = [str(getattr(part, "key", "")) for part in place]
            ends = ("/".join(names[begin:]) for begin in range(len(names)))
            found = next((known[end] for end in ends if end in known), PartitionSpec())
            sizes = [size for size, axis in zip(np.shape(leaf), found, strict=False) if axis]
            fits = len(found) == np.ndim(leaf) and not any(size % self.shards for size in sizes)
            return found if fits else PartitionSpec()

        return jax.tree_util.tree_map_with_path(spec, tree)


WHOLE = Layout()


def make_layout(letters: Mapping, shapes: Mapping, settings: Mapping, devices: int) -> Layout:
    """Returns the layout that `config.parallel` asks for over so many devices, of matrices by path:
    the letters of their axes, and their shapes. Raises a UserError if the number that is asked for
    does not divide the devices and every matrix; it names those that do."""
    count, axes = settings["model"], settings["axes"]
    if count == 1:
        return WHOLE
    known = [path for path in letters if path in shapes]
    sizes = {path: [*zip(letters[path].split(), shapes[path], strict=True)] for path in known}

    def cut(number: int, allowed: Sequence[str]) -> dict[str, int]:
        """Returns the first axis of each matrix that can be cut into so many parts, by its path."""
        return {
            path: axis
            for path in known
            for axis, (letter, size) in reversed([*enumerate(sizes[path])])  # the last counts
            if number == 1 or (letter in allowed and size % number == 0)
        }

    found, able = cut(count, axes), cut(count, _LETTERS)
    whole = [path for path in known if path not in found]
    if whole or devices % count:
        shown = " x ".join(f"{size} ({letter})" for letter, size in sizes[(whole or known)[0]])
        wrong = f"'{whole[0]}' is {shown}" if whole else f"the number of devices is {devices}"
        numbers = (n for n in range(1, devices + 1) if devices % n == 0)
        advice = ", ".join(str(n) for n in numbers if [*cut(n, axes)] == known)
        if whole and devices % count == 0 and [*able] == known:
            more = dict.fromkeys(sizes[path][able[path]][0] for path in whole)
            advice += f", or add {', '.join(more)} to config.parallel.axes"
        raise UserError(f"config.parallel.model is {count}, and {wrong}: give {advice}")
    divided = []
    for path, axis in found.items():
        names = [MODEL if each == axis else None for each in range(len(sizes[path]))]
        # In int8 there is a scale for each row beside it, which is small and stays whole.
        parts = {path: names, f"{path}/q": names}
        if len(names) == 3 and "r" in axes:
            # LoRA's A [L, r, in] is cut along r, B [L, out, r] along out: B tells what r is.
            thin = path.replace("layers/", "decoder/").removesuffix("weight")
            parts |= {thin + factor: [None, MODEL, None] for factor in "ab"}
        divided += [(part, PartitionSpec(*cuts)) for part, cuts in parts.items()]
    return Layout(count, tuple(divided))


def make_mesh(devices: Sequence[Any], shards: int = 1) -> Mesh:
    """Returns a mesh of devices with the axes `data` and `model`; `shards` of them lie along
    `model`, on TPUs in one slice. Raises a UserError if the devices cannot be divided so."""
    # Those of `--topology`, which are described and not here, have no number of a slice.
    slices = len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}) or 1
    count, here = len(devices) // slices, " in a slice" if slices > 1 else ""
    if count % shards:
        fits = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        given = f"config.parallel.model is {shards}, and the number of devices{here} is {count}"
        raise UserError(f"{given}: give {fits}")
    make, kinds = mesh_utils.create_device_mesh, (jax.sharding.AxisType.Auto,) * 2
    if slices > 1:
        make = functools.partial(mesh_utils.create_hybrid_device_mesh, dcn_mesh_shape=(slices, 1))
    # A slice of 4 x 4 chips has no axis of 8 chips unless one of its own may be split.
    grid = make((count // shards, shards), devices=devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=kinds)


def shard(params: Any, layout: Layout) -> Any:
    """Places a frozen tree of numpy arrays, in parts over all devices or whole on the default. From
    then on no program is read from a cache if it would be divided over CPUs: jax 0.10 mixes up the
    collectives of those, and ends the process."""
    if max(jax.process_count(), layout.shards) > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # which else keeps what it read of this setting
    if layout.shards == 1:
        return jax.device_put(params)
    return place(params, make_mesh(jax.devices(), layout.shards), layout.specs(params))


@functools.cache
def own_parts(layout: Layout, path: str, shape: tuple[int, ...]) -> list[Any]:
    """Returns the indices of the parts of a frozen leaf that this process's devices hold."""
    spec = dict(layout.divided).get(path)
    if spec is None:
        return [()]
    sharding = NamedSharding(make_mesh(jax.devices(), layout.shards), spec)
    held = sharding.addressable_devices_indices_map(shape).values()
    return [*{str(index): index for index in held}.values()]


def place(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Places a tree on a mesh, by the `PartitionSpec` of each leaf. Every process has all of it."""

    def put(leaf: Any, spec: PartitionSpec) -> jax.Array:
        sharding = NamedSharding(mesh, spec)
        if is_spread(leaf) and sharding.is_fully_addressable:  # whole: as this process has it
            parts = [part.data for part in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)
        if sharding.is_fully_addressable or is_spread(leaf):
            return jax.device_put(leaf, sharding)
        # `device_put` would first send the whole leaf to every process, to compare.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, specs)


def fetch(leaf: jax.Array) -> np.ndarray:
    """Copies a placed array back to numpy. All processes must fetch one that is in parts."""
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.array(leaf)  # a copy: on a CPU numpy would look into memory that is used again
    return multihost_utils.process_allgather(leaf, tiled=True)


def is_spread(leaf: Any) -> bool:
    """Tells whether an array lies over several processes."""
    return not getattr(leaf, "is_fully_addressable", True)


def is_divided(leaf: Any) -> bool:
    """Tells whether an array lies in parts over `model`."""
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and MODEL in sharding.spec


def gather(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns a matrix of a shape, of which this may be the part of one device."""
    for axis, size in enumerate(shape):
        if leaf.shape[axis] != size:
            leaf = jax.lax.all_gather(leaf, MODEL, axis=axis, tiled=True)
    return leaf
