"""Templates as tokens: the property tests of `encode_example`, and what it cuts and refuses."""

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models

from prompt_tuning_jax.data.example import encode_example
from prompt_tuning_jax.data.records import PLACE
from prompt_tuning_jax.data.template import Slot, Special, field_names, parse
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files.tokenizer import Facts, Tokenizer

FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
# What a field may hold: words that the tokenizer knows, markup that must stay text, characters of
# several bytes, and white space.
TRICKY = [
    "<|im_end|>",
    "<|im_start|>",
    "{soft}",
    "{text}",
    "{{",
    "}",
    " ",
    "\n",
    "Topic:",
    " sports",
    "Привет",
    "🙂",
    "日本",
    "é",
    "Answer yes",
    "x",
]
TEXTS = st.lists(st.sampled_from(TRICKY) | st.text(max_size=3), max_size=8).map("".join)
FILLERS = st.sampled_from(["Headline: ", "\nTopic:", " ", "\n", "Answer", "{{", "}}", "é", ": "])
WORDS = st.lists(
    st.sampled_from(["sports", "yes", "no", "business", "not good", "ye", "ÿ", "日本"]),
    min_size=1,
    max_size=4,
    unique=True,
)


def encoded(template, record, answers, tokenizer, **given):
    """The example of a template's text, by default without virtual tokens, BOS or a limit."""
    given = {"num_virtual_tokens": 0, "add_bos": False, "max_length": 10**6, **given}
    return encode_example(parse(template, tokenizer.specials), record, answers, tokenizer, **given)


@st.composite
def templates(draw):
    """Returns a template's text and its P."""
    parts = draw(
        st.lists(
            FILLERS | st.sampled_from(["{text}", "{other}", "<|im_start|>", "<|im_end|>"]),
            min_size=1,
            max_size=8,
        )
    )
    sizes = draw(st.lists(st.integers(1, 4), max_size=3))
    for size in sizes:
        slot = "{soft}" if len(sizes) == 1 and draw(st.booleans()) else f"{{soft:{size}}}"
        parts.insert(draw(st.integers(0, len(parts))), slot)
    return "".join(parts), sum(sizes)


def reference(template, record, answer, tokenizer):
    """Returns the tokens in another way: cut the template's text, fill it, tokenise the parts."""
    cut = re.split(r"(\{soft(?::\d+)?\}|<\|im_start\|>|<\|im_end\|>)", template)
    ids, slots, rendered = [], 0, ""
    for number, part in enumerate(cut):
        if part.startswith("{soft"):
            # A plain slot is the only slot; `expand` knows its size.
            size = int(part[6:-1]) if ":" in part else None
            ids += [("slot", slots, size)]
            slots += size or 0
            rendered = ""
        elif part in tokenizer.specials:
            ids += [tokenizer.specials[part]]
            rendered = ""
        else:
            # All braces in one pass, so that braces in a field's text stay as they are.
            rendered = re.sub(
                r"\{\{|\}\}|\{text\}|\{other\}",
                lambda match: record.get(match[0][1:-1], match[0][0]),
                part,
            )
            if number < len(cut) - 1:
                ids += tokenizer.encode(rendered)[0]
    joint = "" if rendered and rendered[-1].isspace() else " "
    return ids, tokenizer.encode(rendered + joint + answer)[0], rendered


def expand(ids, num_virtual_tokens):
    out = []
    for item in ids:
        if isinstance(item, tuple):
            _, first, size = item
            size = num_virtual_tokens if size is None else size
            out += [-1 - j for j in range(first, first + size)]
        else:
            out.append(item)
    return out


@FIXTURES
@given(templates(), TEXTS, TEXTS, WORDS, st.booleans(), st.booleans())
def test_the_whole_text_is_tokenised_between_slots_and_specials(
    tokenizer, unsplit, trimmed, template, text, other, words, add_bos, crossing
):
    tokenizer = unsplit if crossing else tokenizer
    template, num_virtual_tokens = template
    record = {"text": text, "other": other}
    parsed = parse(template, tokenizer.specials)
    arguments = {"num_virtual_tokens": num_virtual_tokens, "add_bos": add_bos}
    front, _, rendered = reference(template, record, "", tokenizer)
    expected_front = expand(front, num_virtual_tokens)
    first = next((piece for piece in parsed.pieces if not isinstance(piece, Slot)), None)
    if add_bos and not (isinstance(first, Special) and first.markup == "<|im_start|>"):
        expected_front = [tokenizer.bos_id, *expected_front]
    try:
        example = encoded(template, record, words, tokenizer, **arguments)
    except UserError:
        # Only an answer with nothing before it is refused.
        assert not expected_front
        assert crossing or not rendered.strip(" ")
        return
    assert example.trunk.dtype == np.int32
    for word, tail in zip(words, example.tails, strict=True):
        _, last, _ = reference(template, record, word, tokenizer)
        assert [*example.trunk, *tail] == [*expected_front, *last]
        assert len(tail) >= 1
        # All of the answer is a target.
        assert tokenizer.decode(tail.tolist()).endswith(word) or not word.isascii()
    # What the trunk holds of the last text is a front of what is rendered before the answer.
    last = example.trunk[len(expected_front) :].tolist()
    assert rendered.encode().startswith(to_bytes(last, tokenizer))
    # The trunk is the longest such: one token more differs or holds some of an answer.
    firsts = {tail[0] for tail in example.tails}
    if len(firsts) == 1:
        assert not rendered.encode().startswith(to_bytes([*last, *firsts], tokenizer))
    if crossing:
        return
    # A tokenizer that leaves spaces out of its offsets makes no difference.
    assert same(encoded(template, record, words, trimmed, **arguments), example)


def test_the_trunk_ends_where_answers_begin_to_merge_with_the_text(unsplit):
    words = ["sports", "business", "xy"]
    record = {"text": "Labour plans maternity pay rise"}
    example = encoded("{text}\nTopic:", record, words, unsplit)
    trunk = unsplit.decode(example.trunk.tolist())
    tails = [unsplit.decode(tail.tolist()) for tail in example.tails]
    assert len(trunk) < len("Labour plans maternity pay rise\nTopic:")
    assert [trunk + tail for tail in tails] == [
        f"Labour plans maternity pay rise\nTopic: {word}" for word in words
    ]


def test_the_trunk_ends_where_answers_change_the_tokens_in_front_of_them(unsplit):
    def with_merges(*merges):
        characters = [*"abxsp", chr(288)]
        vocabulary = {token: i for i, token in enumerate([*characters, *map("".join, merges)])}
        library = Library(models.BPE(vocabulary, [*merges]))
        library.pre_tokenizer = unsplit.library.pre_tokenizer
        return Tokenizer(json.loads(library.to_str()), Facts(None, None, None, False, None))

    space = chr(288)
    tokenizer = with_merges((space, "s"), ("b", space), ("a", "b"))
    example = encoded("xab", {}, ["s", "p"], tokenizer)
    tokens = [
        [tokenizer.library.id_to_token(i) for i in ids.tolist()]
        for ids in (example.trunk, *example.tails)
    ]
    assert tokens == [["x"], ["ab", f"{space}s"], ["a", f"b{space}", "p"]]


def to_bytes(ids, tokenizer):
    table = byte_table()
    return bytes(table[c] for i in ids for c in tokenizer.library.id_to_token(int(i)))


def byte_table():
    """Returns the byte of each character that stands for one in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + number): byte for number, byte in enumerate(rest)
    }


@FIXTURES
@given(templates(), TEXTS, TEXTS)
def test_specials_and_slots_come_from_the_template_alone(tokenizer, template, text, other):
    template, num_virtual_tokens = template
    record, words = {"text": text, "other": other}, ["yes", "no"]
    example = encoded(
        template + "|", record, words, tokenizer, num_virtual_tokens=num_virtual_tokens
    )
    markup = re.findall(r"<\|im_start\|>|<\|im_end\|>", template)
    assert [i for i in example.trunk if i in (0, 1)] == [tokenizer.specials[m] for m in markup]
    assert [i for i in example.trunk if i < 0] == [-1 - j for j in range(num_virtual_tokens)]
    for tail in example.tails:
        assert (tail > 1).all()


@FIXTURES
@given(templates(), TEXTS, TEXTS)
def test_constant_tokens_lie_before_the_first_field(tokenizer, template, text, other):
    template, num_virtual_tokens = template
    parsed = parse("A:" + template, tokenizer.specials)
    arguments = {"num_virtual_tokens": num_virtual_tokens, "add_bos": True}
    record = {"text": text, "other": other}
    example = encoded("A:" + template, record, ["yes", "no"], tokenizer, **arguments)
    assert 0 < example.constant <= len(example.trunk)
    if not parsed.fields:
        assert example.constant == len(example.trunk)
        return
    front, _, rendered = reference(parsed.text[: parsed.fields[0].place - 1], record, "", tokenizer)
    before = [tokenizer.bos_id, *expand(front, num_virtual_tokens)]
    constant = example.trunk[: example.constant].tolist()
    assert constant[: len(before)] == before[: len(constant)]
    assert rendered.encode().startswith(to_bytes(constant[len(before) :], tokenizer))


def test_what_stands_behind_an_empty_field_is_not_constant(tokenizer):
    for behind, virtual in (("<|im_start|>", 0), ("{soft}", 2)):
        template = "A:{text}" + behind
        examples = [
            encoded(template, {"text": text}, ["yes"], tokenizer, num_virtual_tokens=virtual)
            for text in ("", "x")
        ]
        assert [example.constant for example in examples] == [2, 2]


@FIXTURES
@given(templates(), TEXTS, TEXTS, WORDS, st.integers(1, 40))
def test_too_long_examples_lose_the_end_of_their_longest_field(
    tokenizer, trimmed, template, text, other, words, max_length
):
    template, num_virtual_tokens = template
    record = {"text": text, "other": other}
    used = field_names(template)

    def run(record, limit=10**6, tokenizer=tokenizer):
        given = {"num_virtual_tokens": num_virtual_tokens, "max_length": limit}
        return encoded("A" + template, record, words, tokenizer, **given)

    def length(example):
        return len(example.trunk) + max(map(len, example.tails)) - 1

    whole = run(record)
    try:
        example = run(record, max_length)
    except UserError as error:
        assert "nothing left to shorten" in str(error)
        # It is still too long with one character of either field.
        cut = [record | {name: record[name][:1]} for name in used]
        shortest = [length(run(short)) for short in cut] or [length(whole)]
        assert max(shortest) > max_length
        return
    assert length(example) <= max_length
    assert example.dropped == length(whole) - length(example)
    assert (length(whole) <= max_length) == (example.dropped == 0 and same(example, whole))
    # It is exactly the example of a record one of whose fields is shorter at its end.
    cuts = [
        record | {name: record[name][:stop]} for name in used for stop in range(len(record[name]))
    ]
    assert any(same(run(cut), example) for cut in [record, *cuts])
    assert same(run(record, max_length, trimmed), example) or example.dropped


def same(one, other):
    return [*one.trunk] == [*other.trunk] and all(
        [*a] == [*b] for a, b in zip(one.tails, other.tails, strict=True)
    )


def test_the_longest_field_alone_is_cut_at_a_token_and_no_further_than_needed(tokenizer):
    template = "{text} | {other}\nTopic:"
    record = {"text": "Labour plans maternity pay rise", "other": "Time Warner"}
    whole = encoded(template, record, ["no"], tokenizer)
    cut = encoded(template, record, ["no"], tokenizer, max_length=len(whole.trunk) - 2)
    assert cut.dropped == 2
    text = tokenizer.decode(cut.trunk.tolist())
    kept = text.partition(" | ")[0]
    assert record["text"].startswith(kept)
    assert tokenizer.encode(record["text"])[0][:-2] == tokenizer.encode(kept)[0]
    assert text.endswith(" | Time Warner\nTopic:")


def test_a_field_is_cut_between_characters_and_every_occurrence_alike(tokenizer):
    def run(text, max_length=99):
        given = {"text": text}, ["no"], tokenizer
        return encoded("{text} and {text}:", *given, max_length=max_length)

    shortest = len(run("ꙮ").trunk) + len(run("ꙮ").tails[0]) - 1
    with pytest.raises(UserError, match="nothing left to shorten but the whole of 'text'"):
        run("ꙮꙮꙮ", shortest - 1)
    for limit in range(shortest, 25):
        match = re.fullmatch("(ꙮ+) and \\1:", tokenizer.decode(run("ꙮꙮꙮ", limit).trunk.tolist()))
        assert match
        if len(match[1]) < 3:
            more = run(match[1] + "ꙮ")
            assert len(more.trunk) + len(more.tails[0]) - 1 > limit


@pytest.mark.parametrize(
    ("template", "text", "rendered"),
    [
        ("Topic:", "", " sports"),
        ("Topic: ", "", "sports"),
        ("Topic:\n", "", "sports"),
        ("Topic: {text}", "x", " sports"),
        ("Topic: {text}", "x ", "sports"),
        ("Topic: {text}", "", "sports"),
        ("Topic:{soft}", "", " sports"),
        ("Topic: {soft}", "", " sports"),
        ("Topic:{soft} ", "", "sports"),
        ("Topic:<|im_end|>", "", " sports"),
        ("Topic:<|im_end|>\n", "", "sports"),
    ],
)
def test_an_answer_follows_one_space_or_the_white_space_that_is_there(
    tokenizer, template, text, rendered
):
    virtual = 3 if "{soft}" in template else 0
    words = ["sports", "politics"]
    example = encoded(template, {"text": text}, words, tokenizer, num_virtual_tokens=virtual)
    written = [int(i) for i in [*example.trunk, *example.tails[0]] if i >= 0]
    whole = re.sub(r"\{soft\}", "", template).replace("{text}", text) + rendered
    assert tokenizer.decode(written) == whole
    if template.endswith("}") and "{soft}" in template:
        assert example.trunk[-1] == -3
        assert [*example.tails[0]] == tokenizer.encode(" sports")[0]


def test_a_plain_slot_without_virtual_tokens_is_nothing(tokenizer):
    plain = encoded("Answer Topic:", {}, ["a"], tokenizer)
    assert same(encoded("Ans{soft}wer Topic:", {}, ["a"], tokenizer), plain)


@pytest.mark.parametrize("count", [2, 5])
def test_a_plain_slot_takes_what_the_others_leave(tokenizer, count):
    example = encoded("{soft}Topic:{soft:2}", {}, ["a"], tokenizer, num_virtual_tokens=count)
    slots = [-1 - slot for slot in range(count)]
    assert [*example.trunk] == [*slots[:-2], *tokenizer.encode("Topic:")[0], *slots[-2:]]


@pytest.mark.parametrize(
    ("template", "num_virtual_tokens", "message"),
    [
        ("{text}:", 4, "no slot for the 4 virtual tokens"),
        ("{soft:2} {text}{soft:1}", 4, "position 16: the slots add up to 3"),
        ("{soft} {soft:2} {text}", 0, "position 8: there are no virtual tokens for this slot"),
        ("{soft} {text}{soft:3}", 2, "position 14: the slots add up to 3"),
        ("{soft}{txet}", 2, r"position 7: the data has no field 'txet' \(did you mean 'text'\?\)"),
        ("{sfot}{text}", 0, r"position 1: the data has no field 'sfot' \(did you mean 'soft'\?\)"),
        ("{x}", 0, "the data has no field 'x': expected one of: text, other$"),
        ("{soft}", 0, "nothing before the answer"),
        ("{other}", 0, "nothing before the answer"),
    ],
)
def test_a_template_that_cannot_be_encoded_is_refused(
    tokenizer, template, num_virtual_tokens, message
):
    record, words = {"text": "x", "other": "", PLACE: "line 1"}, ["yes", "no"]
    with pytest.raises(UserError, match=message):
        encoded(template, record, words, tokenizer, num_virtual_tokens=num_virtual_tokens)


def test_an_example_that_is_too_large_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"make 2,000,000 characters .* at most 1,048,576"):
        encoded("{text}" * 1000, {"text": "ab" * 1000}, ["x"], tokenizer)
    given = {"num_virtual_tokens": 8, "max_length": 5}
    with pytest.raises(UserError, match=r"\d+ positions and 5 are allowed, with nothing left"):
        encoded("{soft}{text}:", {"text": "Labour plans"}, ["no"], tokenizer, **given)


def test_bos_comes_first_and_once(tokenizer):
    def front(template):
        example = encoded(template, {}, ["a"], tokenizer, num_virtual_tokens=2, add_bos=True)
        return example.trunk[:4].tolist()

    answer = tokenizer.encode("Answer")[0]
    assert front("{soft}Answer:") == [0, -1, -2, *answer][:4]
    assert front("<|im_start|>{soft}Answer:") == [0, -1, -2, *answer][:4]
    assert front("{soft}<|im_start|>Answer:") == [-1, -2, 0, *answer][:4]
