"""Reading safetensors: every header that does not describe its file is refused."""

import json
import struct
import time

import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files import safetensors as safetensors_file
from prompt_tuning_jax.models.files import weights


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
        safetensors({"a": entry(shape=[True, 2])}, bytes(8)),
        safetensors({"a": entry(shape=[2**62, 2**62])}, bytes(8)),
        safetensors({"a": entry(data_offsets=[8, 16])}, bytes(16)),
        safetensors({"a": entry(data_offsets=[8, 0])}, bytes(8)),
        safetensors({"a": entry(data_offsets=[0])}, bytes(8)),
        safetensors({"a": entry(), "b": entry()}, bytes(8)),
        safetensors({"a": entry(shape=[2**62] * 500_000)}, bytes(8)),
        safetensors({"a": entry(dtype="I4", data_offsets=[0, 10**4299 + 1])}, bytes(8)),
        safetensors(b'{"a": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}", bytes(8)),
        safetensors({"a": entry(shape="2")}, bytes(8)),
        safetensors({"a": entry(data_offsets="08")}, bytes(8)),
        safetensors({"a": entry(dtype=["F32"], data_offsets=[0, 7])}, bytes(8)),
        safetensors({"a\n" * 100_000: entry(shape=[3])}, bytes(8)),
        safetensors({"a": entry()}, bytes(9)),
        safetensors({"a": entry()}, bytes(7)),
    ],
)
def test_hostile_safetensors_headers(tmp_path, data):
    path = tiny_models.write_folder(tmp_path)
    (path / "model.safetensors").write_bytes(data)
    began = time.process_time()
    with pytest.raises(UserError, match=r"model.safetensors is (not a|cut short)") as caught:
        weights.read(str(path), "float32")
    assert time.process_time() - began < 1
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@given(st.data())
def test_every_cut_is_refused(tmp_path_factory, data):
    whole = tiny_models.write_folder(tmp_path_factory.mktemp("cut")) / "model.safetensors"
    size = whole.stat().st_size
    near = st.integers(0, 64)
    kept = data.draw(st.one_of(near, near.map(lambda n: size - 1 - n), st.integers(0, size - 1)))
    cut = whole.with_name("cut")
    cut.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cut short|damaged|not a|declares"):
        safetensors_file.read_header(cut)
