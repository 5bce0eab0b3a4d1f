"""`make test-versions`: which stacks it runs, which it leaves out, and that it says so."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "cat", "cp", "dirname", "mkdir", "rm", "sh")
# Notes what it is asked for; as pytest it fails if the test says so.
INTERPRETER = """#!/bin/sh
case "$1 $2" in
  "--version ") echo "Python {version}.1";;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;
  "-m pip") echo "$0 $*" >> installed.txt;;
  "-m pytest") shift 2; echo "tested {version} with $*"; exit {status};;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Runs the script where these versions alone are found: status and lines."""
    for name in (".ci", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))

    def run(statuses, *arguments):
        for version, (place, status) in statuses.items():
            python = tmp_path / place
            python.parent.mkdir(parents=True, exist_ok=True)
            python.write_text(INTERPRETER.format(version=version, status=status))
            python.chmod(0o755)
        shown = subprocess.run(
            [".ci/test-versions", *arguments],
            cwd=tmp_path,
            env={"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert shown.stderr == ""
        return shown.returncode, shown.stdout.splitlines()

    return run


def test_each_stack_with_an_interpreter_is_tested_and_the_others_are_named(run, tmp_path):
    status, lines = run({"3.12": ("bin/python3.12", 0)}, "tests/test_step.py", "-x")
    assert status == 0
    assert lines == [
        "== newest: Python 3.12.1, requirements/newest.txt",
        "tested 3.12 with tests/test_step.py -x",
        "== colab: Python 3.12.1, requirements/colab.txt",
        "tested 3.12 with tests/test_step.py -x",
        "python311: left out, there is no Python 3.11",
        "newest: passed on Python 3.12.1",
        "colab: passed on Python 3.12.1",
    ]
    installed = (tmp_path / "installed.txt").read_text()
    assert installed.count(" install ") == 4 and "-c requirements/colab.txt" in installed


def test_a_stack_that_fails_is_named(run):
    status, lines = run({"3.11": ("bin/python3.11", 1), "3.13": ("bin/python3.13", 0)})
    assert status == 1
    assert lines[-3:] == [
        "python311: FAILED on Python 3.11.1",
        "newest: passed on Python 3.13.1",
        "colab: passed on Python 3.13.1",
    ]
