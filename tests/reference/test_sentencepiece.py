"""Live against transformers: where tokenizers that write a space as a sign put one more."""

import pytest
from tiny_models import SPACED_STEPS, write_spaced_folder
from transformers import AutoTokenizer

from prompt_tuning_jax.data import example, template
from prompt_tuning_jax.models.files.tokenizer import read_tokenizer

TEXTS = ["the end", " the end", "  two  spaces", "é\n\nthe", ""]
TEMPLATES = ["a</s>the", "a</s> the", "a</s>  the", "a</s>\nthe", "</s></s>the</s>the</s> é"]
NAMED = [
    {"tokenizer_class": "PreTrainedTokenizerFast"},
    {"tokenizer_class": "LlamaTokenizer"},
    {"tokenizer_class": "LlamaTokenizerFast", "legacy": True},
    {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_prefix_space": False},
    {"tokenizer_class": "LlamaTokenizer", "legacy": None, "add_prefix_space": True},
    {"tokenizer_class": None},
]


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("steps", SPACED_STEPS)
def test_texts_and_what_follows_a_special_token(tmp_path, steps, named):
    folder = write_spaced_folder(tmp_path, steps, **named)
    theirs, ours = AutoTokenizer.from_pretrained(folder), read_tokenizer(str(folder))
    for text in TEXTS:
        assert ours.encode(text)[0] == theirs(text)["input_ids"], text
    settings = {"num_virtual_tokens": 0, "add_bos": False, "max_length": 99}
    for text in TEMPLATES:
        parsed = template.parse(text, ours.specials)
        made = example.encode_example(parsed, {}, ["the"], ours, **settings)
        ids = [*made.trunk, *made.tails[0]]
        assert ids == theirs(f"{text} the")["input_ids"], text
