"""Counts floating-point operations: of a traced function, and the fewest that a step needs."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core


def of_function(function, *arguments) -> int:
    """Counts the operations of all matrix products in `function(*arguments)`."""
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def of_jaxpr(jaxpr: core.Jaxpr) -> int:
    """Counts the operations of all `dot_general`s; the body of a scan counts as often as it runs.

    XLA's `cost_analysis` counts the body of a scan once. Raises ValueError for a loop without a
    known number of turns, and for a kernel, whose products are not in the jaxpr.
    """
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _of_product(equation)
    inner = [of_jaxpr(each) for each in _inside(equation.params)]
    if name == "scan":
        return equation.params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if (name == "while" and sum(inner)) or name == "pallas_call":
        raise ValueError(f"the operations inside a {name} cannot be counted from a jaxpr")
    return sum(inner)


def _of_product(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(equation.outvars[0].aval.shape) * depth


def _inside(parameters: dict[str, Any]):
    """Yields the jaxprs among an equation's parameters, but not a rule for the gradient."""
    for value in parameters.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, core.Jaxpr):
                yield each


def layer_weights(spec) -> tuple[int, int]:
    """Counts the weights of one layer's matrices: all of them, and those of keys and values."""
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    attention = 2 * spec.width * queries + 2 * spec.width * keys
    return attention + (
        3 if spec.gated else 2
    ) * spec.width * spec.feedforward, 2 * spec.width * keys


def least(
    spec, shared: int, lengths: Sequence[int], targets: Sequence[int], prefix: int = 0
) -> int:
    """Counts the fewest operations of a training step of a soft prompt or of a prefix.

    Args:
      spec: of the model.
      shared: how many positions are the same for all examples.
      lengths: how many further positions of each example are read (the last target is not).
      targets: how many tokens of each example are predicted, by its last positions.
      prefix: how many keys and values every position sees in every layer.

    A weight costs 2 operations a position forward and 2 for the gradient of its input. A pair of a
    query and a key costs 4 forward and 8 backward for each channel of each query head. The last
    layer needs keys and values everywhere and the rest at targets alone. (With a prefix the first
    layer's inputs need no gradient: a few thousandths, which are counted here.)
    """
    whole, keys_and_values = layer_weights(spec)
    positions, read = shared + sum(lengths), sum(targets)
    products = (spec.layers - 1) * whole * positions
    products += keys_and_values * positions + (whole - keys_and_values) * read
    front = prefix + shared
    pairs = _pairs(prefix, [shared], [shared]) + _pairs(front, lengths, lengths)
    pairs = (spec.layers - 1) * pairs + _pairs(front, lengths, targets)
    head = read * spec.vocabulary * spec.width
    return 4 * (products + head) + 12 * spec.heads * spec.head_size * pairs


def of_trained(spec, given, shared: int, lengths: Sequence[int], targets: Sequence[int]) -> int:
    """Counts the operations that LoRA or trained weights add to those of `least`.

    LoRA's two products cost 2 operations a weight and position forward, and 4 backward. A trained
    matrix costs 2 for its gradient. The embedding's rows are only added up; as the head it costs 2
    at targets.
    """
    whole, keys_and_values = layer_weights(spec)
    positions, read = shared + sum(lengths), sum(targets)
    total = 0
    for path, leaf in given.sites.items():
        if path.startswith("lora/"):
            last = positions if path.split("/")[3] in ("k", "v") else read
            total += 6 * math.prod(leaf.shape[1:]) * ((spec.layers - 1) * positions + last)
    if given.params:
        total += 2 * (spec.layers - 1) * whole * positions
        total += 2 * (keys_and_values * positions + (whole - keys_and_values) * read)
        total += 2 * read * spec.vocabulary * spec.width
    return total


def _pairs(shared: int, lengths: Sequence[int], queries: Sequence[int]) -> int:
    """Counts the causal pairs of the last `queries` positions of each example and their keys."""
    pairs = 0
    for length, count in zip(lengths, queries, strict=True):
        last = shared + length
        pairs += count * (last - count + 1 + last) // 2
    return pairs
