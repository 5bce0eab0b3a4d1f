"""Weights that were converted from a GGUF file, kept in the cache folder for later runs.

The name of such a file is its SHA-256, so damage is noticed and the weights are converted again.
"""

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.safetensors_file import read_safetensors, write_safetensors
from prompt_tuning_jax.storage import cache_folder, warn

LAYOUT = 3  # raise it when the tree or the conversion changes
STALE = 3600  # seconds after which an unfinished file belongs to a process that was killed

log = logging.getLogger(__name__)


def converted_folder(fingerprint: str, dtype: np.dtype) -> Path:
    """Returns the folder for the weights of a GGUF file in a dtype."""
    return cache_folder() / "models" / f"{fingerprint}-{dtype.name}-{LAYOUT}"


def read_converted(folder: Path) -> dict[str, np.ndarray] | None:
    """Reads the leaves of an earlier conversion; None if there is none, or it is damaged."""
    for path in folder.glob("*.safetensors"):
        try:
            leaves, digest = read_safetensors(path)
        except (OSError, UserError):
            digest = ""
        if digest == path.stem:
            return leaves
        log.warning("The converted model %s is damaged; converting it again.", path)
    return None


def keep_converted(folder: Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Writes a conversion. Two processes at once write the same file, so either may be last."""
    unfinished = folder / f"{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.tmp"):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink(missing_ok=True)
        digest = write_safetensors(unfinished, leaves)
        os.replace(unfinished, folder / f"{digest}.safetensors")
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        warn(error)
