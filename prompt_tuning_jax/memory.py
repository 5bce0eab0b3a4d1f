"""How many bytes of memory a device and the machine have, and how many are free."""

import os
import re
from pathlib import Path

import jax

# Files with the memory limit of a container, in both versions of Linux's control groups. 'max' or a
# huge number in them means that there is no limit.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MEMINFO = "/proc/meminfo"


def device_bytes() -> int:
    """Returns the memory that a device gives to jax; 0 if it uses that of the machine."""
    return int((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0))


def host_bytes() -> int:
    """Returns the memory of the machine, or of the container of this process if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (text.strip() for text in map(_read, LIMITS))
    return min([total, *(int(text) for text in limits if text.isdigit())])


def free_bytes() -> int:
    """Returns the part of `host_bytes` that is free, or all of it if the system does not say."""
    free = re.search(r"^MemAvailable: +(\d+) kB$", _read(MEMINFO), re.MULTILINE)
    return min(host_bytes(), 1024 * int(free[1])) if free else host_bytes()


def step_bytes(executable) -> int:
    """Returns the bytes that a compiled step needs on a device."""
    analysis = executable.memory_analysis()
    # The new state takes the place of the old one: aliased bytes count once.
    alive = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return alive + analysis.temp_size_in_bytes - analysis.alias_size_in_bytes


def _read(path: str) -> str:
    return Path(path).read_text() if os.path.exists(path) else ""
