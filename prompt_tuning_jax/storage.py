"""A folder for what is made once and read by every later run: prepared data, converted weights."""

import atexit
import functools
import logging
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

from prompt_tuning_jax.errors import UserError

_ABANDONED_AFTER = 24 * 3600.0  # seconds

log = logging.getLogger(__name__)


def cache_folder() -> pathlib.Path:
    """Returns the folder that PROMPT_TUNING_CACHE names, else ~/.cache/prompt_tuning_jax.

    It need not exist yet.

    Raises:
        UserError: nobody knows where the home folder is.
    """
    given = os.environ.get("PROMPT_TUNING_CACHE")
    try:
        return pathlib.Path(given or "~/.cache/prompt_tuning_jax").expanduser()
    except RuntimeError as error:
        raise UserError(
            "there is no home folder to keep prepared data in: set HOME, or PROMPT_TUNING_CACHE to"
            " a folder that can be written"
        ) from error


def warn(error: OSError) -> None:
    """Logs, once for each cache folder and reason, that nothing can be kept."""
    _warn(cache_folder(), error.strerror or str(error))


@functools.cache
def _warn(folder: pathlib.Path, reason: str) -> None:
    log.warning(
        "warning: the cache folder '%s' cannot be written (%s): what is made for it is made again"
        " each time; set PROMPT_TUNING_CACHE to a folder that can",
        folder,
        reason,
    )


def publish(folder: pathlib.Path, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns `folder`, calling `build` to fill it if it is not there.

    `build` fills a temporary folder beside it, which is then renamed: a process that is killed
    midway leaves no half-filled `folder`, and of two processes that build at once the first wins,
    which costs the other its work but needs no lock. Where the cache cannot be written, a warning
    says so, and what is built lasts as long as the process.

    Raises:
        UserError: neither that nor a temporary folder can be written.
    """
    if folder.is_dir():
        return folder
    try:
        return _publish(folder, build)
    except OSError as error:
        warn(error)
    try:
        temporary = tempfile.mkdtemp(prefix=f"{folder.name}.")
    except OSError as error:
        raise UserError(
            f"cannot write to a temporary folder ({error.strerror}): set PROMPT_TUNING_CACHE to a"
            " folder that can be written"
        ) from error
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    build(pathlib.Path(temporary))
    return pathlib.Path(temporary)


def _publish(folder: pathlib.Path, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
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
