"""Lines as records: plain text, JSON objects, and what is neither."""

import itertools
import time

import pytest

from prompt_tuning_jax.data.inputs import Form, form_of, is_object, records
from prompt_tuning_jax.data.records import PLACE
from prompt_tuning_jax.errors import UserError

OBJECTS = Form(as_json=True)
TEMPLATE, TWO = "{soft}Headline: {text}\\nTopic:", "{name} {area}:"


def read(*lines, template=TEMPLATE, columns=None, form=OBJECTS):
    placed = [(f"f, line {number}", line) for number, line in enumerate(lines, 1)]
    return list(records(placed, template, columns or {}, form, "f"))


def test_a_plain_line_is_the_text_whatever_it_looks_like():
    lines = ["a", "", ' {"text": "b"} ', "{text}"]
    found = read(*(f"{line}\r\n" for line in lines), form=Form())
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
        ("[1]", ["a JSON list, expected an object"]),
        ("null", ["a JSON NoneType, expected an object"]),
        ('"text"', ["a JSON str, expected an object"]),
        ('{"text": "a", "text": "b"}', ["the name 'text' is there twice"]),
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


CELLS = Form(delimiter=",")


def test_cells_are_read_as_they_were_for_training():
    lines = ["label,name,area\r\n", "a,Zizzi,north\n", "\n", 'b,"the ""Old\n', 'Inn""",7\n']
    assert read(*lines, template=TWO, form=CELLS) == [
        {"name": "Zizzi", "area": "north", PLACE: "f, line 2"},
        {"name": 'the "Old\nInn"', "area": "7", PLACE: "f, line 4"},
    ]
    columns = {"text": ["2"]}
    bare = Form(delimiter="\t", header=False)
    assert [row["text"] for row in read("x\ta\n", "y\tb", columns=columns, form=bare)] == ["a", "b"]


def test_rows_may_end_as_they_may_for_training():
    assert [row["text"] for row in read('text,x\ra,b\r"c\rd",e\r', form=CELLS)] == ["a", "c\rd"]
    with pytest.raises(UserError, match=r"f, line 3: 1 cells, expected 2"):
        read("text,x\ra,b\rc\r", form=CELLS)


def test_a_number_is_a_columns_place_as_it_was_for_training():
    lines = ["review,text\n", "a,b\n"]
    assert [row["text"] for row in read(*lines, columns={"text": ["1"]}, form=CELLS)] == ["a"]
    # More than there are, where the label's column is not there: by the name.
    assert [row["text"] for row in read(*lines, columns={"text": ["3"]}, form=CELLS)] == ["b"]
    found = read('{"label": "x", "text": "b"}', columns={"text": ["1"]})
    assert [row["text"] for row in found] == ["b"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("a\n", "f, line 3: 1 cells, expected 2"),
        ('"a,b\n', "f, line 3: a quote that is opened here is not closed"),
        (f"{'a' * 200_000},b", "f, line 3: a cell of more than 131,072 characters"),
    ],
)
def test_cells_that_are_none_are_refused_by_their_line(line, part):
    with pytest.raises(UserError, match=part):
        read("text,area\n", "a,b\n", line, form=CELLS)
    with pytest.raises(UserError, match=r"f, line 2: no field 'text' .*'txt'.*: it has 'txt', 'x'"):
        read("txt,x\n", "a,b\n", form=CELLS)
    with pytest.raises(UserError, match=r"f, line 1: the only column is 'text;x': expected ','"):
        read("text;x\n", "a;b\n", form=CELLS)


def test_a_row_that_goes_on_from_line_to_line_takes_no_more_memory():
    taken = itertools.count()
    endless = (("f", '",",\n') for _ in iter(lambda: next(taken), 2_000_000))
    lines = itertools.chain([("f", "text,area\n"), ("f", '",\n')], endless)
    with pytest.raises(UserError, match=r"f, line 2: a row of more than 4,194,304 characters: "):
        list(records(lines, TEMPLATE, {}, CELLS, "f"))
    assert next(taken) < 1_100_000


def test_a_header_of_many_columns_is_checked_at_once():
    header = ",".join(map(str, range(40_000)))
    began = time.process_time()
    with pytest.raises(UserError, match="two columns have the name 'a'"):
        read(f"{header},a,a\n", form=CELLS)
    with pytest.raises(UserError, match=r"two columns have the name 'a{9,}…") as refused:
        read(f"{header},{'a' * 1000},{'a' * 1000}\n", form=CELLS)
    assert time.process_time() - began < 2 and len(str(refused.value)) < 200


def test_a_name_says_what_its_lines_are_unless_a_person_does():
    assert form_of("<stdin>", None) == form_of("a.txt", None) == form_of("a.csv", False) == Form()
    assert form_of("a.JSONL", None) == form_of("a.csv", True) == Form(as_json=True)
    assert form_of("a.csv", None) == CELLS and form_of("a.tsv", None) == Form(delimiter="\t")
    assert form_of("a.csv", None, ";", False) == Form(delimiter=";", header=False)


def test_a_file_like_the_one_that_a_delimiter_made_cells_is_cells():
    assert form_of("new.TXT", None, ";", False, "old.txt") == Form(delimiter=";", header=False)
    others = ("new.txt", "old.csv"), ("<stdin>", "old.txt"), ("new", "old")
    assert all(form_of(name, None, ";", trained=old) == Form() for name, old in others)
    assert form_of("new.txt", None, trained="old.txt") == Form()
    assert form_of("new.txt", False, ";", trained="old.txt") == Form()
    assert form_of("new.jsonl", None, ";", trained="old.csv") == Form(as_json=True)


def test_an_object_is_told_from_a_text_in_braces():
    assert is_object(' {"text": "a"}\n') and is_object("{}")
    assert not any(map(is_object, ("{text}", "[1]", "a", "", "{" * 100_000, '{"a":' * 100_000)))


def test_several_fields_need_objects():
    with pytest.raises(UserError, match=r"fields name, area: .* --jsonl"):
        read("a", template=TWO, form=Form())


def test_lines_are_read_as_records_are_asked_for():
    taken = itertools.count()
    endless = (("f", f"a {next(taken)}") for _ in itertools.repeat(None))
    assert len(list(itertools.islice(records(endless, TEMPLATE, {}, Form()), 5))) == 5
    assert next(taken) == 5


def test_a_template_without_a_field_is_refused():
    for form in (Form(), Form(as_json=True), Form(delimiter=",")):
        with pytest.raises(UserError, match=r"template '\{soft\}\\n' names no field"):
            list(records([("line 1", "a")], "{soft}\n", {}, form))
