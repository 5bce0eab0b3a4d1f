"""Errors that the commands print as one sentence, and what helps to write such sentences."""

import difflib
import glob
import os
import re
import shlex
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Wrong input, as a sentence: what was given, what was expected and what to type instead. The
    commands print it without a traceback and exit with status 2."""


class RunError(Exception):
    """A failed run, as a sentence: why it failed, and what was kept. The commands print it without
    a traceback and exit with status 1."""


def nearest(word: str, words: Iterable[str]) -> str:
    """Returns " (did you mean 'steps'?)" for the closest of `words`, or "" if none is close."""
    known = {each.lower(): each for each in words if each != word}
    begun = [each for each in known if word.lower().startswith(f"{each}_") or word.lower() == each]
    close = begun or difflib.get_close_matches(word.lower(), known, n=1)
    return f" (did you mean {known[close[0]]!r}?)" if close else ""


def nearest_file(path: str) -> str:
    """Returns what `nearest` does for a path, among the files in its folder."""
    folder = glob.escape(os.path.dirname(path))
    return nearest(path, glob.glob(os.path.join(folder, "*")))


def short(value: Any, most: int = 60) -> str:
    """Returns a value from a file for use in a message: escaped, on one line, and cut."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def plain(text: str) -> str:
    """Returns a text with its control characters escaped: a terminal would obey them."""
    return re.sub(r"[^\n\t -~\xa0-\U0010ffff]", lambda found: ascii(found[0])[1:-1], text)


def quote(word: str) -> str:
    """Returns a word as it can be typed into a shell, and read: --config.prompts="('a',)"."""
    option, equals, value = word.partition("=")
    if equals and option.startswith("--") and shlex.quote(option) == option:
        return f"{option}={quote(value)}"
    has_quotes, has_others = (any(each in word for each in given) for given in ("'()", '"$`\\!'))
    return f'"{word}"' if has_quotes and not has_others else shlex.quote(word)


def hide(text: str) -> str:
    """Returns a text without credentials in URLs (before the host, in the query) and hub tokens."""
    return _SECRETS.sub(r"\1\2***", text)


def reason_of(error: BaseException) -> str:
    """Returns the kind of an error and its first line, without credentials."""
    return hide(f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0])[:200]


# A password may contain characters such as / and @, so it ends at the last @.
_SECRETS = re.compile(
    r"(:/{1,2})(?:[^/@:\s]{0,99}:\S{1,999}|[^/@\s]+)(?=@)"
    r"|([?&#;][\w.-]{0,99}(?i:token|key|secret|passw|credential|auth|sig)[\w.-]{0,99}=)[^&#;\s'\"]+"
    r"|\bhf_[A-Za-z0-9]{16,}"
)
