"""A run that is killed or stopped again and again ends bit for bit as one that was left alone."""

import functools
import json
import os
import random
import signal
import time

import numpy as np
import pytest
import tiny_runs
from test_methods import ROWS, settings
from test_train import CALLS, KILLS_ITSELF, PATIENCE, finish, left_behind, starts, wait, wrote

from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.run.log import read_metrics

STEPS = 200  # of 8 records: ten times all of them, in two microbatches
KILLS = 20
SIGNALS = 10


def command(run, row="soft_prompt", *more):
    method = [f"--config.method.{name}={value}" for name, value in settings(row).items()]
    return tiny_runs.train(run, f"--config.steps={STEPS}", "--config.save_every=5", *method, *more)


def lines(run):
    path = run / workdir.METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_between(run, words, draw):
    """Kills a run a moment after some more of its steps."""
    process = tiny_runs.start(words)
    wait(process, functools.partial(wrote, run, lines(run) + draw.randrange(2, 12)))
    time.sleep(draw.uniform(0, 0.05))
    process.kill()
    process.communicate()


def kill_in_a_save(run, words, draw, shim):
    """A run kills itself before one of the calls of its first to third save."""
    place, saves = draw.randrange(1, CALLS + 1), draw.randrange(0, 3)
    env = tiny_runs.environment(shim, TEST_KILL_AT=str(CALLS * saves + place))
    process = tiny_runs.start(words, env=env)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == -signal.SIGKILL, output


@pytest.fixture
def shim(tmp_path):
    folder = tmp_path / "shim"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(KILLS_ITSELF)
    return folder


def killed(run, row, kills, shim):
    """Runs to the end through so many kills, every second one inside a save."""
    draw = random.Random(f"{row} {kills}")
    for number in range(kills):
        if number % 2:
            kill_in_a_save(run, command(run, row), draw, shim)
        else:
            kill_between(run, command(run, row), draw)
    assert lines(run) < STEPS, "the run was over before it was killed so often"
    assert "going on after step" in finish(command(run, row))


@pytest.mark.parametrize(
    ("row", "kills"), [("soft_prompt", KILLS), *((row, 3) for row in ROWS if row != "soft_prompt")]
)
def test_killed_it_ends_as_if_never_stopped(row, kills, tmp_path, shim):
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(command(whole, row))
    killed(run, row, kills, shim)
    assert left_behind(run) == left_behind(whole)


def test_asked_to_stop_it_saves_within_a_step_and_five_seconds(tmp_path):
    draw, whole, run = random.Random(0), tmp_path / "whole", tmp_path / "run"
    # Saved when asked to stop and at the end, and never else.
    words = command(run, "soft_prompt", "--config.save_every=0")
    finish(command(whole))
    for _ in range(SIGNALS):
        process = tiny_runs.start(words)
        wait(process, functools.partial(wrote, run, lines(run) + draw.randrange(1, 15)))
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(draw.choice([signal.SIGTERM, signal.SIGINT]))
        asked = time.monotonic()
        output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 75 and time.monotonic() - asked < 5.0, output
        saved = max(map(int, os.listdir(run / workdir.CHECKPOINTS)))
        steps = [line["step"] for line in read_metrics(run / workdir.METRICS)]
        assert saved == steps[-1] < STEPS, "steps were lost"
    finish(words)
    outcomes = [start["outcome"] for start in starts(run)]
    assert outcomes == ["stopped"] * SIGNALS + ["finished"]
    left, expected = left_behind(run), left_behind(whole)
    for name in ("config", "manifest"):
        assert left.pop(name) != expected.pop(name)
    assert left == expected


def test_on_another_number_of_devices_it_goes_on_and_says_what_it_cannot_promise(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(command(whole))
    process = tiny_runs.start(command(run))
    wait(process, functools.partial(wrote, run, 30))
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    env = tiny_runs.environment(JAX_NUM_CPU_DEVICES="4", NPROC="16")
    process = tiny_runs.start(command(run), env=env)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0 and "going on after step" in output, output
    warning = "the run was saved with devices: 1, and goes on with devices: 4; "
    assert warning in output, output
    losses = [
        [
            line["train/loss"]
            for line in read_metrics(folder / workdir.METRICS)
            if "train/loss" in line
        ]
        for folder in (whole, run)
    ]
    assert len(losses[0]) == len(losses[1]) == STEPS
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert json.loads((run / workdir.REPORT).read_text())["rows"]
