"""Odd names, links, a home that cannot be written, and repeated Ctrl-C in a notebook."""

import contextlib
import gc
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
import tiny_models
import tiny_runs
from test_own_data import write_csv

from prompt_tuning_jax import api, train
from prompt_tuning_jax.cli import main
from prompt_tuning_jax.cli import train as cli_train
from prompt_tuning_jax.run import artifact
from prompt_tuning_jax.run import folder as workdir

ODD = "Läufe 跑 'q' $HOME & {x}"
COLUMNS = "('text=Head Line','label=section')"
pytestmark = pytest.mark.usefixtures("home")


def cached_model(folder: Path) -> Path:
    """A model as Hugging Face's cache has it: names that are links to files named by their hash."""
    whole = tiny_models.write_folder(folder / "blobs")
    snapshot = folder / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(whole.iterdir())):
        path = path.rename(whole / f"{number:064}")
        names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        (snapshot / names[number]).symlink_to(os.path.relpath(path, snapshot))
    return snapshot


def words(run, config, model, data):
    """Words that train a few steps on a CSV."""
    settings = (f"files.train={data}", f"columns={COLUMNS}", "name=files", "labels=()")
    splits = ("train=train", "validation=validation", "test=test")
    words = [f"--config.task.{word}" for word in (*settings, *splits)]
    command = ["train", "--config", str(config), "--workdir", str(run), "--config.prompts=()"]
    return [*command, *tiny_runs.FEW, f"--config.model.path={model}", *words]


def test_odd_names_and_links_train_what_plain_ones_train(home, capsys, monkeypatch):
    plain = tiny_models.write_folder(home / "model")
    write_csv(home / "news.csv")
    config = tiny_runs.world().config
    assert main.run(words("run", config, plain, "news.csv")) == 0
    odd = home / ODD
    for name in ("there", "place"):
        (odd / name).mkdir(parents=True)
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(odd / "cache"))
    model = cached_model(odd / "hub")
    (odd / "place" / "news.csv").symlink_to(home / "news.csv")
    (odd / "run").symlink_to(odd / "there", target_is_directory=True)
    (odd / "tiny ü.py").symlink_to(config)
    capsys.readouterr()
    command = words(odd / "run", odd / "tiny ü.py", model, odd / "place" / "news.csv")
    assert main.run(command) == 0
    *_, following = capsys.readouterr().out.splitlines()
    assert (odd / "run").is_symlink()
    tensors = f"{workdir.ARTIFACT}/{artifact.TENSORS}"
    assert (odd / "there" / tensors).read_bytes() == (home / "run" / tensors).read_bytes()
    # The printed words are the ones that a shell takes apart so.
    [*_, kept] = shlex.split(following)
    assert kept == str(odd / "run" / workdir.ARTIFACT)
    (odd / "asked 问.txt").write_text("banks, and 7\n")
    answers = odd / "answers é.jsonl"
    asked = ["predict", "--artifact", kept, "--output", str(answers), str(odd / "asked 问.txt")]
    assert main.run(asked) == 0
    assert json.loads(answers.read_text())["label"] in ("big money", "loud music")
    assert main.run(["evaluate", "--artifact", kept, "--json"]) == 0
    # Once more: nothing is left to train.
    capsys.readouterr()
    assert main.run(command) == 0
    assert "going on after step 12" in capsys.readouterr().out


def test_a_home_folder_that_no_shell_has_read_is_the_users(home, monkeypatch, capsys):
    folders = []
    monkeypatch.setenv("HOME", str(home / "me"))
    monkeypatch.setattr(
        cli_train, "train_and_report", lambda _, folder, *more: folders.append(folder)
    )
    main.run(["train", "--config", str(tiny_runs.world().config), "--workdir=~/run"])
    assert folders == [str(home / "me" / "run")]
    (home / "me" / "kept").mkdir(parents=True)
    assert main.run(["evaluate", "--prompt", "x", "--out=~/kept"]) == 2
    assert f"'{home}/me/kept' exists" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_one_warning(home):
    environment = tiny_runs.environment(HOME="/proc/home", PROMPT_TUNING_CACHE="")
    del environment["JAX_COMPILATION_CACHE_DIR"]
    command = tiny_runs.train(home / "run", "--config.steps=2", "--config.prompts=()")
    done = tiny_runs.start(command, env=environment, stderr=subprocess.PIPE)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0 and "step 2/2" in out, err
    [warning] = tiny_runs.said(err)
    assert "set PROMPT_TUNING_CACHE" in warning
    assert "the cache folder '/proc/home/.cache/prompt_tuning_jax' cannot be written" in err


def interrupted(folder, moment, monkeypatch):
    """Tunes in a claimed folder, with Ctrl-C twice at a moment: (module, name, call)."""
    module, name, number = moment
    count, call, log = 0, getattr(module, name), []

    def press(*given, **more):
        nonlocal count
        count += 1
        if count == number:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                # In a thread of orbax: two that the main one has not heard of are one.
                until = time.monotonic() + 30
                while not any("SIGINT" in line for line in log) and time.monotonic() < until:
                    time.sleep(0.01)
        return call(*given, **more)

    gc.disable()  # jax's callback of it swallows what is raised there: `main._interrupt_again`
    try:
        with monkeypatch.context() as patch, workdir.claim(folder) as run:
            patch.setattr(module, name, press)
            return train.tune(*tiny_runs.tiny(), run, log.append)
    finally:
        gc.enable()


# Reading the data, compiling, a step, a validation, a save.
MOMENTS = (
    (train, "prepare", 1),
    (train, "executables", 1),
    (train.RunLog, "add", 6),
    (train, "validate", 1),
    (os, "rename", 1),
)


def test_ctrl_c_again_and_again_in_a_notebook(home, plain, monkeypatch):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hooks = sys.excepthook, sys.unraisablehook
    for moment in MOMENTS:
        # While a thread saves, the main one may be in a finalizer, where the second Ctrl-C is lost:
        # the first one stops the run then.
        lost = contextlib.suppress if moment[0] is os else pytest.raises
        with lost(KeyboardInterrupt):
            assert not interrupted(home / "run", moment, monkeypatch).finished
        assert {number: signal.getsignal(number) for number in handlers} == handlers, moment
        assert (sys.excepthook, sys.unraisablehook) == hooks, moment
        assert not (home / "run" / ".lock").exists()
    with workdir.claim(home / "run") as run:
        result, _ = tiny_runs.tune(folder=run)
    assert result.finished and result.history == plain.history
    assert tiny_runs.vectors(result).tobytes() == tiny_runs.vectors(plain).tobytes()
    assert jax.numpy.ones(2).sum() == 2


def test_ctrl_c_while_the_report_is_made_has_all_that_was_trained(home, capsys, monkeypatch):
    words = [*tiny_runs.training(home / "run"), *tiny_runs.FEW]
    monkeypatch.setattr(sys, "argv", ["prompt-tuning", *words])
    for place in (api, "save"), (cli_train, "score_rows"), (cli_train, "draw_curves"):
        with monkeypatch.context() as patch:
            patch.setattr(*place, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            assert main.run(words) == 75
        shown = capsys.readouterr()
        assert tiny_runs.printed_command(shown.out) == ["prompt-tuning", *words] and not shown.err
    assert main.run(words) == 0
    assert "going on after step 12" in capsys.readouterr().out
    starts = json.loads((home / "run" / workdir.RUN).read_text())["starts"]
    assert [start["outcome"] for start in starts] == [*3 * ["stopped"], "finished"]
