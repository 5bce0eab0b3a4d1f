"""Reading GGUF and safetensors: a header that does not describe its file is refused."""

import json
import struct
import time

import gguf
import numpy as np
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files.gguf import read_gguf
from prompt_tuning_jax.models.files.gguf_spec import spec_from_gguf
from prompt_tuning_jax.safetensors_file import read_header


def test_the_gguf_reader_agrees_with_the_package(gguf_path):
    ours, theirs = read_gguf(gguf_path), gguf.GGUFReader(gguf_path)
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


def fields(*entries):
    """A file of no tensor and these pairs of a key and a value with its type in front."""
    counts = struct.pack("<QQ", 0, len(entries))
    return counts + b"".join(text(key) + value for key, value in entries)


def field(kind, *parts):
    """A file of one field 'a'."""
    return fields((b"a", struct.pack("<I", kind) + b"".join(parts)))


def tensor(*dimensions, kind=0, name=b"a"):
    """The entry of a tensor whose data begin at once."""
    sizes = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    return text(name) + struct.pack("<I", len(dimensions)) + sizes + struct.pack("<IQ", kind, 0)


def tensors(*entries):
    return struct.pack("<QQ", len(entries), 0) + b"".join(entries) + bytes(256)


ONE = struct.pack("<II", 4, 1)
HOSTILE = [
    (field(9, struct.pack("<IQ", 4, 2**40)), f"an array of {2**40} values"),
    (field(9, struct.pack("<IQ", 8, 2**40)), f"an array of {2**40} values"),
    (field(9, struct.pack("<IQ", 10, 2**19)), f"it declares {2**22} more bytes and 0 are left"),
    (field(9, struct.pack("<IQ", 8, 2**19)), "it declares 8 more bytes and 0 are left"),
    (field(9, struct.pack("<IQ", 9, 3)), "a value of type 9"),
    (field(8, struct.pack("<Q", 2**63)), f"a string of {2**63} bytes"),
    (field(8, struct.pack("<Q", 9)), "it declares 9 more bytes and 0 are left"),
    (field(8, text(b"\xff")), "a string that is not UTF-8"),
    (field(77), "a value of type 77"),
    (struct.pack("<QQ", 0, 2**60), "it declares 8 more bytes and 0 are left"),
    (struct.pack("<QQ", 2**60, 0), "it declares 8 more bytes and 0 are left"),
    (struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**63), f"a string of {2**63} bytes"),
    (struct.pack("<QQ", 1, 0) + struct.pack("<Q", 2**63), f"a string of {2**63} bytes"),
    (fields((b"\xff", b"")), "a string that is not UTF-8"),
    (fields((b"a", ONE), (b"a", ONE)), "the key 'a' twice"),
    (fields((b"\n" * 9999, ONE), (b"\n" * 9999, ONE)), r"the key '\\n.{0,60}… twice"),
    (fields((b"general.alignment", struct.pack("<II", 4, 3))), "an alignment of 3"),
    (fields((b"general.alignment", struct.pack("<I", 8) + text(b"32"))), "an alignment of '32'"),
    (tensors(tensor(2**62)), "the tensor 'a' up to byte 18446744073709551"),
    (tensors(tensor(2**32, 2**32)), "the tensor 'a' up to byte 7378697629483820"),
    (tensors(tensor(1, 1, 1, 1, 1)), "5 dimensions for the tensor 'a'"),
    (tensors(tensor(1, kind=999)), "type 999 for the tensor 'a'"),
    (tensors(tensor(1, kind=4)), "type 4 for the tensor 'a'"),
    (tensors(tensor(33, kind=8)), r"shape \(33,\) for the tensor 'a', in blocks of 32"),
    (tensors(tensor()), r"shape \(\) for the tensor 'a'"),
    (tensors(tensor(8, 0)), r"shape \(0, 8\) for the tensor 'a'"),
    (tensors(tensor(1), tensor(1)), "the tensor 'a' twice"),
    (tensors(tensor(9), tensor(9, name=b"b")), "the tensor 'b' over another one"),
    (tensors(tensor(9), tensor(1, name=b"b"), tensor(9, name=b"c")), "the tensor '.' over another"),
]


@pytest.mark.parametrize(("rest", "message"), HOSTILE, ids=[what for _, what in HOSTILE])
def test_hostile_gguf_headers_are_refused(tmp_path, rest, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(HEADER + rest)
    with pytest.raises(UserError, match=rf"model\.gguf is .*{message}"):
        read_gguf(path)


@pytest.mark.parametrize("parts", [2, 3])
def test_one_file_of_a_split_gguf_is_refused(tmp_path, parts):
    path = tmp_path / "model-00001-of-00003.gguf"
    path.write_bytes(HEADER + fields((b"split.count", struct.pack("<IH", 2, parts))))
    with pytest.raises(UserError, match=rf"is one of {parts} files of a split model: join them"):
        read_gguf(path)
    path.write_bytes(HEADER + fields((b"split.count", struct.pack("<IH", 2, 1))))
    assert read_gguf(path).fields == {"split.count": 1}


@pytest.mark.parametrize("start", [struct.pack("<IQQ", 1, 0, 0), struct.pack(">IQQ", 3, 0, 0)])
def test_other_versions_and_byte_orders_of_gguf_are_refused(tmp_path, start):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + start)
    with pytest.raises(UserError, match=r"is GGUF of version \d+, expected little-endian 2 or 3"):
        read_gguf(path)


def test_mutated_gguf_headers_are_read_or_refused_at_once(tmp_path, gguf_path):
    whole = gguf_path.read_bytes()
    path, rng = tmp_path / "mutated.gguf", np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, 9000, rng.integers(1, 4)):
            data[place] = rng.choice([0, 1, 0x7F, 0xFF, rng.integers(256)])
        path.write_bytes(data)
        begun = time.perf_counter()
        try:
            spec_from_gguf(read_gguf(path).fields, True, None, "it")
        except UserError:
            refused += 1
        assert time.perf_counter() - begun < 1
    assert refused > 100


def safetensors(table, body=b""):
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + body


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        struct.pack("<Q", 2**63) + b"{}",
        safetensors(b"[]"),
        safetensors(b"{"),
        safetensors(b"[" * 100_000),
        safetensors({"a": 3}),
        safetensors({"a": entry(shape=[3])}, bytes(8)),
        safetensors({"a": entry(shape=[-2])}, bytes(8)),
        safetensors({"a": entry(shape=[2.0])}, bytes(8)),
        safetensors({"a": entry(shape=[2**62, 2**62])}, bytes(8)),
        safetensors({"a": entry(data_offsets=[8, 16])}, bytes(16)),
        safetensors({"a": entry(data_offsets=[8, 0])}, bytes(8)),
        safetensors({"a": entry(), "b": entry()}, bytes(8)),
        safetensors({"a": entry(shape=[2**62] * 500_000)}, bytes(8)),
        safetensors({"a": entry(dtype="I4", data_offsets=[0, 10**4299 + 1])}, bytes(8)),
        safetensors(b'{"a": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}", bytes(8)),
        safetensors({"a": entry(shape="2")}, bytes(8)),
        safetensors({"a": entry(dtype=["F32"], data_offsets=[0, 7])}, bytes(8)),
        safetensors({"a\n" * 100_000: entry(shape=[3])}, bytes(8)),
        safetensors({"a": entry()}, bytes(9)),
        safetensors({"a": entry()}, bytes(7)),
    ],
)
def test_hostile_safetensors_headers_are_refused(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    began = time.process_time()
    with pytest.raises(UserError, match=r"model.safetensors is (not a|cut short)") as caught:
        read_header(path)
    assert time.process_time() - began < 1
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file of each format."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        read_gguf: tiny_models.write_gguf(folder / "model.gguf"),
        read_header: tiny_models.write_folder(folder / "model") / "model.safetensors",
    }


@pytest.mark.parametrize("read", [read_gguf, read_header])
@given(data=st.data())
def test_every_cut_is_refused(whole, read, data):
    size, near = whole[read].stat().st_size, st.integers(0, 64)
    kept = data.draw(st.one_of(near, near.map(lambda n: size - 1 - n), st.integers(0, size - 1)))
    cut = whole[read].with_name("cut")
    cut.write_bytes(whole[read].read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cut short|damaged|not a|declares"):
        read(cut)
