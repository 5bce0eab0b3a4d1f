"""Runs of the program in processes of their own: started, killed, and what they leave behind."""

import functools
import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import tiny_runs

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.cli.machine import load_model
from prompt_tuning_jax.data.task import make_task
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.optimizers import make_optimizer
from prompt_tuning_jax.run import artifact
from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.run.card import CARD
from prompt_tuning_jax.run.checkpoint import Checkpoints
from prompt_tuning_jax.run.log import read_metrics
from prompt_tuning_jax.step import Parts, init_state

PATIENCE = 300.0  # seconds that a busy machine may take for what takes one or two
# The process kills itself inside a save, before the call that TEST_KILL_AT counts to. Orbax makes a
# folder, opens seven files in it and renames it.
CALLS = 9  # in a save
KILLS_ITSELF = """
import builtins, os, signal

left = int(os.environ["TEST_KILL_AT"])


def counted(call):
    def wrapped(path, *rest, **more):
        global left
        if ".orbax-checkpoint-tmp" in str(path):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(path, *rest, **more)

    return wrapped


os.mkdir, os.rename = counted(os.mkdir), counted(os.rename)
builtins.open = counted(builtins.open)
"""


def finish(command, env=None):
    """Runs a command to its end and returns what it printed."""
    process = tiny_runs.start(command, env=env or tiny_runs.environment())
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output
    return output


def wait(process, happened):
    """Waits until something has happened, while the process runs."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.002)


def lines(run):
    """Counts the lines of metrics that a run has written."""
    path = run / workdir.METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def losses(run):
    found = read_metrics(run / workdir.METRICS)
    return [line["train/loss"] for line in found if "train/loss" in line]


def kill_when(command, happened, seconds):
    """Starts a command and kills it some seconds after something has happened."""
    process = tiny_runs.start(command)
    wait(process, happened)
    time.sleep(seconds)
    process.kill()
    process.communicate()


@functools.cache
def _shim() -> Path:
    """A folder that goes in front of the path."""
    folder = tiny_runs.world().cache.with_name("kills-itself")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(KILLS_ITSELF)
    return folder


def kill_in_a_save(command, run, draw):
    """Starts a command that kills itself inside its first to third save."""
    place, saves = draw.randrange(1, CALLS + 1), draw.randrange(0, 3)
    env = tiny_runs.environment(_shim(), TEST_KILL_AT=str(CALLS * saves + place))
    process = tiny_runs.start(command, env=env)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == -signal.SIGKILL, output
    partial = list((run / workdir.CHECKPOINTS).glob("*.orbax-checkpoint-tmp"))
    assert len(partial) == (place > 1), "it was not killed inside a save"


def stop(command, run, more, number, within=PATIENCE):
    """Asks a run to stop after some more lines, and returns what it printed."""
    process, enough = tiny_runs.start(command), lines(run) + more
    wait(process, lambda: lines(run) >= enough)
    process.send_signal(number)
    output = process.communicate(timeout=within)[0]
    assert process.returncode == 75, output
    assert f"{number.name}: finishing this step, then saving" in output
    saved = max(map(int, os.listdir(run / workdir.CHECKPOINTS)))
    assert saved == read_metrics(run / workdir.METRICS)[-1]["step"], "steps were lost"
    return output


def starts(run):
    """Returns the entries of a run's `run.json`."""
    return json.loads((run / workdir.RUN).read_text())["starts"]


def left_behind(run):
    """Returns all that a run leaves, without times: bytes and numbers by name."""
    config = configs.load(str(run / workdir.CONFIG))
    lm, task = load_model(config), make_task(config.task)
    method = METHODS[config.method.name].make(config.method)
    parts = Parts(lm.module, method, make_optimizer(config), config.seed, config.microbatches)
    trainable, _ = method.init(jax.random.key(config.seed), lm, task)
    kept = Checkpoints(run / workdir.CHECKPOINTS).restore((init_state(parts, trainable), trainable))
    assert kept is not None and (kept.step, kept.warning) == (config.steps, "")
    state = {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(kept.state)
    }
    assert any("optimizer_state" in name for name in state)
    report = json.loads((run / workdir.REPORT).read_text())
    for row in report["rows"]:
        del row["seconds"]
    made = run / workdir.ARTIFACT
    return {
        "state": state,
        "best": {name: kept.extra[name] for name in ("best_loss", "best_step")},
        "metrics": (run / workdir.METRICS).read_text(),
        "config": (run / workdir.CONFIG).read_text(),
        "manifest": (made / artifact.MANIFEST).read_text(),
        "tensors": (made / artifact.TENSORS).read_bytes(),
        "card": (made / CARD).read_text(),
        "report": report,
    }


def assert_same_but_config(run, whole):
    """Checks that two runs whose configs differ left the same, but for where the config is."""
    left, expected = left_behind(run), left_behind(whole)
    for name in ("config", "manifest"):
        assert left.pop(name) != expected.pop(name)
    assert left == expected
