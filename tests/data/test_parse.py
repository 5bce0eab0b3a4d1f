"""Templates as text: their pieces, and written prompts in place of their slots."""

import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax.data.template import Constant, Field, Slot, Special, parse, with_prompt
from prompt_tuning_jax.errors import UserError


def test_parse_finds_the_pieces():
    parsed = parse("{soft:2}<|im_start|>user\nA {{b}} {text}{soft:1}:", ["<|im_start|>", "<|im"])
    assert parsed.pieces == (
        Slot(2, 1),
        Special("<|im_start|>"),
        Constant("user\nA {b} "),
        Field("text", 34),
        Slot(1, 40),
        Constant(":"),
    )
    assert parse("{text}{soft}").pieces == (Field("text", 1), Slot(None, 7))


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("{text.__class__}", 1),
        ("{text!r}", 1),
        ("{text:>10}", 1),
        ("{}", 1),
        ("{%text%}", 1),
        ("{__class__.__init__}", 1),
        ("{{{text}}}}", 11),
        ("{soft:9e9}{text}", 1),
        ("{text", 1),
        ("a\n}", 3),
        ("{{text}", 7),
        ("{text}}", 7),
        ("{te{xt}}", 1),
        ("{soft:0}", 1),
        ("{soft:}", 1),
        ("{soft:99999999999999}", 1),
        ("{soft} {text}{soft}", 14),
        ("{" + "a" * 201 + "}", 1),
        ("{text}" * 1001, 6001),
        ("{soft:1}" * 1001, 8001),
    ],
)
def test_an_invalid_field_or_slot_is_refused_with_its_position(text, position):
    with pytest.raises(UserError, match=f"position {position}:"):
        parse(text)


MARKUP = ["<|im|>", "<|im|", "|>"]
PARTS = st.sampled_from(
    ["{", "}", "{{", "}}", "{text}", "{soft}", "{soft:2}", "{a b}", "{é}", "\\n", "\\", *MARKUP]
)


@given(st.lists(PARTS | st.text(max_size=3), max_size=8).map("".join), st.booleans())
def test_a_parsed_template_is_the_text_and_the_rest_is_refused(text, special):
    specials = MARKUP[:2] if special else []
    plain = re.sub(r"\{\{|\}\}", "", text)
    inside = re.findall(r"\{([^{}]*)\}", plain)
    fields = [name for name in inside if not name.partition(":")[0] == "soft"]
    try:
        parsed = parse(text, specials)
    except UserError as error:
        assert re.search(r"position \d+: ", str(error))
        # A brace without its partner, an invalid name or slot, or a second plain slot.
        alone = re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", plain))
        slots = [name for name in inside if name.startswith("soft:")]
        assert (
            alone
            or inside.count("soft") > 1
            or not all(name.isidentifier() for name in fields)
            or not all(re.fullmatch("soft:[1-9][0-9]{0,8}", slot) for slot in slots)
        )
        return
    fields = [unicodedata.normalize("NFC", name) for name in fields]
    assert [field.name for field in parsed.fields] == fields
    written = ""
    for piece in parsed.pieces:
        if isinstance(piece, Field):
            written += f"{{{piece.name}}}"
        elif isinstance(piece, Slot):
            written += "{soft}" if piece.size is None else f"{{soft:{piece.size}}}"
        elif isinstance(piece, Special):
            assert piece.markup in specials
            written += piece.markup
        else:
            assert piece.text and not any(markup in piece.text for markup in specials)
            written += re.sub(r"[{}]", lambda brace: 2 * brace[0], piece.text)
    assert written == text.replace("\\n", "\n").replace("\\t", "\t")
    prompt = with_prompt(text, "P")
    assert not any(isinstance(piece, Slot) for piece in parse(prompt, specials).pieces)
    assert prompt.count("P") == text.count("P") + 1


def test_a_long_template_is_parsed_or_refused_at_once():
    specials = [f"<|reserved_special_token_{number}|>" for number in range(256)]
    began = time.process_time()
    with pytest.raises(UserError, match="position 3001: more than 1,000 fields and slots"):
        parse("{a}" * 10_000, specials)
    markup = specials[-1]
    assert parse(("{a}" + "text " * 160 + markup) * 500, specials).pieces[-1] == Special(markup)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        ("{soft}Headline: {text}", "Classify. ", "Classify. Headline: {text}"),
        ("{soft:8}A {text} {soft:4}B", "P ", "P A {text} B"),
        ("{{soft}} {text}{soft}:", "P", "{{soft}} {text}P:"),
        ("Headline: {text}", "P ", "P Headline: {text}"),
        ("{soft}Headline: {text}", "Is '{text}' sport?", "Is '{text}' sport?"),
    ],
)
def test_a_written_prompt_takes_the_place_of_the_slots(template, prompt, expected):
    assert with_prompt(template, prompt) == expected


@pytest.mark.parametrize("written", ["{ text }", "{text }", "{ text}"])
def test_a_field_with_spaces_is_told_how_to_write_it(written):
    with pytest.raises(UserError, match=r"is not a field: write \{text\}, or"):
        parse(f"Review: {written}")


def test_a_fields_name_has_one_unicode_form():
    assert parse("{cafe\u0301}").fields[0].name == parse("{caf\u00e9}").fields[0].name
