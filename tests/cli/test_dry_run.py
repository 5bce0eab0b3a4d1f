"""A run rehearsed: what is said of it is what training does, and nothing is written or trained."""

import json
import re

import jax
import numpy as np
import pytest
import tiny_runs

from prompt_tuning_jax import config as configs
from prompt_tuning_jax import train
from prompt_tuning_jax.cli import dry_run
from prompt_tuning_jax.cli.machine import enough_memory
from prompt_tuning_jax.data.task import make_task, select_records
from prompt_tuning_jax.errors import RunError
from prompt_tuning_jax.run import folder as workdir

CONFIG = str(tiny_runs.world().config)
FOUND = {}  # what a rehearsal says, which takes seconds
pytestmark = pytest.mark.usefixtures("home")


def rehearsed(typed, *more):
    return typed("train", "--config", CONFIG, *tiny_runs.FEW, "--dry_run", *more)


@pytest.fixture
def found(typed, home):
    if not FOUND:
        shown = rehearsed(typed, "--json", "--workdir", "run")
        assert shown.status == 0 and "12 steps" not in shown.out
        assert tiny_runs.listing(home) == {}
        FOUND.update(json.loads(shown.out))
    return FOUND


def test_it_says_what_there_is_to_train_on_and_how_much_is_trained(found):
    assert found["examples"] == {"train": 160, "validation": 40, "test": 40}
    assert found["parameters"] == {"trainable": 96, "frozen": 22_920}
    assert found["notes"] == []
    assert found["shortened"]["train"] == {"examples": 0, "tokens": 0}


def test_the_sample_is_what_the_model_reads(found):
    config = configs.load(CONFIG)
    first = select_records(make_task(config.task), config.task.train)[0]
    read = found["sample"]
    assert read["text"] == f"<|bos|><soft 0..3>Headline: {first['text']}\nTopic:"
    assert read["target"] == read["answers"][first["label"]]["text"]
    # The tiny vocabulary is single bytes and five merges.
    assert read["answers"]["sport"] == {"text": " s", "tokens": 2}
    assert read["answers"]["tech"] == {"text": " t", "tokens": 1}
    assert read["virtual_tokens"] == 4
    assert read["targets"] == read["answers"][first["label"]]["tokens"]
    text = read["text"].removeprefix("<|bos|><soft 0..3>")
    assert read["tokens"] == 1 + 4 + read["targets"] + len(re.sub(" the| t|  |he|in", ".", text))


def test_batches_are_those_of_the_run(found):
    lm, task, config = tiny_runs.tiny()
    data = train.plan(lm, task, config, print).data
    every = [data.batch(step) for step in range(12)]
    said = found["batches"]
    assert said["shared_positions"] == data.shared and said["looked_at"] == 12
    assert sum(shape["share"] for shape in said["shapes"]) == pytest.approx(1)
    sizes = {(shape["rows"], shape["positions"]) for shape in said["shapes"]}
    assert sizes == {batch.tokens.shape for batch in every}
    padding = np.concatenate([batch.segments.ravel() for batch in every]) == 0
    assert said["padding"] == pytest.approx(padding.mean())


def test_memory_holds_the_weights_and_the_time_is_the_sum_of_its_parts(found):
    memory, seconds = found["memory"], found["seconds"]
    assert memory["arguments"] > 22_920 * 4
    assert memory["temporaries"] > 0
    alone = memory["arguments"] + memory["temporaries"] + memory["outputs"]
    # The tests' eight devices are one machine's.
    assert memory["needed"] == 8 * alone < memory["available"]
    assert found["advice"] == "it fits"
    assert (found["steps"], found["validations"]) == (12, 2)
    assert min(value for name, value in seconds.items() if name != "teacher") > 0
    assert seconds["run"] == pytest.approx(12 * seconds["step"] + 2 * seconds["validation"])


def test_people_read_the_same(typed, home):
    words = "parallel=pmap", "evaluate_every=0", "schedule.warmup_steps=12"
    shown = rehearsed(typed, *(f"--config.{word}" for word in words))
    assert shown.status == 0 and shown.err == ""
    assert tiny_runs.listing(home) == {}
    for part in (
        "160 examples to train on, 40 to validate, 40 to test",
        "<|bos|><soft 0..3>Headline: ",
        "\\nTopic:[[ ",
        "sport ' s' (2 tokens), tech ' t' (1 token)",
        "96 trainable, 22,920 frozen",
        "it fits",
        "12 steps and 1 validations: about ",
        "warning: schedule.warmup_steps is 12 and the run has 12 steps",
    ):
        assert part in shown.out, part


def test_training_after_a_rehearsal_is_training(plain):
    lm, task, config = tiny_runs.tiny()
    before = jax.tree.map(np.array, lm.params)
    dry_run.measure(lm, task, config, print)
    jax.tree.map(np.testing.assert_array_equal, lm.params, before)
    assert train.tune(lm, task, config, None, print).history == plain.history


def test_what_training_refuses_is_refused(typed, home):
    shown = rehearsed(typed, '--config.prompts=("About {subject}:",)', "--json")
    assert (shown.status, shown.out) == (2, "") and "{subject}" in shown.err
    assert tiny_runs.listing(home) == {}


def test_a_workdir_of_another_config_is_refused_unless_started_over(typed, home):
    config = configs.load(CONFIG, ["--config.steps=3"])
    with workdir.claim("run") as run:
        workdir.tie_to_config(run, config)
    before = tiny_runs.listing(home)
    shown = rehearsed(typed, "--workdir", "run")
    assert shown.status == 2 and "config.steps was 3 and is 12 now" in shown.err
    assert rehearsed(typed, "--workdir", "run", "--fresh").status == 0
    assert tiny_runs.listing(home) == before


def test_a_remote_workdir_is_refused_as_for_training(typed, home):
    for words in (["--dry_run"], []):
        shown = typed("train", "--config", CONFIG, "--workdir", "gs://bucket/run", *words)
        assert shown.status == 2 and "only a local folder can be locked" in shown.err


def advised(needed, *overrides):
    config = configs.load(CONFIG, overrides)
    return dry_run.advice({"needed": needed, "available": 100}, config)


def test_what_does_not_fit_comes_with_what_to_change():
    assert advised(80) == "it fits"
    found = advised(81)
    assert found.startswith("that is 81%: try --config.microbatches=4 ")
    assert " or --config.model.remat=full " in found and " or --config.model.dtype=bf" in found
    small = ("--config.microbatches=8", "--config.model.remat=full", "--config.model.dtype=float16")
    assert "try --config.model.quantize=int8 " in advised(200, *small)
    small = (*small, "--config.model.quantize=int8")
    assert advised(200, *small) == "that is 200%: try a smaller task.max_length or model"
    assert "--config.microbatches=8 " in advised(99, "--config.microbatches=5")


def test_a_device_without_memory_is_a_sentence(typed, monkeypatch):
    def allocate(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(train, "executables", allocate)
    shown = rehearsed(typed)
    assert shown.status == 1 and shown.err.count("\n") == 1
    assert "too little memory for a step: try --config.microbatches=2 " in shown.err
    config = configs.load(CONFIG)
    with pytest.raises(RunError), enough_memory(config):
        allocate()
    with pytest.raises(jax.errors.JaxRuntimeError), enough_memory(config):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
