"""Rows of files and streams: what is read, and one sentence with the line for what is not."""

import csv
import io
import itertools
import json
import os
import re
import sys
from collections import Counter

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from prompt_tuning_jax.data import rows as rows_module
from prompt_tuning_jax.data.rows import (
    CELLS,
    JSON,
    LINE,
    PARQUET,
    Form,
    form_of,
    is_object,
    open_file,
    read_rows,
)
from prompt_tuning_jax.errors import UserError

CSV, TSV, OBJECTS, TEXTS = Form(CELLS, ","), Form(CELLS, "\t"), Form(JSON), Form()
CHARACTERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def read(content, form):
    """Returns the number of the line and the values of each row."""
    content = content.encode() if isinstance(content, str) else content
    found = list(read_rows(io.BytesIO(content), "f", form))
    assert all(row.place.startswith("f, line ") for row in found)
    return [(int(row.place.removeprefix("f, line ")), row.values) for row in found]


@given(
    st.lists(st.tuples(CHARACTERS, CHARACTERS), min_size=1, max_size=6),
    st.sampled_from([",", ";", "|"]),
    st.booleans(),
    st.sampled_from(["\r\n", "\n"]),
)
def test_csv_is_read_as_it_was_written(rows, delimiter, header, end):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", " b ")] * header + rows)
    names = ("a", "b") if header else ("1", "2")
    found = read("\ufeff" + out.getvalue(), Form(CELLS, delimiter, header))
    assert [values for _, values in found] == [dict(zip(names, row, strict=True)) for row in rows]


@given(st.lists(st.dictionaries(CHARACTERS, CHARACTERS), min_size=1, max_size=6), st.booleans())
def test_json_lines_are_read_as_they_were_written(rows, ascii_only):
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    assert read(lines, OBJECTS) == list(enumerate(rows, 1))


def test_a_line_of_text_is_a_row_whatever_it_looks_like():
    lines = ["a", "", ' {"text": "b"} ', "{text}", '"c, d', "\u2028e"]
    found = [(number, {LINE: line}) for number, line in enumerate(lines, 1)]
    assert read("\ufeff" + "\r\n".join(lines), TEXTS) == found
    assert read("\n".join(lines) + "\n", TEXTS) == found
    assert read("", TEXTS) == []


@pytest.mark.parametrize(
    "content, form", [('{"a": "1"}\n \t\n{"a": "2"}\n\n', OBJECTS), ("a\n1\n\n2\n\n", CSV)]
)
def test_blank_lines_of_cells_and_objects_are_no_rows_and_counted(content, form):
    changes, first = Counter(), form == CSV
    rows = list(read_rows(io.BytesIO(content.encode()), "f", form, changes))
    places = [f"f, line {number + first}" for number in (1, 3)]
    assert rows == [(places[0], {"a": "1"}), (places[1], {"a": "2"})]
    assert changes == {"blank lines were skipped": 2}


def test_a_row_of_cells_may_take_several_lines():
    assert read('a,b\r\n1,"the ""Old\nInn"""\r\n\n2,\n', CSV) == [
        (2, {"a": "1", "b": 'the "Old\nInn"'}),
        (5, {"a": "2", "b": ""}),
    ]
    # Columns without a name have their number.
    assert read("a,,\n1,2,\n", CSV) == [(2, {"a": "1", "2": "2", "3": ""})]
    # Rows may also end in \r alone.
    assert read('a,b\r1,2\r"3\r4",5\r', CSV) == [
        (2, {"a": "1", "b": "2"}),
        (3, {"a": "3\r4", "b": "5"}),
    ]


def test_a_tsv_has_no_quotes_but_around_a_whole_cell():
    found = read('"hello , said\t1\nhe "\t0\n"a" or "b"\t"\n', TSV._replace(header=False))
    assert [tuple(values.values()) for _, values in found] == [
        *(('"hello , said', "1"), ('he "', "0"), ('"a" or "b"', '"'))
    ]
    changes = Counter()
    content = b'"text"\t"label"\n"the ""Old"" Inn, say"\t5\n""\tplain\n'
    rows = list(read_rows(io.BytesIO(content), "f", TSV, changes))
    assert [row.values for row in rows] == [
        {"text": 'the "Old" Inn, say', "label": "5"},
        {"text": "", "label": "plain"},
    ]
    assert changes == {"cells begin and end with quotes, which were removed": 4}


@given(st.lists(st.tuples(CHARACTERS, CHARACTERS), min_size=1, max_size=6))
def test_a_tsv_that_csv_wrote_with_quotes_is_read_as_it_was_written(rows):
    rows = [tuple(re.sub(r"[\r\n\t]", "", cell) for cell in row) for row in rows]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t", quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *rows])
    found = [tuple(values.values()) for _, values in read(out.getvalue(), TSV)]
    assert found == rows


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_first_line_of_excel_names_the_delimiter(line):
    assert read(f"{line}\r\na;b\r\n1,5;2\r\n", CSV) == [(3, {"a": "1,5", "b": "2"})]
    assert read("\ufeffsep=,\n1,2\n", CSV._replace(header=False)) == [(2, {"1": "1", "2": "2"})]
    assert read("sep=;\n", CSV) == []


@given(
    st.lists(st.dictionaries(CHARACTERS, CHARACTERS), max_size=6),
    st.sampled_from([None, 2]),
    st.sampled_from(["", "\ufeff", "\n \n"]),
)
def test_an_array_of_objects_is_read_like_json_lines(rows, indent, front):
    content = (front + json.dumps(rows, indent=indent) + "\n").encode()
    found = [row for row in read_rows(io.BytesIO(content), "f", OBJECTS) if row.values is not None]
    assert found == [(f"f, item {number}", row) for number, row in enumerate(rows, 1)]


def test_an_array_above_the_stated_size_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(rows_module, "LONGEST_ARRAY", 1000)

    class Endless:
        def readline(self, size):
            return b"[\n"

    with pytest.raises(UserError, match=r"^f is a JSON array of over 1,000 characters: .* jq -c"):
        list(read_rows(Endless(), "f", OBJECTS))


def test_a_parquet_file_has_its_columns_by_name(tmp_path):
    columns = {"text": ["a", "naïve"], "label": [1, None], "more": [[1], []]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with open_file(str(tmp_path / "a.parquet")) as file:
        found = list(read_rows(file, "f", form_of("a.parquet")))
    assert found == [
        ("f, record 1", {"text": "a", "label": 1, "more": [1]}),
        ("f, record 2", {"text": "naïve", "label": None, "more": []}),
    ]


def test_parquet_without_pyarrow_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"cannot be read by pyarrow .* orient='records', lines=Tr"):
        list(read_rows(io.BytesIO(), "f", Form(PARQUET)))


# Form, content, and the parts of the sentence.
BAD = {
    "NUL": (CSV, "a,b\n1,2\n1\0,2\n", "line 3: a NUL byte"),
    "not UTF-8": (CSV, b"a,b\nna\xefve,2\n", "line 2: not UTF-8 at byte 3", "as UTF-8"),
    "not UTF-8 in front": (TEXTS, b"\xef\xbb\xbfa\xff", "line 1: not UTF-8 at byte 2"),
    "UTF-16": (TEXTS, "a,b\n".encode("utf-16"), "line 1: not UTF-8", "save the file as UTF-8"),
    "UTF-16 without a mark": (TEXTS, "a".encode("utf-16-le"), "line 1: a NUL byte", "as UTF-8"),
    "long row": (CSV, "a,b\n1,2,3\n", "line 2: 3 cells, expected 2", "in quotes"),
    "short row": (CSV, "a,b\n1\n", "line 2: 1 cells, expected 2"),
    "long row of a TSV": (TSV, "a\tb\n1\t2\t3\n", "line 2: 3 cells", "data as CSV"),
    "after two lines": (CSV, 'a,b\n"1\n2",3\n4\n', "line 4: 1 cells"),
    "1 MB cell": (CSV, "a\n" + "x" * 2**20, "line 2: a cell of more than 131,072 characters"),
    "open quote": (CSV, 'a,b\n1,2\n"3,4\n5,6\n', "line 3: a quote that opens here is not closed"),
    "quote inside": (CSV, 'a,b\n"1"2,3\n', "line 2: ", "double a quote"),
    "repeated column": (CSV, "a,b,a\n", "line 1: two columns have the name 'a'"),
    "repeated long column": (CSV, f"{'a' * 999},{'a' * 999}\n", "have the name 'aaa"),
    "repeated name": (OBJECTS, '{"a": "1", "a": "2"}', "line 1: two columns have the name 'a'"),
    "open object": (OBJECTS, '{}\n\n{"a": 1,\n', "line 3: not a JSON object (Expecting"),
    "text": (OBJECTS, "plain", "line 1: not a JSON object (Expecting value)"),
    "list": (OBJECTS, '{"a": 1}\n[1]', "line 2: a JSON list, expected an object"),
    "item": (OBJECTS, '[{"a": 1},\n 1]', "item 2: a JSON int, expected an object"),
    "no comma": (OBJECTS, '\n[\n{"a": 1}\n{"b": 2}\n]', "line 2: ", "delimiter 2 lines below"),
    "after an array": (OBJECTS, '[{"a": 1}]\n[{"a": 1}]', "line 1: ", "Extra data 1 lines below"),
    "name in an array": (OBJECTS, '[{"a": 1, "a": 1}]', "line 1: two columns have the name 'a'"),
    "object on lines": (OBJECTS, '{\n"a": 1\n}', "line 1: ", "or an array of objects"),
    "not Parquet": (Form(PARQUET), "a,b\n", " cannot be read by pyarrow (", "pandas.read_parquet"),
    "separator": (CSV, "sep=;\na;b\n1;2;3\n", "line 3: 3 cells", "a cell that holds ';'"),
    "null": (OBJECTS, "null", "line 1: a JSON NoneType, expected an object"),
    "deep list": (OBJECTS, "[" * 100_000, "line 1: not a JSON object (it is nested too deeply)"),
    "huge number": (OBJECTS, '{"a": ' + "1" * 5000 + "}", "line 1: not a JSON object (", "5000"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_row_is_one_sentence_with_its_line(fault):
    form, content, *parts = BAD[fault]
    with pytest.raises(UserError) as caught:
        read(content, form)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300, message
    assert message.startswith("f") and all(part in message for part in parts), message


def test_an_endless_line_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(rows_module, "LONGEST_LINE", 1000)
    with pytest.raises(UserError, match=r"f, line 2 has over 1,000 bytes: end .* jq -c '\.\[\]'"):
        read("a\n" + "b" * 2000, TEXTS)


@pytest.mark.parametrize("form", [TEXTS, OBJECTS, CSV])
def test_rows_are_read_as_they_are_asked_for(form):
    taken = itertools.count()

    class Endless:
        def readline(self, size):
            return b'{"a": %d}\n' % next(taken)

    assert len(list(itertools.islice(read_rows(Endless(), "f", form), 5))) == 5
    assert next(taken) <= 6  # a header is a line more


def test_a_name_or_a_delimiter_tells_the_form():
    assert form_of("<stdin>") == form_of("a.txt") == TEXTS
    assert form_of("a.JSONL") == form_of("a.ndjson") == form_of("a.json") == OBJECTS
    assert (form_of("a.csv"), form_of("a.tsv")) == (CSV, TSV)
    assert form_of("a.txt", "\\t", header=False) == TSV._replace(header=False)
    assert form_of("a.csv", ";") == CSV._replace(delimiter=";")
    assert form_of("a.jsonl", ";") == OBJECTS


def test_an_object_is_told_from_a_text_in_braces():
    assert is_object(' {"text": "a"}\n') and is_object("{}")
    assert is_object("[\n") and is_object(' [ {"text": "a"}, ')
    assert not any(map(is_object, ("{text}", "[1]", "a", "", "{" * 100_000, '{"a":' * 100_000)))


def test_only_a_regular_file_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.csv").write_text("a")
    with open_file("reviews.csv") as file:
        assert file.read() == b"a"
    (tmp_path / "folder").mkdir()
    os.mkfifo("pipe")
    os.symlink("/dev/zero", "device")
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_file("~/reviews.csv") as file:
        assert file.read() == b"a"
    for path, message in {
        "https://x.org/reviews.csv": r"'https://x.org/reviews.csv' is a URL: download it, as",
        "hf://datasets/a/b.csv": "is a URL: download it",
        "ag_news": "'ag_news' does not exist: save a data set of a hub as a file first$",
        "review.csv": r"data file 'review.csv' does not exist \(did you mean 'reviews.csv'\?\)$",
        "none/a.csv": "does not exist$",
        "a\0b": "cannot be read: embedded null byte",
        **dict.fromkeys(("folder", "pipe", "device"), "is not a regular file"),
    }.items():
        with pytest.raises(UserError, match=message):
            open_file(path)
