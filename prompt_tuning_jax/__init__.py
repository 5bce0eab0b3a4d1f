"""Tailors a frozen language model to a task: five names for notebooks and forks.

`load(path)` reads a model, `tune(model, task, config)` trains an adaptation of it,
`evaluate` and `predict` use one, `save(artifact, folder)` keeps it. They are imported when first
touched, so that the command line answers before jax is loaded.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ("evaluate", "load", "predict", "save", "tune")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("prompt_tuning_jax.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
