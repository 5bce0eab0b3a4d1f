"""Lines as records: plain text, JSON objects, and what is neither."""

import itertools

import pytest

from prompt_tuning_jax.data.lines import records
from prompt_tuning_jax.data.records import PLACE
from prompt_tuning_jax.errors import UserError

TEMPLATE, TWO = "{soft}Headline: {text}\\nTopic:", "{name} {area}:"


def read(*lines, template=TEMPLATE, columns=None, as_json=True):
    placed = [(f"f, line {number}", line) for number, line in enumerate(lines, 1)]
    return list(records(placed, template, columns or {}, as_json))


def test_a_plain_line_is_the_text_whatever_it_looks_like():
    lines = ["a", "", ' {"text": "b"} ', "{text}"]
    found = read(*lines, as_json=False)
    assert [record["text"] for record in found] == lines
    assert [record[PLACE] for record in found] == [f"f, line {n}" for n in range(1, 5)]


def test_an_object_holds_the_templates_fields_and_anything_else():
    found = read(
        '{"area": "north", "name": "Zizzi", "label": null, "x": [1]}',
        "  ",
        '{"name": 7, "area": true}',
        template=TWO,
    )
    assert found == [
        {"name": "Zizzi", "area": "north", PLACE: "f, line 1"},
        {"name": "7", "area": "true", PLACE: "f, line 3"},
    ]


def test_a_field_may_have_its_columns_name():
    columns = {"text": ["sentence", "review"]}
    lines = ['{"review": "a"}', '{"text": "b"}', '{"text": "c", "sentence": "d"}']
    assert [record["text"] for record in read(*lines, columns=columns)] == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"text": "a"', ["no JSON object", "delimiter"]),
        ("plain", ["no JSON object", "Expecting value"]),
        ("[1]", ["list, expected a JSON object"]),
        ("null", ["NoneType, expected a JSON object"]),
        ('"text"', ["str, expected a JSON object"]),
        ('{"txt": "a"}', ["no field 'text'", "did you mean 'txt'?"]),
        ("{}", ["no field 'text'", "it has none"]),
        ('{"text": null}', ["'text' is null, expected a text"]),
        ('{"text": ["a"]}', ["'text' is list, expected a text"]),
        ('{"text": NaN}', ["'text' is float, expected a text"]),
        (r'{"text": "\ud83d"}', ["half of a surrogate pair at character 1"]),
        ('{"text": "' + "a" * 200_000 + '"}', ["200,000 characters"]),
        ("[" * 100_000, ["nested too deeply"]),
        ('{"text": ' + "1" * 5000 + "}", ["no JSON object", "5000"]),
    ],
)
def test_what_is_no_record_is_refused_by_its_line(line, parts):
    with pytest.raises(UserError) as refused:
        read('{"text": "a"}', "", line)
    sentence = str(refused.value)
    assert sentence.startswith("f, line 3: ") and len(sentence) < 300
    assert all(part in sentence for part in parts), sentence


def test_several_fields_need_objects():
    with pytest.raises(UserError, match=r"fields name, area: .* --jsonl"):
        read("a", template=TWO, as_json=False)


def test_lines_are_read_as_records_are_asked_for():
    taken = itertools.count()
    endless = (("f", f"a {next(taken)}") for _ in itertools.repeat(None))
    assert len(list(itertools.islice(records(endless, TEMPLATE, {}, False), 5))) == 5
    assert next(taken) == 5


def test_a_template_without_a_field_is_refused():
    for as_json in (True, False):
        with pytest.raises(UserError, match=r"template '\{soft\}\\n' names no field"):
            list(records([("line 1", "a")], "{soft}\n", {}, as_json))
