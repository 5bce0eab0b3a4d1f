"""Versions, devices and settings, for the command `env` and for the `run.json` of a run."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning_jax import __version__
from prompt_tuning_jax.errors import UserError, hide
from prompt_tuning_jax.run.folder import RUN
from prompt_tuning_jax.storage import atomic_write

_PACKAGES = "jax jaxlib flax optax orbax-checkpoint transformers tokenizers numpy".split()
# Environment variables that change what a run does.
_VARIABLES = ("CUDA_", "JAX_", "LIBTPU_", "NPROC", "PROMPT_TUNING_", "TPU_", "XLA_")
_SECRET = re.compile("KEY$|TOKEN|SECRET|PASSW|CREDENTIAL")


def describe() -> dict[str, Any]:
    """Returns versions, commit, platform, devices and the environment variables that matter."""
    return {
        "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
        "commit": commit(Path(__file__).parents[1]),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        **_devices(),
        "variables": {
            name: "***" if _SECRET.search(name) else hide(value)
            for name, value in sorted(os.environ.items())
            if name.startswith(_VARIABLES)
        },
    }


def versions(names: Iterable[str]) -> dict[str, str]:
    """Returns the versions of this package and of others."""
    found = {name: importlib.metadata.version(name) for name in names}
    return {"prompt-tuning-jax": __version__, **found}


def commit(folder: Path) -> str | None:
    """Returns the git commit of a folder's files, with '-dirty' if they were changed since, or None
    if git does not know them, as in an installed package."""
    how: dict[str, Any] = {"cwd": folder, "capture_output": True, "timeout": 5.0, "check": True}
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", "__init__.py"], **how)
        # Without a tag the commit is left.
        words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(words, text=True, **how).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@contextlib.contextmanager
def record_start(run: Path, command: Sequence[str], log: Callable) -> Iterator[dict[str, Any]]:
    """Appends this start to the `run.json` of a run: command, times, outcome and environment. A
    refused start, and one that is killed, are not recorded; a full disk is a warning. Yields the
    entry, to be added to: its outcome is 'failed', or after Ctrl-C 'stopped', unless it is set."""
    entry = {"command": shlex.join(command), "outcome": "failed", "began": _now()}
    clock = time.monotonic()
    try:
        yield entry
    except UserError:
        entry["outcome"] = "refused"
        raise
    except KeyboardInterrupt:
        if entry["outcome"] == "failed":
            entry["outcome"] = "stopped"
        raise
    finally:
        if entry["outcome"] != "refused":
            took = round(time.monotonic() - clock, 3)
            try:
                _append(run / RUN, {**entry, "ended": _now(), "took": took})
            except OSError as error:
                log(f"warning: this start could not be added to {run / RUN} ({error.strerror}).")


def _append(path: Path, entry: dict[str, Any]) -> None:
    try:
        starts = list(json.loads(path.read_bytes())["starts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        starts = []
    starts.append({**entry, "environment": describe()})
    atomic_write(path, (json.dumps({"starts": starts}, indent=1) + "\n").encode())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _devices() -> dict[str, Any]:
    """Returns what jax finds, or why it fails: that is when somebody asks."""
    try:
        import jax

        found = jax.devices()
    except (ImportError, RuntimeError, AttributeError) as error:
        return {"devices": f"none: {type(error).__name__}: {error}"}
    kinds = sorted({device.device_kind for device in found})
    return {"devices": f"{len(found)} x {', '.join(kinds)}", "backend": jax.default_backend()}
