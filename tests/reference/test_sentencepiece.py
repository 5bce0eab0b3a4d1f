"""Live against transformers: where tokenizers that write a space as a sign put one more."""

import pytest
import tiny_models
from transformers import AutoTokenizer

from prompt_tuning_jax.data import example, template
from prompt_tuning_jax.models.files import tokenizer

MERGES = (("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁"))
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
TOKENS += [*"▁abcdefghijklmnopqrstuvwxyz\n", *map("".join, MERGES)]
TEXTS = ["the end", " the end", "  two  spaces", "é\n\nthe", ""]
TEMPLATES = ["a</s>the", "a</s> the", "a</s>  the", "a</s>\nthe", "</s></s>the</s>the</s> é"]
LLAMA2 = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
STEPS = {
    scheme: {"normalizer": None, "pre_tokenizer": {**METASPACE, "prepend_scheme": scheme}}
    for scheme in ("first", "always", "never")
} | {"llama 2": {"normalizer": LLAMA2, "pre_tokenizer": None}}
NAMED = [
    {"tokenizer_class": "PreTrainedTokenizerFast"},
    {"tokenizer_class": "LlamaTokenizer"},
    {"tokenizer_class": "LlamaTokenizerFast", "legacy": True},
    {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_prefix_space": False},
    {"tokenizer_class": "LlamaTokenizer", "legacy": None, "add_prefix_space": True},
    {"tokenizer_class": None},
]


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("steps", STEPS)
def test_texts_and_what_follows_a_special_token(tmp_path, steps, named):
    folder = tiny_models.write_folder(tmp_path)
    whole = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tiny_models.rewrite(
        folder / "tokenizer.json",
        **STEPS[steps],
        added_tokens=[
            {**whole, "id": number, "content": TOKENS[number], "special": True}
            for number in range(3)
        ],
        post_processor=None,
        decoder={"type": "Fuse"},
        model={
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(TOKENS)},
            "merges": MERGES,
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": "<unk>",
        },
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
    tiny_models.rewrite(folder / "tokenizer_config.json", **names, **named)
    theirs, ours = AutoTokenizer.from_pretrained(folder), tokenizer.read(str(folder))
    for text in TEXTS:
        assert ours.encode(text)[0] == theirs(text)["input_ids"], text
    settings = {"num_virtual_tokens": 0, "add_bos": False, "max_length": 99}
    for text in TEMPLATES:
        parsed = template.parse(text, ours.specials)
        made = example.encode_example(parsed, {}, ["the"], ours, **settings)
        ids = [*made.trunk, *made.tails[0]]
        assert ids == theirs(f"{text} the")["input_ids"], text
