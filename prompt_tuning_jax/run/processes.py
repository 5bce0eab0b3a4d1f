"""A run over several processes, usually one a machine: they step together, the first one writes.

Each gets the same command. They find each other by the three variables below, or as jax does in a
Slurm step, under Open MPI, on a TPU slice, and with CLUSTER=k8s in Kubernetes. Each reads all data
and gives its devices their rows of each batch (`step.row_specs`). Where the weights lie in parts,
all run the model together, for a validation and the report too.
"""

import atexit
import contextlib
import hashlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError, reason_of

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
CLUSTER = "PROMPT_TUNING_CLUSTER"
SET_ALL = f"set {ADDRESS}, {COUNT} and {NUMBER} in each of them"
# Numbers of processes, in a Slurm step and under Open MPI; and the hosts of a TPU slice in GKE.
COUNTS, HOSTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"), "TPU_WORKER_HOSTNAMES"
ORTE = "OMPI_MCA_orte_hnp_uri"  # where a process of Open MPI 4 asks
PATIENCE = 300.0  # seconds that a process waits for the first one
CHIPS = ("/dev/accel0", "/dev/vfio/0")  # of a TPU


@contextlib.contextmanager
def join_processes() -> Iterator[bool]:
    """Joins the other processes of a run, if there are any, and waits for them at the end. Yields
    whether this is the process that writes. Call it before jax is asked for devices."""
    how = _how_to_join()
    if how is None:
        yield True
        return
    try:
        jax.distributed.initialize(**how)
    except Exception as error:  # of jax, kubernetes or mpi4py
        named = f" by {CLUSTER}={os.environ[CLUSTER]}" if os.environ.get(CLUSTER) else ""
        problem = f"this process cannot join the others{named} ({reason_of(error)})"
        raise UserError(f"{problem}: {SET_ALL}, and let all of them reach {ADDRESS}") from error
    total, own = jax.device_count(), jax.local_device_count()
    if total != own * jax.process_count():
        raise UserError(
            f"this process has {own} of {total} devices, and there are {jax.process_count()}"
            " processes: give each the same number of devices"
        )
    try:
        yield jax.process_index() == 0
        multihost_utils.sync_global_devices("end")
    except BaseException as error:
        # At the exit jax would wait for the others, which wait for this one, and then abort.
        atexit.register(_exit, {UserError: 2, KeyboardInterrupt: 130}.get(type(error), 1))
        raise


def _how_to_join() -> dict[str, Any] | None:
    """Returns arguments of `jax.distributed.initialize`, or None for a single process."""
    given = {name: os.environ.get(name, "") for name in (ADDRESS, COUNT, NUMBER)}
    address, count, number = given.values()
    if not any(given.values()):
        if named := os.environ.get(CLUSTER, ""):
            # jax finds Kubernetes by itself, and knows no name for it.
            return {} if named.lower() == "k8s" else {"cluster_detection_method": named}
        counts = (os.environ.get(name, "") for name in COUNTS)
        several = any(count.isdecimal() and int(count) > 1 for count in counts)
        if several and not os.environ.get(COUNTS[0]) and ORTE not in os.environ:
            return {"cluster_detection_method": "mpi4py"}  # Open MPI 5, which jax does not know
        hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get(HOSTS, ""))
        # Without this variable jax asks the TPU slice itself how many hosts it has.
        is_tpu = find_spec("libtpu") and any(map(os.path.exists, CHIPS))
        is_tpu = is_tpu and "TPU_SKIP_MDS_QUERY" not in os.environ
        several = several or os.environ.get("MEGASCALE_NUM_SLICES") not in (None, "", "1")
        is_slice = "," in hosts if hosts else is_tpu
        return {} if several or is_slice else None
    port = address.rpartition(":")[2]
    is_port = port.isdecimal() and 0 < int(port) < 1 << 16
    if not (is_port and count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UserError(
            f"{shown}: expected HOST:PORT of the first process, the number of processes, and the "
            "number of this one, from 0; for a single process set none of the three."
        )
    if int(number):
        _wait_for(address)
    how = {"coordinator_address": address, "num_processes": int(count), "process_id": int(number)}
    # Slurm and Open MPI say which GPU is whose. In a pod, jax would ask Kubernetes, and may fail.
    alone = {} if any(map(os.environ.get, COUNTS)) else {"cluster_detection_method": "deactivate"}
    return how | alone


def _wait_for(address: str) -> None:
    """Waits until the first process listens: without an answer jax would abort this one."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            if time.monotonic() > until or isinstance(error, ValueError):
                raise UserError(
                    f"{ADDRESS} is {address!r}, where nothing answers ({error}): start the first"
                    " process there, with a port that the others can reach"
                ) from error
        time.sleep(0.2)


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def check_processes(config, sources: Mapping[str, str]) -> None:
    """Raises a UserError in all processes if they cannot run together: all must have the same
    config, and the same model and data by the fingerprints in `sources`."""
    if jax.process_count() == 1:
        return
    if not jax.distributed.is_initialized():
        raise UserError(f"there are {jax.process_count()} processes on these devices: {SET_ALL}.")
    given = {"config": configs.to_json(config), **sources}
    digests = [hashlib.sha256(text.encode()).digest() for text in given.values()]
    found = multihost_utils.process_allgather(np.array([[*each] for each in digests], np.uint8))
    different = (found != found[:1]).any(axis=2)
    if different.any():
        who = ", ".join(map(str, np.flatnonzero(different.any(axis=1))))
        what = " and ".join(itertools.compress(given, different.any(axis=0)))
        raise UserError(
            f"process {who} of {len(found)} differs from process 0 in {what}: start all of them by"
            " the same command, with the same files."
        )
    if (name := config.parallel.name) != "jit":
        raise UserError(f"config.parallel.name is '{name}': several processes need 'jit'.")


def agreed(tree: Any) -> Any:
    """Returns the first process's tree of arrays and numbers, bit for bit, in every process."""
    if jax.process_count() == 1:
        return tree

    def send(leaf):
        array = np.asarray(leaf)
        # As bytes: jax adds what it broadcasts, so -0.0 would become 0.0, and float64 float32.
        sent = multihost_utils.broadcast_one_to_all(np.frombuffer(array.tobytes(), np.uint8))
        array = np.frombuffer(sent.tobytes(), array.dtype).reshape(array.shape)
        return array if hasattr(leaf, "dtype") else array.item()

    return jax.tree.map(send, tree)


def must_stop(asked: list[str], step: int) -> bool:
    """Returns whether the run stops after update `step`, as all processes agree; `asked` is from
    `stop_requested`."""
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
        asked.append("SIGTERM")
    return bool(asked)


@contextlib.contextmanager
def stop_requested(log: Callable) -> Iterator[list[str]]:
    """Yields a list that gets an entry once a signal asks the run to stop: Ctrl-C, SIGTERM, or a
    SIGHUP from a closed terminal, unless `nohup` ignores it. A second Ctrl-C stops at once. With
    several processes jax listens for SIGTERM and lets all agree on an update: see `must_stop`.
    Outside the main thread signals are left alone."""
    asked: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number, frame):
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)
        _leave_closed_terminal()
        log(f"{asked[-1]}: finishing this step, then saving")

    def ask_all(number, frame):
        _leave_closed_terminal()
        log(f"{signal.Signals(number).name}: all processes finish a step, then save")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGTERM)

    if jax.process_count() == 1:
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), ask)
    else:
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGHUP), ask_all)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        del handlers[signal.SIGHUP]
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_closed_terminal() -> None:
    """Discards stdout and stderr if their terminal is closed: writing to it would fail."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
