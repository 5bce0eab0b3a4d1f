"""Converted weights in the cache: made once, checked, and made again where they are damaged."""

import hashlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_models
from safetensors.numpy import load_file
from tiny_models import SPEC, changed

from prompt_tuning_jax.models.files import safetensors as safetensors_file
from prompt_tuning_jax.models.files import weights


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def converted(cache):
    (folder,) = (cache / "models").iterdir()
    return folder


def test_a_conversion_is_done_once(tmp_path, cache, monkeypatch):
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf"))
    weights.read(path, "float32")
    assert sorted(file.name for file in converted(cache).iterdir()) == [
        "manifest.json",
        "model.safetensors",
    ]
    monkeypatch.setattr(weights, "convert", None)
    tiny_models.assert_tree(
        weights.read(path, "float32").params,
        tiny_models.expected(SPEC, tiny_models.tensors(SPEC)),
    )
    plain = load_file(converted(cache) / "model.safetensors")
    tiny_models.assert_tree(plain, tiny_models.expected(SPEC, tiny_models.tensors(SPEC)))


def test_converted_tensors_begin_where_no_copy_is_needed(tmp_path):
    wanted = changed(width=32, feedforward=64, head_size=16, vocabulary=272)
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf", wanted))
    weights.read(path, "float32")
    for leaf in tiny_models.flatten(weights.read(path, "float32").params).values():
        assert leaf.ctypes.data % safetensors_file.ALIGNMENT == 0


def damage_middle(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def damage_header(folder):
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def damage_manifest(folder):
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"layout": 2', '"layout": 1'))


def cut_manifest(folder):
    file = folder / "manifest.json"
    file.write_text(file.read_text()[:-1])


def pipe_for_manifest(folder):
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


def pipe_for_weights(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


DAMAGES = [
    damage_middle,
    damage_header,
    cut_weights,
    empty_weights,
    damage_manifest,
    cut_manifest,
    pipe_for_manifest,
    pipe_for_weights,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_conversion_is_made_again(tmp_path, cache, caplog, damage):
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf"))
    weights.read(path, "float32")
    folder = converted(cache)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    damage(folder)
    found = weights.read(path, "float32")
    tiny_models.assert_tree(found.params, tiny_models.expected(SPEC, tiny_models.tensors(SPEC)))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is damaged or old; converting it again" in caplog.text
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_flips_and_cuts_of_a_conversion_are_noticed(tmp_path, cache, caplog):
    """Every bit of its manifest; of the weights each byte of the header, and the rest sampled."""
    caplog.set_level("ERROR")
    weights.read(str(tiny_models.write_gguf(tmp_path / "model.gguf")), "float32")
    folder, rng = converted(cache), np.random.default_rng(0)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["sha256"]
    for name, step in (("manifest.json", 1), ("model.safetensors", 7)):
        data = (folder / name).read_bytes()
        header = 8 + int.from_bytes(data[:8], "little") if step > 1 else len(data)
        with (folder / name).open("r+b", buffering=0) as file:
            for bit in (*range(0, 8 * header, step), *rng.integers(8 * len(data), size=50)):
                place = bit // 8
                os.pwrite(file.fileno(), bytes([data[place] ^ 1 << bit % 8]), place)
                assert weights.read_converted(folder, manifest) is None, (name, bit)
                os.pwrite(file.fileno(), data[place : place + 1], place)
            assert weights.read_converted(folder, manifest)
            for size in sorted({*range(10), *rng.integers(len(data), size=50)}, reverse=True):
                file.truncate(size)
                assert weights.read_converted(folder, manifest) is None, (name, size)
        (folder / name).write_bytes(data)


def test_a_conversion_that_was_killed_is_made_again(tmp_path, cache):
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf"))
    weights.read(path, "float32")
    folder = converted(cache)
    (folder / "manifest.json").unlink()
    left = folder / "model.safetensors.99.tmp"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * weights.STALE,) * 2)
    young = folder / "model.safetensors.98.tmp"
    young.write_bytes(b"half")
    tiny_models.assert_tree(
        weights.read(path, "float32").params,
        tiny_models.expected(SPEC, tiny_models.tensors(SPEC)),
    )
    assert (folder / "manifest.json").exists()
    assert young.exists() and not left.exists()


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "file"))
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf"))
    tiny_models.assert_tree(
        weights.read(path, "float32").params,
        tiny_models.expected(SPEC, tiny_models.tensors(SPEC)),
    )
    assert f"the cache folder '{tmp_path / 'file'}' cannot be written" in caplog.text


def test_another_process_finishes_while_this_one_writes(tmp_path, cache, monkeypatch, caplog):
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf"))
    write = safetensors_file.write

    def write_and_be_overtaken(file, leaves):
        digest = write(file, leaves)
        monkeypatch.setattr(safetensors_file, "write", write)
        monkeypatch.setattr(os, "getpid", lambda: -1)
        weights.read(path, "float32")
        return digest

    monkeypatch.setattr(safetensors_file, "write", write_and_be_overtaken)
    weights.read(path, "float32")
    assert not caplog.records
    assert len(list(converted(cache).iterdir())) == 2


def test_two_processes_convert_at_once(tmp_path, cache):
    big = changed(vocabulary=20_000, width=64)
    path = tiny_models.write_gguf(tmp_path / "model.gguf", big)
    script = (
        "import sys; from prompt_tuning_jax.models.files import weights;"
        "from tests_digest import digest; print(digest(weights.read(sys.argv[1], 'float32')))"
    )
    (tmp_path / "tests_digest.py").write_text(
        "import hashlib\n"
        "def digest(found):\n"
        "    return hashlib.sha256(found.params['embed']['embedding'].tobytes()).hexdigest()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            env=environment,
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
    assert not list(converted(cache).glob("*.tmp"))
