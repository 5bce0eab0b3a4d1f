"""What a run can be asked for beside training: to end early, to trace, to track, to warn."""

import os
import signal
import sys
import types

import jax
import jax.numpy as jnp
import pytest
import tiny_runs
from tiny_runs import tune, vectors

from prompt_tuning_jax import train
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.run import progress
from prompt_tuning_jax.sharding import fetch, is_divided

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def stop_at(monkeypatch):
    """Asks the first run that comes to a step, counted from 1, to stop after it."""

    def stop(chosen):
        batch, asked = train.Data.batch, []

        def asking(data, step):
            if step + 1 == chosen and not asked:
                asked.append(step)
                os.kill(os.getpid(), signal.SIGTERM)
            return batch(data, step)

        monkeypatch.setattr(train.Data, "batch", asking)

    return stop


@pytest.fixture
def validated(monkeypatch):
    """Makes losses and accuracies of the validations at some steps those that a test says."""

    def say(losses, accuracies=None):
        def validate(*given):
            found = {"loss": losses[given[3]]}
            return found | ({"accuracy": accuracies[given[3]]} if accuracies else {})

        monkeypatch.setattr(train, "validate", validate)

    return say


def test_settings_that_do_not_fit_the_data_or_the_text_give_a_warning(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    text = ("--config.method.init=text", "--config.method.init_text=a")
    log = []
    train.plan(*tiny_runs.tiny("--config.task.train=train[:5]", *text), log.append)
    assert any(line.startswith("warning: batch_size is 8 and there are 5 training") for line in log)
    assert "method.init_text has 1 tokens and is repeated to the 4 virtual tokens" in log
    assert any("of 12 updates planned" in line for line in log)


LOSSES = {2: 3.0, 4: 1.0, 6: 1.0, 8: 2.0, 10: 0.5, 12: 4.0}
SOON = ("--config.evaluate_every=2", "--config.early_stopping=2")


def test_it_ends_after_validations_without_a_better_loss(plain, validated, tmp_path):
    validated(LOSSES)
    with workdir.claim(tmp_path / "run") as run:
        result, log = tune(*SOON, folder=run)
        assert sorted(os.listdir(run / workdir.CHECKPOINTS)) == ["4", "8"]
        again, more = tune(*SOON, folder=run)
    said = "stopped early after step 8: no better validation in the last 2"
    for ended, lines in ((result, log), (again, more)):
        assert ended.finished and lines[-1] == said
        assert ended.artifact.manifest["metrics"] == {"step": 4, "validation_loss": 1.0}
        assert [line["train/loss"] for line in ended.history] == [
            line["train/loss"] for line in plain.history if "train/loss" in line
        ][:8]
        assert vectors(ended).tobytes() == vectors(result).tobytes()
    assert not any("compiling" in line for line in more)


def test_the_result_is_chosen_by_accuracy_and_then_by_loss(validated, stop_at, tmp_path):
    accuracies = {2: 0.5, 4: 0.6, 6: 0.7, 8: 0.7, 10: 0.6, 12: 0.7}
    validated(LOSSES | {12: 1.5}, accuracies)
    by = ("--config.evaluate_every=2", "--config.best_by=accuracy")
    with workdir.claim(tmp_path / "run") as run:
        stop_at(8)
        tune(*by, folder=run)
        result, _ = tune(*by, folder=run)
    assert result.artifact.manifest["metrics"] == {"step": 6, "validation_loss": 1.0}
    # The third validation after the best is better: it does not end early.
    chosen, log = tune("--config.evaluate_every=2", "--config.early_stopping=3")
    assert chosen.artifact.manifest["metrics"] == {"step": 10, "validation_loss": 0.5}
    assert chosen.history[-1]["step"] == 12 and not any("early" in line for line in log)


def test_validations_before_a_stop_count_after_it(validated, stop_at, tmp_path):
    validated(LOSSES)
    with workdir.claim(tmp_path / "run") as run:
        # Between the first validation that brought nothing better and the second.
        stop_at(7)
        stopped, _ = tune(*SOON, folder=run)
        assert not stopped.finished
        result, log = tune(*SOON, folder=run)
    assert "going on after step 7" in log and result.finished
    assert result.history[-1]["step"] == 8
    assert result.artifact.manifest["metrics"] == {"step": 4, "validation_loss": 1.0}


def test_what_is_tuned_of_a_half_precision_model_has_its_dtype():
    words = "--config.method.name=fine_tuning", "--config.model.dtype=bfloat16"
    run = train.plan(*tiny_runs.tiny(*words), print)
    leaves = run.adapt(run.trainable).params.values()
    assert leaves and all(leaf.dtype == jnp.bfloat16 for leaf in leaves)


def test_a_trace_of_some_steps_is_in_the_folder_and_changes_nothing(plain, tmp_path):
    with workdir.claim(tmp_path / "run") as run:
        result, log = tune("--config.profile_steps=3", folder=run)
        [trace] = (run / workdir.PROFILE).rglob("*.xplane.pb")
        assert trace.stat().st_size > 1000
        assert result.history == plain.history
        [said] = [line for line in log if "trace" in line]
        assert said.startswith(f"trace of 3 steps: {run / workdir.PROFILE} ")
        # Nothing is left to trace.
        _, log = tune("--config.profile_steps=3", folder=run)
        assert "warning: there is no trace: it begins after 3 steps, and 0 were taken" in log


def test_a_trace_needs_a_folder():
    with pytest.raises(UserError, match=r"profile_steps is 3, but the run has no folder"):
        tune("--config.profile_steps=3")


def test_each_warning_of_a_run_is_given_once():
    _, log = tune(
        "--config.method.init=uniform",
        "--config.method.init_scale=50",
        "--config.evaluate_every=3",
        "--config.learning_rate=1e-6",
    )
    norms = [line for line in log if "norm of" in line]
    assert len(norms) == 1 and "lower learning_rate, or start from embeddings" in norms[0]
    assert log.index(norms[0]) < log.index("compiling the step, once for each shape of rows")
    answers = [line for line in log if "of the validation examples are answered" in line]
    assert len(answers) == 1 < sum("validation loss" in line for line in log)
    [labels] = [line for line in log if "begin with the same token" in line]
    assert "'b' and 'e', 'b' and 'p', 'b' and 's' and 3 more" in labels


def test_a_tracker_gets_the_lines_of_a_run_and_is_needed_before_anything_is_written(
    plain, tmp_path, monkeypatch
):
    sent = []
    made = types.ModuleType("trackio")
    made.__spec__ = types.SimpleNamespace()
    made.init, made.finish = lambda **given: None, lambda: None
    made.log = lambda values, step: sent.append({"step": step, **values})
    with workdir.claim(tmp_path / "run") as run:
        before = tiny_runs.listing(run)
        monkeypatch.setitem(sys.modules, "trackio", None)
        with pytest.raises(UserError, match="pip install trackio"):
            tune("--config.tracker=trackio", folder=run)
        assert tiny_runs.listing(run) == before
        monkeypatch.setitem(sys.modules, "trackio", made)
        tune("--config.tracker=trackio", folder=run)
    assert sent == plain.history


def test_what_is_divided_is_validated_in_parts():
    words = ("--config.parallel.model=2", "--config.method.name=fine_tuning")
    lm, task, config = tiny_runs.tiny(*words)
    plan = train.plan(lm, task, config, lambda line: None)
    fetched = jax.tree.map(fetch, plan.trainable)  # as at a validation
    given = jax.tree.leaves(plan.adapt(fetched))
    kept = [is_divided(leaf) for leaf in jax.tree.leaves(lm.params)]
    assert sum(map(is_divided, given)) == sum(kept) > 0


def test_the_optimizers_numbers_need_no_room_on_a_device_before_they_are_divided():
    lm, task, config = tiny_runs.tiny("--config.method.name=fine_tuning")
    plan = train.plan(lm, task, config, lambda line: None)
    fetched = jax.tree.map(fetch, plan.trainable)  # as over several processes
    first, *others = jax.devices()
    with jax.default_device(others[0]):  # stands for a TPU
        state = train.restore(None, plan._replace(trainable=fetched), print)[0]
    assert {leaf.device for leaf in jax.tree.leaves(state.optimizer_state)} == {first}
