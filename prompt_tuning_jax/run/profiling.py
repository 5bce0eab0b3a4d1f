"""A trace of a few steps, which shows where the time goes."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.folder import PROFILE

SKIPPED = 3  # steps before the trace: the first ones are not typical


@contextlib.contextmanager
def profiler(count: int, folder: Path | None, log: Callable) -> Iterator[Callable[[Any], None]]:
    """Traces `count` steps into a run folder; 0 traces none. On a full disk it only warns. Yields a
    function to call before each step with the state."""
    if not count:
        yield lambda state: None
        return
    if folder is None:
        raise UserError(
            f"config.profile_steps is {count}, but the run has no folder for a trace: give one, or "
            "leave it at 0"
        )
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
        log(
            f"trace of {min(seen - SKIPPED, count)} steps: {place} (TensorBoard's profile plugin "
            "shows it)"
        )
