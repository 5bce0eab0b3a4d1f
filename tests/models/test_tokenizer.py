"""Tokenizers: the model's own ids, offsets that cover the text, and no special token from text."""

import json
import time

import numpy as np
import pytest
import reference_lines
import tiny_models
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import SPECIALS, front_processor, rewrite

from prompt_tuning_jax.data import example, template
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files import tokenizer
from prompt_tuning_jax.models.files.gguf import read_gguf
from prompt_tuning_jax.models.files.tokenizer import read_tokenizer
from prompt_tuning_jax.models.language_model import load

SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def smollm2():
    return read_tokenizer(SMOLLM2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return read_tokenizer(str(tiny_models.write_folder(tmp_path_factory.mktemp("tiny"))))


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


NASTY = st.lists(st.sampled_from([*"aé字👍 \t\r\n1²\u200b", *SPECIALS, "<|im_end|>"])).map("".join)


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


@given(text=st.text(), nasty=NASTY)
def test_text_round_trips_and_offsets_cover_it(tiny, smollm2, text, nasty):
    check_encoding(tiny, text)  # SmolLM2 has no tokens for some bytes
    for words in (tiny, smollm2):
        check_encoding(words, nasty)


def test_offsets_are_characters_and_keep_the_space(smollm2, tiny):
    for words in (smollm2, tiny):
        text = "字👍 the"
        ids, offsets = words.encode(text)
        assert text[slice(*offsets[-1])] == words.decode(ids[-1:]) == " the"


def test_markup_is_special_and_text_is_not(tiny):
    assert tiny.specials == {"<|pad|>": 0, "<|bos|>": 1, "<|eos|>": 2}
    assert 2 not in tiny.encode("a<|eos|>")[0]
    assert tiny.decode([1, *tiny.encode("a")[0], 2]) == "<|bos|>a<|eos|>"


def test_folder_and_gguf_give_the_same_ids(tiny, gguf_path):
    ours = read_tokenizer(str(gguf_path))
    for text in ("the theme in 1234  things\r\n", "<|bos|>字"):
        assert ours.encode(text) == tiny.encode(text)
    for words in (ours, tiny):
        assert (words.bos_id, words.eos_id, words.pad_id, words.add_bos) == (1, 2, 0, True)
    assert ours.specials == tiny.specials


def test_truncation_padding_and_dropout_of_the_file_are_off(folder, tiny):
    path = folder / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(path))
    library.enable_truncation(2)
    library.enable_padding(length=9, pad_token="<|pad|>")
    library.save(str(path))
    model = {**tiny_models.tokenizer_json()["model"], "dropout": 1.0}
    rewrite(path, model=model)
    words = read_tokenizer(str(folder))
    assert words.encode("the the the") == tiny.encode("the the the") and words.add_bos
    assert len(words.encode("abcde")[0]) == 5


@pytest.mark.parametrize("setting", [None, True, False])
def test_the_processor_decides_whether_bos_is_added(folder, setting):
    rewrite(folder / "tokenizer_config.json", add_bos_token=setting)
    assert read_tokenizer(str(folder)).add_bos
    rewrite(folder / "tokenizer.json", post_processor=None)
    assert not read_tokenizer(str(folder)).add_bos


def test_bos_is_not_added_if_there_is_none(folder):
    rewrite(folder / "tokenizer_config.json", bos_token=None, eos_token=None, pad_token=None)
    rewrite(folder / "config.json", bos_token_id=None, eos_token_id=[2, 1], pad_token_id=-1)
    rewrite(folder / "tokenizer.json", post_processor=None)
    words = read_tokenizer(str(folder))
    assert (words.bos_id, words.eos_id, words.pad_id, words.add_bos) == (None, 2, None, False)


@pytest.mark.parametrize("number", [None, 1, 2])
def test_a_bos_that_only_the_processor_knows(folder, number):
    """As in transformers, which takes its id from nowhere else, not from config.json."""
    rewrite(folder / "tokenizer_config.json", bos_token=None)
    rewrite(folder / "config.json", bos_token_id=number)
    for front, wanted in (((SPECIALS[1],), (1, True)), ((), (number, False))):
        processor = front_processor(*front, behind=(SPECIALS[2],))
        rewrite(folder / "tokenizer.json", post_processor=processor)
        words = read_tokenizer(str(folder))
        assert (words.bos_id, words.add_bos) == wanted


def test_a_processor_that_puts_more_than_bos_in_front_is_refused(folder):
    message = r"post_processor puts \[.*\] in front .* the BOS token, 1:"
    for tokens in (["<|bos|>", "<|pad|>"], ["<|pad|>"]):
        rewrite(folder / "tokenizer.json", post_processor=front_processor(*tokens))
        with pytest.raises(UserError, match=message):
            read_tokenizer(str(folder))


def test_special_tokens_map_of_earlier_versions_is_read(folder):
    path = folder / "special_tokens_map.json"
    path.write_text(json.dumps({"bos_token": {"content": "<|bos|>"}, "eos_token": "<|pad|>"}))
    rewrite(folder / "tokenizer_config.json", bos_token=None)
    rewrite(folder / "config.json", bos_token_id=None)
    words = read_tokenizer(str(folder))
    assert (words.bos_id, words.eos_id, words.add_bos) == (1, 0, True)
    rewrite(folder / "tokenizer_config.json", added_tokens_decoder={})
    assert read_tokenizer(str(folder)).eos_id == 2


def test_every_end_of_a_text_is_read_wherever_it_is_named(folder):
    assert read_tokenizer(str(folder)).end_ids == [2]
    rewrite(folder / "config.json", eos_token_id=[2, 5])
    before = read_tokenizer(str(folder))
    assert before.end_ids == [2, 5] and before.eos_id == 2
    for named, wanted in ((7, [2, 5, 7]), ([2, 0], [0, 2, 5]), (None, [2, 5]), ("x", [2, 5])):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        words = read_tokenizer(str(folder))
        # An artifact that was trained before still fits: no id of a text changes.
        assert words.end_ids == wanted and words.fingerprint == before.fingerprint


def test_the_end_of_a_turn_ends_a_text_of_a_gguf(tmp_path):
    fields = {"tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 11}
    words = read_tokenizer(str(tiny_models.write_gguf(tmp_path / "a.gguf", fields=fields)))
    assert (words.eos_id, words.end_ids) == (2, [2, 9, 11])


def test_chat_templates_are_read(folder):
    def found():
        return read_tokenizer(str(folder)).chat_template

    assert found() is None
    named, own = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    rewrite(named, chat_template="{{ a }}")
    assert found() == "{{ a }}"
    rewrite(named, chat_template=[{"name": "tool", "template": "t"}])
    assert found() is None
    listed = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    rewrite(named, chat_template=listed)
    assert found() == "d"
    own.mkdir()
    assert found() == "d"
    own.rmdir()
    own.write_text("its own")
    assert found() == "its own"


def test_the_fingerprint_tells_tokenizers_apart(folder, smollm2):
    def found():
        return read_tokenizer(str(folder)).fingerprint

    first, path = found(), folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    assert found() == first
    rewrite(folder / "tokenizer_config.json", chat_template="{{ a }}")
    assert found() == first
    rewrite(folder / "tokenizer_config.json", eos_token="<|pad|>")
    second = found()
    rewrite(folder / "tokenizer_config.json", eos_token="<|eos|>")
    model = tiny_models.tokenizer_json()["model"]
    rewrite(path, model={**model, "merges": model["merges"][::-1]})
    assert len({first, second, found(), smollm2.fingerprint}) == 4


def test_llama3_splits_digits_in_threes_and_words_with_the_sign_before_them(tmp_path):
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf", pre="llama-bpe"))
    splitter = read_tokenizer(path).library.pre_tokenizer
    pieces = [piece for piece, _ in splitter.pre_tokenize_str("it's 12345 (the\n\n  end")]
    assert pieces == ["it", "'s", "Ġ", "123", "45", "Ġ(", "the", "ĊĊ", "Ġ", "Ġend"]


def test_tokenizers_that_are_refused(tmp_path, folder):
    path = str(tiny_models.write_gguf(tmp_path / "model.gguf", pre="tekken"))
    with pytest.raises(UserError, match=r"as 'tekken'; supported: .*smollm, gpt-2, llama-bpe"):
        read_tokenizer(path)
    rewrite(folder / "config.json", eos_token_id=99_999)
    rewrite(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match=r"it names id 99999 \(BOS, EOS or padding\) and has 264"):
        read_tokenizer(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read \(No such file"):
        read_tokenizer(str(folder))


def test_ids_without_an_embedding_are_refused_unless_no_text_has_them(tmp_path):
    ids = len(tiny_models.VOCABULARY)
    cut = tiny_models.write_folder(tmp_path / "cut", tiny_models.changed(vocabulary=ids - 1))
    with pytest.raises(UserError, match=f"ids up to {ids - 1} .* embeddings for {ids - 1}: give"):
        load(str(cut))
    # As after fine-tuning with an additional padding token, which no batch here has.
    whole = tiny_models.write_folder(tmp_path / "whole")
    added = tiny_models.specials(SPECIALS)
    padding = {**added[0], "id": ids, "content": "<|more|>"}
    rewrite(whole / "tokenizer.json", added_tokens=[*added, padding])
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
        {"tokens": None},
        {"tokens": 3},
        {"tokens": [1, 2]},
        {"merges": None},
        {"merges": [1, 2]},
        {"merges": ["never there"]},
        {"token_type": 3},
        {"bos_token_id": 10**9},
        {"model": "llama"},
        {"model": [1]},
        {"pre": [1, 2]},
        {"pre": None},
    ],
)
def test_hostile_gguf_fields_are_refused(gguf_path, monkeypatch, changes):
    file = read_gguf(gguf_path)
    fields = file.fields | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    monkeypatch.setattr(tokenizer, "read_gguf", lambda _: file._replace(fields=fields))
    with pytest.raises(UserError):
        read_tokenizer(str(gguf_path))


def splitting_by(pattern):
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {**split, "pattern": {"Regex": pattern}}}


def replacing(content, times):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def nested(depth):
    return {"type": "Sequence", "normalizers": [nested(depth - 1)] if depth else []}


def merging(vocabulary, merges=()):
    return {"model": {"type": "BPE", "vocab": vocabulary, "merges": merges}}


HOSTILE = {
    "text that doubles": {"normalizer": replacing("aa", 40)},
    "text that grows a million times": {"normalizer": replacing("a" * 1000, 2)},
    "an answer that grows": {"decoder": {"type": "Sequence", "decoders": [replacing("aa", 40)]}},
    "steps nested 200 deep": {"normalizer": nested(200)},
    "parentheses 20,000 deep": splitting_by("(" * 20_000 + ")" * 20_000),
    "a damaged table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "an unknown special token": {
        "post_processor": front_processor("<|bos|>") | {"special_tokens": {}}
    },
    "a type that is code": {"normalizer": {"type": "os.system"}},
    "a model that is a path": {"model": "../../model"},
    "a model of no type": {"model": {"type": "none"}},
    "ids of 2^64": merging({"a": 2**64}),
    "merges of numbers": merging({"a": 0}, [[0, 1]]),
    "a surrogate": merging({"\ud800": 0}),
    "added tokens that are a text": {"added_tokens": "x" * 100_000},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_tokenizers_are_refused(folder, what):
    rewrite(folder / "tokenizer.json", **HOSTILE[what])
    began = time.process_time()
    with pytest.raises(UserError, match=r"the tokenizer of '.*' cannot be read: "):
        read_tokenizer(str(folder))
    assert time.process_time() - began < 1


@pytest.mark.parametrize("raw", [b"", b"[" * 100_000, b'{"a":' * 100_000, b"[1]", b"\xff", b"NaN"])
def test_tokenizers_that_are_not_json_are_refused(folder, raw):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(raw)
        with pytest.raises(UserError, match=name):
            read_tokenizer(str(folder))
        (folder / name).write_bytes(before)


def test_a_pattern_that_never_ends_is_given_up_at_once(folder):
    """The library gives up a match after ten million attempts, and panics."""
    rewrite(folder / "tokenizer.json", **splitting_by("(a+)+$"))
    words = read_tokenizer(str(folder))
    began = time.process_time()
    with pytest.raises(UserError, match=r"a text of 61 characters cannot be cut .*retry-limit"):
        words.encode("a" * 60 + "!")
    assert time.process_time() - began < 5


def test_a_text_that_the_vocabulary_cannot_write_is_refused(folder):
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}
    rewrite(folder / "tokenizer.json", model=words, post_processor=None)
    with pytest.raises(UserError, match=r"a text of 5 characters cannot be cut .*UNK"):
        read_tokenizer(str(folder)).encode("banks")


def test_a_tokenizer_may_replace_some_text(folder):
    rewrite(folder / "tokenizer.json", normalizer=tiny_models.LLAMA2)
    assert read_tokenizer(str(folder)).encode("a b")[0]
