"""What the commands answer in one sentence: wrong input, a failed run; and spelling help."""

import difflib
import re
from collections.abc import Iterable
from typing import Any


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
