"""How much memory there is: on a device, in the machine, and free in it."""

import os
import re
from pathlib import Path

# Of a container, by both versions of Linux's control groups; 'max' or a huge number is no limit.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MEMINFO = "/proc/meminfo"


def device() -> int:
    """Bytes that a device of its own memory gives to jax; 0 where it shares the machine's."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0))


def host() -> int:
    """Bytes of the machine, or of the container that holds this process where that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (text.strip() for text in map(_read, LIMITS))
    return min([total, *(int(text) for text in limits if text.isdigit())])


def available() -> int:
    """Bytes of `host` that nobody uses, as far as the system tells: Linux does."""
    free = re.search(r"^MemAvailable: +(\d+) kB$", _read(MEMINFO), re.MULTILINE)
    return min(host(), 1024 * int(free[1])) if free else host()


def _read(path: str) -> str:
    return Path(path).read_text() if os.path.exists(path) else ""
