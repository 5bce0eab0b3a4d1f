"""The batches of a run on several machines: no record is lost or repeated, wherever it starts.

Simulated hosts share the eight devices of the tests, and each sees the rows on its own devices.
"""

import functools
import random
import types
from collections import Counter

import jax
import numpy as np
import pytest
from grain import experimental

from prompt_tuning_jax.data.batch import Batch, batch_indices, make_order, plan_shapes
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.prepare import Data
from prompt_tuning_jax.step import Parts, compile_step

RECORDS, BATCH, STEPS = 19, 8, 6  # more than two epochs
FRONT, FIRST = [5, 6], 1000  # tokens that all records share, and the one that names record 0


def example(number):
    """A record as tokens; one of them names it."""
    text = [7] * random.Random(number).randrange(9)
    trunk = np.array([*FRONT, *text, FIRST + number, 8], np.int32)
    return Example(trunk, (np.array([9], np.int32),), 0, len(FRONT), 0)


def begin():
    """The data of a run in a process that has just started."""
    train = [example(number) for number in range(RECORDS)]
    order = make_order(RECORDS, seed=3)
    planned = np.stack([batch_indices(order, step, BATCH) for step in range(STEPS)])
    shapes = plan_shapes(train, planned, len(FRONT), row_multiple=jax.device_count())
    return Data(train, [], len(FRONT), planned, shapes, ())


def named(tokens):
    """How often each record occurs in rows of tokens."""
    return Counter((tokens[tokens >= FIRST] - FIRST).tolist())


PLACE = compile_step(Parts(*[None] * 3), "jit").place_batch


class Seen:
    """The rows that one of several hosts sees: an iterator that `grain` restores to a step.

    Setting its state is a new start.
    """

    def __init__(self, host, hosts):
        each = jax.device_count() // hosts
        self._mine = set(jax.devices()[host * each : (host + 1) * each])
        self.set_state({"step": 0})

    def __iter__(self):
        return self

    def get_state(self):
        return {"step": self._step}

    def set_state(self, state):
        self._data, self._step = begin(), state["step"]

    def __next__(self):
        if self._step == STEPS:
            raise StopIteration
        placed = PLACE(self._data.batch(self._step))
        self._step += 1
        return [
            np.concatenate([s.data for s in array.addressable_shards if s.device in self._mine])
            for array in placed[1:]
        ]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_every_host_resumes_at_every_step(hosts):
    for host in range(hosts):
        begun = types.SimpleNamespace(__iter__=functools.partial(Seen, host, hosts))
        experimental.assert_equal_output_after_checkpoint(begun)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_parts_of_all_hosts_are_the_batch(hosts):
    data = begin()
    parts = zip(*(Seen(host, hosts) for host in range(hosts)), strict=True)
    for step, seen in enumerate(parts):
        for name, whole, *rows in zip(Batch._fields[1:], data.batch(step)[1:], *seen, strict=True):
            np.testing.assert_array_equal(np.concatenate(rows), whole, err_msg=name)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_each_record_is_read_once_an_epoch(hosts):
    read = []
    for seen in zip(*(Seen(host, hosts) for host in range(hosts)), strict=True):
        found = sum((named(rows[0]) for rows in seen), Counter())
        assert found.total() == BATCH
        read.append(found)
    # The order inside a batch does not matter: an epoch that ends inside a batch shares it.
    for epoch in range(1, STEPS * BATCH // RECORDS + 1):
        whole, rest = divmod(epoch * RECORDS, BATCH)
        so_far = sum(read[:whole], Counter())
        begun = read[whole] if rest else Counter()
        assert all(so_far[n] <= epoch <= so_far[n] + begun[n] for n in range(RECORDS))
    assert len({tuple(sorted(found.elements())) for found in read}) == STEPS
