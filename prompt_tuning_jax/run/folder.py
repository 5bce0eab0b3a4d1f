"""The folder of a run: the names of its files, who may write in it, and the config it belongs to.
Nothing here imports jax."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.storage import atomic_write

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
ARTIFACT = "artifact"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
REPORT = "report.json"
CURVES = "curves.png"
RUN = "run.json"
SEARCH = "search.json"

_LOCK = ".lock"
# Files by which a folder is known to be another command's.
_OWNERS = {"train": METRICS, "search": SEARCH, "compare": "report.csv"}
# What `fresh` deletes. The config is last: after a kill on the way it still says whose the rest is.
WRITTEN = (CHECKPOINTS, ARTIFACT, TENSORBOARD, PROFILE, METRICS, REPORT, CURVES, RUN, CONFIG)


@contextlib.contextmanager
def writable(folder: str | os.PathLike) -> Iterator[None]:
    """Turns an OSError from a write that a run cannot do without into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the workdir '{folder}' cannot be written ({error.strerror}): give another --workdir."
        ) from error


def check_local(folder: str | os.PathLike) -> None:
    """Raises a UserError for a folder that is not on a local disk."""
    if "://" in os.fspath(folder):
        raise UserError(f"'{folder}' is remote, and only a local folder can be locked: give one.")


@contextlib.contextmanager
def claim(folder: str | os.PathLike, command: str = "train") -> Iterator[Path]:
    """Makes the folder of a command's run and locks it, so that no other run writes there
    meanwhile; the lock ends with the process. A folder that another command wrote is refused; one
    that is new and still empty at the end is removed."""
    check_local(folder)
    folder = Path(folder)
    with writable(folder):
        for other, name in _OWNERS.items():
            if other != command and (folder / name).exists():
                raise UserError(f"'{folder}' holds what {other!r} wrote: give another --workdir")
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        with writable(folder):
            _lock(lock, folder)
        try:
            with writable(folder):
                os.ftruncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
                # Files and artifacts of a killed run, and of the runs of a comparison.
                for left in (*folder.glob(".*.partial"), *folder.glob("*/*seed-*/.*.partial")):
                    _delete(left)
            yield folder
        finally:
            with contextlib.suppress(OSError):  # a folder is not empty, or somebody removed it
                (folder / _LOCK).unlink()
                for each in made:
                    each.rmdir()
    finally:
        os.close(lock)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:  # else the run that had the lock just removed the file
            return
    except BlockingIOError:
        pass
    owner = os.read(descriptor, 200).decode(errors="replace")
    raise UserError(
        f"a run is in progress in the workdir '{folder}' ({short(owner, 200)[1:-1]}): wait for it, "
        "end it, or give another --workdir."
    )


def tie_to_config(folder: Path, config: ConfigDict, fresh: bool = False) -> None:
    """Ties a folder to the config of a run, by its `config.json`, or says how that config differs.
    With `fresh`, what an earlier run left there is deleted; other files stay."""
    path = folder / CONFIG
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_own(folder)
        if fresh:
            for name in (SEARCH, *WRITTEN):
                _delete(folder / name)
        if not path.exists():
            atomic_write(path, configs.to_json(config).encode())
            return
    again = "give another --workdir, or --fresh to start over here."
    try:
        saved = path.read_text(encoding="utf-8", errors="replace")
        changes = configs.difference(saved, config)
    except (OSError, UserError) as error:
        raise UserError(f"'{path}' is damaged: put it back, {again}") from error
    if changes:
        lines = "".join(f"\n  {change}" for change in changes)
        raise UserError(f"the workdir '{folder}' holds a run of another config: {again}{lines}")


def check_own(folder: Path) -> None:
    """Raises a UserError if a file or folder has a name that runs use, and no run wrote it."""
    others = [each for name in (SEARCH, *WRITTEN) if (each := folder / name).exists()]
    if folder / CONFIG in others:
        others = []
        with contextlib.suppress(OSError, ValueError, RecursionError):  # damaged, it may be a run's
            found = json.loads((folder / CONFIG).read_bytes())
            is_own = isinstance(found, dict) and {"task", "method"} <= {*found}
            others = [] if is_own else [folder / CONFIG]
    if others and others != [folder / RUN]:  # which is written first
        raise UserError(f"'{others[0]}' was not written by a run: give another --workdir")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
