"""A folder for what is made once and read by every later run: prepared data, converted weights."""

import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

from prompt_tuning_jax.errors import UserError

_ABANDONED_AFTER = 24 * 3600.0  # seconds


def cache_folder() -> pathlib.Path:
    """Returns the folder that PROMPT_TUNING_CACHE names, else ~/.cache/prompt_tuning_jax.

    It need not exist yet.
    """
    given = os.environ.get("PROMPT_TUNING_CACHE")
    return pathlib.Path(given or "~/.cache/prompt_tuning_jax").expanduser()


def publish(folder: pathlib.Path, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns `folder`, calling `build` to fill it if it is not there.

    `build` fills a temporary folder beside it, which is then renamed: a process that is killed
    midway leaves no half-filled `folder`, and of two processes that build at once the first wins,
    which costs the other its work but needs no lock.

    Raises:
        UserError: the folder cannot be made.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {str(folder.parent)!r} ({error.strerror}): set"
            " PROMPT_TUNING_CACHE to a folder that can be written"
        ) from error
    try:
        build(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sweep(folder)
    return folder


def _sweep(folder: pathlib.Path) -> None:
    """Removes what killed processes left: temporary folders too old to be still in the making."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        try:
            abandoned = time.time() - path.stat().st_mtime > _ABANDONED_AFTER
        except OSError:
            continue
        if abandoned:
            shutil.rmtree(path, ignore_errors=True)
