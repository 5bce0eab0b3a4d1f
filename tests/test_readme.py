"""Every command of the README is run, in its order, with a tiny model in place of SmolLM2."""

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs

from prompt_tuning_jax.cli import main
from prompt_tuning_jax.models.files import find

ROOT = Path(__file__).resolve().parents[1]
# Fewer steps and records than the README's, which changes no command.
SMALL = (
    "steps=3",
    "task.train=train[:64]",
    "task.validation=validation[:16]",
    "task.test=test[:16]",
)
NEEDS_CONFIG = ("train", "evaluate", "import", "compare")
# Every row is run in tests/cli/test_compare.py.
FEW_ROWS = (
    "compare.rows=('no prompt', 'soft prompt')",
    "compare.seeds=(0,)",
    "compare.calibrate=texts",
    "compare.learning_rates=('soft prompt: 0.03',)",
)


README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands():
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if not line.startswith("source ")]


def made(line):
    """What a `make` line runs after the installation."""
    words = shlex.split(line, comments=True)
    stamps = ("created", "quickstart-installed", "test-installed", "installed")
    old = [f"{folder}/{stamp}" for folder in (".venv", ".venv-reference") for stamp in stamps]
    flags = [word for stamp in old for word in ("-o", stamp)]
    # Under another make its flags and level are in the environment, and change what is printed.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    shown = subprocess.run(
        [*words, "-n", *flags], cwd=ROOT, check=True, capture_output=True, text=True, env=alone
    )
    return shown.stdout.splitlines()[-1]


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A clone's folder as far as commands see it, the embedded model a tiny one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    rows = [f"text {number},{'ab'[number % 2]}" for number in range(120)]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,stars", *rows]), encoding="utf-8")
    monkeypatch.setattr(find, "find_packaged", lambda name: tiny_runs.world().model)
    with tiny_runs.at_home(monkeypatch):
        yield tmp_path


def type_(line, monkeypatch):
    """Types a line of the README: its exit status."""
    said, _, line = line.rpartition(" | ")
    words = shlex.split(line)
    words = words[[Path(word).name for word in words].index("prompt-tuning") + 1 :]
    if words[0] in NEEDS_CONFIG and "--config" in words:
        # In front: what the README itself gives counts.
        few = FEW_ROWS if words[0] == "compare" else ()
        words[1:1] = [
            f"--config.{each}" for each in (*SMALL, *few) if "files" not in line or "[" not in each
        ]
    text = "".join(f"{word}\n" for word in shlex.split(said)[1:])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return main.run(words)


def test_every_command(home, monkeypatch, capsys):
    lines = commands()
    typed = [made(line) if line == "make quickstart" else line for line in lines]
    typed = [line for line in typed if not line.startswith("make ")]
    assert len(typed) >= 9
    for line in typed:
        assert type_(line, monkeypatch) == 0, (line, capsys.readouterr().err)
    assert not (home / "runs/mine").exists()
    run = home / "runs/quickstart"
    report = (run / "report.json").read_text(encoding="utf-8")
    for name in ("no prompt", "written prompt", "soft prompt"):
        assert name in report
    [table] = re.findall(r"`runs/quickstart`, holds\n\n(.*?)\n\n", README, re.DOTALL)
    named = {name for row in table.splitlines()[2:] for name in re.findall("`([^`]+)`", row)}
    for name in named:
        assert any((folder / name).exists() for folder in (run, run / "artifact")), name


def test_every_make_line_has_a_target():
    lines = [line for line in commands() if line.startswith("make ")]
    assert "make quickstart" in lines and "make lint" in lines
    for line in lines:
        assert made(line)


def test_its_python(home, capsys):
    [python] = blocks("python")
    (home / "snippet.py").write_text(python.replace("steps=50", "steps=3"), encoding="utf-8")
    runpy.run_path("snippet.py")
    assert (home / "my_prompt/manifest.json").is_file()
    assert "'accuracy'" in capsys.readouterr().out
