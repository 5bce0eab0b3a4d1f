"""Resume state on disk, through orbax, synchronously: when `save` returns, the state is there.

Orbax writes a step under a temporary name and renames it, so a kill leaves the older steps whole.
It has no checksum over values, so each step carries a SHA-256 of its own, of its number as well.
"""

import contextlib
import functools
import gc
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.folder import writable

_STATE, _EXTRA = "state", "extra"
# What orbax and tensorstore answer damaged files with.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError)

_JOIN_SECONDS = 60.0


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      step: of the save.
      state: the tree, with numpy leaves.
      extra: the JSON object saved beside it.
      warning: "" or a sentence about newer checkpoints that were damaged and are deleted.
    """

    step: int
    state: Any
    extra: dict[str, Any]
    warning: str


class Checkpoints:
    """The newest `keep` states of a run in a folder. Use as a context manager, or `close`."""

    def __init__(self, folder: str | os.PathLike, keep: int = 2):
        """Opens or makes the folder, and deletes what a kill left unfinished in it.

        Raises:
          UserError: it cannot be made.
        """
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=False,
            # Of several processes the first alone opens it: orbax is to wait for no other.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
            ),
        )
        self._sweep()
        with writable(self._folder.parent), _quiet():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_names=(_STATE, _EXTRA)
            )
        self._failed = False
        self._hook = sys.unraisablehook
        sys.unraisablehook = functools.partial(_unless_loop_closed, self._hook)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        with _quiet():
            self._manager.close()
        self._sweep()
        # What tensorstore calls back after a failure may come later than this.
        if not self._failed:
            sys.unraisablehook = self._hook

    def _sweep(self) -> None:
        # Orbax's own sweep is in the background, and a save that failed would keep its space.
        for partial in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(partial, ignore_errors=True)

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, extra: Mapping[str, Any]) -> str:
        """Saves a tree of arrays and a JSON object.

        Returns:
          "" or, where the disk refuses, a sentence; older checkpoints are as they were.
        """
        state = jax.tree.map(np.asarray, state)
        extra = {"extra": dict(extra), "sha256": _digest(step, state, extra)}
        items = self._ocp.args.Composite(
            **{
                _STATE: self._ocp.args.StandardSave(state),
                _EXTRA: self._ocp.args.JsonSave(extra),
            }
        )
        threads = set(threading.enumerate())
        with _quiet():
            try:
                self._manager.save(step, args=items, force=True)
                return ""
            except (OSError, ValueError, RuntimeError) as error:
                code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
                if not isinstance(error, OSError) and code is None:
                    raise
                reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", "")
            self._failed = True
            _join(set(threading.enumerate()) - threads)
            self._sweep()
            gc.collect()
        return f"the checkpoint of step {step} could not be saved ({reason})."

    def restore(self, target: Any) -> Restored | None:
        """The newest state that is whole; newer ones that are damaged are deleted.

        Args:
          target: a tree of the structure, shapes and dtypes of what was saved.

        Returns:
          what was saved, bit for bit, or None where nothing has been saved yet.

        Raises:
          UserError: there are checkpoints and none of them can be used; they are left alone.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for place, step in enumerate(steps):
            found = self._read_whole(step, target)
            if found is None:
                continue
            damaged = steps[:place]
            with _quiet():
                for newer in damaged:
                    self._manager.delete(newer)
            names = ", ".join(map(str, damaged))
            warning = f"damaged checkpoints of step {names} are deleted; going on from step {step}."
            return Restored(step, *found, warning if damaged else "")
        if steps:
            raise UserError(
                f"no checkpoint in '{self._folder}' can be read (steps "
                f"{', '.join(map(str, steps))}): they are damaged, renamed or of another model; "
                "--fresh starts over."
            )
        return None

    def _read_whole(self, step: int, target: Any) -> tuple[Any, dict[str, Any]] | None:
        with _quiet():
            try:
                return self._read(step, target)
            except _DAMAGE:
                self._failed = True
            gc.collect()
        return None

    def _read(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        like = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf), leaf.dtype), target)
        items = self._ocp.args.Composite(
            **{_STATE: self._ocp.args.StandardRestore(like), _EXTRA: self._ocp.args.JsonRestore()}
        )
        read = self._manager.restore(step, args=items)
        state, extra = read[_STATE], read[_EXTRA]["extra"]
        for was, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
            if (was.shape, was.dtype) != (wanted.shape, wanted.dtype):
                raise ValueError(f"{was.dtype}{was.shape} is not {wanted.dtype}{wanted.shape}")
        if _digest(step, state, extra) != read[_EXTRA]["sha256"]:
            raise ValueError("the values are not those that were saved at this step")
        return state, extra


def _digest(step: int, state: Any, extra: Mapping[str, Any]) -> str:
    # With the step: only the name of a folder says it, and a folder can be copied to another.
    digest = hashlib.sha256(f"{step} {json.dumps(extra, sort_keys=True)}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _join(threads: Iterable[threading.Thread]) -> None:
    """Waits for the part of a failed save that orbax goes on with in threads of its own class; a
    pool's are plain ones and never end."""
    for thread in threads:
        if type(thread) is not threading.Thread:
            # Orbax's own `join` raises what went wrong in the thread.
            threading.Thread.join(thread, _JOIN_SECONDS)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what orbax logs through absl, and what asyncio logs of the failures that were not the
    first, once they are garbage: what matters of it is returned or raised here."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _unless_loop_closed(hook: Callable[[Any], None], fault: Any) -> None:
    """After a failure tensorstore's threads call back into an event loop that orbax has closed."""
    if not (isinstance(fault.exc_value, RuntimeError) and "loop is closed" in str(fault.exc_value)):
        hook(fault)
