"""A run over two processes: its rows are shared out, both stop together, and both go on."""

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


def two(commands, named=None, more=()):
    """Starts two processes of one run, which find each other by our variables, or by those that a
    cluster sets: `named`, with {} for the number of a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ours = {processes.ADDRESS: address, processes.COUNT: "2", processes.NUMBER: "{}"}
    environments = [
        tiny_runs.environment(
            **{
                name: value.format(number)
                for name, value in {**(named or ours), **dict(more)}.items()
            }
        )
        for number in "01"
    ]
    return [
        tiny_runs.start(command, env=environment)
        for command, environment in zip(commands, environments, strict=True)
    ]


def ended(both, statuses):
    """What both print, once they have ended by these statuses."""
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == statuses, outputs
    return outputs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two processes that nothing stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    ended(two([tiny_runs.train(run, *WORDS)] * 2), [0, 0])
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
    ended(two([tiny_runs.train(run, *words)] * 2, more=four), [0, 0])
    np.testing.assert_allclose(losses(run), losses(whole), rtol=1e-4)
    assert sorted(os.listdir(whole)) == sorted(os.listdir(run))


@pytest.mark.parametrize(
    ("number", "sent"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)]
)
def test_one_is_signalled_and_both_save_the_same_step_and_go_on(number, sent, whole, tmp_path):
    run = tmp_path / "run"
    both = two([tiny_runs.train(run, *WORDS)] * 2)
    wait(both[0], lambda: lines(run) >= 20)
    both[number].send_signal(sent)
    output = ended(both, [75, 75])[0]
    [saved] = map(int, os.listdir(run / workdir.CHECKPOINTS))
    assert len(losses(run)) == saved < STEPS, "steps were lost"
    command = tiny_runs.printed_command(output)
    assert f"going on after step {saved}" in ended(two([command] * 2), [0, 0])[0]
    assert [start["outcome"] for start in starts(run)] == ["stopped", "finished"]
    assert left_behind(run) == left_behind(whole)


def test_other_settings_are_refused_in_both(tmp_path):
    run = tmp_path / "run"
    commands = [tiny_runs.train(run, *WORDS, f"--config.seed={seed}") for seed in (0, 1)]
    for output in ended(two(commands), [2, 2]):
        assert "error: process 1 of 2 has another config, model or data than process 0" in output
    assert not (run / workdir.CONFIG).exists()


def test_pmap_is_refused(tmp_path):
    command = tiny_runs.train(tmp_path / "run", "--config.parallel=pmap")
    for output in ended(two([command] * 2), [2, 2]):
        assert "error: config.parallel is 'pmap': several processes need 'jit'" in output


def test_one_that_is_killed_ends_the_other(whole, tmp_path):
    run = tmp_path / "run"
    words = [*WORDS[:-1], "--config.save_every=5"]
    both = two([tiny_runs.train(run, *words)] * 2)
    wait(both[0], lambda: lines(run) >= 20)
    both[1].kill()
    assert both[0].wait(PATIENCE) not in (0, 75)
    both[0].communicate()
    ended(two([tiny_runs.train(run, *words)] * 2), [0, 0])
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
    path = tmp_path / "agrees.py"
    path.write_text(AGREES)
    python = tiny_runs.world().program.read_text().splitlines()[0].removeprefix("#!")
    ended(two([[python, str(path)]] * 2, named), [0, 0])


def test_only_the_first_writes_the_report(whole):
    rows = json.loads((whole / workdir.REPORT).read_text())["rows"]
    assert [row["name"] for row in rows] == ["no prompt", "written prompt", "soft prompt"]
    assert len(starts(whole)) == 1
