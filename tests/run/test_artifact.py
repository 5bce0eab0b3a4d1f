"""Artifacts: loading gives what was saved, or refuses."""

import dataclasses
import errno
import hashlib
import json
import os
from types import SimpleNamespace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.spec import Spec
from prompt_tuning_jax.run import artifact as artifacts
from prompt_tuning_jax.run.artifact import MANIFEST, TENSORS, Artifact
from prompt_tuning_jax.run.card import CARD
from prompt_tuning_jax.run.report import Row

SPEC = Spec("llama", 3, 8, 2, 1, 4, 16, 32, 64, 1e-5, True)
MODEL = SimpleNamespace(
    name="tiny",
    fingerprint="a" * 64,
    spec=SPEC,
    tokenizer=SimpleNamespace(fingerprint="b" * 64, add_bos=False),
    settings={"path": "tiny"},
)
LABELS = (("sport", "sports"), ("tech", "Technik & Überraschung"))
TASK = SimpleNamespace(template="{soft}Headline: {text}\nTopic:", labels=LABELS, continues=False)
CONFIG = configs.build({"seed": 1, "prompts": ("a", "b")})
FILES = (MANIFEST, TENSORS)


def make(vectors=None, **changes):
    vectors = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8) if vectors is None else vectors
    manifest = artifacts.make_manifest(MODEL, TASK, CONFIG, {"validation": {"loss": 0.5}})
    return Artifact({"prompt/vectors": vectors}, {**manifest, **changes})


def seal(manifest):
    """Bytes whose checksums are right, as an attacker would make them; not through the package."""

    def dump(content):
        return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    return dump({**manifest, "sha256": hashlib.sha256(dump(manifest)).hexdigest()})


def plant(folder, change=None, tensors=None):
    """Writes a sound artifact, then changes its manifest or its tensors and seals it again."""
    artifacts.save_artifact(make(), folder)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["sha256"]
    if tensors is not None:
        (folder / TENSORS).write_bytes(tensors)
        manifest["tensors_sha256"] = hashlib.sha256(tensors).hexdigest()
    (folder / MANIFEST).write_bytes(seal({**manifest, **(change or {})}))
    return folder


def safetensors(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


def entry(shape=(1,), start=0, stop=4, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def refusal(folder):
    with pytest.raises(UserError) as caught:
        artifacts.load_artifact(folder)
    return str(caught.value)


LEAVES = st.one_of(
    *(
        arrays_of.arrays(
            dtype,
            arrays_of.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
            elements=st.floats(-100, 100, width=16),
        )
        for dtype in (np.float32, np.float16)
    )
)
NAMES = st.text("abkv_0", min_size=1, max_size=5)


@settings(max_examples=12)
@given(st.dictionaries(NAMES, st.dictionaries(NAMES, LEAVES, min_size=1), min_size=1))
def test_loading_gives_what_was_saved(tmp_path_factory, collections):
    folder = tmp_path_factory.mktemp("a") / "artifact"
    tensors = traverse_util.flatten_dict(collections, sep="/")
    artifacts.save_artifact(make()._replace(tensors=tensors), folder)
    loaded = artifacts.load_artifact(folder)
    assert loaded.tensors.keys() == tensors.keys()
    for path, array in tensors.items():
        again = loaded.tensors[path]
        assert (again.dtype, again.shape) == (array.dtype, array.shape)
        assert again.tobytes() == array.tobytes()


def test_a_prefix_of_earlier_versions_has_its_new_name(tmp_path):
    keys = np.ones((2, 3, 1, 4), np.float32)
    saved = make()._replace(tensors={"prefix/k": keys, "prefix/v": 2 * keys})
    artifacts.save_artifact(saved, tmp_path / "a")
    tensors = artifacts.load_artifact(tmp_path / "a").tensors
    names = "prefix/decoder/attention/k", "prefix/decoder/attention/v"
    assert sorted(tensors) == [*names] and (tensors[names[1]] == 2).all()


def test_jax_arrays_long_paths_and_the_manifest_come_back(tmp_path):
    tensors = {
        "prompt/vectors": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)[:, ::-1],
        "lora/decoder/attention/q/a": jnp.ones((2, 3), jnp.bfloat16),
    }
    saved = make()._replace(tensors=tensors)
    artifacts.save_artifact(saved, tmp_path / "a b ü")
    loaded = artifacts.load_artifact(tmp_path / "a b ü")
    np.testing.assert_array_equal(loaded.tensors["prompt/vectors"], [[2, 1, 0], [5, 4, 3]])
    assert loaded.tensors["lora/decoder/attention/q/a"].dtype == ml_dtypes.bfloat16
    for name, value in loaded.manifest.items():
        assert value == json.loads(json.dumps(saved.manifest[name])), name
    assert loaded.manifest.keys() == saved.manifest.keys()


def test_saving_twice_writes_the_same_bytes_and_nothing_beside(tmp_path):
    artifacts.save_artifact(make(), tmp_path / "a")
    for _ in range(2):
        other_order = dict(reversed(make().manifest.items()))
        artifacts.save_artifact(make()._replace(manifest=other_order), tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert sorted(os.listdir(tmp_path / "b")) == sorted((CARD, *FILES))


@pytest.mark.parametrize("name", FILES)
def test_every_bit_flip_and_every_truncation_is_refused_and_named(tmp_path, name):
    small = {"config": {}, "metrics": {}, "versions": {}, "labels": [], "template": "{soft}{text}"}
    small["model"] = {"name": "m", "fingerprint": "f", "spec": {"layers": 3, "width": 8}}
    artifacts.save_artifact(make(**small, tokenizer="t"), tmp_path / "a")
    path = tmp_path / "a" / name
    data = path.read_bytes()
    # In place: a file system may flush a file that is emptied and written again, 10,000 times here.
    with path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(data):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                assert str(path) in refusal(tmp_path / "a"), (place, bit)
            os.pwrite(file.fileno(), bytes([byte]), place)
        artifacts.load_artifact(tmp_path / "a")
        for more in (b"\0", b"\n"):
            os.pwrite(file.fileno(), more, len(data))
            assert str(path) in refusal(tmp_path / "a"), more
        for size in reversed(range(len(data))):
            file.truncate(size)
            assert str(path) in refusal(tmp_path / "a"), size


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_values_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, value):
    vectors = np.zeros((3, 8), np.float32)
    vectors[1, 2] = value
    with pytest.raises(UserError, match=r"prompt/vectors.*not finite"):
        artifacts.save_artifact(make(vectors), tmp_path / "a")
    assert os.listdir(tmp_path) == []
    table = {"prompt/vectors": entry((3, 8), 0, 96)}
    planted = plant(tmp_path / "a", tensors=safetensors(table, vectors.tobytes()))
    assert "not finite" in refusal(planted)


def test_a_manifest_that_says_a_key_twice_is_refused(tmp_path):
    artifacts.save_artifact(make(), tmp_path / "a")
    path = tmp_path / "a" / MANIFEST
    path.write_bytes(path.read_bytes().replace(b"{\n", b'{\n "method": "other",\n', 1))
    assert str(path) in refusal(tmp_path / "a")


def test_sizes_are_checked_before_memory_is_taken(tmp_path, monkeypatch):
    header = {"prompt/vectors": entry((2**40,), 0, 2**42)}
    planted = plant(tmp_path / "a", tensors=safetensors(header, b"\0" * 4))
    monkeypatch.setattr(artifacts, "read_tensors", lambda *_: pytest.fail("was read"))
    assert TENSORS in refusal(planted)


@pytest.mark.parametrize("name", FILES)
def test_links_and_pipes_are_refused(tmp_path, name):
    for make_other in (lambda path: path.symlink_to(tmp_path / "outside"), os.mkfifo):
        artifacts.save_artifact(make(), tmp_path / "a")
        path = tmp_path / "a" / name
        path.replace(tmp_path / "outside")
        make_other(path)
        assert str(path) in refusal(tmp_path / "a")
        path.unlink()


def test_a_missing_folder_or_file_is_named(tmp_path):
    assert str(tmp_path / "none") in refusal(tmp_path / "none")
    for name in FILES:
        artifacts.save_artifact(make(), tmp_path / "a")
        (tmp_path / "a" / name).unlink()
        assert str(tmp_path / "a" / name) in refusal(tmp_path / "a")


def test_another_model_or_tokenizer_is_refused_in_a_sentence_that_names_both(tmp_path):
    artifacts.save_artifact(make(), tmp_path / "a")
    loaded = artifacts.load_artifact(tmp_path / "a")
    artifacts.check_artifact(loaded, MODEL)

    def refused(**changes):
        with pytest.raises(UserError) as caught:
            artifacts.check_artifact(loaded, SimpleNamespace(**{**vars(MODEL), **changes}))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    other = refused(name="other", fingerprint="c" * 64)
    assert "'tiny'" in other and "'other'" in other and "a" * 12 in other and "c" * 12 in other
    layers = refused(spec=dataclasses.replace(SPEC, layers=4))
    assert "3 layers" in layers and "4 layers" in layers
    width = refused(spec=dataclasses.replace(SPEC, width=16))
    assert "width 8" in width and "width 16" in width
    assert "theta" not in refused(spec=dataclasses.replace(SPEC, norm_epsilon=5.0))
    tokenizer = refused(tokenizer=SimpleNamespace(fingerprint="d" * 64))
    assert "b" * 12 in tokenizer and "d" * 12 in tokenizer


def test_a_folder_of_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        artifacts.save_artifact(make(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UserError, match="cannot be written"):
        artifacts.save_artifact(make(), tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="cannot be written"):
        artifacts.save_artifact(make(), tmp_path / "thesis.tex" / "a")


def test_a_folder_with_only_a_readme_is_not_replaced(tmp_path):
    (tmp_path / CARD).write_text("years of work")
    with pytest.raises(UserError, match=r"README\.md"):
        artifacts.save_artifact(make(), tmp_path)
    assert (tmp_path / CARD).read_text() == "years of work"


def test_the_card_is_not_needed_and_not_read(tmp_path):
    artifacts.save_artifact(make(), tmp_path / "a")
    saved = artifacts.load_artifact(tmp_path / "a")
    path = tmp_path / "a" / CARD
    before = path.read_text()
    for text in ("# something else", "\0" * 9, None):
        path.unlink() if text is None else path.write_text(text)
        assert artifacts.load_artifact(tmp_path / "a").manifest == saved.manifest
    os.mkfifo(path)  # whoever opens it waits for ever
    loaded = artifacts.load_artifact(tmp_path / "a")
    artifacts.save_artifact(loaded, tmp_path / "a")
    assert path.read_text() == before
    artifacts.write_card(loaded, tmp_path / "a", [Row("no prompt", 0.5, 0, 0, 0.0)])
    assert "no prompt | 50.0 %" in path.read_text()
    assert os.listdir(tmp_path) == ["a"]


def test_a_method_of_ones_own_may_have_any_plain_name_and_a_link_is_not_followed(tmp_path):
    kept = make(method="Mixed-Words_2")
    artifacts.save_artifact(kept, tmp_path / "kept")
    assert artifacts.load_artifact(tmp_path / "kept").manifest["method"] == "Mixed-Words_2"
    (tmp_path / "linked").mkdir()
    for name in FILES:
        (tmp_path / "linked" / name).symlink_to(tmp_path / "kept" / name)
    with pytest.raises(UserError, match=r"manifest\.json is a link, .* by `hf download NAME --"):
        artifacts.load_artifact(tmp_path / "linked")


def test_a_folder_below_ones_home_is_found_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    artifacts.save_artifact(make(), "~/kept")
    assert (tmp_path / "kept" / MANIFEST).is_file()
    assert artifacts.load_artifact("~/kept").manifest["template"] == TASK.template


def test_a_manifest_that_could_not_be_loaded_is_not_saved(tmp_path):
    large = {"template": "{text}" + "x" * (1 << 20)}
    changes = {"method": "Soft Prompt"}, {"extra": 1}, {"metrics": {"loss": float("nan")}}, large
    for change in changes:
        with pytest.raises(UserError):
            artifacts.save_artifact(make(**change), tmp_path / "a")
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ("write_safetensors", "sync", "replace"))
def test_a_full_disk_leaves_the_artifact_that_was_there(tmp_path, monkeypatch, failing):
    artifacts.save_artifact(make(), tmp_path / "a")
    replace, calls = os.replace, []

    def fail(*arguments):
        calls.append(arguments)
        if failing == "replace" and len(calls) != 2:
            return replace(*arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = os if failing == "replace" else artifacts
    with monkeypatch.context() as patched:
        patched.setattr(target, failing, fail)
        with pytest.raises(OSError, match="No space left"):
            artifacts.save_artifact(make(np.ones((3, 8), np.float32)), tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert artifacts.load_artifact(tmp_path / "a").tensors["prompt/vectors"][0, 0] == -1
