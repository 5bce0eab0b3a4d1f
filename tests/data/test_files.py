"""Local files: what is read of them, how they are split, and one sentence for whatever is wrong."""

import csv
import io
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data import files, task
from prompt_tuning_jax.data.records import PLACE, Wanted
from prompt_tuning_jax.errors import UserError

WANT = Wanted({}, ("text",), ("label",), False)
SAMPLE = "text,label\nfirst,good\nsecond,bad\n"


def settings(path, *overrides):
    """The section `task` of a config that reads a file."""
    words = ["name=files", f"files.train={path}", "template={soft}{text}:", *overrides]
    return configs.load(None, [f"--config.task.{word}" for word in words]).task


def write(folder, content, name="data.csv"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def bare(rows):
    """Records without their places."""
    return [{name: text for name, text in row.items() if name != PLACE} for row in rows]


def splits(path, *overrides):
    return task.make(settings(path, *overrides)).load().splits


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@given(
    st.lists(st.tuples(CELLS, st.sampled_from(["good", "bad"])), min_size=1, max_size=6),
    st.sampled_from([",", ";", "|"]),
    st.booleans(),
    st.sampled_from(["\r\n", "\n"]),
)
def test_csv_is_read_as_it_was_written(tmp_path_factory, rows, delimiter, header, end):
    out = io.StringIO(newline="")
    writer = csv.writer(
        out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL, strict=True
    )
    writer.writerows([("text", "label")] * header + rows)
    path = write(tmp_path_factory.mktemp("csv"), "\ufeff" + out.getvalue())
    want = WANT if header else WANT._replace(columns={"text": ["1"], "label": ["2"]})
    found = files.read(path, want, delimiter, header)
    assert bare(found.records) == [{"text": text, "label": label} for text, label in rows]
    assert found.blank == 0


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_json_lines_are_read_as_they_were_written(tmp_path_factory, rows):
    lines = [json.dumps({"text": text, "label": "x" + label}) for text, label in rows]
    path = write(tmp_path_factory.mktemp("json"), "\n".join(lines), "data.jsonl")
    assert bare(files.read(path, WANT).records) == [
        {"text": text, "label": ("x" + label).strip()} for text, label in rows
    ]


def test_a_spreadsheets_csv(tmp_path):
    path = write(
        tmp_path,
        "\ufeffReview; Stars ;note\r\n"
        '"He said ""no""; twice";5;\r\n'
        '"two\r\nlines";1;x\r\n'
        "\r\n"
        " spaces stay ; 1 ;\r\n",
    )
    columns = "columns=('text=Review','label=Stars')"
    rows = files.source(
        settings(path, "files.delimiter=;", columns, "files.test_part=1", "files.validation_part=1")
    )
    found = sorted((row for part in rows.splits.values() for row in part), key=lambda r: r[PLACE])
    assert found == [
        {"text": 'He said "no"; twice', "label": "5", "note": "", PLACE: f"{path}, line 2"},
        {"text": "two\r\nlines", "label": "1", "note": "x", PLACE: f"{path}, line 3"},
        {"text": " spaces stay ", "label": "1", "note": "", PLACE: f"{path}, line 6"},
    ]
    assert rows.notes[0] == f"{path}: 1 blank lines were skipped"


def test_a_tsv_has_no_quotes(tmp_path):
    path = write(tmp_path, '"hello , said\t1\nhe "\t0\n', "data.tsv")
    want = WANT._replace(columns={"text": ["1"], "label": ["2"]})
    assert bare(files.read(path, want, header=False).records) == [
        {"text": '"hello , said', "label": "1"},
        {"text": 'he "', "label": "0"},
    ]


def test_a_delimiter_as_typed_in_a_shell(tmp_path):
    path = write(tmp_path, "text\tlabel\na\tb\n", "data.txt")
    assert bare(files.read(path, WANT, "\\t").records) == [{"text": "a", "label": "b"}]


def test_columns_are_fields_by_name_by_number_or_under_another_name(tmp_path):
    path = write(tmp_path, "id,sentence,text,y\n7,one,two,good\n")
    want = WANT._replace(columns={"text": ["2"], "label": ["no", "y", "id"]})
    # What had the name before is gone, and so is the label's own: no template can leak it.
    assert bare(files.read(path, want).records) == [{"id": "7", "text": "one", "label": "good"}]


def test_json_values_are_texts_and_numbers_and_what_is_not_asked_for_may_be_anything(tmp_path):
    rows = [
        {"text": 1.5, "label": True, "more": {"a": [1]}, "none": None},
        {"label": 3, "text": "x", "extra": "kept"},
    ]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)), "data.ndjson")
    assert bare(files.read(path, WANT).records) == [
        {"text": "1.5", "label": "true"},
        {"text": "x", "label": "3", "extra": "kept"},
    ]


def test_a_list_of_targets_is_a_record_for_each(tmp_path):
    lines = ['{"mr": "a", "refs": ["one", "two"], "tags": []}', '{"mr": "b", "text": "three"}']
    path = write(tmp_path, "\n".join(lines), "data.jsonl")
    want = Wanted({"text": ["text", "refs"]}, ("mr",), ("text",), True)
    assert [(row["mr"], row["text"]) for row in files.read(path, want).records] == [
        ("a", "one"),
        ("a", "two"),
        ("b", "three"),
    ]


def numbered(count, copies=1):
    rows = [f"text {n // copies},{'good' if n % 3 else 'bad'}" for n in range(count)]
    return "text,label\n" + "\n".join(rows) + "\n"


def test_one_file_is_split_by_the_seed_and_the_inputs_alone(tmp_path):
    path = write(tmp_path, numbered(100))
    parts = splits(path, "files.validation_part=0.2", "files.test_part=15")
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 65,
        "test": 15,
        "validation": 20,
    }
    texts = {name: [row["text"] for row in rows] for name, rows in parts.items()}
    every = [text for part in texts.values() for text in part]
    assert sorted(every) == sorted(f"text {n}" for n in range(100))
    # Another order of lines and another size of the validation split leave the test as it is.
    lines = numbered(100).splitlines()
    again = write(tmp_path, "\n".join([lines[0], *lines[:0:-1]]), "again.csv")
    other = splits(again, "files.validation_part=5", "files.test_part=15")
    assert [row["text"] for row in other["test"]] == texts["test"]
    assert len(other["train"]) == 80
    reseeded = splits(path, "files.test_part=15", "split_seed=1")
    assert {row["text"] for row in reseeded["test"]} != set(texts["test"])


def test_the_same_input_is_never_on_both_sides(tmp_path):
    path = write(tmp_path, numbered(90, copies=3))
    parts = splits(path)
    texts = [{row["text"] for row in rows} for rows in parts.values()]
    assert sum(map(len, texts)) == 30 and len(parts["test"]) == 9
    assert sum(map(len, parts.values())) == 90


def test_only_what_has_no_file_is_taken_from_the_training_file(tmp_path):
    path, test = write(tmp_path, numbered(50)), write(tmp_path, numbered(4), "test.csv")
    source = files.source(settings(path, f"files.test={test}"))
    assert {name: len(rows) for name, rows in source.splits.items()} == {
        "train": 45,
        "test": 4,
        "validation": 5,
    }
    assert source.notes == [
        f"{path} is split: 45 for train, 5 for validation (seed 0)",
        *source.notes[1:],
    ]


# Content, the file's name and overrides, and parts of the sentence.
BAD = {
    "empty": ("", "data.csv", (), "is empty"),
    "header alone": ("text,label\n", "data.csv", (), "holds no record"),
    "blank lines alone": ("\n\n", "data.jsonl", (), "holds no record"),
    "one row": ("text,label\na,b\n", "data.csv", (), "1 records", "validation_part"),
    "NUL": (SAMPLE + "a\0b,bad\n", "data.csv", (), "line 4", "NUL"),
    "not UTF-8": (SAMPLE.encode() + b"na\xefve,bad\n", "data.csv", (), "line 4", "at byte 3"),
    "UTF-16": (SAMPLE.encode("utf-16"), "data.csv", (), "line 1", "save the file as UTF-8"),
    "missing column": (
        "txet,label\na,b\n",
        "data.csv",
        (),
        "line 1: no column 'text' (did you mean 'txet'?)",
        "has 'txet', 'label'",
        "--config.task.columns=\"('text=COLUMN',)\"",
    ),
    "missing label": ("text,y\na,b\n", "data.csv", (), "no column 'label'", "'label=COLUMN'"),
    "mapped column": (SAMPLE, "data.csv", ("columns=('text=txt',)",), "no column 'txt'", "'text'"),
    "slot": (SAMPLE, "data.csv", ("template={sfot}{text}",), "did you mean 'soft'?"),
    "number": (SAMPLE, "data.csv", ("columns=('text=3',)",), "no column '3'"),
    "no header": ("hello,good\nbye,bad\n", "data.csv", (), "line 1", "files.header=false"),
    "missing field": (
        '{"text": "a", "label": "b"}\n{"label": "b"}\n',
        "data.jsonl",
        (),
        "line 2: no column 'text'",
    ),
    "label": (
        SAMPLE + "third,good\n",
        "data.csv",
        ("labels=('good','bat')", "files.test_part=1", "files.validation_part=1"),
        "line 3 has the label 'bad'",
        "did you mean 'bat'?",
    ),
    "empty label": (SAMPLE + "c, \n", "data.csv", (), "line 4: the label is empty"),
    "ragged": (SAMPLE + "a,b,c\n", "data.csv", (), "line 4: 3 cells, expected 2", "in quotes"),
    "short row": (SAMPLE + "a\n", "data.csv", (), "line 4: 1 cells, expected 2"),
    "ragged TSV": ("text\tlabel\na\tb\tc\n", "data.tsv", (), "line 2: 3 cells", "as CSV"),
    "after two lines": (
        'text,label\n"a\nb",c\nd\n',
        "data.csv",
        (),
        "line 4: 1 cells",
    ),
    "1 MB line": ("text,label\n" + "x" * 2**20 + ",b\n", "data.csv", (), "line 2", "131,072"),
    "1 MB of JSON": (
        json.dumps({"text": "x" * 2**20, "label": "b"}),
        "data.jsonl",
        (),
        "line 1: 'text' has 1,048,576 characters",
    ),
    "open quote": ('text,label\na,b\n"c,d\ne,f\n', "data.csv", (), "line 3", "not closed"),
    "quote inside": ('text,label\n"a"b,c\n', "data.csv", (), "line 2", "double"),
    "duplicate header": ("text,label,text\n", "data.csv", (), "line 1: two columns", "'text'"),
    "duplicate name": ('{"text": "a", "text": "b"}', "data.jsonl", (), "line 1", "'text'", "twice"),
    "wrong delimiter": (
        "text;label\na;b\n",
        "data.csv",
        (),
        "line 1: the only column is 'text;label'",
        "expected ',' between cells",
    ),
    "no delimiter": (
        "a b\nc d\n",
        "data.csv",
        ("files.header=false", "columns=('text=1','label=2')"),
        "no column '2'",
        "'1' as 'text' alone (is config.task.files.delimiter right?)",
    ),
    "two delimiters": (SAMPLE, "data.csv", ("files.delimiter=::",), "expected one character"),
    "no JSON": ('{"text": 1,\n', "data.jsonl", (), "line 1: no JSON"),
    "JSON list": ('["a", "b"]\n', "data.jsonl", (), "line 1: a JSON list, expected an object"),
    "CSV as JSON": (SAMPLE, "data.jsonl", (), "line 1: no JSON"),
    "deep JSON": ("[" * 100_000, "data.jsonl", (), "line 1: no JSON"),
    "huge number": ('{"text": ' + "1" * 5000 + "}", "data.jsonl", (), "line 1: no JSON"),
    "null": ('{"text": null, "label": "b"}', "data.jsonl", (), "line 1: 'text' is null"),
    "list as text": ('{"text": ["a"], "label": "b"}', "data.jsonl", (), "'text' is list"),
    "infinite": ('{"text": NaN, "label": "b"}', "data.jsonl", (), "line 1: 'text' is float"),
    "half a character": (
        '{"text": "a\\ud800", "label": "b"}',
        "data.jsonl",
        (),
        "line 1: 'text'",
        "surrogate",
    ),
    "ending": (SAMPLE, "data.xlsx", (), "'.xlsx'", ".jsonl, .csv or .tsv"),
    "one label": ("text,label\na,b\nc,b\nd,b\n", "data.csv", (), "has 1 labels ('b')"),
    "many labels": (
        "text,label\n" + "\n".join(f"a{n},{n}" for n in range(300)),
        "data.csv",
        (),
        "240 labels",
        "expected 2 to 100",
    ),
    "empty list": (
        '{"text": "a", "label": []}',
        "data.jsonl",
        ("target={label}",),
        "line 1: 'label' is an empty list",
    ),
    "two lists": (
        '{"text": "a", "label": ["x"], "b": ["y"]}',
        "data.jsonl",
        ("target={label}{b}",),
        "line 1: both 'label' and 'b' are lists",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_is_one_sentence_with_file_and_line(tmp_path, fault):
    content, name, overrides, *parts = BAD[fault]
    path = write(tmp_path, content, name)
    with pytest.raises(UserError) as caught:
        made = task.make(settings(path, *overrides))
        for split in ("train", "validation", "test"):
            task.records(made, split)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 420 + len(path), message
    if fault not in ("two delimiters", "one label", "many labels"):
        assert path in message
    assert all(part in message for part in parts), message


def test_a_file_that_is_not_there_or_cannot_be_read(tmp_path):
    write(tmp_path, SAMPLE, "reviews.csv")
    with pytest.raises(UserError, match=r"review.csv' does not exist \(did you mean '.*reviews"):
        files.source(settings(tmp_path / "review.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder.csv' cannot be read: Is a directory"):
        files.source(settings(tmp_path / "folder.csv"))
    with pytest.raises(UserError, match="does not exist"):
        files.source(settings(tmp_path / "none" / "data.csv"))
    with pytest.raises(UserError, match="cannot be read: embedded null byte"):
        files.source(settings("da\0ta.csv"))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_pipe_or_a_device_is_not_read(tmp_path, make):
    make(tmp_path / "z.csv")
    with pytest.raises(UserError, match=r"data file '.*z.csv' is a pipe or a device"):
        files.source(settings(tmp_path / "z.csv"))


def test_the_labels_are_those_of_the_training_split(tmp_path):
    path = write(tmp_path, "text,label\n" + "\n".join(f"t{n},{n % 3}" for n in range(40)))
    assert task.make(settings(path)).labels == (("0", "0"), ("1", "1"), ("2", "2"))
    named = task.make(settings(path, "labels=('0=no','1=yes','2=maybe')"))
    assert named.labels == (("0", "no"), ("1", "yes"), ("2", "maybe"))
    known = task.make(settings("not/there.csv"), [["a", "b"], ["c", "d"]])
    assert known.labels == (("a", "b"), ("c", "d"))
