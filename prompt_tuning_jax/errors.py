"""What the commands answer in one sentence: wrong input, a failed run; and spelling help."""

import contextlib
import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

# What a place answers that takes no more; a reader that went away is another matter.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class UserError(Exception):
    """One sentence: what was given, what was expected and what to type instead.

    The commands print it without a traceback and exit with status 2.
    """


class RunError(Exception):
    """One sentence: why a run that was asked for rightly failed, and what was kept.

    The commands print it without a traceback and exit with status 1.
    """


def nearest(word: str, words: Iterable[str]) -> str:
    """Returns " (did you mean 'steps'?)" for the closest of `words`, or "" if none is close."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def short(value: Any, most: int = 60) -> str:
    """Returns a value out of a file as a sentence can hold it: escaped, on one line, and cut."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def hide(text: str) -> str:
    """Returns a text for others to see without the credentials of its URLs, in front of the host or
    in the query, and without tokens of a hub, which a person may have typed where they do not
    belong."""
    return _SECRETS.sub(r"\1\2***", text)


# A password may hold what has a meaning in a URL: it ends at the last @.
_SECRETS = re.compile(
    r"(:/{1,2})(?:[^/@:\s]{0,99}:\S{1,999}|[^/@\s]+)(?=@)"
    r"|([?&#;][\w.-]{0,99}(?i:token|key|secret|passw|credential|auth|sig)[\w.-]{0,99}=)[^&#;\s'\"]+"
    r"|\bhf_\w{16,}"
)


@contextlib.contextmanager
def spoken() -> Iterator[None]:
    """Around what is printed for people: where stdout takes no more, the work goes on without."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        silence(error)


def silence(error: OSError) -> None:
    """Gives stdout, which refused a write, a place where the next ones succeed: its buffer keeps
    what it could not write, and the interpreter flushes once more at the end. Says so on stderr."""
    with contextlib.suppress(OSError):
        print(
            f"warning: stdout cannot be written ({error.strerror}): what the command says from here"
            " on is lost",
            file=sys.stderr,
        )
    with contextlib.suppress(OSError):  # in a notebook or a test it has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
