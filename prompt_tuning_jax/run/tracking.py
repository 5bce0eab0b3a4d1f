"""Sends metrics to Weights & Biases or trackio, if config.tracker names one of them.

Both have the same three functions, and neither is imported before.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prompt_tuning_jax.errors import UserError


def check_tracker(name: str) -> None:
    """Raises a UserError if the tracker `name` is not installed; "" is no tracker."""
    if name and importlib.util.find_spec(name) is None:
        raise UserError(
            f"config.tracker is {name!r}, but the package is not installed: type pip install {name}"
        )


@contextlib.contextmanager
def tracker(config, folder: Path | None) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Yields a function that takes a step and its numbers by name. Each start of a run is a new run
    of the service, under the name of the folder."""
    if not config.tracker:
        yield lambda step, values: None
        return
    module: Any = importlib.import_module(config.tracker)
    name = folder.resolve().name if folder else None
    module.init(project="prompt-tuning", name=name, config=config.to_dict())
    try:
        yield lambda step, values: module.log(dict(values), step=step)
    finally:
        module.finish()
