"""A run that is killed or stopped again and again ends bit for bit as one that was left alone."""

import random
import signal

import numpy as np
import pytest
import tiny_runs
from test_methods import ROWS, settings
from whole_runs import (
    assert_same_but_config,
    finish,
    kill_in_a_save,
    kill_when,
    left_behind,
    lines,
    losses,
    starts,
    stop,
)

STEPS = 200  # of 8 records: ten times all of them, in two microbatches
KILLS = 20
SIGNALS = 10


def command(run, row="soft_prompt", *more):
    method = [f"--config.method.{name}={value}" for name, value in settings(row).items()]
    return tiny_runs.train(run, f"--config.steps={STEPS}", "--config.save_every=5", *method, *more)


@pytest.mark.parametrize(
    ("row", "kills"), [("soft_prompt", KILLS), *((row, 3) for row in ROWS if row != "soft_prompt")]
)
def test_killed_it_ends_as_if_never_stopped(row, kills, tmp_path):
    draw = random.Random(f"{row} {kills}")
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(command(whole, row))
    for number in range(kills):
        if number % 2:
            kill_in_a_save(command(run, row), run, draw)
        else:
            enough = lines(run) + draw.randrange(2, 12)
            kill_when(
                command(run, row), lambda enough=enough: lines(run) >= enough, draw.uniform(0, 0.05)
            )
    assert lines(run) < STEPS, "the run was over before it was killed so often"
    assert "going on after step" in finish(command(run, row))
    assert left_behind(run) == left_behind(whole)


def test_asked_to_stop_it_saves_within_a_step_and_five_seconds(tmp_path):
    draw, whole, run = random.Random(0), tmp_path / "whole", tmp_path / "run"
    # It saves only when it is asked to stop and at the end.
    words = command(run, "soft_prompt", "--config.save_every=0")
    finish(command(whole))
    for _ in range(SIGNALS):
        stop(words, run, draw.randrange(1, 15), draw.choice([signal.SIGTERM, signal.SIGINT]), 5.0)
    finish(words)
    outcomes = [start["outcome"] for start in starts(run)]
    assert outcomes == ["stopped"] * SIGNALS + ["finished"]
    assert_same_but_config(run, whole)


def test_on_another_number_of_devices_it_goes_on_and_warns(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(command(whole))
    stop(command(run), run, 30, signal.SIGTERM)
    output = finish(command(run), tiny_runs.environment(JAX_NUM_CPU_DEVICES="4", NPROC="16"))
    assert "going on after step" in output
    assert "the run was saved with devices: 1, and goes on with devices: 4; " in output
    assert len(losses(whole)) == len(losses(run)) == STEPS
    np.testing.assert_allclose(losses(whole), losses(run), rtol=1e-4)
