"""What a command writes: a file whole or not at all, and a stdout that may be full."""

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, TextIO

from prompt_tuning_jax.errors import UserError

# What a place answers that takes no more; a reader that went away is another matter.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


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


def refuses(stream: Any) -> bool:
    """Whether a stream still holds what it could not write: the failure was this one's, and not a
    file's."""
    try:
        stream.flush()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def output(path: str | None) -> Iterator[TextIO]:
    """Yields stdout, or a file that takes its name when everything has been written."""
    if path is None:
        yield sys.stdout
        return
    # Where a link leads: what is there is replaced, and a link or a device would be gone.
    real = os.path.realpath(path)
    if os.path.exists(real) and not os.path.isfile(real):
        raise UserError(f"cannot write {path!r}: it is there and no file; give another --output")
    try:
        place = tempfile.TemporaryDirectory(prefix=".", dir=os.path.dirname(real))
    except OSError as error:
        raise UserError(f"cannot write {path!r}: {error.strerror}") from error
    with place as folder:
        partial = os.path.join(folder, "partial")
        with open(partial, "w", encoding="utf-8") as stream:
            yield stream
        os.replace(partial, real)
