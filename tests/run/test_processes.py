"""A run over several processes: refusals and signals; `slow/test_processes.py` has real ones."""

import os
import pty
import signal
import subprocess
import sys

import jax
import pytest
import tiny_runs

from prompt_tuning_jax.cli import main
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run import processes


@pytest.mark.parametrize(
    "given",
    [
        ("127.0.0.1:1", "", ""),
        ("", "2", "0"),
        ("127.0.0.1:1", "2", "2"),
        ("127.0.0.1:1", "two", "0"),
        ("localhost", "2", "0"),
    ],
)
def test_variables_that_do_not_name_a_process_are_refused(given, tmp_path, monkeypatch, capsys):
    names = processes.ADDRESS, processes.COUNT, processes.NUMBER
    for name, value in zip(names, given, strict=True):
        monkeypatch.setenv(name, value)
    assert main.run(tiny_runs.training(tmp_path / "run")) == 2
    refusal = capsys.readouterr().err
    assert f"JAX_NUM_PROCESSES='{given[1]}', JAX_PROCESS_ID='{given[2]}': expected" in refusal
    assert not (tmp_path / "run").exists()


OURS = {processes.ADDRESS: "h:1", processes.COUNT: "1", processes.NUMBER: "0"}
JOINED = {"coordinator_address": "h:1", "num_processes": 1, "process_id": 0}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_ID": "7"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2", processes.ORTE: "1.0;tcp://10.0.0.1:1"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {"cluster_detection_method": "mpi4py"}),
        ({"TPU_PROCESS_ADDRESSES": "a:8471,b:8471"}, {}),
        (OURS, JOINED | {"cluster_detection_method": "deactivate"}),
        (OURS | {"SLURM_STEP_NUM_TASKS": "4"}, JOINED),
        ({"TPU_WORKER_HOSTNAMES": "host-0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "host-0", "MEGASCALE_NUM_SLICES": "2"}, {}),
        ({"PROMPT_TUNING_CLUSTER": "K8s"}, {}),
        ({"PROMPT_TUNING_CLUSTER": "mpi4py"}, {"cluster_detection_method": "mpi4py"}),
    ],
)
def test_a_cluster_is_joined_where_it_has_several_processes(given, wanted, monkeypatch, tmp_path):
    for name in (*processes.COUNTS, processes.HOSTS, "TPU_PROCESS_ADDRESSES", processes.CLUSTER):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    joined = []

    def initialize(**how):
        joined.append(how)
        raise RuntimeError("no answer\nin five minutes")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    status = main.run(["train", "--config", "nothing.py", "--workdir", str(tmp_path)])
    assert status == 2 and joined == []  # not before the config is read
    if wanted is None:
        with processes.join_processes() as first:
            assert first
    else:
        said = "".join(f" by {name}={value}" for name, value in given.items() if "CLUSTER" in name)
        said = f"join the others{said} .RuntimeError: no answer.: set JAX_"
        with pytest.raises(UserError, match=said):
            with processes.join_processes():
                pass
    assert joined == ([] if wanted is None else [wanted])


def test_a_first_process_that_does_not_answer_is_named(tmp_path, monkeypatch, capsys):
    given = "127.0.0.1:1", "2", "1"
    for name, value in zip(
        (processes.ADDRESS, processes.COUNT, processes.NUMBER), given, strict=True
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    assert main.run(tiny_runs.training(tmp_path / "run")) == 2
    assert "'127.0.0.1:1', where nothing answers (" in capsys.readouterr().err


def test_processes_that_jax_found_by_itself_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="there are 4 processes on these devices: set JAX_COORD"):
        processes.check_processes(None, {})


STOPS_AND_TELLS = """
import fcntl, sys, termios, time
from prompt_tuning_jax.run.processes import stop_requested

fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the terminal is this process's

def say(line):
    print(line, flush=True)

with stop_requested(say) as asked:
    say("begun")
    while not asked:
        time.sleep(0.01)
    say("saved")
with open(sys.argv[1], "w") as file:
    file.write(f"{asked}")
"""


def test_a_closed_terminal_asks_to_stop_and_gets_no_output(tmp_path):
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS_AND_TELLS, str(tmp_path / "asked")],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env=tiny_runs.environment(),
    )
    os.close(terminal)
    said = b""
    while not said.endswith(b"\n"):
        said += os.read(ours, 99)
    os.close(ours)
    assert (said, process.wait(60)) == (b"begun\r\n", 0)
    assert (tmp_path / "asked").read_text() == "['SIGHUP']"


def test_under_nohup_a_closed_terminal_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with processes.stop_requested(print) as asked:
            signal.raise_signal(signal.SIGHUP)
        assert asked == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
