"""Memory: how much there is, from what the system says."""

import pytest

from prompt_tuning_jax.models import memory


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Empty ones in place of the system's: limits of both versions, and what is free."""
    for name in ("new", "old", "meminfo"):
        (tmp_path / name).touch()
    monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "new"), str(tmp_path / "old")))
    monkeypatch.setattr(memory, "MEMINFO", str(tmp_path / "meminfo"))
    return tmp_path


def test_a_container_has_less_than_its_machine(files):
    machine = memory.host()
    assert machine > 1 << 28
    for name in ("new", "old"):
        for limit, expected in (("max", machine), (2**63 - 4096, machine), (1000, 1000)):
            (files / name).write_text(f"{limit}\n")
            assert memory.host() == expected
        (files / name).unlink()
    assert memory.host() == machine


def test_what_others_use_is_not_available(files):
    assert memory.available() == memory.host()
    (files / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:     2 kB\nSwapFree: 1 kB\n")
    assert memory.available() == 2048
    (files / "new").write_text("1500\n")
    assert memory.available() == 1500


def test_a_cpu_has_no_memory_of_its_own():
    assert memory.device() == 0
