"""The small network that makes a method's tensors while it trains, and is gone afterwards."""

import functools
from collections.abc import Callable

from flax import linen as nn


def two_layers(hidden: int, outputs: int, activation: Callable) -> nn.Module:
    """`[P, inputs]` to float32[P, outputs]: linear, activation, linear.

    The last layer starts at zero, so that what the output is added to begins as it is. Products are
    float32 on every device: the artifact holds what they give.
    """
    linear = functools.partial(nn.Dense, precision="highest")
    last = linear(outputs, kernel_init=nn.initializers.zeros)
    return nn.Sequential([linear(hidden), activation, last])
