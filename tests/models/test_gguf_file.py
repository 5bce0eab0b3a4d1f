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
from prompt_tuning_jax.models import spec
from prompt_tuning_jax.models.files import gguf as gguf_file
from prompt_tuning_jax.models.files import weights


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


def field(kind, *parts):
    """The counts of a file of one field 'a', and that field."""
    return struct.pack("<QQ", 0, 1) + text(b"a") + struct.pack("<I", kind) + b"".join(parts)


def tensor(*dimensions, kind=0, name=b"a"):
    """The entry of a tensor whose data begin at once."""
    sizes = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    return text(name) + struct.pack("<I", len(dimensions)) + sizes + struct.pack("<IQ", kind, 0)


def tensors(*entries):
    return struct.pack("<QQ", len(entries), 0) + b"".join(entries) + bytes(256)


HOSTILE = [
    (field(9, struct.pack("<IQ", 4, 2**40)), f"an array of {2**40} values"),
    (field(9, struct.pack("<IQ", 8, 2**40)), f"an array of {2**40} values"),
    (field(9, struct.pack("<IQ", 9, 3)), "an array of type 9"),
    (field(8, struct.pack("<Q", 2**63)), f"a string of {2**63} bytes"),
    (field(8, struct.pack("<Q", 9)), "it declares 9 more bytes where 0 are left"),
    (field(8, text(b"\xff")), "a string that is not UTF-8"),
    (field(77), "a value of type 77"),
    (struct.pack("<QQ", 0, 2**60), "it declares 8 more bytes where 0 are left"),
    (struct.pack("<QQ", 2**60, 0), f"{2**60} tensors"),
    (struct.pack("<QQ", 0, 2) + 2 * (text(b"a") + struct.pack("<II", 4, 1)), "the key 'a' twice"),
    (
        struct.pack("<QQ", 0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 3),
        "an alignment of 3",
    ),
    (tensors(tensor(2**62)), "the tensor 'a' ends at byte 18446744073709551"),
    (tensors(tensor(1, 1, 1, 1, 1)), "5 dimensions for the tensor 'a'"),
    (tensors(tensor(1, kind=999)), "type 999 for the tensor 'a'"),
    (tensors(tensor(33, kind=8)), r"shape \(33,\) for the tensor 'a', in blocks of 32"),
    (tensors(tensor()), r"shape \(\) for the tensor 'a'"),
    (tensors(tensor(1), tensor(1)), "the tensor 'a' twice"),
    (tensors(tensor(9), tensor(9, name=b"b")), "the tensor 'b' over another one"),
    (tensors(tensor(9), tensor(1, name=b"b"), tensor(9, name=b"c")), "the tensor '.' over another"),
    (tensors(tensor(2**32, 2**32)), "the tensor 'a' ends at byte 7378697629483820"),
    (tensors(tensor(1, kind=4)), "type 4 for the tensor 'a'"),
    (struct.pack("<QQ", 1, 0) + struct.pack("<Q", 2**63), f"it declares|{2**63}|1 tensors"),
    (struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**63), f"a string of {2**63} bytes"),
    (struct.pack("<QQ", 0, 1) + text(b"\xff"), "a string that is not UTF-8"),
    (field(9, struct.pack("<IQ", 10, 2**19)), f"an array of {2**19} values"),
    (
        struct.pack("<QQ", 0, 1) + text(b"general.alignment") + struct.pack("<I", 8) + text(b"32"),
        "an alignment of '32'",
    ),
    (
        struct.pack("<QQ", 0, 2) + 2 * (text(b"\n" * 9999) + struct.pack("<II", 4, 1)),
        r"the key '\\n.{0,60}… twice",
    ),
]


@pytest.mark.parametrize(("rest", "message"), HOSTILE, ids=[what for _, what in HOSTILE])
def test_hostile_headers(tmp_path, rest, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(HEADER + rest)
    with pytest.raises(UserError, match=rf"model\.gguf is .*{message}"):
        gguf_file.read(path)


@pytest.mark.parametrize("order", ["<IQQ", ">IQQ"])
def test_other_versions_and_byte_orders(tmp_path, order):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack(order, 1 if order[0] == "<" else 3, 0, 0))
    with pytest.raises(UserError, match=r"is GGUF of version \d+; supported: 2 and 3, little"):
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
