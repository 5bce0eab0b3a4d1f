"""The first vectors of virtual tokens: what each init starts from."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest
from tiny_methods import LM, TASK, first, keep, make
from tiny_models import SPACED_TOKENS, SPEC, SPECIALS, VOCABULARY, changed, write_spaced_folder

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.methods.init import TOKEN_KEYS
from prompt_tuning_jax.models.files.tokenizer import read_tokenizer

EMBEDDINGS = LM.params["embed"]["embedding"]


def ids(*tokens):
    return [VOCABULARY.index(token) for token in tokens]


def vectors(size, kind, seed=0, task=TASK, lm=LM, **settings):
    """The first vectors of `size` virtual tokens, checked for what they always are."""
    settings = {f"init_{name}": value for name, value in settings.items()}
    made = make(num_virtual_tokens=size, init=kind, **settings)
    trainable = first(made, jax.random.key(seed), lm, task)
    assert trainable.keys() == {"vectors"}
    found = trainable["vectors"]
    assert found.shape == (size, SPEC.width) and found.dtype == jnp.float32
    return np.asarray(found)


def drawn(rows):
    """The ids whose embeddings these are."""
    found = [np.flatnonzero((row == EMBEDDINGS).all(axis=1)) for row in rows]
    assert all(len(places) == 1 for places in found)
    return [int(places[0]) for places in found]


@pytest.mark.parametrize("scale", [0.5, 0.01])
def test_uniform_fills_the_range_on_both_sides(scale):
    found = vectors(40, "uniform", scale=scale)
    assert -scale <= found.min() < -0.99 * scale and 0.99 * scale < found.max() <= scale
    assert abs(found.mean()) < 0.05 * scale
    assert found.std() == pytest.approx(scale / np.sqrt(3), rel=0.05)


def test_vocabulary_draws_embeddings_without_repetition_and_no_special_tokens():
    everything = len(VOCABULARY) - len(SPECIALS)
    roomy = LM._replace(spec=changed(max_positions=1000))
    found = drawn(vectors(everything, "vocabulary", lm=roomy))
    assert sorted(found) == list(range(len(SPECIALS), len(VOCABULARY)))
    assert found != sorted(found)
    few = drawn(vectors(20, "vocabulary"))
    assert len(set(few)) == 20 and max(few) > 100


def test_vocabulary_draws_no_row_behind_the_tokenizers_own():
    padded = LM._replace(spec=changed(vocabulary=SPEC.vocabulary + 500, max_positions=1000))
    everything = len(VOCABULARY) - len(SPECIALS)
    assert max(drawn(vectors(everything, "vocabulary", lm=padded))) < len(VOCABULARY)
    with pytest.raises(UserError, match=f"leaves {everything} tokens for {everything + 1}"):
        vectors(everything + 1, "vocabulary", lm=padded)


def test_vocabulary_draws_from_the_lowest_ids_alone():
    assert sorted(drawn(vectors(7, "vocabulary", vocabulary=10))) == list(range(3, 10))
    assert len(drawn(vectors(5, "vocabulary", vocabulary=10**6))) == 5


def test_labels_come_first_a_word_of_several_tokens_as_their_mean():
    found = vectors(8, "labels", vocabulary=20)
    words = (ids("Ġthe"), ids("Ġ", "b", "in"), ids("Ġt"))
    wanted = [EMBEDDINGS[word].mean(axis=0) for word in words]
    np.testing.assert_allclose(found[:3], wanted, rtol=1e-6)
    rest = drawn(found[3:])
    assert len(set(rest)) == 5 and all(3 <= index < 20 for index in rest)
    for size in (1, 2):
        np.testing.assert_array_equal(vectors(size, "labels"), vectors(8, "labels")[:size])


@pytest.mark.parametrize("steps", ["llama 2", "first", "always", "never"])
def test_labels_are_read_as_they_are_scored(tmp_path, steps):
    """Some tokenizers put a space in front of a text, which a label behind a text does not have."""
    words = read_tokenizer(str(write_spaced_folder(tmp_path / "model", steps)))
    task = TASK._replace(labels=(("0", "b"), ("1", "a")))
    found = vectors(2, "labels", vocabulary=20, lm=LM._replace(tokenizer=words), task=task)
    wanted = [[SPACED_TOKENS.index("▁"), SPACED_TOKENS.index(label)] for label in "ba"]
    np.testing.assert_allclose(found, [EMBEDDINGS[i].mean(axis=0) for i in wanted], rtol=1e-6)


def test_text_is_repeated_or_cut():
    cycle = ["a", "b", "Ġthe"]
    for size in (1, 3, 8):
        wanted = EMBEDDINGS[ids(*(cycle * 3)[:size])]
        np.testing.assert_array_equal(vectors(size, "text", text="ab the"), wanted)


def test_text_that_spells_a_special_token_is_text():
    assert min(drawn(vectors(5, "text", text="<|eos|>"))) >= len(SPECIALS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_file_of_numbers(tmp_path, dtype):
    wanted = np.random.default_rng(0).normal(size=(3, SPEC.width)).astype(dtype)
    np.save(tmp_path / "prompt.npy", wanted)
    found = vectors(3, "file", file=str(tmp_path / "prompt.npy"))
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_an_earlier_artifact(tmp_path):
    given = plain_model.random_given(0, SPEC, "prompt", size=3)
    found = vectors(3, "file", file=keep(tmp_path / "earlier", given))
    np.testing.assert_array_equal(found, given.sites["prompt/vectors"])


def test_an_artifact_without_a_prompt_and_a_missing_file_are_refused(tmp_path):
    given = plain_model.random_given(0, SPEC, "prefix", size=3)
    with pytest.raises(UserError, match="which holds no soft prompt"):
        vectors(3, "file", file=keep(tmp_path / "prefix", given))
    for name in ("none.npy", "none"):
        with pytest.raises(UserError, match=name):
            vectors(3, "file", file=str(tmp_path / name))


class Opened:
    """What a pickle would run when it is read."""

    def __reduce__(self):
        return pytest.fail, ("the file was executed",)


NAN = np.full((3, SPEC.width), np.nan)
WRONG = {
    "another width": (np.zeros((3, SPEC.width + 1)), r"holds \(3, 25\) of .* expected \(3, 24\)"),
    "another length": (np.zeros((4, SPEC.width)), r"holds \(4, 24\) of .* \(3, 24\)"),
    "not finite": (NAN, "of finite float32 numbers"),
    "too large": (np.full((3, SPEC.width), 1e39), "of finite float32 numbers"),
    "yes and no": (np.zeros((3, SPEC.width), bool), r"holds \(3, 24\) of bool: .* numbers"),
    "text": (np.full((3, SPEC.width), "x"), "numbers"),
    "complex": (np.zeros((3, SPEC.width), complex), "numbers"),
    "objects": (np.full((3, SPEC.width), Opened(), object), r"which is not a \.npy array"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_anything_else_is_refused(tmp_path, name):
    array, message = WRONG[name]
    np.save(tmp_path / "prompt.npy", array)
    with pytest.raises(UserError, match=message):
        vectors(3, "file", file=str(tmp_path / "prompt.npy"))


# A header that declares 8 TiB of numbers.
HEADER = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**40},), }}".ljust(117) + "\n"
DAMAGED = [b"\x93NUMPY\1\0" + struct.pack("<H", 118) + HEADER.encode() + bytes(80), b"junk" * 99]


@pytest.mark.parametrize("content", [*DAMAGED, 0, 5, 60, 200])
def test_a_damaged_file_is_refused_without_advice_to_open_it(tmp_path, content):
    path = tmp_path / "prompt.npy"
    np.save(path, np.zeros((3, SPEC.width)))
    path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(UserError, match=r"prompt\.npy', which is not a \.npy array") as caught:
        vectors(3, "file", file=str(path))
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize("kind", TOKEN_KEYS["init"].names)
def test_one_virtual_token_and_the_same_seed(tmp_path, kind):
    np.save(tmp_path / "prompt.npy", np.ones((1, SPEC.width)))
    given = {"text": "ab", "file": str(tmp_path / "prompt.npy")}
    first, again, other = (vectors(1, kind, seed, **given) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first == other).all() == (kind not in ("uniform", "vocabulary"))


def test_the_first_vectors_of_a_half_precision_model_are_float32():
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), LM.params)
    for kind in ("vocabulary", "labels", "text"):
        found = vectors(4, kind, lm=LM._replace(params=half), text="ab")
        np.testing.assert_allclose(found, vectors(4, kind, text="ab"), atol=2e-3)


@pytest.mark.parametrize(
    ("size", "kind", "settings", "message"),
    [
        (8, "vocabulary", {"vocabulary": 10}, "is 10, which leaves 7 tokens for 8 virtual tokens"),
        (3, "labels", {"task": TASK._replace(labels=())}, "the task has none: write 'vocabulary'"),
        # Refused before they take memory.
        (128, "uniform", {}, "tokens is 128: expected fewer than the 128 positions of 'tiny'"),
        (10**12, "uniform", {}, "expected fewer than the 128 positions of 'tiny'"),
    ],
)
def test_what_an_init_cannot_start_from_is_refused(size, kind, settings, message):
    with pytest.raises(UserError, match=message):
        vectors(size, kind, **settings)
