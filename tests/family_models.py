"""A random model of each case in `family_cases`: the package's, and the plain one."""

import functools

import family_cases
import plain_model
import tiny_models
from transformers import AutoConfig

from prompt_tuning_jax.models.families import spec_from_config


def config(name, **options):
    """The config.json that transformers writes for a case."""
    family, given = family_cases.CASES[name]
    sizes = {"vocab_size": len(tiny_models.VOCABULARY), **options}
    return AutoConfig.for_model(family, **given | sizes).to_dict()


@functools.cache
def make(name):
    """Returns the package's model, float32 with products of the highest precision, and the plain
    one."""
    made = config(name)
    lm, plain = plain_model.make(spec_from_config(made, name), precision="highest")
    return lm._replace(config=made), plain
