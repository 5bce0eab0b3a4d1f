"""What a run says of itself: lines of metrics for files, progress for whoever watches."""

import collections
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prompt_tuning_jax.errors import RunError
from prompt_tuning_jax.run import warnings as advice
from prompt_tuning_jax.run.folder import METRICS, TENSORBOARD, Metrics, read_metrics
from prompt_tuning_jax.run.progress import SECONDS, left

REFUSED_IN_A_ROW = 5  # updates whose gradient is not finite, after which a run stops


class Journal:
    """Reads the metrics of updates one step late, so that the device never waits for the host.

    Attributes:
      lines: all metrics lines written, as dicts with `step`. They hold no times: the same run twice
        writes the same lines.
      log: takes a line of text.
    """

    def __init__(
        self,
        start: int,
        spent: float,
        config,
        folder: Path | None,
        log: Callable,
        track: Callable = lambda step, values: None,
    ):
        """Starts after step `start`, reached in `spent` seconds. Lines go to the files of `folder`,
        where those of later steps are dropped, and to `track` as `(step, values)`, the earlier ones
        first; `log` takes a line of text."""
        self._files = Metrics(folder / METRICS, start, folder / TENSORBOARD) if folder else None
        self.lines: list[dict] = read_metrics(folder / METRICS) if folder else []
        self.log, self._steps, self._every = log, config.steps, config.log_every
        self._waiting: collections.deque = collections.deque()
        self._first: list[float] = []
        self._loss: collections.deque = collections.deque(maxlen=advice.WINDOW)
        self._look = config.schedule.warmup_steps + advice.PATIENCE
        self._warned: set[str] = set()
        self._track = track
        if self._files is not None and self._files.damaged:
            log(f"warning: {self._files.damaged} damaged lines of {METRICS} are left out")
        if self._files is not None and not self.lines and self._every <= start:
            log(f"warning: the metrics up to step {start} are missing in {METRICS}")
        for line in self.lines:
            self._send(line)
        self._start, self._spent, self._tokens, self._evaluating = start, spent, 0, 0.0
        self.begin()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._files is not None:
            self._say(self._files.close())

    def begin(self):
        """Starts the clock, once everything is compiled."""
        self._began = self._said = time.perf_counter()

    def add(self, step: int, metrics: dict, batch):
        """Takes an update's metrics, still on the device, and reads those of the one before."""
        self._waiting.append((step, metrics))
        self._tokens += batch.shared.size + int((batch.segments > 0).sum())
        while len(self._waiting) > 1:
            self._read()

    def settle(self):
        """Reads every update that has not been read, and writes every line that is not on disk."""
        while self._waiting:
            self._read()
        if self._files is not None:
            self._say(self._files.flush())

    def validated(self, step: int, metrics: dict, seconds: float):
        """Takes a validation's metrics and how long it took."""
        self._evaluating += seconds
        found = {name: metrics[name] for name in ("loss", "accuracy") if name in metrics}
        self._write(step, {f"validation/{name}": value for name, value in found.items()})
        accuracy = f", accuracy {found['accuracy']:.1%}" if "accuracy" in found else ""
        self.log(f"step {step}: validation loss {found['loss']:.4f}{accuracy}")

    def warn(self, kind: str, sentence: str):
        """Logs the first sentence of a kind; "" is nothing to warn of."""
        if sentence and kind not in self._warned:
            self._warned.add(kind)
            self.log(f"warning: {sentence}")

    def seconds(self) -> float:
        """Seconds of steps and validation, those of earlier starts included."""
        return self._spent + time.perf_counter() - self._began

    def _read(self):
        step, metrics = self._waiting.popleft()
        values = {name: float(np.asarray(part).ravel()[0]) for name, part in metrics.items()}
        refused = values.pop("refused_in_a_row")
        if refused:
            self.log(f"warning: the gradient of step {step} is not finite: the update is left out")
        if refused >= REFUSED_IN_A_ROW:
            raise RunError(
                f"{REFUSED_IN_A_ROW} updates in a row, to step {step}, had a gradient that is not "
                "finite: lower learning_rate; the last checkpoint is kept."
            )
        self._loss.append(values["loss"])
        if step <= advice.WINDOW:
            self._first.append(values["loss"])
        if step == self._look and len(self._first) == advice.WINDOW:
            self.warn("loss", advice.unmoved(self._first, self._loss, step))
        if step % self._every == 0 or step == self._steps:
            self._write(step, {f"train/{name}": value for name, value in values.items()})
        if time.perf_counter() - self._said >= SECONDS or step == self._steps:
            self._progress(step)

    def _write(self, step: int, values: dict):
        self.lines.append({"step": step, **values})
        self._send(self.lines[-1])
        if self._files is not None:
            self._say(self._files.write(step, values))

    def _say(self, warning: str):
        if warning:
            self.log(f"warning: {warning}")

    def _send(self, line: dict):
        numbers = {name: value for name, value in line.items() if value is not None}
        self._track(numbers.pop("step"), numbers)

    def _progress(self, step: int):
        self._said = now = time.perf_counter()
        training = max(now - self._began - self._evaluating, 1e-9)
        rate = (step - self._start) / training
        loss = sum(self._loss) / len(self._loss)
        self.log(
            f"step {step}/{self._steps}  loss {loss:.3f}  {rate:.2f} steps/s  "
            f"{self._tokens / training:,.0f} tokens/s  {left((self._steps - step) / rate)}"
        )
