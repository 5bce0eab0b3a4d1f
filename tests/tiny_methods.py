"""Methods on the small model: what the tests of all of them need."""

import math

import jax
import plain_model

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.task import Task
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models.decoder import param_shapes
from prompt_tuning_jax.models.sites import Given, from_tensors, to_tensors
from prompt_tuning_jax.models.spec import matrices
from prompt_tuning_jax.run import artifact as artifacts
from prompt_tuning_jax.sharding import Layout, make_layout

LM, PLAIN = plain_model.make()
KEY = jax.random.key(0)
# " the" and " t" are a token each, " bin" is "Ġ", "b", "in".
LABELS = (("0", "the"), ("1", "bin"), ("2", "t"))
TASK = Task("made_up", "{soft}{text}", LABELS, ("accuracy",), ("text",), lambda: None)
TASK = TASK._replace(front=(9,))  # a demonstration of one token


def make(**settings):
    """Returns the method of a section `method` of a config."""
    section = configs.build({"method": settings}).method
    return METHODS[section.name].make(section, from_tensors(artifacts.load_start(section)))


def layout(spec, shards, more=()) -> Layout:
    """How the weights of a model lie over so many devices: by default, and with more axes."""
    parallel = configs.build({"parallel": {"model": shards}}).parallel
    parallel.axes += more
    return make_layout(matrices(spec), param_shapes(spec), parallel, math.lcm(8, shards))


def first(method, key=KEY, lm=LM, task=TASK):
    """The tree that a method begins with."""
    return method.init(key, lm, task)[0]


def adapt(method, tree, key=KEY, train=True, lm=LM) -> Given:
    """What a method that has nothing fixed gives the model."""
    return method.adapt(tree, {}, lm.params, key, train)


def keep(folder, given) -> str:
    """An artifact of the small model; returns its folder."""
    manifest = artifacts.make_manifest(LM, TASK, configs.load(None), {}) | {"method": "made_up"}
    artifacts.save_artifact(artifacts.Artifact(to_tensors(given), manifest), folder)
    return str(folder)
