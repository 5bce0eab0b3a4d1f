"""Ways to tailor a frozen model: a file each, and a line each in `METHODS`."""

import importlib

from prompt_tuning_jax.methods.base import Method

METHODS = {
    "soft_prompt": "prompt_tuning_jax.methods.soft_prompt",
}


def make(settings) -> Method:
    """The method that `config.method` describes; its `name` is a key of `METHODS`."""
    return importlib.import_module(METHODS[settings.name]).make(settings)
