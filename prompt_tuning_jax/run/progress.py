"""Progress of long work: a line every few seconds, and none for work that is short."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SECONDS = 5.0  # between two lines


class Progress:
    """Counts work and logs how much is done. Parts of the same work may use it as their `log`."""

    def __init__(self, what: str, log: Callable, total: int | None = None):
        self.what, self.log, self.total = what, log, total
        self.done, self._first, self._began, self._said = 0, 0, 0.0, 0.0

    def __call__(self, line: str) -> None:
        self.log(line)

    def add(self, count: int) -> None:
        """Takes how many more are done."""
        self.done += count
        now, done, total = time.perf_counter(), self.done, self.total
        if not self._first:
            # The first part waited for the compiler: it says nothing about the rate.
            self._first, self._began, self._said = done, now, now
        elif now - self._said >= SECONDS and done != total:
            self._said, rate = now, (done - self._first) / (now - self._began)
            of = "" if total is None else f" of {total:,}"
            rest = "" if total is None else f"  {time_left((total - done) / rate)}"
            self.log(f"{done:,}{of} {self.what}  {rate:,.1f}/s{rest}")


def with_progress(
    parts: Iterable[Any],
    what: str,
    log: Callable,
    total: int | None = None,
    size: Callable[[Any], int] = lambda part: 1,
) -> Iterator[Any]:
    """Yields the parts of some work, and logs how many `what` are done, and the time left if the
    `total` is known. A part counts for its `size`."""
    progress = log if isinstance(log, Progress) else Progress(what, log, total)
    for part in parts:
        yield part
        progress.add(size(part))


def time_left(seconds: float) -> str:
    """Returns a time for people: '0:07 left', '12:30 left', '3:04:00 left'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"
