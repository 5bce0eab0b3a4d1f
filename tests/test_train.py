"""Runs from beginning to end: killed, stopped, refused; what they leave behind."""

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess

import jax
import numpy as np
import optax
import pytest
import tiny_runs
from tiny_runs import tiny, tune, values, vectors
from whole_runs import (
    PATIENCE,
    assert_same_but_config,
    finish,
    kill_in_a_save,
    kill_when,
    left_behind,
    starts,
    stop,
)

from prompt_tuning_jax import api, train
from prompt_tuning_jax import config as configs
from prompt_tuning_jax.cli import main
from prompt_tuning_jax.cli import train as cli_train
from prompt_tuning_jax.cli.machine import load_model
from prompt_tuning_jax.data.records import Source
from prompt_tuning_jax.data.task import make_task
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.run import artifact
from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.run.card import predict_command
from prompt_tuning_jax.run.checkpoint import Checkpoints
from prompt_tuning_jax.run.log import read_metrics
from prompt_tuning_jax.run.report import Row

STEPS = 45
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run that nothing stopped, and what it printed."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    return run, finish(tiny_runs.train(run))


def test_killed_again_and_again_it_ends_as_if_never_stopped(unbroken, tmp_path):
    draw, run = random.Random(5), tmp_path / "run"
    command = tiny_runs.train(run)
    kill_in_a_save(command, run, draw)
    kill_when(command, (run / workdir.ARTIFACT).exists, draw.uniform(0, 0.5))
    assert f"going on after step {STEPS}" in finish(command)
    assert left_behind(run) == left_behind(unbroken[0])


def test_asked_to_stop_it_saves_and_the_printed_command_goes_on(unbroken, tmp_path):
    run = tmp_path / "run"
    # It saves only when it is asked to stop and at the end.
    command = tiny_runs.train(run, "--config.save_every=0")
    command = tiny_runs.printed_command(stop(command, run, 4, signal.SIGTERM))
    assert not (run / workdir.ARTIFACT).exists()
    assert "going on after step" in finish(command)
    assert [start["outcome"] for start in starts(run)] == ["stopped", "finished"]
    assert_same_but_config(run, unbroken[0])


def test_the_last_lines_are_the_table_the_picture_and_what_to_type_next(unbroken):
    run, output = unbroken
    rows = json.loads((run / workdir.REPORT).read_text())["rows"]
    assert [row["name"] for row in rows] == ["no prompt", "written prompt", "soft prompt"]
    assert [row["trainable_parameters"] for row in rows] == [0, 0, 96]
    assert rows[-1]["bytes"] == (run / workdir.ARTIFACT / artifact.TENSORS).stat().st_size
    [start] = starts(run)
    assert start["command"] == shlex.join(tiny_runs.train(run))
    assert list(start["seconds"]) == [row["name"] for row in rows]
    table = output[output.index("\nname ") :]
    for row in rows:
        assert row["name"] in table and f"{100 * row['accuracy']:.1f} %" in table
    *_, picture, following = table.splitlines()
    assert picture == f"curves: {run / workdir.CURVES}"
    assert (run / workdir.CURVES).read_bytes().startswith(b"\x89PNG")
    kept = str(run / workdir.ARTIFACT)
    template = artifact.load_artifact(kept).manifest["template"]
    assert following == f"next:   {predict_command(template, str(tiny_runs.world().program), kept)}"


def test_trainable_parameters_and_the_compilation_are_logged_first(unbroken):
    before, after = unbroken[1].split("compiled in", 1)
    assert "96 trainable parameters, 22,920 frozen (0.4171% trained)" in before
    assert "160 examples to train on, 40 to validate" in before
    assert f"step {STEPS}/{STEPS}  loss " in after and " steps/s " in after


def test_the_artifact_is_the_best_by_validation_loss(unbroken):
    run, _ = unbroken
    key = "validation/loss"
    found = [line for line in read_metrics(run / workdir.METRICS) if key in line]
    best = min(found, key=lambda line: line[key])
    metrics = artifact.load_artifact(run / workdir.ARTIFACT).manifest["metrics"]
    assert metrics == {"step": best["step"], "validation_loss": best[key]}
    assert [line["step"] for line in found] == [10, 20, 30, 40, 45]


def test_the_artifact_evaluates_to_the_numbers_that_training_printed(unbroken):
    run, output = unbroken
    metrics = artifact.load_artifact(run / workdir.ARTIFACT).manifest["metrics"]
    rows = json.loads((run / workdir.REPORT).read_text())["rows"]
    typed = ["evaluate", "--artifact", str(run / workdir.ARTIFACT), "--json", "--split"]
    shown = tiny_runs.start(
        [str(tiny_runs.world().program), *typed, "validation[:40]"], stderr=subprocess.DEVNULL
    )
    result = json.loads(shown.communicate(timeout=PATIENCE)[0])
    assert result["loss"] == metrics["validation_loss"]
    printed = f"step {metrics['step']}: validation loss {result['loss']:.4f}, "
    assert f"{printed}accuracy {result['accuracy']:.1%}" in output
    made = artifact.load_artifact(run / workdir.ARTIFACT)
    config = configs.build(made.manifest["config"])
    scored = api.evaluate(load_model(config), make_task(config.task), made, split=config.task.test)
    assert scored["accuracy"] == rows[-1]["accuracy"]


def test_the_loss_falls(unbroken):
    found = read_metrics(unbroken[0] / workdir.METRICS)
    losses = [line["train/loss"] for line in found if "train/loss" in line]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
    checked = [line["validation/loss"] for line in found if "validation/loss" in line]
    assert checked[-1] < checked[0] - 0.5


# The rest runs in this process, on its eight devices.


def test_another_seed_gives_another_order_and_start():
    one, other = (train.plan(*tiny(f"--config.seed={seed}"), print) for seed in (0, 1))
    assert (one.data.planned != other.data.planned).any()
    assert (one.trainable["vectors"] != other.trainable["vectors"]).any()


def test_pmap_gives_what_jit_gives(plain):
    mapped, _ = tune("--config.parallel=pmap")
    np.testing.assert_allclose(values(mapped), values(plain), rtol=0, atol=1e-6)
    np.testing.assert_allclose(vectors(mapped), vectors(plain), rtol=0, atol=1e-6)


def test_an_earlier_best_is_kept_when_validation_gets_worse(monkeypatch):
    seen = {}

    def validate(lm, data, given, step, run_log):
        seen[step] = np.array(given.sites["prompt/vectors"])
        return {"loss": {4: 2.0, 8: 1.0, 12: 3.0}[step]}

    monkeypatch.setattr(train, "validate", validate)
    result, _ = tune("--config.evaluate_every=4")
    assert result.artifact.manifest["metrics"] == {"step": 8, "validation_loss": 1.0}
    assert vectors(result).tobytes() == seen[8].tobytes() != seen[12].tobytes()


@pytest.fixture
def poison(monkeypatch):
    """Makes the loss of some updates, counted from 1, no number."""
    batch = train.Data.batch

    def spoil(steps):
        def spoilt(data, step):
            made = batch(data, step)
            factor = np.float32("nan" if step + 1 in steps else 1)
            return made._replace(target_weights=made.target_weights * factor)

        monkeypatch.setattr(train.Data, "batch", spoilt)

    return spoil


def test_a_gradient_that_is_not_finite_is_left_out_with_a_warning(plain, poison):
    poison({4, 9, 10, 11, 12})
    result, log = tune()
    left_out = [line for line in log if "is not finite" in line]
    assert left_out[0] == "warning: the update of step 4 is not finite and is left out"
    assert len(left_out) == 5 and result.finished
    assert log[-1] == "5 of 12 updates were left out: their gradient or result was not finite"
    assert np.isfinite(vectors(result)).all()
    assert result.history[:3] == plain.history[:3]


def test_five_such_gradients_in_a_row_stop_the_run_and_the_last_checkpoint_is_kept(
    poison, tmp_path
):
    poison(range(6, 13))
    with workdir.claim(tmp_path / "run") as run:
        with pytest.raises(RunError, match=r"5 updates in a row, to step 10.*lower learning_rate"):
            tune("--config.save_every=4", folder=run)
        assert Checkpoints(run / workdir.CHECKPOINTS).steps() == [4, 8]
        spoilt = {line["step"]: line["train/loss"] for line in read_metrics(run / workdir.METRICS)}
    assert spoilt[5] > 0 and spoilt[6] is None


def test_an_update_that_is_not_finite_is_left_out(monkeypatch):
    def make(config):
        spoil = optax.stateless(lambda updates, _: jax.tree.map(lambda leaf: leaf / 0, updates))
        return optax.chain(optax.adam(0.01), spoil)

    monkeypatch.setattr(train, "make_optimizer", make)
    result, log = tune("--config.steps=4")
    assert log[-1] == "4 of 4 updates were left out: their gradient or result was not finite"
    assert np.isfinite(vectors(result)).all()


def test_a_run_without_a_finite_validation_loss_is_refused(monkeypatch):
    monkeypatch.setattr(train, "validate", lambda *given: {"loss": float("nan")})
    with pytest.raises(RunError, match="no validation loss of this run is finite"):
        tune()


def test_a_changed_config_is_refused_and_fresh_starts_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_train, "score_rows", lambda *_: [Row("soft prompt", 0.5, 96, 512, 1.0)])
    run = tmp_path / "run"
    command = tiny_runs.training(run, *tiny_runs.FEW)
    assert main.run(command) == 0
    before = tiny_runs.listing(run)
    changed = [*command, "--config.save_every=5", "--config.log_every=6"]
    capsys.readouterr()
    assert main.run(changed) == 2
    refusal = capsys.readouterr().err
    assert "config.save_every was 4 and is 5 now" in refusal
    assert "config.log_every was 1 and is 6 now" in refusal and "--fresh" in refusal
    # What cannot run is refused before anything of the earlier run is deleted.
    assert main.run([*command, "--config.method.num_virtual_tokens=200", "--fresh"]) == 2
    assert "expected fewer than the 128 positions of" in capsys.readouterr().err
    assert tiny_runs.listing(run) == before
    assert main.run([*changed, "--fresh"]) == 0
    output = capsys.readouterr().out
    assert "going on" not in output and "step 12/12" in output
    assert json.loads((run / workdir.CONFIG).read_text())["save_every"] == 5
    assert sorted(os.listdir(run / workdir.CHECKPOINTS)) == ["10", "12"]
    steps = [line["step"] for line in read_metrics(run / workdir.METRICS)]
    assert steps == [6, 10, 12, 12]


def test_a_run_does_not_go_on_with_another_model_or_other_data(tmp_path):
    lm, task, config = tiny()
    first, *rest = task.load().splits["validation"]
    with workdir.claim(tmp_path / "run") as run:
        tune(folder=run)
        before = tiny_runs.listing(run)
        with pytest.raises(UserError, match="the model changed since step 12 of this run"):
            train.tune(lm._replace(fingerprint="other"), task, config, run)
        for name in ("text", "label"):
            other = next(row[name] for row in rest if row[name] != first[name])
            splits = {**task.load().splits, "validation": [{**first, name: other}, *rest]}
            changed = task._replace(load=lambda splits=splits: Source(splits))
            with pytest.raises(UserError, match="the data changed since step 12 of this run"):
                train.tune(lm, changed, config, run)
        assert tiny_runs.listing(run) == before


def test_a_run_does_not_go_on_from_another_file_that_it_still_reads(tmp_path):
    words = ["kind=low_rank", "init=file", f"init_file={tmp_path / 'start.npy'}"]
    words = [f"--config.method.{word}" for word in ("name=prompt_encoder", *words)]
    lm, task, config = tiny_runs.tiny(*words)
    for seed in (0, 1):
        draw = np.random.default_rng(seed).normal(size=(config.method.num_virtual_tokens, 24))
        np.save(tmp_path / "start.npy", draw.astype(np.float32))
        with pytest.raises(UserError) if seed else contextlib.nullcontext() as refused:
            train.tune(lm, task, config, tmp_path / "run", print, until=20)  # of 12
    assert "the method.init_file changed since step 12 of this run" in str(refused.value)


def test_a_folder_of_another_config_is_refused_from_python_too(tmp_path):
    with workdir.claim(tmp_path / "run") as run:
        workdir.tie_to_config(run, tiny("--config.steps=3")[-1])
        with pytest.raises(UserError, match=r"config.steps was 3 and is 12 now"):
            tune(folder=run)
