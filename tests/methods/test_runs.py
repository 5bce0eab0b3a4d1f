"""Every method from its config to its artifact: tuned, kept, stopped, killed, renamed."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import plain_model
import pytest
import tiny_methods
import tiny_models
import tiny_runs
from make_golden import STEPS, overrides, tuned
from test_methods import EVERY_ROW, ROWS, settings
from tiny_models import SPEC

import prompt_tuning_jax
from prompt_tuning_jax import api, train
from prompt_tuning_jax.data.template import with_prompt
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.methods.base import Method
from prompt_tuning_jax.models.files.tokenizer import Facts, Tokenizer
from prompt_tuning_jax.models.sites import NOTHING, Given, check_given, from_tensors, sites
from prompt_tuning_jax.run import artifact
from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.score import encode_for

pytestmark = pytest.mark.usefixtures("home")


def tiny(row, **more):
    # Not from its cache: `made_up` is another method in each test.
    return tiny_runs.tiny.__wrapped__(*overrides(row, **more))


def assert_same_run(ours, wanted):
    assert ours.finished and ours.history == wanted.history
    assert ours.trainable_parameters == wanted.trainable_parameters
    jax.tree.map(np.testing.assert_array_equal, ours.artifact.tensors, wanted.artifact.tensors)


@EVERY_ROW
def test_its_artifact_holds_what_the_model_reads_and_scores_what_training_said(row, tmp_path):
    result = tuned(row)
    api.save(result.artifact, tmp_path / "artifact")
    kept = artifact.load_artifact(tmp_path / "artifact")
    check_given(SPEC, from_tensors(kept.tensors))
    lm, task, config = tiny(row)
    split = config.task.validation
    scored = api.evaluate(lm, task, kept, split=split)
    assert scored["loss"] == kept.manifest["metrics"]["validation_loss"]
    assert api.evaluate(lm, task, split=split)["loss"] > scored["loss"] + 0.05
    with_and_without = (
        [answer["probabilities"] for answer in api.predict(lm, task, ["votes"], made)]
        for made in (kept, None)
    )
    assert len({str(answers) for answers in with_and_without}) == 2


# Every row is killed in slow/test_kills.py.
@pytest.mark.parametrize("row", ["low rank", "prefix, network", "lora", "fine_tuning"])
def test_stopped_and_resumed_it_is_the_run_that_was_not(row, tmp_path, monkeypatch):
    due, asked = train.due, []

    def stop_at_six(step, every):
        if step == 6 and not asked:
            asked.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return due(step, every)

    monkeypatch.setattr(train, "due", stop_at_six)
    with workdir.claim(tmp_path / "run") as run:
        stopped = train.tune(*tiny(row), run, lambda line: None)
        last = stopped.history[-1]["step"]
        assert not stopped.finished and last < STEPS
        log = []
        assert_same_run(train.tune(*tiny(row), run, log.append), tuned(row))
    assert f"going on after step {last}" in log


@pytest.mark.parametrize("row", ["prefix", "lora"])
def test_under_another_name_it_is_the_same_run(row, monkeypatch):
    """Nothing asks what a method is called; all other names: below."""
    monkeypatch.setitem(METHODS, "made_up", METHODS[settings(row)["name"]])
    result = train.tune(*tiny(row, name="made_up"), log=lambda line: None)
    assert result.artifact.manifest["method"] == "made_up"
    assert_same_run(result, tuned(row))


@pytest.mark.parametrize(
    ("site", "quantize", "fault"),
    [
        ("promt/vectors", "", "'promt/vectors' .did you mean 'prompt/vectors'"),
        ("final_norm/scale", "int8", "is 'int8', and the method trains weights"),
    ],
)
def test_what_a_method_of_ones_own_gives_is_checked_before_it_is_trained(
    site, quantize, fault, monkeypatch, tmp_path
):
    def adapt(trained, fixed, frozen, rng, train):
        return Given(params={site: trained}) if quantize else Given({site: trained})

    leaf = tiny_methods.LM.params["final_norm"]["scale"]
    made = Method(lambda rng, lm, task: (leaf, ()), adapt)
    own = SimpleNamespace(KEYS={}, make=lambda settings, start: made)
    monkeypatch.setitem(METHODS, "own", own)
    lm, task, config = tiny_runs.tiny.__wrapped__("--config.method.name=own")
    lm = lm._replace(settings={**lm.settings, "quantize": quantize})
    with pytest.raises(UserError, match=fault):
        train.tune(lm, task, config, tmp_path / "run", lambda line: None)
    assert not (tmp_path / "run").exists()


def test_no_file_outside_of_methods_names_a_method():
    """Names that a collection of the model has too are left to the test above."""
    package = Path(prompt_tuning_jax.__file__).parent
    names = METHODS.keys() - {path.split("/")[0] for path in sites(SPEC)}
    assert len(names) >= 2
    for path in package.rglob("*.py"):
        if path.parent.name != "methods" and path.name != "peft.py":  # which has PEFT's own names
            assert not [name for name in names if name in path.read_text(encoding="utf-8")], path


def test_before_training_every_method_is_a_text_prompt_or_the_model_alone():
    # Nothing stands before the prompt: behind a BOS it would not be what a prefix is.
    without_bos = Tokenizer(tiny_models.tokenizer_json(), Facts(1, 2, 0, False, None))
    lm = tiny_methods.LM._replace(tokenizer=without_bos)
    task = tiny_methods.TASK._replace(template="{soft} {text}:")
    rows = [{"text": text} for text in ("in the end", "x", "a bin")]

    def scores(given, template=task.template):
        examples = encode_for(lm, task._replace(template=template), rows, given)
        return plain_model.answer_scores(tiny_methods.PLAIN, examples, given)

    wanted, alone = (scores(NOTHING, with_prompt(task.template, text)) for text in ("ab the", ""))
    assert np.abs(wanted - alone).max() > 0.1
    for row in ROWS:
        virtual = "num_virtual_tokens" in settings(row)
        made = tiny_methods.make(
            **settings(row), **({"init": "text", "init_text": "ab the"} if virtual else {})
        )
        trained, fixed = made.init(tiny_methods.KEY, lm, task)
        found = scores(made.adapt(trained, fixed, lm.params, tiny_methods.KEY, False))
        start = wanted if virtual else alone
        np.testing.assert_allclose(found, start, rtol=0, atol=1e-5, err_msg=row)
