"""How far long work has come: a line every few seconds, and nothing for what is short."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SECONDS = 5.0  # between two lines


def watched(
    parts: Iterable[Any],
    what: str,
    log: Callable,
    total: int | None = None,
    size: Callable[[Any], int] = lambda part: 1,
) -> Iterator[Any]:
    """The parts as they come; while they are worked through, says how many are done.

    Args:
      parts: of the work.
      what: is counted, in the plural.
      log: takes a line of text.
      total: how many there are, where that is known: then the time left is said too.
      size: how many a part is.
    """
    done, behind, began, said = 0, 0, 0.0, 0.0
    for part in parts:
        yield part
        done += size(part)
        now = time.perf_counter()
        if not behind:
            # The first part has waited for the compiler, and says nothing of the rate.
            behind, began, said = done, now, now
        elif now - said >= SECONDS and done != total:
            said, rate = now, (done - behind) / (now - began)
            of = "" if total is None else f" of {total:,}"
            rest = "" if total is None else f"  {left((total - done) / rate)}"
            log(f"{done:,}{of} {what}  {rate:,.1f}/s{rest}")


def left(seconds: float) -> str:
    """Time that is left, for people: '0:07 left', '12:30 left', '3:04:00 left'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"
