"""What else may watch a run: Weights & Biases or trackio, and jax's profiler. Both trackers have
the same three functions. One is imported only if a config names it."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.folder import PROFILE

SKIPPED = 3  # steps before a trace: the first ones are not typical


def check_tracker(name: str) -> None:
    """Raises a UserError if the tracker `name` is not installed; "" is no tracker."""
    known = not name or sys.modules.get(name) or importlib.util.find_spec(name)
    if not known or getattr(known, "origin", name) is None:  # a folder of its own runs
        raise UserError(
            f"config.tracker is {name!r}, but the package is not installed: type pip install {name}"
        )


@contextlib.contextmanager
def tracker(config, folder: Path | None) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Yields a function that takes a step and its numbers by name. Each start of a run is a new run
    of the service, under the name of the folder."""
    if not config.tracker or jax.process_index():  # the first process tells it
        yield lambda step, values: None
        return
    module: Any = importlib.import_module(config.tracker)
    name = folder.resolve().name if folder else None
    module.init(project="prompt-tuning", name=name, config=config.to_dict())
    try:
        yield lambda step, values: module.log(dict(values), step=step)
    finally:
        module.finish()


@contextlib.contextmanager
def profiler(count: int, folder: Path | None, log: Callable) -> Iterator[Callable[[Any], None]]:
    """Traces `count` steps into a run folder; 0 traces none. On a full disk it only warns. Yields a
    function to call before each step with the state."""
    if not count or jax.process_index():  # the first process traces
        yield lambda state: None
        return
    if folder is None:
        wrong = f"config.profile_steps is {count}, but the run has no folder for a trace"
        raise UserError(f"{wrong}: give one, or leave it at 0")
    seen, refused, place = 0, "", folder / PROFILE

    def stop():
        nonlocal refused
        try:
            jax.profiler.stop_trace()
        except (OSError, jax.errors.JaxRuntimeError) as error:
            refused = str(error).partition("\n")[0]

    def before(state):
        nonlocal seen
        if seen in (SKIPPED, SKIPPED + count):
            jax.block_until_ready(state)
            jax.profiler.start_trace(place) if seen == SKIPPED else stop()
        seen += 1

    try:
        yield before
    finally:
        if SKIPPED < seen <= SKIPPED + count:
            stop()
    if seen <= SKIPPED:
        log(f"warning: there is no trace: it begins after {SKIPPED} steps, and {seen} were taken")
    elif refused:
        log(f"warning: the trace in {place} is not complete ({refused}).")
    else:
        steps = min(seen - SKIPPED, count)
        log(f"trace of {steps} steps: {place} (TensorBoard's profile plugin shows it)")
