"""A run over several processes, usually one a machine: all step together, the first alone writes.

Each is the same command, with the three variables below in its environment. Every process reads all
data and hands over its rows of each batch (`step.place_rows`).
"""

import atexit
import contextlib
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@contextlib.contextmanager
def joined() -> Iterator[bool]:
    """Joins the other processes of a run, if the variables name any, and waits for them at the end.
    Before jax is asked for devices.

    Yields:
      whether this is the process that keeps what the run leaves.

    Raises:
      UserError: the variables do not say which process this is.
    """
    given = {name: os.environ.get(name, "") for name in (ADDRESS, COUNT, NUMBER)}
    if not any(given.values()):
        yield True
        return
    address, count, number = given.values()
    if not (address and count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UserError(
            f"{shown}: expected HOST:PORT of the first process, how many there are, and which of "
            "them this is, from 0; or none of the three for a process alone."
        )
    jax.distributed.initialize(address, int(count), int(number))
    try:
        yield int(number) == 0
        multihost_utils.sync_global_devices("end")
    except BaseException as error:
        # Else jax waits for the others, which wait for this one, and then aborts.
        atexit.register(_leave, {UserError: 2, KeyboardInterrupt: 130}.get(type(error), 1))
        raise


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def check(config, sources: Mapping[str, str]) -> None:
    """Raises a UserError, in all processes, for what several processes cannot do, or where they
    were not given the same config, model and data, by the fingerprints in `sources`."""
    if jax.process_count() == 1:
        return
    if not jax.distributed.is_initialized():
        raise UserError(
            f"there are {jax.process_count()} processes on these devices: set {ADDRESS}, {COUNT} "
            f"and {NUMBER} in each of them."
        )
    given = configs.to_json(config), *sorted(sources.items())
    digest = hashlib.sha256(repr(given).encode())
    found = multihost_utils.process_allgather(np.frombuffer(digest.digest(), np.uint8))
    different = np.flatnonzero((found != found[:1]).any(axis=1))
    if different.size:
        raise UserError(
            f"another config, model or data than in process 0 was given to process "
            f"{', '.join(map(str, different))} of {len(found)}: start all by the same command."
        )
    if config.parallel != "jit":
        raise UserError(f"config.parallel is '{config.parallel}': several processes need 'jit'.")


def agreed(tree: Any) -> Any:
    """The first process's tree of arrays and numbers, bit for bit, in every process."""
    if jax.process_count() == 1:
        return tree

    def send(leaf):
        array = np.asarray(leaf)
        # As bytes: added up as numbers, -0.0 would become 0.0 and float64 float32.
        sent = multihost_utils.broadcast_one_to_all(np.frombuffer(array.tobytes(), np.uint8))
        array = np.frombuffer(sent.tobytes(), array.dtype).reshape(array.shape)
        return array if hasattr(leaf, "dtype") else array.item()

    return jax.tree.map(send, tree)


def stops(asked: list[str], step: int) -> bool:
    """Whether the run is to stop after update `step`, as all processes agree; `asked` is from
    `stop_requested`."""
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
        asked.append("SIGTERM")
    return bool(asked)


@contextlib.contextmanager
def stop_requested(log: Callable) -> Iterator[list[str]]:
    """Yields a list that is no longer empty once Ctrl-C, SIGTERM or SIGHUP (a terminal that was
    closed, unless `nohup` has it ignored) asked the run to stop.

    A second Ctrl-C stops at once. Outside the main thread signals are left as they are. One of
    several processes is told of SIGTERM by jax, which has them agree on an update: see `stops`.
    """
    asked: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number, frame):
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)
        if number == signal.SIGHUP:
            _leave_terminal()
        log(f"{asked[-1]}: finishing this step, then saving")

    def tell(number, frame):
        if number == signal.SIGHUP:
            _leave_terminal()
        log(f"{signal.Signals(number).name}: all processes finish a step, then save")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGTERM)

    alone = {signal.SIGINT: ask, signal.SIGTERM: ask, signal.SIGHUP: ask}
    several = {signal.SIGINT: tell, signal.SIGHUP: tell}
    handlers = alone if jax.process_count() == 1 else several
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        del handlers[signal.SIGHUP]
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Sends what is said from here on nowhere, where it went to a terminal that is closed: writing
    there fails."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
