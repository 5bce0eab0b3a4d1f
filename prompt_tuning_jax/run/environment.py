"""Where a run runs: versions, devices, settings; for `env`, and for the `run.json` of a run."""

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning_jax import __version__
from prompt_tuning_jax.errors import UserError, hide
from prompt_tuning_jax.run.folder import RUN, atomic_write
from prompt_tuning_jax.storage import cache_folder

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "numpy",
)
# Environment variables that change what a run does.
_VARIABLES = ("CUDA_", "JAX_", "LIBTPU_", "NPROC", "PROMPT_TUNING_", "TPU_", "XLA_")
_SECRET = re.compile("KEY$|TOKEN|SECRET|PASSW|CREDENTIAL")
_GIT_SECONDS = 5.0


def describe() -> dict[str, Any]:
    """Versions, the commit of a checkout, platform, devices, and the variables that were set."""
    return {
        "versions": {
            "prompt-tuning-jax": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
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


def caches() -> dict[str, Any]:
    """The cache folder, and how many bytes each folder in it holds."""
    folder = cache_folder()
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return {"folder": str(folder), "bytes": {path.name: _bytes(path) for path in inside}}


def commit(folder: Path) -> str | None:
    """The git commit of a folder's files, with '-dirty' where they were changed since; None where
    git does not know them, as in a package that was installed."""
    about = ["git", "-C", os.fspath(folder)]
    try:
        for words in (["ls-files", "--error-unmatch", "__init__.py"], _DESCRIBE):
            answer = subprocess.run(
                [*about, *words], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


# No tag is named so: what is left is the commit.
_DESCRIBE = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]


@contextlib.contextmanager
def recorded(run: Path, command: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Appends to a run's `run.json` what one start of it was: command, times, outcome, environment.

    A start that is refused leaves the folder as it was, and one that is killed leaves no entry.
    Where the disk refuses the entry there is none: a warning, unless there is worse to hear of.

    Args:
      run: the claimed folder.
      command: as it was typed.

    Yields:
      the entry, to be added to; its outcome is 'failed', or of Ctrl-C 'stopped', unless it is set.
    """
    entry = {"command": shlex.join(command), "outcome": "failed", "began": _now(), "ended": None}
    clock = time.monotonic()
    try:
        yield entry
    except UserError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and entry["outcome"] == "failed":
            entry["outcome"] = "stopped"
        # What went wrong is what has to be heard of, not that the disk is full as well.
        with contextlib.suppress(OSError):
            _append(run / RUN, entry, clock)
        raise
    try:
        _append(run / RUN, entry, clock)
    except OSError as error:
        print(f"warning: {run / RUN} lacks this start ({error.strerror}).", flush=True)


def _append(path: Path, entry: dict[str, Any], clock: float) -> None:
    try:
        starts = list(json.loads(path.read_bytes())["starts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        starts = []
    took = round(time.monotonic() - clock, 3)
    starts = [*starts, {**entry, "ended": _now(), "took": took, "environment": describe()}]
    content = json.dumps({"starts": starts}, indent=1, ensure_ascii=False)
    # What the system calls a name may be no text: JSON has the same escapes for it as Python.
    atomic_write(path, (content + "\n").encode(errors="backslashreplace"))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    """What jax finds; where it fails, why, since that is when somebody asks."""
    try:
        import jax

        found = jax.devices()
    except (ImportError, RuntimeError, AttributeError) as error:
        return {"devices": f"none: {type(error).__name__}: {error}"}
    kinds = sorted({device.device_kind for device in found})
    return {"devices": f"{len(found)} x {', '.join(kinds)}", "backend": jax.default_backend()}


def _bytes(path: Path) -> int:
    paths = [path, *path.rglob("*")]
    return sum(each.lstat().st_size for each in paths if each.is_file())
