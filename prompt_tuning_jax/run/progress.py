"""Progress of long work: a line every few seconds, and none for work that is short."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SECONDS = 5.0  # between two lines


def with_progress(
    parts: Iterable[Any],
    what: str,
    log: Callable,
    total: int | None = None,
    size: Callable[[Any], int] = lambda part: 1,
) -> Iterator[Any]:
    """Yields the parts of some work, and logs how many are done while they are worked through.

    Args:
      what: the name of what is counted, in the plural.
      total: how many there are, if known: then the time left is logged too.
      size: gives how many a part counts for.
    """
    done, first, began, said = 0, 0, 0.0, 0.0
    for part in parts:
        yield part
        done += size(part)
        now = time.perf_counter()
        if not first:
            # The first part waited for the compiler: it says nothing about the rate.
            first, began, said = done, now, now
        elif now - said >= SECONDS and done != total:
            said, rate = now, (done - first) / (now - began)
            of = "" if total is None else f" of {total:,}"
            rest = "" if total is None else f"  {time_left((total - done) / rate)}"
            log(f"{done:,}{of} {what}  {rate:,.1f}/s{rest}")


def time_left(seconds: float) -> str:
    """Returns a time for people: '0:07 left', '12:30 left', '3:04:00 left'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"
