"""Configs that earlier versions saved: each held the keys of every method, optimizer and task."""

import json
from pathlib import Path

import pytest

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.artifact import load_artifact

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
SAVED = json.loads((EARLIER / "configs.json").read_text())
# What was typed for each of them, by the names of today.
TYPED = {
    "defaults": "",
    "sgd": "optimizer.name=sgd optimizer.momentum=0.5",
    "adam": "optimizer.name=adam optimizer.b2=0.99",
    "adafactor": "optimizer.name=adafactor optimizer.weight_decay_rate=1e-5"
    " optimizer.decay_offset=-1100000 optimizer.clipping_threshold=0",
    "prompt_encoder": "method.name=prompt_encoder method.hidden_size=8",
    "prefix": "method.name=prefix method.init=random",
    "files": "task.name=files task.files.train=a.csv task.files.test_part=20"
    " task.columns=('text=review',)",
    "tfds": "task.name=tfds:glue/sst2 task.data_dir=data task.columns=('text=sentence',)",
}


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_config_means_what_was_typed(name):
    wanted = configs.load(None, [f"--config.{word}" for word in TYPED[name].split()])
    assert configs.build(SAVED[name]) == wanted
    # So the run's folder takes the same command again.
    assert configs.difference(json.dumps(SAVED[name]), wanted) == []


def test_an_artifact_loads_with_its_config():
    made = load_artifact(EARLIER)
    assert made.tensors["prompt/vectors"].shape[0] == 1
    config = configs.from_manifest(made.manifest, ["--config.generation.top_k=0"])
    assert (config.method.name, config.method.hidden_size) == ("prompt_encoder", 2)
    assert (config.optimizer.name, config.optimizer.momentum) == ("sgd", 0.5)
    assert "files" not in config.task


def test_an_artifact_of_a_method_that_is_not_known_here_loads_without_its_section():
    manifest = {"method": "mine", "config": {"steps": 7, "method": {"name": "mine", "words": 64}}}
    config = configs.from_manifest(manifest)
    assert config.steps == 7 and config.method == configs.load(None).method


@pytest.mark.parametrize(
    "config", [{"model": {"trust_remote_code": True}}, {"../../etc/passwd": 1}, {"seed": "x"}]
)
def test_an_artifact_with_a_config_that_is_not_valid_is_refused(config):
    with pytest.raises(UserError, match=r"config\."):
        configs.from_manifest({"method": "soft_prompt", "config": config})
