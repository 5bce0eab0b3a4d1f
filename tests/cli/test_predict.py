"""Predictions from the command line: lines, JSON lines or tables in, JSON lines out."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import plain_model
import pytest
import tiny_models
import tiny_runs

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.cli import main
from prompt_tuning_jax.cli.machine import load_model
from prompt_tuning_jax.data.task import make_task
from prompt_tuning_jax.models.sites import to_tensors
from prompt_tuning_jax.run import artifact

TASK = (
    *("name=files", "files.train=gone.jsonl", "target={text}", "labels=()"),
    *("template={soft}{facts} {area}:", "columns=('facts=mr',)"),
)
SETTINGS = ("generation.max_new_tokens=8", "generation.stop=('zz',)", "prompts=()")
RECORDS = [
    {"facts": "price 1", "area": "north", "text": "not looked at"},
    {"mr": "price 2", "area": "south"},
    {"area": "south", "facts": "price 3"},
]


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """An untrained artifact whose task has a target, and whose data is gone."""
    words = [f"--config.task.{word}" for word in TASK]
    words += [f"--config.{word}" for word in SETTINGS]
    config = configs.load(str(tiny_runs.world().config), words)
    lm = load_model(config)
    given = plain_model.random_given(0, tiny_models.SPEC, "prompt", size=3)
    manifest = artifact.make_manifest(lm, make_task(config.task), config, {})
    folder = tmp_path_factory.mktemp("writer") / "artifact"
    artifact.save_artifact(artifact.Artifact(to_tensors(given), manifest), folder)
    return folder


def answers(shown):
    assert shown.status == 0, shown.err
    return [json.loads(line) for line in shown.out.splitlines()]


def test_a_text_for_each_json_line_and_what_was_cut_on_stderr(typed, tmp_path, writer):
    lines = "\n".join(map(json.dumps, RECORDS))
    (tmp_path / "in.jsonl").write_text(lines)
    shown = typed("predict", "--artifact", writer, "in.jsonl")
    found = answers(shown)
    assert len(found) == 3 and all(row.keys() == {"text", "finished"} for row in found)
    cut = sum(not row["finished"] for row in found)
    assert cut and shown.err == (
        f"warning: {cut} of 3 texts were cut: config.generation.max_new_tokens is 8\n"
    )
    assert answers(typed("predict", "--artifact", writer, "--jsonl", stdin=lines)) == found
    # The order in which the fields stand is the template's.
    first = json.dumps({"area": "north", "facts": "price 1"})
    assert answers(typed("predict", "--artifact", writer, "--jsonl", stdin=first)) == found[:1]


def test_how_texts_are_written_can_be_typed(typed, writer):
    line = json.dumps(RECORDS[0])

    def text(*overrides):
        words = [f"--config.generation.{word}" for word in overrides]
        [row] = answers(typed("predict", "--artifact", writer, "--jsonl", *words, stdin=line))
        return row["text"]

    whole = text()
    assert whole.startswith(text("max_new_tokens=2")) and whole != text("max_new_tokens=2")
    assert text("temperature=3.0") == text("temperature=3.0") != whole
    assert text("temperature=3.0", "top_k=1") == whole
    letter = next(letter for letter in whole[1:] if letter != "\ufffd")
    assert text(f"stop=({letter!r},)") == whole.partition(letter)[0]


def test_an_error_in_a_late_line_names_it_and_leaves_no_output(typed, tmp_path, writer):
    lines = [json.dumps(RECORDS[1]), ""] * 20 + ["{"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    shown = typed("predict", "--artifact", writer, "in.jsonl", "--output", "out.jsonl")
    assert shown.status == 2 and shown.err.startswith("error: in.jsonl, line 41: not a JSON object")
    assert not (tmp_path / "out.jsonl").exists()


def test_labels_take_json_lines_too_but_no_keys_of_generation(typed):
    made = ["predict", "--artifact", tiny_runs.artifact()]
    plain = typed(*made, stdin="banks and funds\n")
    objects = typed(*made, "--jsonl", stdin='{"text": "banks and funds", "label": "x"}\n\n')
    assert answers(plain) == answers(objects)
    assert "<stdin>: 1 blank lines were skipped" in objects.err
    for word in ("--config.generation.max_new_tokens=3", "--config.seed=3"):
        shown = typed(*made, word, stdin="banks")
        assert shown.status == 2 and "has labels and writes no texts" in shown.err
    Path("mine.txt").write_text("banks\n")
    shown = typed(*made, "mine.txt", "--output", "./mine.txt")
    assert shown.status == 2 and "--output is './mine.txt', which is read" in shown.err
    assert Path("mine.txt").read_text() == "banks\n"


def test_a_table_may_be_of_another_form_than_the_data_of_the_artifact(typed, home):
    (home / "new.csv").write_text("number;text\n1;banks and funds\n")
    made = ["predict", "--artifact", tiny_runs.artifact()]
    wrong = typed(*made, "new.csv")
    assert wrong.status == 2 and "is config.task.files.delimiter right?" in wrong.err
    unread = typed(*made, "--config.task.files.delimiter=;", stdin="a;b\n1;2\n")
    assert unread.status == 2 and "<stdin> has no cells: leave '--conf" in unread.err
    found = answers(typed(*made, "new.csv", "--config.task.files.delimiter=;"))
    assert found == answers(typed(*made, "banks and funds"))


def test_the_model_may_have_moved(typed, home):
    made = ["predict", "--artifact", tiny_runs.artifact()]
    shutil.copy(tiny_runs.world().model, home / "moved.gguf")
    plain = typed(*made, "banks and funds")
    moved = typed(*made, "--config.model.path=moved.gguf", "banks and funds")
    assert answers(plain) == answers(moved)
    coarse = typed(*made, "--config.model.dtype=bfloat16", "banks and funds")
    assert answers(coarse) != answers(plain)
    for command in ("predict", "evaluate", "inspect"):
        words = [command, "--artifact", made[-1], "--config.model.path=gone"]
        shown = typed(*words, stdin="banks and funds")
        assert shown.status == 2 and "the model 'gone' does not exist" in shown.err


def test_a_table_is_read_by_its_columns_and_an_object_read_as_text_is_warned_of(typed, tmp_path):
    made = ["predict", "--artifact", tiny_runs.artifact()]
    plain = answers(typed(*made, stdin="banks and funds\nfilms, albums\n"))
    (tmp_path / "in.csv").write_text('label,text\nx,banks and funds\n,"films, albums"\n')
    shown = typed(*made, "in.csv")
    assert (answers(shown), shown.err) == (plain, "")
    assert len(answers(typed(*made, "--lines", "in.csv"))) == 3
    line = '{"text": "banks and funds"}\n'
    shown = typed(*made, stdin=line * 2)
    assert len(answers(shown)) == 2
    assert shown.err == (
        "warning: <stdin>, line 1 is read as a text: for JSON objects give --jsonl\n"
    )
    assert typed(*made, "--lines", stdin=line).err == ""
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": line}))
    assert typed(*made, "in.jsonl").err == ""


def test_a_table_has_the_delimiter_and_header_of_the_training_file(typed, tmp_path, writer):
    made = artifact.load_artifact(writer)
    files = made.manifest["config"]["task"]["files"]
    files |= {"delimiter": ";", "header": False, "train": "old.txt"}
    made.manifest["config"]["task"]["columns"] = ["facts=2", "area=1"]
    artifact.save_artifact(made, tmp_path / "made")
    for name in ("in.csv", "in.txt"):
        (tmp_path / name).write_text("north;price 1\nsouth;price 2\n")
    rows = "\n".join(
        json.dumps({"facts": f"price {n}", "area": a}) for n, a in ((1, "north"), (2, "south"))
    )
    found = answers(typed("predict", "--artifact", writer, "--jsonl", stdin=rows))
    for name in ("in.csv", "in.txt"):
        assert answers(typed("predict", "--artifact", "made", name)) == found
    (tmp_path / "other.csv").write_text("north,price 1\nsouth,price 2\n")
    words = ["predict", "--artifact", "made", "other.csv", "--config.task.files.delimiter=,"]
    assert answers(typed(*words)) == found


def test_a_file_without_a_record_is_reported(typed, tmp_path):
    made = ["predict", "--artifact", tiny_runs.artifact()]
    # The only row is read as the header.
    (tmp_path / "in.csv").write_text("banks and funds\n")
    for arguments, name in ((["in.csv"], "in.csv"), ([], "<stdin>")):
        shown = typed(*made, *arguments)
        assert (shown.status, shown.out) == (0, "")
        assert shown.err == f"warning: {name} holds no record: nothing is answered\n"


def test_an_output_is_a_file_or_a_link_to_one(typed, tmp_path):
    made = ["predict", "--artifact", tiny_runs.artifact(), "--output"]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in ("pipe", "folder", "", "none/out"):
        shown = typed(*made, path, stdin="banks\n")
        assert shown.status == 2 and f"cannot write {path!r}" in shown.err
    (tmp_path / "link").symlink_to("there")
    assert typed(*made, "link", stdin="banks\n").status == 0
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "there").read_text())


def test_a_stopped_prediction_leaves_nothing_half_written(home):
    # Not `python -m`: it ends by SIGINT where the exception crossed an exec, as of a dataclass.
    program = [tiny_runs.world().program, "predict"]
    words = ["--artifact", str(tiny_runs.artifact()), "--output", "out.jsonl"]
    process = subprocess.Popen([*program, *words], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not os.listdir(home) and time.monotonic() < until:
        time.sleep(0.05)
    assert os.listdir(home)
    process.send_signal(signal.SIGTERM)
    # Its stdin stays open: with an end of the input it may be done before it is stopped.
    assert process.wait(timeout=60) == main.INTERRUPTED and os.listdir(home) == []
    assert process.communicate()[1] == b"interrupted\n"


def test_records_that_lost_their_end_are_counted(typed):
    shown = typed("predict", "--artifact", tiny_runs.artifact(), stdin="banks\n" + "funds " * 500)
    short, long = answers(shown)
    assert "shortened" not in short and long["shortened"] > 300
    assert shown.err == "warning: 1 of 2 records were too long and lost their end\n"
    shown = typed("predict", "--artifact", tiny_runs.artifact(), stdin="funds " * 500)
    assert shown.err == "warning: 1 of 1 records were too long and lost their end\n"
