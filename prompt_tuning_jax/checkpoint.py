"""Resume state on disk, through orbax, synchronously: when `save` returns, the state is there.

Orbax writes a step under a temporary name and renames it, so a kill leaves the older steps whole.
It has no checksum over values, so each step carries a SHA-256 of its own.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_tuning_jax.errors import UserError

_STATE, _EXTRA = "state", "extra"
# What orbax and tensorstore answer damaged files with.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError)


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
        """Opens or makes the folder, and deletes what a kill left unfinished in it."""
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        with _quiet():
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_names=(_STATE, _EXTRA)
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        with _quiet():
            self._manager.close()

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, extra: Mapping[str, Any]) -> str:
        """Saves a tree of arrays and a JSON object.

        Returns:
          "" or, where the disk refuses, a sentence; older checkpoints are as they were.
        """
        state = jax.tree.map(np.asarray, state)
        extra = {"extra": dict(extra), "sha256": _digest(state, extra)}
        items = self._ocp.args.Composite(
            **{
                _STATE: self._ocp.args.StandardSave(state),
                _EXTRA: self._ocp.args.JsonSave(extra),
            }
        )
        try:
            with _quiet():
                self._manager.save(step, args=items, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            if not isinstance(error, OSError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = getattr(error, "strerror", None) or "no space left on device"
            return f"the checkpoint of step {step} could not be saved: {reason}."
        return ""

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
            try:
                state, extra = self._read(step, target)
            except _DAMAGE:
                continue
            damaged = steps[:place]
            with _quiet():
                for newer in damaged:
                    self._manager.delete(newer)
            names = ", ".join(map(str, damaged))
            warning = f"damaged checkpoints of step {names} are deleted; going on from step {step}."
            return Restored(step, state, extra, warning if damaged else "")
        if steps:
            raise UserError(
                f"no checkpoint in '{self._folder}' can be read (steps "
                f"{', '.join(map(str, steps))}): they are damaged or of another config; --fresh "
                "starts over."
            )
        return None

    def _read(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        like = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf), leaf.dtype), target)
        items = self._ocp.args.Composite(
            **{_STATE: self._ocp.args.StandardRestore(like), _EXTRA: self._ocp.args.JsonRestore()}
        )
        with _quiet():
            read = self._manager.restore(step, args=items)
        state, extra = read[_STATE], read[_EXTRA]["extra"]
        for was, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
            if (was.shape, was.dtype) != (wanted.shape, wanted.dtype):
                raise ValueError(f"{was.dtype}{was.shape} is not {wanted.dtype}{wanted.shape}")
        if _digest(state, extra) != read[_EXTRA]["sha256"]:
            raise ValueError("the values are not those that were saved")
        return state, extra


def _digest(state: Any, extra: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(extra, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs tracebacks and advice to absl; what matters of it is returned or raised here."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
