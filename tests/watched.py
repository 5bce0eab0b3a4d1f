"""Runs command lines of the program under an audit hook, in a process of its own: a hook stays.

Takes a JSON list of command lines on stdin, the first of which is not watched. Prints a JSON line
for each: status, stdout, stderr, seconds of the processor, and what was opened, run, connected to
or changed. `run` does it from a test.
"""

import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path

TOLD = ("open", "exec", "compile", "import", "marshal.loads", "pickle.find_class", "glob.glob")
NETWORK = ("socket", "urllib", "http", "ftplib", "smtplib")
TOLD_OF = (*NETWORK, "os", "shutil", "subprocess", "ctypes")

_events: list | None = None


def _watch(event, arguments):
    if _events is not None and (event in TOLD or event.partition(".")[0] in TOLD_OF):
        _events.append([event, [repr(argument)[:200] for argument in arguments]])


def _one(words, line):
    from prompt_tuning_jax.cli import main

    sys.stdin = io.TextIOWrapper(io.BytesIO(line))
    out, err, began = io.StringIO(), io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.run(words)
    seconds = time.process_time() - began
    return {"status": status, "out": out.getvalue(), "err": err.getvalue(), "seconds": seconds}


def _all(lines):
    global _events
    sys.addaudithook(_watch)
    for number, words in enumerate(lines):
        _events = seen = [] if number else None
        found = _one(words, b"a headline\n")
        _events = None
        print(json.dumps({**found, "events": seen}), flush=True)


def run(lines, environment):
    """What became of each command line but the first."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__))],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(lines)
    return found[1:]


if __name__ == "__main__":
    _all(json.load(sys.stdin))
