"""What a method is: the way in which a frozen model is tailored."""

from collections.abc import Callable
from typing import Any, NamedTuple

Trainable = Any  # a tree of float32 arrays: all that the optimizer sees
Collections = dict[str, dict[str, Any]]  # collection -> leaf -> array, see `models.sites`


class Method(NamedTuple):
    """Two pure functions.

    Attributes:
      init: `(rng, lm, task) -> trainable`; may read the model's weights and the task's words.
      adapt: `(trainable, rng, train) -> collections`, which the model reads beside `params`. It
        runs inside the step. A network that makes the prompt runs here; the artifact stores only
        its output.
    """

    init: Callable[..., Trainable]
    adapt: Callable[..., Collections]
