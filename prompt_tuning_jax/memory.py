"""The memory that there is."""

import os
from pathlib import Path

import jax


def host() -> int:
    """Bytes of the machine, or of the container that holds this process where that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(total, int(text)) if text.isdigit() else total


def device() -> int | None:
    """Bytes that a device of its own memory lets a process have; None where it shares the host's,
    as a CPU does."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0)) or None
