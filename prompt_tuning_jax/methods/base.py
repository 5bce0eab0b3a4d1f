"""The seam: what a way of tailoring a frozen model is."""

from collections.abc import Callable
from typing import Any, NamedTuple

Trainable = Any  # a tree of float32 arrays: all that the optimizer sees
Collections = dict[str, dict[str, Any]]  # collection -> leaf -> array, see `models.sites`


class Method(NamedTuple):
    """Two pure functions.

    Attributes:
      init: `(rng, lm, task) -> trainable`; may read the model's weights and the task's words.
      adapt: `(trainable, rng, train) -> collections`, what the model is handed beside `params`. It
        runs inside the step; a network that makes the prompt runs here, and the artifact stores
        only what comes out.
    """

    init: Callable[..., Trainable]
    adapt: Callable[..., Collections]
