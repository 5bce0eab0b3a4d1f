"""Runs on a full disk, simulated in the tests' process: writes are counted, and some fail.

Only calls from Python are seen here; `slow/test_disk.py` has a disk that is really full.
"""

import _pyio
import builtins
import contextlib
import errno
import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_runs

from prompt_tuning_jax import train
from prompt_tuning_jax.cli import main
from prompt_tuning_jax.run import folder as workdir

SETTINGS = ("steps=6", "save_every=2", "evaluate_every=3", "microbatches=1")
FULL = "No space left on device"
PURPOSE = re.compile(r"\w+ (\.artifact\.partial|\.report\.json).*")
UNFINISHED = re.compile(r".*(partial|tmp|\.old)")


class Calls(NamedTuple):
    """The calls that take room, in order, as 'write metrics.jsonl'; and the numbers of those that
    failed."""

    made: list[str]
    refused: list[int]


class Run(NamedTuple):
    """A run of the command: its exit status, stdout, stderr and calls."""

    status: int
    out: str
    err: str
    calls: Calls


class Disk:
    """Lets calls in a folder fail, by their number, from 1, and their text."""

    def __init__(self, folder: Path, refuse: Callable[[int, str], bool]):
        self.calls = Calls([], [])
        self._root, self._refuse = os.path.realpath(folder), refuse
        self._opened: dict[int, str] = {}  # paths by descriptor
        self._lock = threading.Lock()  # orbax has threads
        self._open, self._close, self._open_file = os.open, os.close, builtins.open

    def take(self, call, path):
        path = os.path.realpath(path)
        if path != self._root and not path.startswith(self._root + os.sep):
            return
        with self._lock:
            text = f"{call.__name__} {os.path.relpath(path, self._root)}"
            self.calls.made.append(text)
            number = len(self.calls.made)
            if not self._refuse(number, text):
                return
            self.calls.refused.append(number)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def of_path(self, call):
        def wrapped(path, *rest, **more):
            # A folder that exists takes no room.
            if call.__name__ != "mkdir" or not os.path.isdir(path):
                self.take(call, path)
            return call(path, *rest, **more)

        return wrapped

    def of_descriptor(self, call):
        def wrapped(descriptor, *rest):
            if descriptor in self._opened:
                self.take(call, self._opened[descriptor])
            return call(descriptor, *rest)

        return wrapped

    def open(self, path, flags, *rest, **more):
        if flags & os.O_CREAT and not os.path.exists(path):
            self.take(self._open, path)
        descriptor = self._open(path, flags, *rest, **more)
        self._opened[descriptor] = path
        return descriptor

    def close(self, descriptor):
        self._opened.pop(descriptor, None)
        self._close(descriptor)

    def open_file(self, file, mode="r", *rest, **more):
        # The one that is written in Python: it uses the functions of `os`.
        written = set(mode) & set("wax+") and not isinstance(file, int)
        return (_pyio.open if written else self._open_file)(file, mode, *rest, **more)


@contextlib.contextmanager
def refusing(folder: Path, refuse: Callable[[int, str], bool]):
    """Replaces Python's functions by those of a `Disk`, and yields its calls."""
    disk = Disk(folder, refuse)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace"):
            patch.setattr(os, name, disk.of_path(getattr(os, name)))
        for name in ("write", "fsync"):
            patch.setattr(os, name, disk.of_descriptor(getattr(os, name)))
        patch.setattr(os, "open", disk.open)
        patch.setattr(os, "close", disk.close)
        patch.setattr(builtins, "open", disk.open_file)
        patch.setattr(io, "open", disk.open_file)
        yield disk.calls


@contextlib.contextmanager
def compiled_once():
    """Compiles the step once: all runs here have the same."""
    made: dict = {}

    def executables(*given):
        return made or made.update(compile_all(*given)) or made

    compile_all = train.executables
    with pytest.MonkeyPatch.context() as patch, tiny_runs.at_home(patch):
        patch.setattr(train, "executables", executables)
        yield


def typed(run: Path, refuse: Callable[[int, str], bool] = lambda number, call: False) -> Run:
    """Trains on a disk that refuses, see `refusing`."""
    settings = (f"--config.{setting}" for setting in SETTINGS)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with refusing(run, refuse) as calls:
            status = main.run(tiny_runs.training(run, *settings))
    return Run(status, out.getvalue(), err.getvalue(), calls)


def left(run: Path) -> dict[str, bytes]:
    """Returns what a run leaves, without what holds times."""
    names = ("artifact/adaptation.safetensors", "artifact/manifest.json", workdir.METRICS)
    return {name: (run / name).read_bytes() for name in names}


def newest(run: Path) -> int:
    """Returns the step of the newest checkpoint, or 0."""
    folder = run / workdir.CHECKPOINTS
    return max((int(path.name) for path in folder.glob("[0-9]")), default=0)


def survives(run: Path, refuse: Callable[[int, str], bool], whole: dict[str, bytes]) -> int:
    """Checks a run on a full disk, and that the same command, once there is room, leaves the bytes
    of `whole`. Returns how many calls failed."""
    found = typed(run, refuse)
    refused = found.calls.refused
    if not refused:
        return 0
    told = [line for line in found.out.splitlines() if FULL in line]
    assert all(line.startswith("warning: ") for line in told), found
    # A folder is synchronised because of the call before.
    made = ["", *found.calls.made]
    names = [made[number - (made[number] == "fsync .")] for number in refused]
    if "write metrics.jsonl" not in made[: refused[0] + 1]:
        assert (found.status, told) == (2, []), found
        assert "cannot be written (No space left on device): give another --workdir" in found.err
    elif any(map(PURPOSE.fullmatch, names)):
        assert found.status == 1, found
        assert "could not be written (No space left on device): free disk space" in found.err
    else:
        assert (found.status, found.err) == (0, ""), found
    if len(refused) == 1:
        assert len(told) == (found.status == 0), found
    goes_on(found, run, whole)
    return len(refused)


def goes_on(found: Run, run: Path, whole: dict[str, bytes], room: Callable[[], None] = int):
    """Checks that a run left nothing half-written and printed at most one error, and that the same
    command goes on after `room` has made some."""
    assert found.err.count("\n") == (found.status > 0), found
    unfinished = [str(path) for path in run.rglob("*") if UNFINISHED.fullmatch(path.name)]
    assert not unfinished, (found, unfinished)
    room()
    saved, again = newest(run), typed(run)
    assert (again.status, again.err) == (0, ""), again
    assert (f"going on after step {saved}" in again.out) == (saved > 0), again
    assert left(run) == whole, found
