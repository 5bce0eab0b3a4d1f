"""A run over two processes or four: they share the rows, or the weights too, stop together and go
on together."""

import json
import os
import random
import signal
import socket

import numpy as np
import pytest
import tiny_runs
from whole_runs import (
    PATIENCE,
    assert_same_but_config,
    finish,
    left_behind,
    lines,
    losses,
    starts,
    wait,
)

from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.run import processes
from prompt_tuning_jax.run.artifact import load_artifact

STEPS = 300
WORDS = (f"--config.steps={STEPS}", "--config.evaluate_every=50", "--config.save_every=0")
# What is agreed on is bit for bit the first process's, whatever the second has.
AGREES = """
import numpy as np
from prompt_tuning_jax.run import processes

def tree(first):
    floats = np.array([-0.0, np.nan, np.inf, 1e-45], np.float32)
    return [floats if first else floats * 0, 0.1 if first else 2.5, 2**40 if first else 3, first]

with processes.join_processes() as first:
    found = processes.agreed(tree(first))
    assert found[0].tobytes() == tree(True)[0].tobytes()
    assert found[1:] == tree(True)[1:] and [*map(type, found[1:])] == [float, int, bool]
"""
# Tunes and writes a few texts. The first process keeps what came of it.
TUNES = """
import sys

import jax
import numpy as np
from prompt_tuning_jax import api, config as configs
from prompt_tuning_jax.cli.machine import load_model
from prompt_tuning_jax.data.task import make_task, select_records
from prompt_tuning_jax.generate import DEFAULTS, generate
from prompt_tuning_jax.run.processes import join_processes
from prompt_tuning_jax.train import tune

out, path, *words = sys.argv[1:]
with join_processes() as first:
    config = configs.load(path, words)
    lm, task = load_model(config), make_task(config.task)
    made = tune(lm, task, config, log=lambda line: None)
    examples, given = api.encode(lm, task, select_records(task, "test[:3]"), made.artifact)
    texts = generate(lm, examples, given, DEFAULTS._replace(max_new_tokens=4))
    texts = [each.ids for each in texts]
    parts = [part.data for leaf in jax.tree.leaves(lm.params) for part in leaf.addressable_shards]
    found = {"losses": [line["train/loss"] for line in made.history if "train/loss" in line]}
    found |= {"validation": [line.get("validation/loss", 0) for line in made.history]}
    found |= {"held": sum(part.nbytes for part in parts), "texts": texts}
    if first:
        tensors = {name.replace("/", "."): leaf for name, leaf in made.artifact.tensors.items()}
        np.savez(out, **found, **tensors)
"""


def several(commands, named=None, more=()):
    """Starts the processes of one run, which find each other by our variables, or by those that a
    cluster sets: `named`, with {} for the number of a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    count = str(len(commands))
    ours = {processes.ADDRESS: address, processes.COUNT: count, processes.NUMBER: "{}"}
    environments = [
        tiny_runs.environment(
            **{
                name: value.format(number)
                for name, value in {**(named or ours), **dict(more)}.items()
            }
        )
        for number in range(len(commands))
    ]
    return [
        tiny_runs.start(command, env=environment)
        for command, environment in zip(commands, environments, strict=True)
    ]


def report(run):
    """The rows of a run's report by their names."""
    return {row["name"]: row for row in json.loads((run / workdir.REPORT).read_text())["rows"]}


def ended(started, statuses):
    """What all print, once they have ended by these statuses."""
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in started]
    assert [process.returncode for process in started] == statuses, outputs
    return outputs


def python(folder, script, *words):
    """The command that runs a script, which it puts into a folder."""
    path = folder / "script.py"
    path.write_text(script)
    interpreter = tiny_runs.world().program.read_text().splitlines()[0].removeprefix("#!")
    return [interpreter, str(path), *words]


def predict(count, run, folder):
    """The answers of so many processes to more texts than are scored together."""
    texts, answers = folder / "texts.txt", folder / "answers.jsonl"
    texts.write_text("\n".join(f"Shares of {number} fall" for number in range(300)))
    typed = [tiny_runs.world().program, "predict", "--artifact", str(run), str(texts)]
    typed += [f"--output={answers}", f"--config.parallel.model={count}"]
    _, *others = ended(several([typed] * count), [0] * count) if count > 1 else [finish(typed)]
    assert not any("records" in output for output in others)
    return [json.loads(line) for line in answers.read_text().splitlines()]


def test_other_records_are_refused_in_both(whole, tmp_path):
    typed = [tiny_runs.world().program, "predict", "--artifact", str(whole)]
    files = [tmp_path / f"{number}.txt" for number in range(2)]
    for number, path in enumerate(files):
        path.write_text(f"one\n{number}\n")
    for output in ended(several([[*typed, str(path)] for path in files]), [2, 2]):
        assert "differs from process 0 in data" in output


def test_other_splits_are_not_evaluated_together(whole):
    typed = [tiny_runs.world().program, "evaluate", "--artifact", str(whole), "--split"]
    for output in ended(several([[*typed, f"test[:{size}]"] for size in (8, 9)]), [2, 2]):
        assert "differs from process 0 in data" in output


def test_what_needs_both_is_planned_by_both(tmp_path):
    typed = [*tiny_runs.train(tmp_path / "run", "--config.parallel.model=2"), "--dry_run"]
    first, second = ended(several([typed] * 2), [0, 0])
    assert "the run: " in first and "the run: " not in second and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two processes that nothing stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    ended(several([tiny_runs.train(run, *WORDS)] * 2), [0, 0])
    return run


def test_they_do_what_one_process_does(whole, tmp_path):
    run = tmp_path / "run"
    finish(tiny_runs.train(run, *WORDS))
    assert len(losses(whole)) == len(losses(run)) == STEPS
    np.testing.assert_allclose(losses(whole), losses(run), rtol=1e-4)
    assert sorted(os.listdir(whole)) == sorted(os.listdir(run))


def test_divided_weights_train_the_same(whole, tmp_path):
    run, words = tmp_path / "run", ("--config.parallel.model=2", *WORDS)
    four = {"JAX_NUM_CPU_DEVICES": "4"}
    ended(several([tiny_runs.train(run, *words)] * 2, more=four), [0, 0])
    np.testing.assert_allclose(losses(run), losses(whole), rtol=1e-4)
    assert sorted(os.listdir(whole)) == sorted(os.listdir(run))


SGD = ("--config.optimizer.name=sgd", "--config.learning_rate=0.01")


@pytest.mark.parametrize(
    ("count", "model", "words", "tolerance"),
    [
        (2, 2, ("--config.method.name=fine_tuning", *SGD), 1e-6),
        # Values that were trained: processors round them differently.
        (4, 4, ("--config.method.name=prefix", *SGD), 2e-6),
        (4, 2, ("--config.method.name=lora",), 1e-5),
        (2, 2, ("--config.method.name=ia3", *SGD), 1e-6),
        (2, 2, ("--config.method.name=prompt_encoder", *SGD), 1e-6),
    ],
)
def test_weights_over_processes_train_and_write_as_in_one(count, model, words, tolerance, tmp_path):
    few = ("--config.steps=4", "--config.evaluate_every=2", "--config.microbatches=1", *words)
    results = []
    # Twice: what the first one compiled must not break the second.
    for processes_, shards in ((1, 1), (count, model), (count, model)):
        out, divided = tmp_path / f"{processes_}.npz", f"--config.parallel.model={shards}"
        command = python(tmp_path, TUNES, str(out), tiny_runs.config_for(words), *few, divided)
        ended(several([command] * processes_), [0] * processes_)
        results.append(dict(np.load(out)))
    alone, _, found = results
    # All but the norms is divided.
    assert found.pop("held") < 1.05 * alone.pop("held") / model
    assert found.keys() == alone.keys() and len(found["losses"]) == 4
    for name, wanted in alone.items():
        most = tolerance * max(1, np.abs(wanted).max())
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=most, err_msg=name)


def test_weights_over_processes_are_saved_and_reported(tmp_path):
    alone, run = tmp_path / "alone", tmp_path / "run"
    words = ("--config.steps=60", "--config.evaluate_every=30", "--config.save_every=0", *SGD)
    words = (*words, "--config.method.name=fine_tuning")
    finish(tiny_runs.train(alone, *words))
    both = several([tiny_runs.train(run, "--config.parallel.model=2", *words)] * 2)
    wait(both[0], lambda: lines(run) >= 10)
    both[1].send_signal(signal.SIGTERM)
    command = tiny_runs.printed_command(ended(both, [75, 75])[0])
    ended(several([command] * 2), [0, 0])
    assert [start["outcome"] for start in starts(run)] == ["stopped", "finished"]
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
    for name in ("no prompt", "written prompt", "fine tuning"):
        assert report(run)[name]["accuracy"] == report(alone)[name]["accuracy"]
    typed = [tiny_runs.world().program, "evaluate", "--json", "--artifact", str(run)]
    kept = [*typed, "--calibrate=texts", f"--out={tmp_path / 'kept'}", "--config.parallel.model=2"]
    first, second = ended(several([kept] * 2), [0, 0])
    found = json.loads(first.splitlines()[-1])
    assert "accuracy" not in second and (tmp_path / "kept").exists()
    assert found["accuracy"] == report(run)["fine tuning"]["accuracy"]
    predicted = [predict(1, run, tmp_path), predict(2, run, tmp_path)]
    assert [each["label"] for each in predicted[1]] == [each["label"] for each in predicted[0]]
    for one, two in zip(*predicted, strict=True):
        assert two["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
    wanted = load_artifact(alone / workdir.ARTIFACT).tensors
    for name, tensor in load_artifact(run / workdir.ARTIFACT).tensors.items():
        np.testing.assert_allclose(tensor, wanted[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("number", "sent"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)]
)
def test_one_is_signalled_and_both_save_the_same_step_and_go_on(number, sent, whole, tmp_path):
    run = tmp_path / "run"
    both = several([tiny_runs.train(run, *WORDS)] * 2)
    wait(both[0], lambda: lines(run) >= 20)
    both[number].send_signal(sent)
    output = ended(both, [75, 75])[0]
    [saved] = map(int, os.listdir(run / workdir.CHECKPOINTS))
    assert len(losses(run)) == saved < STEPS, "steps were lost"
    command = tiny_runs.printed_command(output)
    assert f"going on after step {saved}" in ended(several([command] * 2), [0, 0])[0]
    assert [start["outcome"] for start in starts(run)] == ["stopped", "finished"]
    assert left_behind(run) == left_behind(whole)


def test_other_settings_are_refused_in_both(tmp_path):
    run = tmp_path / "run"
    for first, second in (("seed=0", "seed=1"), ("parallel.model=2", "parallel.model=1")):
        words = [f"--config.{word}" for word in (first, second)]
        commands = [tiny_runs.train(run, *WORDS, word) for word in words]
        for output in ended(several(commands), [2, 2]):
            assert "error: process 1 of 2 differs from process 0 in config" in output
        assert not (run / workdir.CONFIG).exists()


def test_pmap_is_refused(tmp_path):
    command = tiny_runs.train(tmp_path / "run", "--config.parallel=pmap")
    for output in ended(several([command] * 2), [2, 2]):
        assert "error: config.parallel.name is 'pmap': several processes need 'jit'" in output


def test_one_that_is_killed_ends_the_other(whole, tmp_path):
    run = tmp_path / "run"
    words = [*WORDS[:-1], "--config.save_every=5"]
    both = several([tiny_runs.train(run, *words)] * 2)
    wait(both[0], lambda: lines(run) >= 20)
    both[1].kill()
    assert both[0].wait(PATIENCE) not in (0, 75)
    both[0].communicate()
    ended(several([tiny_runs.train(run, *words)] * 2), [0, 0])
    assert_same_but_config(run, whole)


SLURM = {
    "SLURM_JOB_ID": str(random.randrange(4096)),  # jax makes the port of it
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "{}",
    "SLURM_LOCALID": "{}",
}


@pytest.mark.parametrize("named", [None, SLURM], ids=["our variables", "a Slurm step"])
def test_all_agree_on_the_values_of_the_first_bit_for_bit(named, tmp_path):
    ended(several([python(tmp_path, AGREES)] * 2, named), [0, 0])


def test_only_the_first_writes_the_report(whole):
    assert [*report(whole)] == ["no prompt", "written prompt", "soft prompt"]
    assert len(starts(whole)) == 1
