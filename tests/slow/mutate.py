"""Reads thousands of mutations of a tiny model's files, in a process of its own.

    python tests/slow/mutate.py KIND FOLDER COUNT

Every mutation is read, or refused with a UserError, within a second of processor time and 200 MB
beside what the process had before: more is a MemoryError, or ends the process. Prints how many were
read, how many were refused, and the longest time.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import tiny_models

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files.gguf import read_gguf
from prompt_tuning_jax.models.files.tokenizer import read_tokenizer
from prompt_tuning_jax.models.files.weights import read_weights

MOST_SECONDS, MOST_BYTES = 1.0, 200 << 20
BYTES = (0, 1, 0x7F, 0x80, 0xFF)
NUMBERS = (-1, 0, 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**64, 10**400, 0.5, -1e308, 1e308)
OTHERS = (None, True, "", "x", "\ud800", "../x", "a\0b", "x" * 10_000, [], {}, [[]], {"a": 1})
NAMES = {
    "gguf": "model.gguf",
    "safetensors": "model.safetensors",
    "config": "config.json",
    "tokenizer": "tokenizer.json",
}


def by_bytes(data, header, rng):
    """Changes, removes or doubles a few bytes of the header, or cuts the end."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(min(header, len(data)) or 1))
        kind = rng.integers(30)
        if kind < 27:
            data[place : place + 1] = bytes([rng.choice([*BYTES, rng.integers(256)])])
        elif kind == 27:
            del data[place : place + int(rng.integers(1, 9))]
        elif kind == 28:
            data[place:place] = data[place : place + int(rng.integers(1, 64))]
        else:
            del data[len(data) - int(rng.integers(1, 64)) :]
    return bytes(data)


def places(value, path=()):
    """Yields every path into a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in inside:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def by_values(whole, rng):
    """Replaces, removes, repeats or wraps one or two values of a JSON object."""
    content = json.loads(whole)
    for _ in range(rng.integers(1, 3)):
        found = list(places(content))
        *parents, last = found[rng.integers(len(found))]
        node = content
        for parent in parents:
            node = node[parent]
        kind = rng.integers(8)
        if kind == 0:
            del node[last]
        elif kind == 1:
            node[last] = [node[last]] * int(rng.integers(1, 9))
        elif kind == 2:
            node[last] = {"a": node[last]}
        else:
            values = NUMBERS if kind < 6 else OTHERS
            node[last] = values[rng.integers(len(values))]
    return json.dumps(content).encode()


def mutations(kind, path, count):
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    if kind == "gguf":
        header = read_gguf(path).tensors
        end = min(tensor.start for tensor in header.values())
    elif kind == "safetensors":
        end = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(count):
        if kind in ("gguf", "safetensors"):
            yield by_bytes(whole, end, rng)
        else:
            yield by_values(whole, rng)


def limit():
    """Limits the memory from here on, as address space: lazy imports are done by now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, resource.RLIM_INFINITY))


def main(kind, folder, count):
    model = tiny_models.write_folder(folder / "model")
    path = model / NAMES[kind]
    if kind == "gguf":
        path = model = tiny_models.write_gguf(folder / NAMES[kind])
    whole = path.read_bytes()
    read, refused, longest = 0, 0, 0.0
    for number, data in enumerate((whole, *mutations(kind, path, count))):
        if number == 1:
            limit()
        path.write_bytes(data)
        began = time.process_time()
        try:
            read_weights(str(model), "float32")
            words = read_tokenizer(str(model))
            words.decode(words.encode("the hello 字 12\n")[0])
            read += 1
        except UserError as error:
            refused += 1
            if len(str(error)) > 2000 or not str(error).replace("\n", "").isprintable():
                raise AssertionError(f"number {number}: {str(error)[:3000]!r}") from error
        # The first one imports transformers.
        longest = max(longest, time.process_time() - began) if number else 0.0
        if longest > MOST_SECONDS:
            raise AssertionError(f"number {number} took {longest:.1f} s")
    print(json.dumps([read, refused, longest]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
