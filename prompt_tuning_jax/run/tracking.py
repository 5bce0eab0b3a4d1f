"""Metrics for a service of the user's choice, beside the run folder. Nothing is sent unless asked.

Weights & Biases and trackio are called by the same three names; neither is imported before.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prompt_tuning_jax.errors import UserError

PROJECT = "prompt-tuning"


def check(name: str) -> None:
    """Raises a UserError if the tracker `name` ('' for none) is not installed."""
    if name and importlib.util.find_spec(name) is None:
        raise UserError(
            f"config.tracker is {name!r} and the package is not installed: type pip install {name},"
            " or leave it empty"
        )


@contextlib.contextmanager
def tracker(config, folder: Path | None) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Yields a function that takes a step and its numbers by name.

    Each start of a run is a run of the service, named after the folder; one that goes on sends the
    earlier lines again, so that each is whole.
    """
    if not config.tracker:
        yield lambda step, values: None
        return
    module: Any = importlib.import_module(config.tracker)
    name = folder.resolve().name if folder else None
    module.init(project=PROJECT, name=name, config=config.to_dict())
    try:
        yield lambda step, values: module.log(dict(values), step=step)
    finally:
        module.finish()
