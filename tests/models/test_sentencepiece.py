"""Tokenizers that write a space as a sign, one in front of a text too: where it stands."""

import pytest
import tiny_models
from tiny_models import rewrite

from prompt_tuning_jax.data import example, template
from prompt_tuning_jax.models.files import tokenizer

TOKENS = ["<s>", "</s>", "▁", "a", "b", *(f"<0x{byte:02X}>" for byte in range(256))]
LLAMA2 = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
PREPENDED = {"normalizer": LLAMA2, "pre_tokenizer": None}


def metaspace(scheme):
    kind = {"type": "Metaspace", "replacement": "▁", "split": False}
    return {"pre_tokenizer": {**kind, "prepend_scheme": scheme}, "normalizer": None}


@pytest.fixture
def read(tmp_path):
    """Reads a folder whose tokenizer.json has these steps, and its config these entries."""
    folder = tiny_models.write_folder(tmp_path / "model")
    markup = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    specials = [{**markup, "id": i, "content": TOKENS[i], "special": True} for i in (0, 1)]
    words = {"type": "BPE", "vocab": {token: i for i, token in enumerate(TOKENS)}, "merges": []}
    common = {"added_tokens": specials, "post_processor": None, "decoder": None, "model": words}

    def read(steps, **named):
        rewrite(folder / "tokenizer.json", **common, **steps)
        named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, **named}
        rewrite(folder / "tokenizer_config.json", **named)
        return tokenizer.read(str(folder))

    return read


def spelled(words, text, record=None, virtual=0):
    """A template with the answer 'b' as tokens, the slots as None."""
    parsed = template.parse(text, words.specials)
    settings = {"num_virtual_tokens": virtual, "add_bos": False, "max_length": 99}
    made = example.encode_example(parsed, record or {}, ["b"], words, **settings)
    return [TOKENS[i] if i >= 0 else None for i in [*made.trunk, *made.tails[0]]]


def test_the_space_in_front_is_that_of_the_text_alone(read):
    words = read(metaspace("first"))
    assert spelled(words, "a") == [*"▁a▁b"]
    assert spelled(words, "<s>a") == ["<s>", *"a▁b"]
    assert spelled(words, "a</s>a</s> a</s>") == [*"▁a", "</s>", *"a", "</s>", *"▁a", "</s>", *"▁b"]
    assert spelled(words, "{t}</s>a", {"t": ""}) == ["</s>", *"a▁b"]
    # A slot in front is not text; one behind text does not make it begin anew.
    assert spelled(words, "{soft}a", virtual=1) == [None, *"▁a▁b"]
    assert spelled(words, "a{soft}b", virtual=1) == [*"▁a", None, *"b▁b"]


def test_every_piece_has_the_space_where_the_tokenizer_says_so(read):
    assert spelled(read(metaspace("always")), "a</s>a") == [*"▁a", "</s>", *"▁a▁b"]
    assert spelled(read(PREPENDED), "a</s>a") == [*"▁a", "</s>", *"▁a▁b"]
    assert spelled(read(metaspace("never")), "a</s>a") == [*"a", "</s>", *"a▁b"]


@pytest.mark.parametrize("steps", [PREPENDED, metaspace("never")])
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_transformers_5_has_steps_of_its_own_for_the_class(read, steps, kind):
    """Not those of the file; test_tokenizer's are of bytes, and are the file's."""
    words = read(steps, tokenizer_class=kind)
    assert spelled(words, " a</s>a") == [*"▁a", "</s>", *"a▁b"]
    words = read(steps, tokenizer_class=kind, legacy=True)
    assert spelled(words, " a</s>a") == [*"▁a", "</s>", *"▁a▁b"]
    words = read(steps, tokenizer_class=kind, add_prefix_space=False)
    assert spelled(words, "a</s>a") == [*"a", "</s>", *"a▁b"]
    assert words.encode("é")[0] == [TOKENS.index("<0xC3>"), TOKENS.index("<0xA9>")]
