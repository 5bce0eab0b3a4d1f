"""What a run can be asked for beside training: to end early, to trace, to track, to warn."""

import os
import signal
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from tiny_runs import tune, values, vectors

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
    _, log = tune()
    assert not any("batch_size" in line or "init_text" in line for line in log)
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    text = ("--config.method.init=text", "--config.method.init_text=a")
    _, log = tune("--config.task.train=train[:5]", *text)
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


def test_it_goes_on_while_the_loss_gets_better(validated):
    validated(LOSSES)
    result, log = tune("--config.evaluate_every=2", "--config.early_stopping=3")
    assert result.history[-1]["step"] == 12 and not any("early" in line for line in log)
    assert result.artifact.manifest["metrics"] == {"step": 10, "validation_loss": 0.5}


def test_the_result_is_chosen_by_accuracy_and_then_by_loss(validated, stop_at, tmp_path):
    accuracies = {2: 0.5, 4: 0.6, 6: 0.7, 8: 0.7, 10: 0.6, 12: 0.7}
    validated(LOSSES | {12: 1.5}, accuracies)
    by = ("--config.evaluate_every=2", "--config.best_by=accuracy")
    with workdir.claim(tmp_path / "run") as run:
        stop_at(8)
        tune(*by, folder=run)
        result, _ = tune(*by, folder=run)
    assert result.artifact.manifest["metrics"] == {"step": 6, "validation_loss": 1.0}
    chosen, _ = tune("--config.evaluate_every=2")
    assert chosen.artifact.manifest["metrics"] == {"step": 10, "validation_loss": 0.5}


def test_validations_before_a_stop_count_after_it(validated, stop_at, tmp_path):
    validated(LOSSES)
    unbroken, _ = tune(*SOON)
    with workdir.claim(tmp_path / "run") as run:
        # Between the first validation that brought nothing better and the second.
        stop_at(7)
        stopped, _ = tune(*SOON, folder=run)
        assert not stopped.finished
        result, log = tune(*SOON, folder=run)
    assert "going on after step 7" in log and result.finished
    assert result.history == unbroken.history
    assert vectors(result).tobytes() == vectors(unbroken).tobytes()


# All others: test_methods.py.
@pytest.mark.parametrize("method", ["soft_prompt", "fine_tuning"])
def test_half_precision_and_microbatches_train(method):
    name = f"--config.method.name={method}"
    whole, _ = tune(name, "--config.learning_rate=0.01")
    half, _ = tune(
        name,
        "--config.learning_rate=0.01",
        "--config.model.dtype=bfloat16",
        "--config.microbatches=2",
    )
    losses = [line["train/loss"] for line in half.history if "train/loss" in line]
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])
    np.testing.assert_allclose(values(half)[:12], values(whole)[:12], rtol=0.05, atol=0.05)
    for path, leaf in half.artifact.tensors.items():
        # The model's own leaves are of its dtype.
        assert leaf.dtype == (jnp.bfloat16 if path.startswith("params/") else np.float32)
        assert np.isfinite(leaf).all()


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
        _, log = tune("--config.profile_steps=99", folder=run, fresh=True)
        assert any(line.startswith("trace of 9 steps: ") for line in log)
        # What was there before is gone with the rest of the earlier run.
        [another] = (run / workdir.PROFILE).rglob("*.xplane.pb")
        assert another != trace


def test_a_trace_on_a_full_disk_is_a_warning(plain, tmp_path, monkeypatch):
    stop = jax.profiler.stop_trace

    def refused():
        stop()
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: x.pb; No space left on device")

    monkeypatch.setattr(jax.profiler, "stop_trace", refused)
    with workdir.claim(tmp_path / "run") as run:
        result, log = tune("--config.profile_steps=3", folder=run)
    assert result.history == plain.history
    [said] = [line for line in log if "trace" in line]
    assert said.startswith(f"warning: the trace in {run / workdir.PROFILE} is not complete (")


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
