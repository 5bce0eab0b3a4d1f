"""Special tokens in a template that would be read differently because of the text beside them."""

import json

import pytest

from prompt_tuning_jax.data.example import encode_example
from prompt_tuning_jax.data.template import parse
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files.tokenizer import Facts, Tokenizer


def ids(tokenizer, flag, template, record=None):
    """The trunk of a template for a tokenizer whose '<|im_end|>' has one of the flags."""
    vocabulary = json.loads(tokenizer.library.to_str())
    (entry,) = (part for part in vocabulary["added_tokens"] if part["content"] == "<|im_end|>")
    entry[flag] = True
    words = Tokenizer(vocabulary, Facts(0, 1, 1, False, None))
    settings = {"num_virtual_tokens": 1, "add_bos": False, "max_length": 99}
    parsed = parse(template if "{soft}" in template else "{soft}" + template, words.specials)
    return encode_example(parsed, record or {}, ["yes"], words, **settings).trunk.tolist()


WHITE, LETTER = "removes white space beside it", "is text beside a letter"


@pytest.mark.parametrize(
    ("flag", "template", "message"),
    [
        ("lstrip", "x <|im_end|>:", WHITE),
        ("lstrip", "{t}<|im_end|>:", WHITE),
        ("rstrip", "x<|im_end|>\\n:", WHITE),
        ("rstrip", "x<|im_end|>", WHITE),
        ("rstrip", "<|im_end|>{t}:", WHITE),
        ("single_word", "x<|im_end|>:", LETTER),
        ("single_word", "<|im_end|>_:", LETTER),
        ("single_word", "<|im_end|><|im_end|>é:", LETTER),
    ],
)
def test_a_token_that_the_text_beside_it_changes_is_refused(tokenizer, flag, template, message):
    with pytest.raises(UserError, match=rf"has '<\|im_end\|>', which {message} by the"):
        ids(tokenizer, flag, template, {"t": " a "})


@pytest.mark.parametrize(
    ("flag", "template"),
    [
        ("lstrip", "x<|im_end|> <|im_start|>:"),
        ("lstrip", "x {soft}<|im_end|>:"),
        ("lstrip", " <|im_start|>{t}<|im_end|>:"),
        ("rstrip", "x <|im_end|>:"),
        ("single_word", "x <|im_end|>"),
        ("single_word", "(<|im_end|>):"),
    ],
)
def test_elsewhere_it_is_read_as_usual(tokenizer, flag, template):
    found = ids(tokenizer, flag, template, {"t": "a"})
    assert found == ids(tokenizer, "normalized", template, {"t": "a"})
