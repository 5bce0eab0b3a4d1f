"""The folder of a run: who may write in it, which config it belongs to, and its metrics.

A run folder holds `config.json`, `metrics.jsonl`, `checkpoints/`, `artifact/`, `tensorboard/`,
`profile/` where it is asked for, and what the report adds. One process writes in it. Nothing here
imports jax.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ml_collections import ConfigDict

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError, short

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
ARTIFACT = "artifact"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
REPORT = "report.json"
CURVES = "curves.png"
RUN = "run.json"

_LOCK = ".lock"
_OWNER = ".owner"
_FOLDERS = (CHECKPOINTS, ARTIFACT, TENSORBOARD, PROFILE)
_FILES = (METRICS, REPORT, CURVES, RUN, CONFIG)
_LOCK_SECONDS = 1.0
_LAST_STEP = (1 << 63) - 1  # that TensorBoard's files can hold
_EVENT_SECONDS = 5.0  # between flushes of TensorBoard's file, which wait for the disk


def atomic_write(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all, and durably: a kill or a full disk leaves the old one.

    Raises:
      OSError: as of any write; nothing is left behind then.
    """
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


def sync(path: str | os.PathLike) -> None:
    """Makes a file's bytes, or a folder's names, outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writable(folder: str | os.PathLike) -> Iterator[None]:
    """Turns the disk's refusal of what a run cannot begin without into a UserError."""
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the second is filelock's, without locks
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the workdir '{folder}' cannot be written ({reason}): give another --workdir."
        ) from error


@contextlib.contextmanager
def claim(folder: str | os.PathLike) -> Iterator[Path]:
    """Makes the run folder and holds it: another run is refused until this one ends or is killed.

    A folder in which nothing was written is as it was before, or gone.

    Yields:
      the folder.

    Raises:
      UserError: it cannot be written, is not on a local disk, or another run is in progress there.
    """
    if "://" in os.fspath(folder):
        raise UserError(
            f"the workdir '{folder}' is remote, where a run cannot be locked: give a local folder."
        )
    folder = Path(folder)
    lock = FileLock(folder / _LOCK, timeout=_LOCK_SECONDS)
    with writable(folder):
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        before = set() if made else set(os.listdir(folder))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"a run is in progress in the workdir '{folder}' ({_owner(folder)}): "
                "wait for it, end it, or give another --workdir."
            ) from None
    try:
        with writable(folder):
            before -= _sweep(folder)
            # Beside the lock and not in it: older filelocks empty a file that they only wait for.
            owner = {"pid": os.getpid(), "host": socket.gethostname()}
            atomic_write(folder / _OWNER, json.dumps(owner).encode())
        yield folder
    finally:
        with contextlib.suppress(OSError):  # a folder of that name
            (folder / _OWNER).unlink()
        with contextlib.suppress(OSError):  # somebody removed the folder
            if _LOCK not in before and set(os.listdir(folder)) == before | {_LOCK}:
                # Nothing was begun here: leave no trace. Whoever waits for the lock meanwhile fails
                # to write its name, and says so.
                (folder / _LOCK).unlink()
                for each in made:
                    each.rmdir()
        lock.release()


def _sweep(folder: Path) -> set[str]:
    """Removes what `atomic_write` of a run that was killed left in a folder that is held; gives
    back the names."""
    left = {path for path in folder.glob(".*.partial") if path.is_file()}
    for path in left:
        path.unlink()
    return {path.name for path in left}


def _owner(folder: Path) -> str:
    unknown = "its owner has not written its name yet"
    try:
        if not (folder / _OWNER).is_file():  # a pipe would be waited for
            return unknown
        owner = json.loads((folder / _OWNER).read_bytes())
        return f"process {short(owner['pid'])} on {short(owner['host'])[1:-1]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return unknown


def settle(folder: Path, config: ConfigDict, fresh: bool = False) -> None:
    """Ties the claimed folder to `config`, by the file that `config.load` reads.

    Args:
      folder: from `claim`.
      config: of this run.
      fresh: delete what an earlier run left here; other files stay.

    Raises:
      UserError: the folder belongs to a run of another config; each difference is a line.
    """
    _check_kinds(folder)
    path = folder / CONFIG
    if fresh:
        _clear(folder)
    if path.exists():
        if changes := _changes(path, config):
            lines = "".join(f"\n  {change}" for change in changes)
            raise UserError(
                f"the workdir '{folder}' holds a run of another config: give another --workdir, or "
                f"--fresh to start over here.{lines}"
            )
    elif (folder / CHECKPOINTS).exists():
        raise UserError(
            f"the workdir '{folder}' has checkpoints and no {CONFIG} that says of what: give "
            "another --workdir, or --fresh to start over here."
        )
    else:
        with writable(folder):
            atomic_write(path, configs.to_json(config).encode())


def _changes(path: Path, config: ConfigDict) -> list[str]:
    try:
        return configs.difference(path.read_text(encoding="utf-8", errors="replace"), config)
    except UserError as error:
        # It says 'saved' for what it knows as a text alone.
        fault = str(error).removeprefix("config file 'saved'").lstrip(",: ")
        raise UserError(
            f"'{path}', which says whose run the workdir holds, is damaged ({fault}): put it back, "
            "give another --workdir, or --fresh to start over here."
        ) from error


def _check_kinds(folder: Path) -> None:
    """Raises a UserError for a pipe or a folder where a run has a file, and the reverse: it would
    be waited for, or could be neither read nor removed."""
    kinds = {"file": (Path.is_file, _FILES), "folder": (Path.is_dir, _FOLDERS)}
    for kind, (holds, names) in kinds.items():
        for path in (folder / name for name in names):
            if path.exists() and not holds(path):
                raise UserError(f"'{path}' is not a {kind}: remove it, or give another --workdir.")


def _clear(folder: Path) -> None:
    """Deletes what a run writes; of a link the link alone.

    Raises:
      UserError: names what stays. The config goes last: a folder that was not cleared, or a kill on
        the way, still says whose it was.
    """
    for path in (folder / name for name in (*_FOLDERS, *_FILES)):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"'{path}' cannot be removed ({reason}): remove it, or give another --workdir."
            ) from error


class Metrics:
    """A run's numbers: a JSON object a line, and TensorBoard scalars of the same names.

    A line is `{"step": 10, "train/loss": 0.5, ...}`; a number that is not finite is null. Opened at
    the step that a run resumes from, it drops the lines of later steps (and one that a kill cut
    short), so that a resumed run's file equals that of one which never stopped; for the same reason
    nothing that differs between two runs of a command, such as a time, belongs in it.

    Attributes:
      damaged: how many lines among the earlier ones could not be read and are left out.
    """

    def __init__(
        self, path: str | os.PathLike, step: int, tensorboard: str | os.PathLike | None = None
    ):
        """Opens or makes the file.

        Args:
          path: of the lines.
          step: the last step whose lines are kept.
          tensorboard: folder of its event files, or None for none.

        Raises:
          UserError: they cannot be written.
        """
        path = Path(path)
        before = path.read_bytes() if path.exists() else b""
        kept, self.damaged = _until(before, step)
        self._pending = b""
        self._flushed = time.monotonic()
        with writable(path.parent), contextlib.ExitStack() as unfinished:
            if b"".join(kept) != before:
                atomic_write(path, b"".join(kept))
            self._file = unfinished.enter_context(path.open("ab", buffering=0))
            self._events = None if tensorboard is None else _open_events(Path(tensorboard))
            for line in kept:
                self._write_events(json.loads(line))
            unfinished.pop_all()

    def write(self, step: int, values: Mapping[str, Any]) -> str:
        """Appends a line.

        Returns:
          "" or, where the disk is full, a sentence. The line is kept and written with the next one,
          or by `flush`; TensorBoard goes without until the run is started again.
        """
        line = {"step": int(step)} | {name: _number(value) for name, value in values.items()}
        self._pending += json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            self._append()
        except OSError as error:
            return f"the metrics of step {step} are not on disk yet ({error.strerror})."
        try:
            self._write_events(line)
        except OSError as error:
            self._events = None
            return f"TensorBoard's files end at step {step} ({error.strerror})."
        return ""

    def flush(self) -> str:
        """Writes the lines that the disk refused; "" or a sentence, as `write`."""
        try:
            self._append()
        except OSError as error:
            return f"metrics are not on disk yet ({error.strerror})."
        return ""

    def close(self) -> str:
        """Closes the files; "" or a sentence about what is not in them."""
        warning = self.flush()
        self._file.close()
        try:
            if self._events is not None:
                self._events.close()
        except OSError as error:
            warning = warning or f"TensorBoard's files lack their end ({error.strerror})."
        return warning

    def _append(self) -> None:
        if not self._pending:
            return
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(self._pending) != len(self._pending):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise
        self._pending = b""

    def _write_events(self, line: Mapping[str, Any]) -> None:
        if self._events is None:
            return
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2

        for name, number in line.items():
            if name != "step" and number is not None:
                scalar = summary.scalar(name, number)
                event = event_pb2.Event(wall_time=time.time(), step=line["step"], summary=scalar)
                self._events.write_event(event)
        if time.monotonic() > self._flushed + _EVENT_SECONDS:
            self._events.flush()
            self._flushed = time.monotonic()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The whole lines of a metrics file, in order."""
    return [json.loads(line) for line in _until(Path(path).read_bytes(), math.inf)[0]]


def _until(data: bytes, step: float) -> tuple[list[bytes], int]:
    """The whole lines up to a step, and how many before the first of a later one are damaged.

    A last line without its end is none of them: a kill cut it short.
    """
    kept: list[bytes] = []
    damaged, beyond = 0, False
    for line in data.splitlines(keepends=True):
        try:
            whole = line.endswith(b"\n") and _step(line) <= step
        except (ValueError, RecursionError):
            damaged += not beyond
            continue
        if whole:
            kept.append(line)
        else:
            beyond = True
    return kept, damaged


def _step(line: bytes) -> int:
    values = json.loads(line)
    if type(values) is not dict or type(values.get("step")) is not int:
        raise ValueError("no line of metrics")
    if not all(value is None or _is_finite(value) for value in values.values()):
        raise ValueError("values that are no numbers")
    if not 0 <= values["step"] <= _LAST_STEP:
        raise ValueError("no step")
    return values["step"]


def _is_finite(value: Any) -> bool:
    # Compared and not converted, which fails for a whole number of 400 digits.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _number(value: Any) -> int | float | None:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def _open_events(folder: Path) -> Any:
    """A new event file in place of an earlier start's.

    Not a `SummaryWriter`: its thread dies of a full disk, and then training waits for it for ever.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("events.out.tfevents.*"):
        earlier.unlink()
    writer = EventsWriter(os.fspath(folder / "events"))
    # A TensorBoard that is looking on forgets what it has read.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    writer.write_event(event_pb2.Event(wall_time=time.time(), step=0, session_log=start))
    return writer
