"""The small network that makes a method's tensors during training."""

import functools
from collections.abc import Callable

from flax import linen as nn


def two_layers(hidden: int, outputs: int, activation: Callable) -> nn.Module:
    """Returns a network from `[P, inputs]` to float32[P, outputs]: linear, activation, linear.

    The last layer starts at zero, and so does the output. Products are float32 on every device,
    because the artifact holds their result.
    """
    linear = functools.partial(nn.Dense, precision="highest")
    last = linear(outputs, kernel_init=nn.initializers.zeros)
    return nn.Sequential([linear(hidden), activation, last])
