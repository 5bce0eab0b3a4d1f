"""Rows to predict as records: the fields of the template, whatever the rows are written in."""

import io
from types import SimpleNamespace

import pytest

from prompt_tuning_jax.cli.predict import input_form, prediction_records
from prompt_tuning_jax.data.records import PLACE
from prompt_tuning_jax.data.rows import CELLS, JSON, Form, read_rows
from prompt_tuning_jax.errors import UserError

TEXTS, OBJECTS, CSV = Form(), Form(JSON), Form(CELLS, ",")
TEMPLATE, TWO = "{soft}Headline: {text}\\nTopic:", "{name} {area}:"


def read(content, form=OBJECTS, template=TEMPLATE, **columns):
    rows = read_rows(io.BytesIO(content.encode()), "f", form)
    return list(prediction_records(rows, template, columns, form))


def texts(*given, **columns):
    return [record["text"] for record in read(*given, **columns)]


def test_a_line_is_the_only_field_and_an_object_or_a_row_of_cells_has_them_by_name():
    assert read("a\n\n{b}", TEXTS) == [
        {"text": text, PLACE: f"f, line {n}"} for n, text in enumerate(("a", "", "{b}"), 1)
    ]
    objects = '{"area": "north", "name": "Zizzi", "label": null, "x": [1]}\n \n{"area":1,"name":2}'
    assert read(objects, template=TWO) == [
        {"area": "north", "name": "Zizzi", PLACE: "f, line 1"},
        {"area": "1", "name": "2", PLACE: "f, line 3"},
    ]
    [row] = read("label,name,area\nx,Zizzi,north\n", CSV, TWO)
    assert (row["name"], row["area"], row[PLACE]) == ("Zizzi", "north", "f, line 2")


def test_a_field_may_have_the_name_that_its_column_had():
    lines = '{"review": "a"}\n{"text": "b"}\n{"text": "c", "sentence": "d"}'
    assert texts(lines, text=["sentence", "review"]) == ["a", "b", "d"]


def test_a_number_is_the_place_of_a_column_but_not_of_a_name():
    assert texts("review,text\na,b\n", CSV, text=["1"]) == ["a"]
    # There is no third column: the label of the training file is missing.
    assert texts("review,text\na,b\n", CSV, text=["3"]) == ["b"]
    assert texts("x\ta\ny\tb", Form(CELLS, "\t", False), text=["2"]) == ["a", "b"]
    assert texts('{"label": "x", "text": "b"}', text=["1"]) == ["b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "a"}', r"no column 'text' \(did you mean 'txt'\?\); its columns are 'txt'$"),
        ("{}", "no column 'text'; its columns are none$"),
        ('{"text": null}', "'text' is null, expected a text"),
        ('{"text": ["a"]}', "'text' is list, expected a text"),
        ('{"text": NaN}', "'text' is NaN, expected a text$"),
        (r'{"text": "\ud83d"}', "'text' has half of a surrogate pair at character 1"),
        ('{"text": "' + "a" * 200_000 + '"}', "'text' has 200,000 characters"),
        ("[]", "a JSON list"),
    ],
)
def test_a_row_without_the_texts_is_refused_by_its_line(line, message):
    with pytest.raises(UserError, match=f"^f, line 3: {message}"):
        read(f'{{"text": "a"}}\n\n{line}')


def test_a_template_needs_a_field_and_a_line_only_one():
    with pytest.raises(UserError, match=r"fields name, area: .* --jsonl"):
        read("a", TEXTS, TWO)
    for form in (TEXTS, OBJECTS, CSV):
        with pytest.raises(UserError, match=r"template '\{soft\}\\n' has no field"):
            read("a", form, "{soft}\n")


def test_a_name_tells_the_form_unless_a_person_does():
    def form(name, as_json=None, delimiter="", header=True, train=""):
        files = SimpleNamespace(delimiter=delimiter, header=header, train=train)
        return input_form(name, as_json, files)

    assert form("<stdin>") == form("a.txt") == form("a.csv", False) == TEXTS
    assert form("a.JSONL") == form("a.csv", True) == OBJECTS
    assert (form("a.csv"), form("a.tsv")) == (CSV, Form(CELLS, "\t"))
    assert form("a.csv", None, ";", False) == Form(CELLS, ";", False)
    # A delimiter counts for files with the ending of the one that was trained on.
    assert form("new.TXT", None, ";", False, "old.txt") == Form(CELLS, ";", False)
    others = ("new.txt", "old.csv"), ("<stdin>", "old.txt"), ("new", "old")
    assert all(form(name, None, ";", train=old) == TEXTS for name, old in others)
    assert form("new.txt", train="old.txt") == form("new.txt", False, ";") == TEXTS
    assert form("new.jsonl", None, ";", train="old.csv") == OBJECTS
