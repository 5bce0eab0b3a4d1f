"""Ten thousand mutations of each file of a model: every one is read, or refused in a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 10_000


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "config", "tokenizer"])
def test_mutated_model_files(tmp_path, kind):
    """At most a second and 200 MB each, see `mutate`."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mutate.py")), kind, tmp_path, str(COUNT)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RUST_BACKTRACE": "0"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    read, refused, _ = json.loads(done.stdout)
    assert read + refused == COUNT + 1  # the whole file first
    assert read and refused > COUNT / 2
