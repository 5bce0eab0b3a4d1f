"""Times two sides in turn, measures peak memory in a separate process, and prints results."""

import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LOAD_AT_START = os.getloadavg()[0]
QUIET = 0.5  # load average of the last minute
REST = 0.2  # seconds before a timed call: the threads of the other side may still be spinning


def use_cores(threads: int) -> None:
    """Binds the process to `threads` cores, before a library starts its threads.

    XLA on a CPU uses every core that the process may run on, and has no other setting.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # A GPU's memory is shared by both sides: XLA would take three quarters of it at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def warn_if_busy() -> None:
    """Warns if something else was running: it slows torch down, whose threads wait for each other
    in a loop."""
    if LOAD_AT_START > QUIET:
        load = f"the load average is {LOAD_AT_START:.1f}"
        print(f"{load}: if other work is going on, ratios do not hold", file=sys.stderr)


def seconds(call: Callable[[], Any]) -> float:
    """Returns the wall time of one call, which must return only when its work is done."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def interleave(
    sides: Mapping[str, Callable[[int], Any]], rounds: Sequence[int], warmup: Sequence[int] = ()
) -> dict[str, list[float]]:
    """Returns the seconds of each round of each side; in every round the sides take turns.

    A side is called with the number of the round. Warm-up rounds are not timed. What slows the
    machine for a while slows both sides, so their ratio is steadier than their times.
    """
    for number in warmup:
        for call in sides.values():
            call(number)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in rounds:
        for name, call in sides.items():
            time.sleep(REST)
            times[name].append(seconds(functools.partial(call, number)))
    return times


def peak_host_bytes() -> int:
    """Returns the peak of this process's memory.

    `ru_maxrss` also counts what the parent held when it started this process, so the kernel's
    high-water mark comes first, if there is one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_own_process(arguments: Sequence[str]) -> dict[str, Any]:
    """Runs this script again with `arguments`; returns the JSON of the last line it prints."""
    command = [sys.executable, os.path.abspath(sys.argv[0]), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def matrix_rate(size: int, dtype: str, repeats: int = 5) -> float:
    """Returns the best FLOP/s of jax on one plain product of two `[size, size]` matrices."""
    import jax

    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (size, size), dtype) for key in keys)
    product = jax.jit(lambda a, b: a @ b)
    product(left, right).block_until_ready()
    best = min(seconds(lambda: product(left, right).block_until_ready()) for _ in range(repeats))
    return 2 * size**3 / best


def machine() -> dict[str, Any]:
    """Returns the hardware and the versions of a measurement."""
    import importlib.metadata as metadata
    import platform

    import jax

    found = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count()}
    found["load_at_start"] = LOAD_AT_START
    found["python"] = platform.python_version()
    for package in ("jax", "flax", "torch", "transformers", "peft"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def show(title: str, result: Mapping[str, Any], as_json: bool) -> None:
    """Prints a flat result: one JSON object on a line, or a table of two columns."""
    if as_json:
        print(json.dumps(result), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "value", title=title)
    for name, value in result.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
