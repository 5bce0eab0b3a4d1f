"""A run over several processes: what is refused. `tests/slow/test_processes.py` has real ones."""

import jax
import pytest
import tiny_runs

from prompt_tuning_jax import main, processes
from prompt_tuning_jax.errors import UserError


@pytest.mark.parametrize(
    "given",
    [
        ("127.0.0.1:1", "", ""),
        ("127.0.0.1:1", "2", ""),
        ("", "2", "0"),
        ("127.0.0.1:1", "2", "2"),
        ("127.0.0.1:1", "two", "0"),
        ("127.0.0.1:1", "2", "-1"),
    ],
)
def test_which_process_this_is_has_to_be_clear(given, tmp_path, monkeypatch, capsys):
    names = processes.ADDRESS, processes.COUNT, processes.NUMBER
    for name, value in zip(names, given, strict=True):
        monkeypatch.setenv(name, value)
    assert main.run(tiny_runs.training(tmp_path / "run")) == 2
    refusal = capsys.readouterr().err
    assert f"JAX_NUM_PROCESSES='{given[1]}', JAX_PROCESS_ID='{given[2]}': expected" in refusal
    assert not (tmp_path / "run").exists()


def test_processes_that_jax_found_by_itself_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="there are 4 processes on these devices: set JAX_COORD"):
        processes.check(None, "", [])


def test_a_process_alone_agrees_with_itself(monkeypatch):
    for name in (processes.ADDRESS, processes.COUNT, processes.NUMBER):
        monkeypatch.delenv(name, raising=False)
    with processes.joined() as first:
        assert first
    tree = object()
    assert processes.agreed(tree) is tree
