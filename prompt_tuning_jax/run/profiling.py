"""A trace of a few steps, for those who want to see where the time goes."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.folder import PROFILE

SKIPPED = 3  # steps before the trace begins: the first ones are not like the others


@contextlib.contextmanager
def profiler(count: int, folder: Path | None, log: Callable) -> Iterator[Callable[[Any], None]]:
    """Traces `count` steps, 0 for none, into a run folder. One that the disk refuses is a warning.

    Yields:
      a function to call before each step with the state.

    Raises:
      UserError: steps to trace and no folder.
    """
    if not count:
        yield lambda state: None
        return
    if folder is None:
        raise UserError(
            f"config.profile_steps is {count} and the run has no folder to write a trace to: give "
            "one, or leave it at 0"
        )
    seen, refused = 0, ""

    def stop():
        nonlocal refused
        try:
            jax.profiler.stop_trace()
        except (OSError, jax.errors.JaxRuntimeError) as error:
            refused = str(error).partition("\n")[0]

    def before(state):
        nonlocal seen
        if seen == SKIPPED:
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder / PROFILE)
        elif seen == SKIPPED + count:
            jax.block_until_ready(state)
            stop()
        seen += 1

    try:
        yield before
    finally:
        if SKIPPED < seen <= SKIPPED + count:
            stop()
    log(outcome(min(seen - SKIPPED, count), folder / PROFILE, refused))


def outcome(traced: int, folder: Path, refused: str) -> str:
    """One line: how many steps were traced to where, or why none."""
    if traced <= 0:
        taken = SKIPPED + traced
        return f"warning: no trace: it begins after {SKIPPED} steps, and {taken} were taken"
    if refused:
        return f"warning: the trace in {folder} is not whole ({refused})."
    return f"trace of {traced} steps: {folder} (TensorBoard's profile plugin shows it)"
