"""The seam: what a method, a way to adapt a frozen model, is."""

from collections.abc import Callable
from typing import Any, NamedTuple

from prompt_tuning_jax.models.sites import NOTHING, Given

__all__ = ("NOTHING", "Given", "Method")

Trained = Any  # a tree of float32 arrays: all that the optimizer sees
Fixed = Any  # a tree of arrays that are drawn from the seed and not trained


class Method(NamedTuple):
    """Two pure functions."""

    # `(rng, lm, task) -> trained, fixed`; may read the model's weights and the task's words.
    # `fixed` is in no gradient, checkpoint or artifact: a run that goes on draws it again.
    init: Callable[..., tuple[Trained, Fixed]]
    # `(trained, fixed, frozen, rng, train) -> Given`, what the model is handed beside the frozen
    # weights. It runs inside the step. The artifact stores the result: loading it needs no method.
    adapt: Callable[..., Given]
