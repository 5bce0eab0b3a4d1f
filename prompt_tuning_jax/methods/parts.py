"""What several methods share: patterns for parts of the model, and a small network."""

import fnmatch
import functools
from collections.abc import Callable

from flax import linen as nn

from prompt_tuning_jax.errors import UserError, nearest


def select_layers(sites, collection: str, patterns) -> list[str]:
    """Returns the linear layers that patterns name, as 'decoder/attention/q'; all without patterns.
    A pattern is a whole path or its end, with * for anything: 'q', 'attention/*'."""
    paths = (path.split("/") for path in sites if path.startswith(f"{collection}/"))
    layers = list(dict.fromkeys("/".join(path[1:4]) for path in paths))
    return match_paths(layers, patterns, "config.method.targets", "linear layers")


def match_paths(paths, patterns, key: str, what: str) -> list[str]:
    """Returns the paths that patterns match, wholly or at their end; all without patterns.
    Raises a UserError for a pattern that matches none, with the key and `what` the paths are."""
    found = []
    for pattern in patterns or ("*",):
        matched = [path for path in paths if fnmatch.fnmatchcase(f"/{path}", f"*/{pattern}")]
        if not matched:
            raise UserError(
                f"{key} has {pattern!r}, which matches none of the {what}"
                f"{nearest(pattern, paths)}: {', '.join(paths)}"
            )
        found += matched
    return [path for path in paths if path in found]


def two_layers(hidden: int, outputs: int, activation: Callable = nn.relu) -> nn.Module:
    """Returns a network from `[P, inputs]` to float32[P, outputs]: linear, activation, linear. The
    last layer starts at zero, and so does the output. Products are float32 on every device, because
    the artifact holds their result."""
    linear = functools.partial(nn.Dense, precision="highest")
    last = linear(outputs, kernel_init=nn.initializers.zeros)
    return nn.Sequential([linear(hidden), activation, last])
