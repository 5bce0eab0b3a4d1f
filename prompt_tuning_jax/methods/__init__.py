"""Ways to tailor a frozen model: a file each, and a line each in `METHODS`."""

from types import ModuleType

from prompt_tuning_jax.methods import prefix, prompt_encoder, soft_prompt
from prompt_tuning_jax.methods.base import Collections, Method

# Each has `KEYS`, the keys of `config.method` beside its name, and `make(config.method, start)`. It
# may have `HAS_SLOTS`, if its virtual tokens stand in the template's slots.
METHODS: dict[str, ModuleType] = {
    "soft_prompt": soft_prompt,
    "prompt_encoder": prompt_encoder,
    "prefix": prefix,
}


def make_method(settings, start: Collections | None = None) -> Method:
    """Returns the method that `config.method` describes.

    Args:
      settings: the section `method` of a config.
      start: the tensors in `method.init_file`, where `method.init` is 'file'.
    """
    return METHODS[settings.name].make(settings, start)
