"""Memory: what the system says there is."""

import pytest

from prompt_tuning_jax import memory


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Empty files in place of the system's: limits of both versions, and what is free."""
    for name in ("new", "old", "meminfo"):
        (tmp_path / name).touch()
    monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "new"), str(tmp_path / "old")))
    monkeypatch.setattr(memory, "MEMINFO", str(tmp_path / "meminfo"))
    return tmp_path


def test_a_container_may_have_less_than_its_machine(files):
    machine = memory.host_bytes()
    assert machine > 1 << 28
    for name in ("new", "old"):
        for limit, expected in (("max", machine), (2**63 - 4096, machine), (1000, 1000)):
            (files / name).write_text(f"{limit}\n")
            assert memory.host_bytes() == expected
        (files / name).unlink()
    assert memory.host_bytes() == machine


def test_memory_in_use_is_not_free(files):
    assert memory.free_bytes() == memory.host_bytes()
    (files / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:     2 kB\nSwapFree: 1 kB\n")
    assert memory.free_bytes() == 2048
    (files / "new").write_text("1500\n")
    assert memory.free_bytes() == 1500


def test_a_cpu_has_no_memory_of_its_own():
    assert memory.device_bytes() == 0
