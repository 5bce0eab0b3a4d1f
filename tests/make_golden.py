"""Writes tests/fixtures/golden.json: how every method trains, step by step.

    python tests/make_golden.py [FILE]

A change of these numbers is a change of what users get: say in the commit why it is meant. The same
stack and processor give them again exactly, others to `tests/methods/test_golden.py`'s tolerance.
"""

import functools
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import conftest  # noqa: F401  the devices are set before jax is imported
import jax
import jaxlib
import numpy as np
import optax
import pytest
import tiny_runs
from test_methods import ROWS, settings

from prompt_tuning_jax import train

GOLDEN = Path(__file__).parent / "fixtures" / "golden.json"
STEPS = 50
# Two microbatches, so that accumulation is part of it; rates at which rounding does not grow: at
# 0.01 fine-tuning differs by 3e-5 between two processors, all else by 2e-6.
RUN = {"steps": STEPS, "microbatches": 2, "learning_rate": 0.01, "evaluate_every": 25}
RATES = {"fine_tuning": 0.001}
KEPT = {"loss": "train/loss", "gradient_norm": "train/gradient_norm"}


def stack() -> dict[str, Any]:
    """What the last bit of a number depends on."""
    modules = {"jax": jax, "jaxlib": jaxlib, "numpy": np, "optax": optax}
    found = {name: module.__version__ for name, module in modules.items()}
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = [line for line in lines if line.startswith("flags")]
    wide = sorted(flag for flag in flags[0].split() if flag.startswith(("avx", "fma", "amx")))
    processor = " ".join(wide) if flags else platform.machine()
    return {**found, "processor": processor, "flags": os.environ["XLA_FLAGS"]}


def overrides(row: str, **more: Any) -> list[str]:
    """The words that tune a method's row in the contract test, with `more` in its section."""
    given = {**RUN, "learning_rate": RATES.get(row, RUN["learning_rate"])}
    given |= {f"method.{name}": value for name, value in {**settings(row), **more}.items()}
    return [f"--config.{name}={value}" for name, value in given.items()]


@functools.cache
def tuned(row: str) -> train.Result:
    """What tuning a row gives, once in a process."""
    with pytest.MonkeyPatch.context() as patch, tiny_runs.at_home(patch):
        return train.tune(*tiny_runs.tiny(*overrides(row)), log=lambda line: None)


def trajectory(row: str) -> dict[str, list[float]]:
    """The values of `KEPT` at every step of a row."""
    history = tuned(row).history
    found = {
        name: [line[key] for line in history if line.get(key) is not None]
        for name, key in KEPT.items()
    }
    assert {len(values) for values in found.values()} == {STEPS}
    return found


if __name__ == "__main__":
    rows = {row: trajectory(row) for row in ROWS}
    file = Path(sys.argv[1]) if sys.argv[1:] else GOLDEN
    file.write_text(json.dumps({"stack": stack(), "rows": rows}, indent=1) + "\n")
