"""Names, folders and moments that nobody plans for."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import tiny_runs

from prompt_tuning_jax import api, main, workdir

ODD = "ein Ordner 文件 'zitat' $HOME %s {text} 🙂"


@pytest.fixture
def home(monkeypatch):
    with tiny_runs.at_home(monkeypatch):
        yield


def headlines(path):
    """Own data with enough records for a few steps."""
    rows = [json.dumps({"text": f"text {n}", "label": "ab"[n % 2]}) for n in range(60)]
    path.write_text("\n".join(rows), encoding="utf-8")


def test_spaces_quotes_and_letters_of_all_kinds_in_every_path(tmp_path, monkeypatch, capfd):
    place = tmp_path / ODD
    place.mkdir()
    tiny_models.write_folder(place / "model 模型")
    headlines(place / "data é.jsonl")
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(place / "cache ø"))
    config, run = place / "config ñ.py", place / "run ü"
    config.write_text((tiny_runs.ROOT / "configs/local.py").read_text())
    words = [
        *("train", "--config", str(config), "--workdir", str(run)),
        f"--config.task.files.train={place / 'data é.jsonl'}",
        f"--config.model.path={place / 'model 模型'}",
        *("--config.steps=4", "--config.batch_size=4", "--config.method.num_virtual_tokens=2"),
        "--config.task.template={soft} {text} :",
    ]
    assert main.run(words) == 0, capfd.readouterr().err
    capfd.readouterr()
    lines = place / "fragen ß.txt"
    lines.write_text("one text\n", encoding="utf-8")
    answers = place / "antworten.jsonl"
    asking = ["predict", "--artifact", str(run / "artifact"), str(lines), "--output", str(answers)]
    assert main.run(asking) == 0, capfd.readouterr().err
    assert json.loads(answers.read_text())["label"] in ("a", "b")


def test_links_to_the_workdir_and_the_model(home, tmp_path, capfd):
    """As a hub's cache has them: a folder of links to files that are named by their hash."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    snapshot.mkdir()
    tiny_models.write_folder(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    words = tiny_runs.training(tmp_path / "run", *tiny_runs.FEW, f"--config.model.path={snapshot}")
    assert main.run(words) == 0, capfd.readouterr().err
    assert (tmp_path / "disk" / workdir.REPORT).exists() and (tmp_path / "run").is_symlink()
    assert main.run(words) == 0, capfd.readouterr().err


def refuse(event, arguments, folder, number):
    """What an audit hook does for a folder that cannot be written."""
    flags = arguments[2] if event == "open" else os.O_WRONLY
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and str(arguments[0]).startswith(folder):
        raise OSError(number, os.strerror(number), str(arguments[0]))


READ_ONLY = """
import os, sys
sys.path.insert(0, {tests!r})
from test_odd_places import refuse
def hook(event, arguments):
    if event in ("open", "os.mkdir", "os.rename", "os.remove"):
        refuse(event, arguments, {folder!r}, {number})
sys.addaudithook(hook)
from prompt_tuning_jax.main import main
sys.argv = ["prompt-tuning", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC], ids=["read-only", "full"])
def test_a_home_that_cannot_be_written_costs_a_warning(tmp_path, number):
    """The cache: converted weights and compiled steps are made each time."""
    model = tiny_models.write_gguf(tmp_path / "model.gguf")
    folder = tmp_path / "home"
    folder.mkdir()
    script = READ_ONLY.format(
        tests=str(Path(__file__).parent), folder=str(folder), number=int(number)
    )
    headlines(tmp_path / "data.jsonl")
    words = [
        *("train", "--config", str(tiny_runs.ROOT / "configs/local.py")),
        *(
            "--workdir",
            str(tmp_path / "run"),
            f"--config.task.files.train={tmp_path / 'data.jsonl'}",
        ),
        *(f"--config.model.path={model}", "--config.steps=4", "--config.batch_size=4"),
        "--config.method.num_virtual_tokens=2",
        "--config.task.template={soft} {text} :",
    ]
    env = tiny_runs.environment(PROMPT_TUNING_CACHE=str(folder))
    path = os.pathsep.join([env["PYTHONPATH"], str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**env, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert f"is not kept in {folder}" in done.stderr
    assert os.listdir(folder) == []


@pytest.mark.parametrize("words", ["list models", "env", "predict --artifact {artifact}"])
def test_a_pipe_that_is_closed_early_is_quiet(words):
    """As `| head -1` does, with more lines than a pipe holds."""
    command = [str(tiny_runs.world().program), *words.split()]
    artifact = tiny_runs.artifact() if "predict" in words else ""
    command = [word.format(artifact=artifact) for word in command]
    with tiny_runs.start(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        errors = process.communicate("text\n" * 3, timeout=120)[1]
    assert process.returncode == main.FAILED
    assert "Traceback" not in errors and "Exception ignored" not in errors, errors


def test_ctrl_c_five_times_in_a_notebook(home, tmp_path):
    """A kernel gets KeyboardInterrupt where it is; cells go on, and so does the run."""
    handler = signal.getsignal(signal.SIGINT)
    lm, task, config = tiny_runs.tiny("--config.steps=30", "--config.save_every=1")
    whole = api.tune(lm, task, config, log=lambda line: None)

    def interrupt(line):
        # Twice at once: the first asks to stop, the second does not wait.
        if line.startswith("compiled in"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt), workdir.claim(tmp_path / "run") as run:
            api.tune(lm, task, config, run, interrupt)
        assert signal.getsignal(signal.SIGINT) is handler
    with workdir.claim(tmp_path / "run") as run:
        result = api.tune(lm, task, config, run, lambda line: None)
    assert result.finished and result.history == whole.history
