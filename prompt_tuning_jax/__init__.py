"""Adapts a frozen language model to a task: five names for notebooks and forks.

`load(path)` reads a model, `tune(model, task, config)` trains an adaptation of it, `evaluate` and
`predict` use one, and `save(artifact, folder)` writes it. Each is imported when it is first used,
so that the command line answers before jax is loaded.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
_PLACES = {
    "evaluate": "api",
    "load": "models.language_model",
    "predict": "api",
    "save": "api",
    "tune": "train",
}
__all__ = tuple(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"prompt_tuning_jax.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
