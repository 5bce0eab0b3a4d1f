"""Methods on the small model: what the tests of all of them need."""

import plain_model

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.task import Task
from prompt_tuning_jax.methods import make_method
from prompt_tuning_jax.run import artifact as artifacts

LM, PLAIN = plain_model.make()
# " the" and " t" are a token each, " bin" is "Ġ", "b", "in".
LABELS = (("0", "the"), ("1", "bin"), ("2", "t"))
TASK = Task("made_up", "{soft}{text}", LABELS, ("accuracy",), ("text",), lambda: None)


def make(**settings):
    """Returns the method of a section `method` of a config."""
    section = configs.build({"method": settings}).method
    return make_method(section, artifacts.load_start(section))


def keep(folder, collections) -> str:
    """An artifact of the small model; returns its folder."""
    manifest = artifacts.make_manifest(LM, TASK, configs.load(None), {}) | {"method": "made_up"}
    artifacts.save_artifact(artifacts.Artifact(collections, manifest), folder)
    return str(folder)
