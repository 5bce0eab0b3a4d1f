"""Ways to tailor a frozen model: a file each, and a line each in `METHODS`.

The config is checked against the table, so nothing here imports jax.
"""

import importlib
from typing import NamedTuple

from prompt_tuning_jax.methods.base import Method


class Line(NamedTuple):
    """A method's line in the table.

    Attributes:
      module: has `make(config.method) -> Method`.
      inits: what `config.method.init` can be.
      keys: of `config.method` that it reads and some other method does not.
    """

    module: str
    inits: tuple[str, ...]
    keys: tuple[str, ...] = ()


VIRTUAL_TOKENS = ("uniform", "vocabulary", "labels", "text", "file")  # those of methods/init.py

METHODS = {
    "soft_prompt": Line("prompt_tuning_jax.methods.soft_prompt", VIRTUAL_TOKENS),
    "prompt_encoder": Line(
        "prompt_tuning_jax.methods.prompt_encoder", VIRTUAL_TOKENS, ("hidden_size",)
    ),
    "prefix": Line(
        "prompt_tuning_jax.methods.prefix", (*VIRTUAL_TOKENS, "random", "zero"), ("hidden_size",)
    ),
}


def make(settings) -> Method:
    """The method that `config.method` describes; its `name` is a key of `METHODS`."""
    return importlib.import_module(METHODS[settings.name].module).make(settings)
