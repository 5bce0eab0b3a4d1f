"""What a method can give to the model beside the frozen weights, and how the module reads it.

A site is a path `collection/stack/module/leaf`. `sites` is the table of all of them, with the
letters of their axes. `bind` lays out what is given, and refuses what the model does not read.
"""

from collections.abc import Collection, Container, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from prompt_tuning_jax.errors import UserError, nearest
from prompt_tuning_jax.models.decoder import param_shapes
from prompt_tuning_jax.models.spec import Spec, axis_sizes, linear_layers

PROMPT = "prompt/vectors"
PREFIX = {name: f"prefix/decoder/attention/{name}" for name in ("k", "v")}
VISIBLE = "prefix/decoder/attention/visible"
SCALED_INPUT = "feedforward/down"  # IA3 scales what this layer reads, and what the others give


class Given(NamedTuple):
    """What a method hands to the model."""

    sites: Mapping[str, jax.Array] = {}  # arrays by their path in `sites`
    # Arrays in place of frozen leaves, by the leaf's path, such as 'layers/attention/q/weight'.
    params: Mapping[str, jax.Array] = {}


NOTHING = Given()


def sites(spec: Spec) -> dict[str, str]:
    """Returns the letters of the axes of every site by its path. P (virtual tokens) and r (rank)
    are free; the other sizes are the model's (`axis_sizes`)."""
    table = {PROMPT: "P E", **dict.fromkeys(PREFIX.values(), "L P K d"), VISIBLE: "P"}
    for module, (outputs, inputs) in linear_layers(spec).items():
        table[f"lora/decoder/{module}/a"] = f"L r {inputs}"
        table[f"lora/decoder/{module}/b"] = f"L {outputs} r"
        table[f"scale/decoder/{module}"] = f"L {inputs if module == SCALED_INPUT else outputs}"
    return table


def bind(spec: Spec, params: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """Returns the variables of the module: the frozen tree, which may lack the leaves that are
    given, with all that a method's `adapt` gives; raises what `check_given` raises."""
    check_given(spec, given, parts=True)
    table, variables = sites(spec), dict[tuple[str, ...], Any]()
    for path, array in given.sites.items():
        collection, stack, *module = path.split("/")
        if stack != "decoder":
            variables[collection, stack] = array
            continue
        # A scale stands in the module of its linear layer.
        place = (*module, "scale") if collection == "scale" else module
        if not table[path].startswith("L"):
            array = jnp.broadcast_to(array, (spec.layers, *array.shape))
        variables[collection, "layers", *place] = array[:-1]
        variables[collection, "last", *place] = array[-1]
    if given.params:
        flat = traverse_util.flatten_dict(params, sep="/")
        # A leaf of an artifact may be of another dtype; in training the frozen one is not there.
        own = {path: leaf.astype(flat.get(path, leaf).dtype) for path, leaf in given.params.items()}
        params = traverse_util.unflatten_dict({**flat, **own}, sep="/")
    return {**traverse_util.unflatten_dict(variables), "params": params}


def without_leaves(params: Mapping[str, Any], paths: Container[str]) -> dict[str, Any]:
    """Returns the frozen tree without the leaves at some paths, which are trained."""
    flat = traverse_util.flatten_dict(params, sep="/")
    kept = {path: leaf for path, leaf in flat.items() if path not in paths}
    return traverse_util.unflatten_dict(kept, sep="/")


def check_given(spec: Spec, given: Given, parts: bool = False) -> None:
    """Raises a UserError for the first array that the model has no place for, or has in another
    shape: it would be ignored. With `parts`, a leaf of the model may be the part of one device."""
    table, sizes, shapes = sites(spec), axis_sizes(spec), param_shapes(spec)
    free: dict[str, int] = {}
    for path, array in given.sites.items():
        _check_read(path, table)
        letters = table[path].split()
        # One P for all of a prefix, and one r for both factors of a layer.
        names = [path.rpartition("/")[0] + each if each in "Pr" else each for each in letters]
        wanted = [free.get(name, sizes.get(name, 0)) for name in names]
        filled = tuple(size or own for size, own in zip(wanted, array.shape, strict=False))
        fits = filled == tuple(array.shape)
        if parts and path.startswith("lora/") and 0 not in filled and len(filled) == array.ndim:
            # They may be the parts of one device: the r of one factor then divides the other's.
            pairs = zip(filled, array.shape, strict=True)
            fits = all(max(pair) % min(pair) == 0 for pair in pairs)
        if not fits or len(filled) != len(wanted) or 0 in filled:
            shown = [str(size or letter) for size, letter in zip(wanted, letters, strict=True)]
            read = f"the model reads [{', '.join(shown)}]"
            raise UserError(f"'{path}' has shape {tuple(array.shape)}; {read}.")
        free |= dict(zip(names, array.shape, strict=True))
        # The sites without which this one has no meaning.
        partners = {"prefix": [*PREFIX.values()], "lora": [path[:-1] + factor for factor in "ab"]}
        for other in partners.get(path.split("/")[0], ()):
            if other not in given.sites:
                raise UserError(f"'{path}' needs '{other}' beside it.")
    for path, leaf in given.params.items():
        _check_read(path, shapes)
        same, pairs = leaf.ndim == len(shapes[path]), zip(leaf.shape, shapes[path], strict=False)
        is_part = parts and same and all(size and not of % size for size, of in pairs)
        if leaf.shape != shapes[path] and not is_part:
            raise UserError(f"'{path}' has shape {leaf.shape}; the model reads {shapes[path]}.")


def _check_read(path: str, known: Collection[str]) -> None:
    if path not in known:
        alike = [name for name in known if name.split("/")[0] == path.split("/")[0]]
        names = ", ".join(alike or dict.fromkeys(name.split("/")[0] for name in known))
        raise UserError(f"the model does not read '{path}'{nearest(path, known)}; it reads {names}")


def to_tensors(given: Given) -> dict[str, jax.Array]:
    """Returns what a method gave as an artifact holds it, the model's own leaves as 'params/…'."""
    return {**given.sites, **{f"params/{path}": leaf for path, leaf in given.params.items()}}


def from_tensors(tensors: Mapping[str, jax.Array]) -> Given:
    """Returns what an artifact gives to the model, see `to_tensors`."""
    own = {path: leaf for path, leaf in tensors.items() if path.startswith("params/")}
    sites = {path: leaf for path, leaf in tensors.items() if path not in own}
    return Given(sites, {path.removeprefix("params/"): leaf for path, leaf in own.items()})


def prefix_length(given: Given) -> int:
    """Returns how many positions the prefix takes: a text's own begin after them."""
    return given.sites[PREFIX["k"]].shape[1] if PREFIX["k"] in given.sites else 0


def virtual_tokens(given: Given) -> int:
    """Returns P, how many slots of a template have a vector."""
    return given.sites[PROMPT].shape[0] if PROMPT in given.sites else 0
