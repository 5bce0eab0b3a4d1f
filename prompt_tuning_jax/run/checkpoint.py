"""What a run needs to go on, on disk: saved and read through orbax.

Orbax writes a step under a temporary name and renames it, so a kill leaves the older steps whole.
Two things here are not usual for orbax. A state is saved as one array of bytes: with an array for
each leaf, a disk that is full makes orbax fail in several threads at once. And each step has a
SHA-256 of its own, as orbax has none over values.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_tuning_jax.data.rows import DAMAGED
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.folder import writable

_BYTES = "bytes"


class Restored(NamedTuple):
    """What a checkpoint held: a tree with numpy leaves, and the JSON object beside it. `warning` is
    "", or a sentence about newer checkpoints that were damaged and are deleted."""

    step: int
    state: Any
    extra: dict[str, Any]
    warning: str


class Checkpoints:
    """The newest `keep` states of a run, a folder for each step."""

    def __init__(self, folder: str | os.PathLike, keep: int = 2):
        """Opens or makes the folder, and deletes what a kill left unfinished in it."""
        import orbax.checkpoint as ocp

        self._folder, self._keep = Path(folder).absolute(), keep
        with writable(self._folder.parent):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._delete_unfinished()
        # Of several processes only the first saves: orbax must not wait for the others.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
        )
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        self._orbax = ocp.Checkpointer(handler, multiprocessing_options=alone)

    def steps(self) -> list[int]:
        """The steps that are saved, in order."""
        return sorted(int(name) for name in os.listdir(self._folder) if name.isdecimal())

    def save(self, step: int, state: Any, extra: Mapping[str, Any]) -> str:
        """Saves a tree of arrays and a JSON object; when this returns "", they are on disk. If the
        disk is full, it returns a sentence, and older checkpoints are kept."""
        leaves = list(map(_as_bytes, jax.tree.leaves(state)))
        about = json.dumps({"extra": dict(extra), "sha256": _digest(step, state, extra)})
        data = np.concatenate([*leaves, np.frombuffer(about.encode(), np.uint8)])
        absl = logging.getLogger("absl")
        level = absl.level
        absl.setLevel(logging.CRITICAL)  # orbax logs tracebacks of what is reported here
        try:
            self._orbax.save(self._folder / str(step), {_BYTES: data})
        except (OSError, ValueError) as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
            if not code and not isinstance(error, OSError):
                raise
            reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None)
            self._delete_unfinished()
            return f"the checkpoint of step {step} could not be saved ({reason})."
        finally:
            absl.setLevel(level)
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self._folder / str(old), ignore_errors=True)
        return ""

    def restore(self, target: Any) -> Restored | None:
        """Reads the newest state that is whole, bit for bit, and deletes damaged newer ones. None
        if nothing was saved yet; if no checkpoint can be used, none is deleted. The tree `target`
        has the structure, shapes and dtypes of what was saved."""
        steps = self.steps()[::-1]
        for place, step in enumerate(steps):
            try:
                state, extra = self._read(step, target)
            except DAMAGED:
                continue
            damaged = steps[:place]
            for newer in damaged:
                shutil.rmtree(self._folder / str(newer), ignore_errors=True)
            names = ", ".join(map(str, damaged))
            warning = f"damaged checkpoints of step {names} are deleted; going on from step {step}."
            return Restored(step, state, extra, warning if damaged else "")
        if steps:
            problem = f"no checkpoint in '{self._folder}' can be read (steps {str(steps)[1:-1]})"
            why = "they are damaged, renamed, or of another model or version"
            raise UserError(f"{problem}: {why}; --fresh starts over.")
        return None

    def _read(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        data = self._orbax.restore(self._folder / str(step))[_BYTES]
        leaves, structure = jax.tree.flatten(target)
        *parts, about = np.split(data, np.cumsum([_as_bytes(leaf).size for leaf in leaves]))
        pairs = zip(parts, leaves, strict=True)
        arrays = [part.view(leaf.dtype).reshape(np.shape(leaf)) for part, leaf in pairs]
        state = jax.tree.unflatten(structure, arrays)
        saved = json.loads(about.tobytes())
        if _digest(step, state, saved["extra"]) != saved["sha256"]:
            raise ValueError("the values are not those that were saved at this step")
        return state, saved["extra"]

    def _delete_unfinished(self) -> None:
        for partial in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(partial, ignore_errors=True)


def _as_bytes(leaf: Any) -> np.ndarray:
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)


def _digest(step: int, state: Any, extra: Mapping[str, Any]) -> str:
    # With the step: only a folder's name says it, and folders can be renamed.
    digest = hashlib.sha256(f"{step} {json.dumps(extra, sort_keys=True)}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {np.shape(leaf)}".encode())
        digest.update(_as_bytes(leaf).data)
    return digest.hexdigest()
