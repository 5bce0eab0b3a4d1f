"""Files that are written whole or not at all, and the folder of the cache."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from prompt_tuning_jax.errors import UserError


def atomic_write(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all: after a kill or on a full disk, the old file is there."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yields a folder to fill, which gets its name when it is complete; it must not exist yet."""
    folder = Path(folder).absolute()
    if os.path.exists(folder):
        raise UserError(f"'{folder}' exists: give the name of a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        problem = getattr(error, "strerror", error)
        raise UserError(f"'{folder}' cannot be written ({problem}): give another") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file, as a hex digest."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: str | os.PathLike) -> None:
    """Makes a file's bytes, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Returns the folder in PROMPT_TUNING_CACHE, or else ~/.cache/prompt_tuning_jax. It may not
    exist yet. Raises a UserError if the user has no home folder."""
    given = os.environ.get("PROMPT_TUNING_CACHE")
    try:
        return Path(given or "~/.cache/prompt_tuning_jax").expanduser()
    except RuntimeError as error:
        raise UserError(
            "the cache has no place, as you have no home folder: set HOME, or set"
            " PROMPT_TUNING_CACHE to a folder that can be written"
        ) from error
