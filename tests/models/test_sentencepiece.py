"""Tokenizers that write a space as a sign, and put one in front of a text: where it stands."""

import pytest
from tiny_models import SPACED_TOKENS, write_spaced_folder

from prompt_tuning_jax.data import example, template
from prompt_tuning_jax.models.files.tokenizer import read_tokenizer


@pytest.fixture
def read(tmp_path):
    """Reads a folder of such a tokenizer."""
    return lambda steps, **named: read_tokenizer(
        str(write_spaced_folder(tmp_path / "model", steps, **named))
    )


def spelled(words, text, record=None, virtual=0):
    """A template with the answer 'b' as tokens, its slots as None."""
    parsed = template.parse(text, words.specials)
    settings = {"num_virtual_tokens": virtual, "add_bos": False, "max_length": 99}
    made = example.encode_example(parsed, record or {}, ["b"], words, **settings)
    return [SPACED_TOKENS[i] if i >= 0 else None for i in [*made.trunk, *made.tails[0]]]


def test_the_space_in_front_is_that_of_the_text_alone(read):
    words = read("first")
    assert spelled(words, "a") == [*"▁a▁b"]
    assert spelled(words, "<s>a") == ["<s>", *"a▁b"]
    assert spelled(words, "a</s>a</s> a</s>") == [*"▁a", "</s>", *"a", "</s>", *"▁a", "</s>", *"▁b"]
    assert spelled(words, "{t}</s>a", {"t": ""}) == ["</s>", *"a▁b"]
    # A slot in front is not text; text behind a slot does not begin anew.
    assert spelled(words, "{soft}a", virtual=1) == [None, *"▁a▁b"]
    assert spelled(words, "a{soft}b", virtual=1) == [*"▁a", None, *"b▁b"]


def test_every_piece_has_the_space_if_the_tokenizer_says_so(read):
    for steps in ("always", "llama 2"):
        assert spelled(read(steps), "a</s>a") == [*"▁a", "</s>", *"▁a▁b"]
    assert spelled(read("never"), "a</s>a") == [*"a", "</s>", *"a▁b"]


@pytest.mark.parametrize("steps", ["llama 2", "never"])
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_transformers_5_has_its_own_steps_for_the_class(read, steps, kind):
    """Byte-level files keep their steps, see test_tokenizer."""
    words = read(steps, tokenizer_class=kind)
    assert spelled(words, " a</s>a") == [*"▁a", "</s>", *"a▁b"]
    words = read(steps, tokenizer_class=kind, legacy=True)
    assert spelled(words, " a</s>a") == [*"▁a", "</s>", *"▁a▁b"]
    words = read(steps, tokenizer_class=kind, add_prefix_space=False)
    assert spelled(words, "a</s>a") == [*"a", "</s>", *"a▁b"]
    bytes_of = [SPACED_TOKENS.index("<0xC3>"), SPACED_TOKENS.index("<0xA9>")]
    assert words.encode("é")[0] == bytes_of


def test_fingerprints_are_those_of_earlier_versions(read):
    """As before transformers read the folder, so that artifacts of them fit."""
    for named, wanted in (
        ({}, "fb91fe927af4"),
        ({"tokenizer_class": "LlamaTokenizer"}, "ff0795707425"),
    ):
        assert read("llama 2", **named).fingerprint.startswith(wanted)
