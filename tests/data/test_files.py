"""Local files as a task: columns as fields, splits, and one sentence for every fault."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.files import read_records, read_source
from prompt_tuning_jax.data.records import PLACE, Fields, shuffled_groups
from prompt_tuning_jax.data.task import make_task, select_records
from prompt_tuning_jax.errors import UserError

FIELDS = Fields({}, ("text",), ("label",), False)
SAMPLE = "text,label\nfirst,good\nsecond,bad\n"


def settings(path, *overrides):
    """The section `task` of a config that reads a file."""
    words = ["name=files", f"files.train={path}", "template={soft}{text}:", *overrides]
    return configs.load(None, [f"--config.task.{word}" for word in words]).task


def write(folder, content, name="data.csv"):
    (folder / name).write_text(content)
    return str(folder / name)


def read(path, *, fields=FIELDS, **form):
    """Records without their places."""
    found, _ = read_records(path, fields, **form)
    return [{name: text for name, text in row.items() if name != PLACE} for row in found]


def splits(path, *overrides):
    return make_task(settings(path, *overrides)).load().splits


def test_a_spreadsheets_csv(tmp_path):
    path = write(
        tmp_path,
        "\ufeffReview; Stars ;note\r\n"
        '"He said ""no""; twice";5;\r\n'
        '"two\nlines";1;x\r\n'
        "\r\n"
        " spaces stay ; 1 ;\r\n",
    )
    columns = "columns=('text=Review','label=Stars')"
    source = read_source(
        settings(path, "files.delimiter=;", columns, "files.test_part=1", "files.validation_part=1")
    )
    found = sorted((row for part in source.splits.values() for row in part), key=lambda r: r[PLACE])
    assert found == [
        {"text": 'He said "no"; twice', "label": "5", "note": "", PLACE: f"{path}, line 2"},
        {"text": "two\nlines", "label": "1", "note": "x", PLACE: f"{path}, line 3"},
        {"text": " spaces stay ", "label": "1", "note": "", PLACE: f"{path}, line 6"},
    ]
    assert source.notes[0] == f"{path}: 1 blank lines were skipped"


def test_columns_are_fields_by_name_by_number_or_under_another_name(tmp_path):
    path = write(tmp_path, "id,sentence,text,y\n7,one,two,good\n")
    columns = {"text": ["2"], "label": ["no", "y", "id"]}
    # The column with the field's name is gone, and the label's own name too: no template can
    # contain the answer.
    found = read(path, fields=FIELDS._replace(columns=columns))
    assert found == [{"id": "7", "text": "one", "label": "good"}]
    path = write(tmp_path, "a\tgood\n", "data.txt")
    columns = {"text": ["1"], "label": ["2"]}
    found = read(path, fields=FIELDS._replace(columns=columns), delimiter="\\t", header=False)
    assert found == [{"text": "a", "label": "good"}]


def test_json_values_are_texts_and_numbers_and_unread_ones_may_be_anything(tmp_path):
    rows = [
        {"text": 1.5, "label": True, "more": {"a": [1]}, "none": None},
        {"label": 3, "text": "x", "extra": "kept"},
    ]
    assert read(write(tmp_path, "\n".join(map(json.dumps, rows)), "data.ndjson")) == [
        {"text": "1.5", "label": "true"},
        {"text": "x", "label": "3", "extra": "kept"},
    ]


def test_a_list_of_targets_is_a_record_for_each(tmp_path):
    lines = ['{"mr": "a", "refs": ["one", "two"], "tags": []}', '{"mr": "b", "text": "three"}']
    path = write(tmp_path, "\n".join(lines), "data.jsonl")
    fields = Fields({"text": ["text", "refs"]}, ("mr",), ("text",), True)
    assert [(row["mr"], row["text"]) for row in read(path, fields=fields)] == [
        ("a", "one"),
        ("a", "two"),
        ("b", "three"),
    ]


def numbered(count, copies=1):
    rows = [f"text {n // copies},{'good' if n % 3 else 'bad'}" for n in range(count)]
    return "text,label\n" + "\n".join(rows) + "\n"


def sizes(splits):
    return {name: len(rows) for name, rows in splits.items()}


def test_one_file_is_split_by_the_seed_and_the_inputs_alone(tmp_path):
    path = write(tmp_path, numbered(100))
    parts = splits(path, "files.validation_part=0.2", "files.test_part=15")
    assert sizes(parts) == {"train": 65, "test": 15, "validation": 20}
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
    parts = splits(write(tmp_path, numbered(90, copies=3)))
    texts = [{row["text"] for row in rows} for rows in parts.values()]
    assert sum(map(len, texts)) == 30 and len(parts["test"]) == 9
    assert sum(map(len, parts.values())) == 90


def test_a_split_without_a_file_is_taken_from_the_training_file(tmp_path):
    path, test = write(tmp_path, numbered(50)), write(tmp_path, numbered(4), "test.csv")
    source = read_source(settings(path, f"files.test={test}"))
    assert sizes(source.splits) == {"train": 45, "test": 4, "validation": 5}
    assert source.notes == [f"{path} is split: 45 for train, 5 for validation (seed 0)"]


# Content, the file's name and overrides, and parts of the sentence.
BAD = {
    "empty": ("", "data.csv", (), "holds no record"),
    "one row": ("text,label\na,b\n", "data.csv", (), "1 records", "validation_part"),
    "missing column": (
        "txet,label\na,b\n",
        "data.csv",
        (),
        "line 2: no column 'text' (did you mean 'txet'?); its columns are 'txet', 'label'",
        "--config.task.columns=\"('text=COLUMN',)\"",
    ),
    "missing label": (
        "text,y\na,b\nc,d\ne,f\n",
        "data.csv",
        (),
        "line 2: no column 'label'",
        "'label=COLUMN'",
    ),
    "mapped column": (
        SAMPLE,
        "data.csv",
        ("columns=('text=txt',)",),
        "'txt'",
        "columns are 'text', 'label'",
    ),
    "slot": (SAMPLE, "data.csv", ("template={sfot}{text}",), "did you mean 'soft'?"),
    "number": (SAMPLE, "data.csv", ("columns=('text=3',)",), "no column '3'"),
    "swapped columns": (
        "title,label\na,b\n",
        "data.csv",
        ("columns=('title=text',)",),
        "line 2: config.task.columns is the other way round: write"
        " 'text=title', the template's field first",
    ),
    "names that look alike": (
        "caf\u00e9,cafe\u0301,label\na,b,c\n",
        "data.csv",
        ("template={soft}{café}",),
        "line 2: the names of two columns look alike",
    ),
    "no header": ("hello,good\nbye,bad\n", "data.csv", (), "files.header=false if line 1"),
    "label": (
        SAMPLE + "third,good\n",
        "data.csv",
        ("labels=('good','bat')", "files.test_part=1", "files.validation_part=1"),
        "line 3 has the label 'bad'",
        "did you mean 'bat'?",
    ),
    "empty label": (SAMPLE + "c, \n", "data.csv", (), "line 4: the label is empty"),
    "wrong delimiter": (
        "text;label\na;b\n",
        "data.csv",
        (),
        "'text;label' alone (is config.task.files.delimiter right?)",
    ),
    "two delimiters": (SAMPLE, "data.csv", ("files.delimiter=::",), "expected one character"),
    "ending": (SAMPLE, "data.xlsx", (), "'.xlsx'", ".json, .csv, .tsv or .parquet"),
    "one label": ("text,label\na,b\nc,b\nd,b\n", "data.csv", (), "has 1 labels ('b')"),
    "many labels": (
        "text,label\n" + "\n".join(f"a{n},{n}" for n in range(300)),
        "data.csv",
        (),
        "300 labels",
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
        made = make_task(settings(path, *overrides))
        for split in ("train", "validation", "test"):
            select_records(made, split)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 420 + len(path), message
    assert path in message or fault in ("one label", "many labels", "two delimiters")
    assert all(part in message for part in parts), message


def groups_of(path):
    found, _ = read_records(path, FIELDS)
    return shuffled_groups(found, ("text",), 0)


def labelled(*labels):
    """A file with a record of each label, in the order in which the records are taken."""
    return "text,label\n" + "".join(f"t{number},{label}\n" for number, label in enumerate(labels))


@pytest.mark.parametrize("copies", [1, 3])
def test_a_split_that_trains_every_label_is_the_plain_cut(tmp_path, copies):
    """As it was before labels were looked at: earlier artifacts keep their test records."""
    path = write(tmp_path, numbered(90, copies))
    rest = [record for group in groups_of(path) for record in group]
    parts = splits(path, "files.test_part=9", "files.validation_part=12")
    assert parts == {"test": rest[:9], "validation": rest[9:21], "train": rest[21:]}


def in_order(folder, *labels):
    """Writes a file whose records have these labels in the order in which they are split."""
    order = groups_of(write(folder, labelled(*"x" * len(labels))))
    texts = [group[0]["text"] for group in order]
    lines = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
    return write(folder, "text,label\n" + "\n".join(sorted(lines)))


def test_a_label_with_two_records_is_always_trained_on(tmp_path):
    path = in_order(tmp_path, *"aabbbaxyxyabab")
    parts = splits(path, "files.test_part=7", "files.validation_part=3")
    kept = {name: "".join(row["label"] for row in rows) for name, rows in parts.items()}
    # Plain: aabbbax, yxy, abab. The last x and the last y are kept for training.
    assert kept == {"test": "aabbbax", "validation": "yab", "train": "xyab"}
    made = make_task(settings(path, "files.test_part=7", "files.validation_part=3"))
    assert [value for value, _ in made.labels] == ["a", "b", "x", "y"]
    # All of x was in the test split.
    path = in_order(tmp_path, *"aaxxbbabab")
    parts = splits(path, "files.test_part=4", "files.validation_part=2")
    kept = {name: "".join(row["label"] for row in rows) for name, rows in parts.items()}
    assert kept == {"test": "aaxb", "validation": "ba", "train": "xbab"}


def test_a_part_is_not_emptied_for_a_label(tmp_path):
    path = in_order(tmp_path, *"bbcc")
    source = read_source(settings(path, "files.test_part=2", "files.validation_part=1"))
    kept = {name: "".join(row["label"] for row in rows) for name, rows in source.splits.items()}
    assert kept == {"test": "bb", "validation": "c", "train": "c"}
    assert "warning: labels that are scored without a record to train on: 'b'" in source.notes


@pytest.mark.parametrize("parts", [(1000, 1), (5, 5), (0.5, 0.5)])
def test_parts_that_take_all_records_are_refused(tmp_path, parts):
    """Though a record of each label is kept for training otherwise."""
    path = in_order(tmp_path, *"aabbaabbab")
    words = zip(("files.test_part", "files.validation_part"), parts, strict=True)
    with pytest.raises(UserError, match="10 records, which leaves none to train on after"):
        read_source(settings(path, *(f"{name}={part}" for name, part in words)))


def test_a_label_whose_records_have_one_input_is_trained_on_with_all_of_them(tmp_path):
    content = numbered(40) + "same,rare\n" * 3
    for seed in range(20):
        made = make_task(settings(write(tmp_path, content), f"split_seed={seed}"))
        assert [row["label"] for row in select_records(made, "train")].count("rare") == 3


def test_a_label_with_one_record_is_a_label_and_where_it_is_is_said(tmp_path):
    content, seen = numbered(40) + "alone,rare\n", set()
    for seed in range(20):
        made = make_task(settings(write(tmp_path, content), f"split_seed={seed}"))
        assert [value for value, _ in made.labels] == ["bad", "good", "rare"]
        said = {
            "train": "labels with one record to train on: 'rare'",
            "other": "warning: labels that are scored without a record to train on: 'rare'",
        }
        trained = any(row["label"] == "rare" for row in select_records(made, "train"))
        notes = [note for note in made.load().notes if "rare" in note and "in the data" not in note]
        assert notes == [said["train" if trained else "other"]]
        seen.add(trained)
    assert seen == {True, False}


def test_a_split_of_texts_to_write_does_not_look_at_labels(tmp_path):
    path = in_order(tmp_path, *"aaxxbbabab")
    columns, target = "columns=('summary=label',)", "target={summary}"
    parts = splits(path, "files.test_part=4", "files.validation_part=2", columns, target)
    assert "".join(row["summary"] for row in parts["test"]) == "aaxx"


def notes(path, *overrides):
    return list(read_source(settings(path, *overrides)).notes)


COLUMNS = "columns=('text=1','label=2')"


def test_a_header_that_is_read_as_a_record_gives_a_warning(tmp_path):
    rows = numbered(20).replace("text,label", "title,category")
    path = write(tmp_path, rows)
    assert notes(path, "files.header=false", COLUMNS)[0] == (
        f"warning: {path}, line 1 is read as a record and looks like the names of columns: if it"
        " holds them, leave config.task.files.header at true"
    )
    for other in (rows.replace("category", "good"), rows.replace("title", "A whole first text.")):
        found = notes(write(tmp_path, other, "other.csv"), "files.header=false", COLUMNS)
        assert not any("looks like" in note for note in found)
    assert not any("looks like" in note for note in notes(path, COLUMNS))


def test_a_first_line_that_is_lost_as_a_header_gives_a_warning(tmp_path):
    named = numbered(20)
    path = write(tmp_path, named.partition("\n")[2])
    warning = (
        f"warning: {path}: columns are given by number, and the first line is taken as their names:"
        " if it is a record, give --config.task.files.header=false"
    )
    assert warning in notes(path, COLUMNS)
    assert warning in notes(path, "columns=('text=sentence','text=1','label=2')")
    assert not any("by number" in note for note in notes(path, "files.header=false", COLUMNS))
    for header, columns in (
        ("text,", "'label=2'"),
        ("1,2", "'text=1','label=2'"),
        ("text,y", "'label=y','label=2'"),
    ):
        other = write(tmp_path, named.replace("text,label", header), "other.csv")
        assert not any("by number" in note for note in notes(other, f"columns=({columns},)"))


def test_keys_that_nothing_reads_are_said(tmp_path):
    rows = [{"text": str(n), "label": n % 2} for n in range(9)]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)), "data.jsonl")
    found = notes(path, "files.header=false", "columns=('title=t','text=text')")
    assert found[:2] == [
        "config.task.columns: nothing reads the field title",
        f"{path}: config.task.files.header is ignored, as only tables have a header",
    ]
    assert len(notes(path, "columns=('text=text','label=label')")) == len(found) - 2


def test_every_form_of_the_same_records_is_the_same_data(tmp_path):
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(20)]
    lines = "\n".join(map(json.dumps, rows))
    quoted = "\n".join(f'"{row["text"]}"\t"{row["label"]}"' for row in rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    paths = [
        write(tmp_path, lines, "data.jsonl"),
        write(tmp_path, json.dumps(rows, indent=4), "data.json"),
        write(tmp_path, '"text"\t"label"\n' + quoted, "data.tsv"),
        write(tmp_path, "sep=;\ntext;label\n" + quoted.replace("\t", ";"), "data.csv"),
        str(tmp_path / "data.parquet"),
    ]
    first, *others = map(read, paths)
    assert first == rows and all(other == rows for other in others)
    note = "42 cells begin and end with quotes, which were removed"
    assert [note in found[0] for found in map(notes, paths)] == [False, False, True, False, False]


def test_names_of_columns_and_fields_that_look_alike_are_the_same(tmp_path):
    one, other = "caf\u00e9", "cafe\u0301"
    for written, read_as in ((one, other), (other, one)):
        rows = numbered(20).replace("text,label", f"{written},y")
        path = write(tmp_path, rows)
        for words in (
            [f"template={{soft}}{{{read_as}}}:", "columns=('label=y',)"],
            [f"columns=('text={read_as}','label=y')"],
            [f"template={{{read_as}}}:", f"columns=('{written}={read_as}','label=y')"],
        ):
            source = read_source(settings(path, *words))
            found = [row for rows in source.splits.values() for row in rows]
            texts = {row.get("text") or row[one] for row in found}
            assert texts == {f"text {n}" for n in range(20)}, words


def test_the_labels_are_those_of_the_whole_file(tmp_path):
    path = write(tmp_path, "text,label\n" + "\n".join(f"t{n},{n % 3}" for n in range(40)))
    assert make_task(settings(path)).labels == (("0", "0"), ("1", "1"), ("2", "2"))
    named = make_task(settings(path, "labels=('0=no','1=yes','2=maybe')"))
    assert named.labels == (("0", "no"), ("1", "yes"), ("2", "maybe"))
    known = make_task(settings("not/there.csv"), [["a", "b"], ["c", "d"]])
    assert known.labels == (("a", "b"), ("c", "d"))
