"""Long runs: nothing is compiled again, memory stays, and every line is where it belongs."""

import subprocess
from pathlib import Path

import jax
import pytest
import tiny_runs

from prompt_tuning_jax import train
from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.run.log import read_metrics

STEPS = 20_000
LINES = 1_000_000
GROWTH = 20 * 2**20  # bytes
COMPILED = "/jax/core/compile/backend_compile_duration"


def resident(process="self"):
    """Bytes of a process that are in memory."""
    text = Path(f"/proc/{process}/status").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("VmRSS")]
    return 1024 * int(line.split()[1])


@pytest.fixture
def compilations():
    """The seconds of every compilation in this process."""
    found = []

    def listen(event, seconds, **_):
        if event == COMPILED:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_many_steps(tmp_path, monkeypatch, compilations):
    seen = {}

    def log(line):
        if line.startswith("step ") and "/" in line:
            step = int(line.split()[1].split("/")[0])
            seen[step] = (resident(), len(compilations))

    words = ("steps", STEPS), ("log_every", 10), ("evaluate_every", 500), ("save_every", 500)
    overrides = [f"--config.{name}={value}" for name, value in words]
    with tiny_runs.at_home(monkeypatch), workdir.claim(tmp_path / "run") as run:
        result = train.tune(*tiny_runs.tiny(*overrides), run, log)
        lines = read_metrics(run / workdir.METRICS)
    assert result.finished and compilations
    # The first validation and save are behind it.
    settled = min(step for step in seen if step > STEPS // 10)
    bytes_before, compiled_before = seen[settled]
    bytes_after, compiled_after = seen[STEPS]
    assert compiled_after == compiled_before
    assert bytes_after - bytes_before < GROWTH
    trained = [line["step"] for line in lines if "train/loss" in line]
    validated = [line["step"] for line in lines if "validation/loss" in line]
    assert trained == list(range(10, STEPS + 1, 10))
    assert validated == list(range(500, STEPS + 1, 500))


def test_many_lines(tmp_path):
    words = "banks funds films album votes party goals match phone games".split()
    asked = tmp_path / "lines.txt"
    with asked.open("w") as file:
        for number in range(LINES):
            file.write(f"{words[number % 10]} and {words[number // 10 % 10]} {number % 997}\n")
    command = [str(tiny_runs.world().program), "predict", "--artifact", str(tiny_runs.artifact())]
    # So many lines are worth compiling for.
    env = tiny_runs.environment(XLA_FLAGS="")
    process = tiny_runs.start([*command, str(asked)], stderr=subprocess.PIPE, env=env)
    count, sizes = 0, []
    for line in process.stdout:
        assert line.startswith('{"')
        count += 1
        if count in (LINES // 10, LINES - 5000):
            sizes.append(resident(process.pid))
    assert process.wait(60) == 0, process.stderr.read()
    assert count == LINES
    # What the allocator holds goes up and down by about as much as this.
    assert sizes[1] - sizes[0] < 2 * GROWTH
