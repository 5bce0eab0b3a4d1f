"""The log of a run: its metrics in files, and progress and warnings for people."""

import collections
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning_jax.errors import RunError
from prompt_tuning_jax.run import warnings
from prompt_tuning_jax.run.folder import METRICS, TENSORBOARD, writable
from prompt_tuning_jax.run.progress import SECONDS, time_left
from prompt_tuning_jax.storage import atomic_write

REFUSED_IN_A_ROW = 5  # updates that are not finite, after which a run stops


class RunLog:
    """Writes the metrics of a run and says how far it is.

    A line of metrics is `{"step": 10, "train/loss": 0.5, ...}`; a number that is not finite is
    None. Lines go to `metrics.jsonl`, to TensorBoard and to a tracker. Opened at the step from
    which a run goes on, the log drops the lines of later steps, so the files of a resumed run equal
    those of one that never stopped. So no line may hold what differs between the two, such as a
    time.

    The metrics of an update are read one update later: the device never waits for the host. `lines`
    are all lines of metrics, and `log` takes a line of text.
    """

    def __init__(
        self,
        config,
        folder: Path | None,
        log: Callable[[str], None],
        start: int = 0,
        spent: tuple[float, float] = (0.0, 0.0),
        track: Callable[[int, dict], None] = lambda step, values: None,
        end: int = 0,
    ):
        """Opens the files of a run in `folder`, if any, after `start` steps, when `seconds` gave
        `spent`. `track` takes a step and its numbers by name; earlier lines are given to it again.
        The time left is that to step `end`, by default the last."""
        self.lines: list[dict] = []
        self.log, self._track = log, track
        self._steps, self._every, self._end = config.steps, config.log_every, end or config.steps
        self._unread: tuple[int, dict] | None = None
        self._first: list[float] = []
        self._last: collections.deque = collections.deque(maxlen=warnings.WINDOW)
        self._compare_at = config.schedule.warmup_steps + warnings.PATIENCE
        self._warned: set[str] = set()
        self._start, self._spent, self._tokens, self._validating = start, spent, 0, 0.0
        self._file: Any = None
        self._events: Any = None
        self._unwritten = b""
        if folder is not None:
            with writable(folder):
                self._open(folder, start)
        self.start_clock()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_):
        self._write_lines()
        if self._file is not None:
            self._file.close()
        self._write_events(lambda events: events.close())

    def start_clock(self):
        """Starts the clock, once everything is compiled."""
        self._began = self._said = time.perf_counter()

    def add(self, step: int, metrics: dict, batch):
        """Takes the metrics of an update, still on the device, and reads those of the one before;
        raises a RunError if too many updates in a row were not finite."""
        self._read()
        self._unread = step, metrics
        self._tokens += batch.shared.size + int((batch.segments > 0).sum())

    def flush(self):
        """Reads the metrics that were not read yet, and writes the lines that are not on disk."""
        self._read()
        self._write_lines()

    def add_validation(self, step: int, metrics: dict, seconds: float):
        """Takes the metrics of a validation, and how long it took."""
        self._validating += seconds
        found = {name: metrics[name] for name in ("loss", "accuracy") if name in metrics}
        self._add_line(step, {f"validation/{name}": value for name, value in found.items()})
        accuracy = f", accuracy {found['accuracy']:.1%}" if "accuracy" in found else ""
        self.log(f"step {step}: validation loss {found['loss']:.4f}{accuracy}")

    def warn(self, kind: str, sentence: str):
        """Logs the first sentence of a kind; "" is no warning."""
        if sentence and kind not in self._warned:
            self._warned.add(kind)
            self.log(f"warning: {sentence}")

    def seconds(self) -> tuple[float, float]:
        """Returns the seconds of steps and validations, and of steps alone, of all starts."""
        now = time.perf_counter() - self._began
        return self._spent[0] + now, self._spent[1] + now - self._validating

    def _read(self):
        if self._unread is None:
            return
        (step, metrics), self._unread = self._unread, None
        values = {name: float(np.asarray(part).ravel()[0]) for name, part in metrics.items()}
        refused = values.pop("refused_in_a_row")
        if refused:
            self.log(f"warning: the update of step {step} is not finite and is left out")
        if refused >= REFUSED_IN_A_ROW:
            raise RunError(
                f"{REFUSED_IN_A_ROW} updates in a row, to step {step}, were not finite: lower "
                "learning_rate; the last checkpoint is kept."
            )
        self._last.append(values["loss"])
        if step <= warnings.WINDOW:
            self._first.append(values["loss"])
        if step == self._compare_at and len(self._first) == warnings.WINDOW:
            self.warn("loss", warnings.loss_not_moving(self._first, self._last, step))
        if step % self._every == 0 or step == self._steps:
            self._add_line(step, {f"train/{name}": value for name, value in values.items()})
        if time.perf_counter() - self._said >= SECONDS or step == self._steps:
            self._show_progress(step)

    def _show_progress(self, step: int):
        self._said = now = time.perf_counter()
        training = max(now - self._began - self._validating, 1e-9)
        rate = (step - self._start) / training
        loss = sum(self._last) / len(self._last)
        self.log(
            f"step {step}/{self._steps}  loss {loss:.3f}  {rate:.2f} steps/s  "
            f"{self._tokens / training:,.0f} tokens/s  {time_left((self._end - step) / rate)}"
        )
        self._write_events(lambda events: events.flush())

    def _open(self, folder: Path, start: int):
        path = folder / METRICS
        before = path.read_bytes() if path.exists() else b""
        lines = read_metrics(path) if before else []
        if damaged := before.count(b"\n") - len(lines):
            self.log(f"warning: {damaged} damaged lines of {METRICS} are left out")
        kept = [line for line in lines if line["step"] <= start]
        text = b"".join(map(_as_text, kept))
        if text != before:
            atomic_write(path, text)
        self._events = _open_events(folder / TENSORBOARD)
        self._file = path.open("ab", buffering=0)
        for line in kept:
            self._send(line)

    def _add_line(self, step: int, values: dict[str, float]):
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        if self._file is not None:
            self._unwritten += _as_text(line)
        self._write_lines()
        self._send(line)

    def _send(self, line: dict):
        self.lines.append(line)
        numbers = {name: value for name, value in line.items() if value is not None}
        step = numbers.pop("step")
        self._track(step, numbers)
        self._write_events(lambda events: events.write_event(_event(step, numbers)))

    def _write_lines(self):
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            self.warn("lines", f"the newest lines are not in {METRICS} yet ({error.strerror}).")

    def _write_events(self, write: Callable[[Any], Any]):
        try:
            if self._events is not None:
                write(self._events)
        except OSError as error:
            self._events = None
            self.warn("events", f"TensorBoard's files lack the newest steps ({error.strerror}).")


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file; damaged ones, and an unfinished last one, are left out."""
    parsed = map(_parse, Path(path).read_bytes().splitlines(keepends=True))
    return [line for line in parsed if line is not None]


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        numbers = [value for value in line.values() if value is not None]
        whole = text.endswith(b"\n") and type(line["step"]) is int and line["step"] >= 0
        return line if whole and all(map(math.isfinite, numbers)) else None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _as_text(line: dict) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _open_events(folder: Path):
    """Opens a new event file in place of an earlier start's. A `SummaryWriter` would not do: its
    thread dies of a full disk, and then it blocks for ever."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("events.out.tfevents.*"):
        earlier.unlink()
    events = EventsWriter(os.fspath(folder / "events"))
    # An open TensorBoard drops what it has read.
    start = {"status": event_pb2.SessionLog.START}
    events.write_event(event_pb2.Event(wall_time=time.time(), step=0, session_log=start))
    return events


def _event(step: int, numbers: dict[str, float]):
    from tensorboardX.proto import event_pb2

    values = [{"tag": name, "simple_value": number} for name, number in numbers.items()]
    return event_pb2.Event(wall_time=time.time(), step=step, summary={"value": values})
