"""Reading GGUF: as the package that defines it, but never believing a count."""

import struct
import time

import gguf
import numpy as np
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models import gguf_file, spec, weights


def test_gguf_reader_agrees_with_the_package(tmp_path):
    path = tiny_models.write_gguf(tmp_path / "model.gguf")
    ours, theirs = gguf_file.read(path), gguf.GGUFReader(path)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == tuple(tensor.shape.tolist()[::-1])
        assert (found.start, found.size) == (tensor.data_offset, tensor.n_bytes)
    for key, value in ours.fields.items():
        assert list(np.atleast_1d(value)) == pytest.approx(
            list(np.atleast_1d(theirs.fields[key].contents()))
        )


HEADER = b"GGUF" + struct.pack("<I", 3)


def text(value):
    return struct.pack("<Q", len(value)) + value


HOSTILE = {
    "an array of 2**40 numbers": HEADER
    + struct.pack("<QQ", 0, 1)
    + text(b"a")
    + struct.pack("<IIQ", 9, 4, 2**40),
    "an array of 2**40 strings": HEADER
    + struct.pack("<QQ", 0, 1)
    + text(b"a")
    + struct.pack("<IIQ", 9, 8, 2**40),
    "an array of arrays": HEADER
    + struct.pack("<QQ", 0, 1)
    + text(b"a")
    + struct.pack("<IIQ", 9, 9, 3),
    "2**60 fields": HEADER + struct.pack("<QQ", 0, 2**60),
    "2**60 tensors": HEADER + struct.pack("<QQ", 2**60, 0),
    "a long key": HEADER + struct.pack("<QQQ", 0, 1, 2**63),
    "a type that is none": HEADER + struct.pack("<QQ", 0, 1) + text(b"a") + struct.pack("<I", 77),
    "a key twice": HEADER + struct.pack("<QQ", 0, 2) + 2 * (text(b"a") + struct.pack("<II", 4, 1)),
    "a key that is not UTF-8": HEADER
    + struct.pack("<QQ", 0, 1)
    + text(b"\xff")
    + struct.pack("<II", 4, 1),
    "an alignment of 3": HEADER
    + struct.pack("<QQ", 0, 1)
    + text(b"general.alignment")
    + struct.pack("<II", 4, 3),
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "the other byte order": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "a tensor of 2**62 numbers": HEADER
    + struct.pack("<QQ", 1, 0)
    + text(b"a")
    + struct.pack("<IQIQ", 1, 2**62, 0, 0),
    "a tensor of 2**31 dimensions": HEADER
    + struct.pack("<QQ", 1, 0)
    + text(b"a")
    + struct.pack("<IQQQ", 2**31, 1, 1, 1),
    "a tensor of unknown type": HEADER
    + struct.pack("<QQ", 1, 0)
    + text(b"a")
    + struct.pack("<IQIQ", 1, 1, 999, 0),
    "a tensor in half a block": HEADER
    + struct.pack("<QQ", 1, 0)
    + text(b"a")
    + struct.pack("<IQIQ", 1, 33, 8, 0),
    "a tensor twice": HEADER
    + struct.pack("<QQ", 2, 0)
    + 2 * (text(b"a") + struct.pack("<IQIQ", 1, 1, 0, 0))
    + bytes(64),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_gguf_headers(tmp_path, what):
    path = tmp_path / "model.gguf"
    path.write_bytes(HOSTILE[what])
    with pytest.raises(UserError, match=r"model.gguf is "):
        weights.read(str(path), "float32")


def test_mutated_gguf_headers(tmp_path):
    """Whatever a few wrong bytes make of a header, it is read or refused, and at once."""
    whole = tiny_models.write_gguf(tmp_path / "model.gguf").read_bytes()
    path, rng = tmp_path / "mutated.gguf", np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, 9000, rng.integers(1, 4)):
            data[place] = rng.choice([0, 1, 0x7F, 0xFF, rng.integers(256)])
        path.write_bytes(data)
        begun = time.perf_counter()
        try:
            file = gguf_file.read(path)
            spec.from_gguf(file.fields, True, None, "it")
        except UserError:
            refused += 1
        assert time.perf_counter() - begun < 1
    assert refused > 100


@given(st.data())
def test_every_cut_is_refused(tmp_path_factory, data):
    whole = tiny_models.write_gguf(tmp_path_factory.mktemp("cut") / "model.gguf")
    size = whole.stat().st_size
    near = st.integers(0, 64)
    kept = data.draw(st.one_of(near, near.map(lambda n: size - 1 - n), st.integers(0, size - 1)))
    cut = whole.with_name("cut")
    cut.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cut short|damaged|not a|declares"):
        gguf_file.read(cut)
