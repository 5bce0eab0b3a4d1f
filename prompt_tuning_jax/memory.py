"""The memory of a device and of the machine, how much is free, and what to do with too little."""

import contextlib
import os
import re
from pathlib import Path

from prompt_tuning_jax.errors import RunError

# Files with the memory limit of a container, in both versions of Linux's control groups. 'max' or a
# huge number in them means that there is no limit.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MEMINFO = "/proc/meminfo"


def device_bytes() -> int:
    """Returns the memory that a device gives to jax; 0 if it uses that of the machine."""
    import jax

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


@contextlib.contextmanager
def enough_memory(config):
    """Turns XLA's error about too little memory into a RunError that says what to type."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        less = less_memory(config)
        raise RunError(f"the device has too little memory for a step: {less}.") from error


def less_memory(config, devices: int = 0, temporaries: bool = True) -> str:
    """Says what to type for less memory of each of so many devices, the cheapest change first; by
    default of those that are here, unless they share the host's. `temporaries`: whether it helps
    to have fewer of these."""
    import jax

    from prompt_tuning_jax.methods import METHODS

    devices = devices or (jax.device_count() if device_bytes() else 1)
    changes = []
    if config.parallel.model < devices and config.parallel.name == "jit":
        changes.append(f"--config.parallel.model={devices} or a divisor (the weights in parts)")
    axes = config.parallel.axes
    if config.method.name == "lora" and config.parallel.model > 1 and "r" not in axes:
        changes.append(f'--config.parallel.axes="{(*axes, "r")}" (LoRA and its optimizer in parts)')
    if temporaries and config.microbatches * devices < config.batch_size:
        parts = min(2 * config.microbatches, config.batch_size)
        changes.append(f"--config.microbatches={parts} (about half of the temporaries)")
    if temporaries and config.model.remat != "full":
        changes.append("--config.model.remat=full (slower, far fewer temporaries)")
    if config.model.dtype not in ("bfloat16", "float16"):
        changes.append("--config.model.dtype=bfloat16 (half the weights if they are float32)")
    trains_weights = getattr(METHODS[config.method.name], "TRAINS_WEIGHTS", False)
    if not config.model.quantize and not trains_weights:
        changes.append("--config.model.quantize=int8 (the frozen weights in half of bfloat16)")
    return f"try {' or '.join(changes)}" if changes else "try a smaller model"


def _read(path: str) -> str:
    return Path(path).read_text() if os.path.exists(path) else ""
