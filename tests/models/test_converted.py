"""Converted weights in the cache: kept once, checked, and converted again if they are damaged."""

import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_models
from safetensors.numpy import load_file
from tiny_models import SPEC, assert_tree, changed

from prompt_tuning_jax.models.files import converted, weights
from prompt_tuning_jax.models.files.weights import read_weights
from prompt_tuning_jax.safetensors_file import ALIGNMENT

pytestmark = pytest.mark.usefixtures("cache")
WANTED = tiny_models.expected(SPEC, tiny_models.tensors(SPEC))


def kept(cache):
    """The one file in the cache."""
    (file,) = (cache / "models").glob("*/*")
    return file


def test_a_conversion_is_done_once(gguf_path, cache, monkeypatch):
    read_weights(str(gguf_path), "float32")
    assert_tree(load_file(kept(cache)), WANTED)
    assert kept(cache).stem == hashlib.sha256(kept(cache).read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "_convert", None)
    assert_tree(read_weights(str(gguf_path), "float32").params, WANTED)


def test_converted_tensors_begin_where_no_copy_is_needed(tmp_path):
    wanted = changed(width=32, feedforward=64, head_size=16, vocabulary=272)
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf", wanted))
    read_weights(path, "float32")
    for leaf in tiny_models.flatten(read_weights(path, "float32").params).values():
        assert leaf.ctypes.data % ALIGNMENT == 0


DAMAGES = {
    "a bit": lambda data: data[: len(data) // 2] + b"\xff" + data[len(data) // 2 + 1 :],
    "the header": lambda data: b"\xff" * 8 + data[8:],
    "the end": lambda data: data[:-1],
    "everything": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_conversion_is_made_again(gguf_path, cache, caplog, damage):
    read_weights(str(gguf_path), "float32")
    before = kept(cache).read_bytes()
    kept(cache).write_bytes(DAMAGES[damage](before))
    assert_tree(read_weights(str(gguf_path), "float32").params, WANTED)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is damaged; converting it again" in caplog.text
    assert kept(cache).read_bytes() == before


def test_flips_and_cuts_of_a_conversion_are_noticed(gguf_path, cache, caplog):
    """A bit of each byte of the header; samples of the rest and of cuts."""
    caplog.set_level("ERROR")
    read_weights(str(gguf_path), "float32")
    path, rng = kept(cache), np.random.default_rng(0)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    with path.open("r+b", buffering=0) as file:
        for bit in (*range(0, 8 * header, 7), *rng.integers(8 * len(data), size=50)):
            place = bit // 8
            os.pwrite(file.fileno(), bytes([data[place] ^ 1 << bit % 8]), place)
            assert converted.read_converted(path.parent) is None, bit
            os.pwrite(file.fileno(), data[place : place + 1], place)
        assert converted.read_converted(path.parent)
        for size in sorted({*range(10), *rng.integers(len(data), size=50)}, reverse=True):
            file.truncate(size)
            assert converted.read_converted(path.parent) is None, size


def test_what_a_killed_conversion_left_is_removed(gguf_path, cache):
    read_weights(str(gguf_path), "float32")
    folder = kept(cache).parent
    kept(cache).unlink()
    old, young = folder / "99.tmp", folder / "98.tmp"
    for left in (old, young):
        left.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * converted.STALE,) * 2)
    assert_tree(read_weights(str(gguf_path), "float32").params, WANTED)
    assert list(folder.glob("*.safetensors")) and young.exists() and not old.exists()


def test_a_cache_that_cannot_be_written(gguf_path, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "file"))
    assert_tree(read_weights(str(gguf_path), "float32").params, WANTED)
    assert f"the cache folder '{tmp_path / 'file'}' cannot be written" in caplog.text


def test_two_processes_convert_at_once(tmp_path, cache):
    big = changed(vocabulary=20_000, width=64)
    path = tiny_models.write_gguf(tmp_path / "model.gguf", big)
    script = (
        "import hashlib, sys\n"
        "from prompt_tuning_jax.models.files.weights import read_weights\n"
        "table = read_weights(sys.argv[1], 'float32').params['embed']['embedding']\n"
        "print(hashlib.sha256(table.tobytes()).hexdigest())"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    done = [process.communicate() for process in running]
    wanted = tiny_models.tensors(big)["model.embed_tokens.weight"].tobytes()
    assert {out.strip() for out, _ in done} == {hashlib.sha256(wanted).hexdigest()}, done
    assert {error for _, error in done} == {""}
    assert kept(cache).suffix == ".safetensors"
