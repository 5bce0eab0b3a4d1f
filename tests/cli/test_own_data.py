"""Your own data from the command line: files as tasks, from training to predictions."""

import json
import re

import pytest
import tiny_runs

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.task import (
    check_fields,
    make_task,
    select_records,
    template_fields,
    training_records,
)
from prompt_tuning_jax.run import artifact
from prompt_tuning_jax.run import folder as workdir

# Labels of several words and several tokens.
LABELS = {"business": "big money", "entertainment": "loud music"}
BASE = ["name=files", "train=train", "validation=validation", "test=test", "labels=()"]


def train(*overrides):
    """Words that train a few steps on files in the folder `run`."""
    words = [f"--config.task.{word}" for word in (*BASE, *overrides)]
    return [*tiny_runs.training("run"), *tiny_runs.FEW, "--config.prompts=()", *words]


def write_csv(path, count=60):
    rows = [
        f'"{word}, and {number}",{label}'
        for number in range(count // len(LABELS))
        for topic, label in LABELS.items()
        for word in [tiny_runs.WORDS[topic].split()[number % 6]]
    ]
    path.write_text("Head Line,section\n" + "\n".join(rows) + "\n")


CSV = ("files.train=news.csv", "columns=('text=Head Line','label=section')")


def test_a_csv_from_its_first_line_to_predictions_without_it(typed, home):
    write_csv(home / "news.csv")
    metrics = "metrics=('accuracy','macro_f1','class_accuracy','matthews')"
    shown = typed(*train(*CSV, metrics, "max_length=41"))
    assert shown.status == 0, shown.err
    assert "news.csv is split: 48 for train, 6 for test, 6 for validation (seed 0)" in shown.out
    assert "the labels are those in the data: 'big money', 'loud music'" in shown.out
    assert "training examples were too long" in shown.out
    assert "warning: soft prompt: " in shown.out and "lost their end" in shown.out
    made = ["--artifact", "run/artifact"]
    found = json.loads(typed("evaluate", *made, "--json").out)
    assert found.keys() == {
        *("loss", "accuracy", "macro_f1", "class_accuracy", "matthews", "intervals"),
        *("examples", "shortened"),
    }
    assert found["examples"] == 6 and found["class_accuracy"].keys() == {*LABELS.values()}
    [row] = [row for row in report() if row["trainable_parameters"]]
    assert row["accuracy"] == found["accuracy"] and "loss" not in row

    # Predicting does not need the training data.
    (home / "news.csv").unlink()
    [answer] = typed("predict", *made, stdin="banks, and 7\n").out.splitlines()
    assert list(json.loads(answer)["probabilities"]) == ["big money", "loud music"]
    shown = typed("evaluate", *made)
    assert shown.status == 2 and "'news.csv' does not exist" in shown.err


def test_what_only_the_report_reads_is_checked_before_the_training(typed, home):
    write_csv(home / "news.csv")
    long = "banks and funds and stock " * 40
    shown = typed(*train("files.train=news.csv", "columns=('text=Head Line',)", *CSV[2:]))
    advice = "--config.task.columns=\"('text=Head Line','label=COLUMN',)\""
    assert shown.status == 2 and advice in shown.err
    shown = typed(*train(*CSV), f"--config.prompts=('About {{text}}:','{long}{{text}}')")
    assert shown.status == 2 and "config.prompts: news.csv, line" in shown.err
    rows = [{"facts": f"price {n}", "text": f"It is {n}."} for n in range(24)]
    (home / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "test.jsonl").write_text(json.dumps(rows[0] | {"text": ""}))
    overrides = [f"files.{name}={path}" for name, path in FILES.items()]
    shown = typed(*train(*overrides, "template={soft}{facts}:", "target={text}"))
    assert shown.status == 2 and "test.jsonl, line 1: the target is empty" in shown.err
    # A prompt's field that some record lacks; and prompts that no labelled record can rank.
    pair = [{"text": "banks", "label": "a", "note": "x"}, {"text": "films", "label": "b"}]
    (home / "test.jsonl").write_text("\n".join(map(json.dumps, pair)))
    texts = [{"text": f"banks and {n}"} for n in range(24)]
    (home / "train.jsonl").write_text("\n".join(map(json.dumps, texts)))
    words = [*train(*overrides), "--config.teacher.prompt=A {text}:"]
    words += ["--config.task.files.validation=train.jsonl", "--config.steps=1"]
    shown = typed(*words, "--config.prompts=('{note} {text}:',)")
    assert shown.status == 2 and "unknown field {note}" in shown.err
    shown = typed(*words, "--config.prompts=('A: {text}','B: {text}')")
    assert shown.status == 2 and "train.jsonl, line 1: no column 'label'" in shown.err
    assert not (home / "run").exists()


def test_texts_without_labels_are_for_a_teacher(typed, home):
    rows = [{"text": f"banks and {n}"} for n in range(40)]
    (home / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labelled = [row | {"label": "ab"[n % 2]} for n, row in enumerate(rows[:8])]
    (home / "test.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    command = train("files.train=train.jsonl", "files.test=test.jsonl")
    shown = typed(*command)
    assert shown.status == 2 and "train.jsonl, line 1: no column 'label'; its col" in shown.err
    assert not (home / "run").exists() and "matrix products" not in shown.out
    shown = typed(*command, "--config.teacher.prompt=It is {text}:")
    assert shown.status == 0, shown.err
    assert "scored without a record" not in shown.out and "36 examples to train on" in shown.out
    assert [row["name"] for row in report()] == ["no prompt", "teacher", "soft prompt"]
    # As a row of a comparison, whose base config has no teacher.
    rows = "('no prompt', 'taught: method.name=soft_prompt teacher.prompt=\"It is {text}:\"')"
    words = [
        "compare",
        *command[1:3],
        "--workdir",
        "compared",
        *command[5:],
        "--config.task.files.validation=test.jsonl",
        f"--config.compare.rows={rows}",
    ]
    shown = typed(*words, "--config.compare.seeds=(0,)")
    assert shown.status == 0 and "taught" in shown.out, shown.err
    # A text to write instead, which the teacher gives.
    target = ["--config.task.target={say}", "--config.task.metrics=()", "--config.task.labels=()"]
    labelled = [row | {"say": "so"} for row in labelled]
    (home / "test.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    command += [*target, "--workdir", "texts", "--config.generation.max_new_tokens=4"]
    shown = typed(*command)
    assert shown.status == 2 and "train.jsonl, line 1: no column 'say'" in shown.err
    # Demonstrations of a teacher are of the records that have labels.
    mixed = [{"text": f"funds {n}", "label": "ab"[n % 2] if n < 30 else ""} for n in range(40)]
    (home / "train.jsonl").write_text("\n".join(map(json.dumps, mixed)))
    command = train("files.train=train.jsonl", "files.test=test.jsonl")
    shown = typed(*command, "--workdir", "shown", "--config.teacher.demonstrations=2")
    assert shown.status == 0, shown.err


def report():
    with open(f"run/{workdir.REPORT}") as file:
        return json.load(file)["rows"]


def test_a_text_to_write_from_json_lines(typed, home):
    rows = [{"facts": f"price {n}", "text": f"It is {n}."} for n in range(24)]
    (home / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held = [{"facts": f"price {n}", "refs": [f"It is {n}.", f"Only {n}."]} for n in range(30, 34)]
    (home / "test.jsonl").write_text("\n".join(map(json.dumps, held)))
    overrides = [f"files.{name}={path}" for name, path in FILES.items()]
    columns = "columns=('text=text','text=refs')"
    shown = typed(*train(*overrides, columns, "template={soft}{facts}:", "target={text}"))
    assert shown.status == 0, shown.err
    assert "24 examples to train on, 8 to validate" in shown.out
    with open(f"run/{workdir.METRICS}") as file:
        lines = [json.loads(line) for line in file]
    assert any("validation/loss" in line for line in lines)
    assert not any("validation/accuracy" in line for line in lines)
    assert not any("accuracy" in row for row in report())
    found = json.loads(typed("evaluate", "--artifact", "run/artifact", "--json").out)
    assert found["loss"] == report()[1]["loss"] and found["examples"] == 8
    assert artifact.load_artifact("run/artifact").manifest["labels"] == []


FILES = {"train": "train.jsonl", "validation": "test.jsonl", "test": "test.jsonl"}


def test_texts_that_are_empty_and_labels_that_look_alike_are_said(typed, home):
    write_csv(home / "news.csv")
    rows = "".join(f'"{" " * n}",Big Money\n' for n in range(9))
    (home / "news.csv").write_text((home / "news.csv").read_text() + rows)
    shown = typed("train", *train(*CSV)[1:], "--dry_run")
    assert shown.status == 0, shown.err
    shown = shown.out + shown.err
    assert re.search("train has [0-9]+ records, and empty texts: [1-9] of 'text'; remove", shown)
    assert "are different: 'Big Money' and 'big money'; write each in one way" in shown


# Overrides and parts of the sentence that refuses them.
MISTAKES = {
    "slot": (
        ("files.train=gone.csv", "template={text}:"),
        "error: template '{text}:' has no slot for the ",
        "write {soft} where they stand",
    ),
    "chat": (  # which has a place for the slot
        (*CSV, "template={text}:", "as_chat=true"),
        "the model has no chat template: give config.task.as_chat=false",
    ),
    "name": (("name=ag_news",), "config.task.name is 'ag_news'", "of other data save a file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(typed, home, mistake):
    overrides, *parts = MISTAKES[mistake]
    write_csv(home / "news.csv")
    shown = typed(*train(*overrides))
    assert shown.status == 2, shown
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1, shown.err
    assert all(part in shown.err for part in parts), shown.err
    left = {str(path.relative_to(home)) for path in home.rglob("*")}
    assert left == {"news.csv"}


@pytest.mark.parametrize("name", ["local", "sst2", "e2e", "gpt2_e2e_prefix", "llama_instruct"])
def test_a_config_reads_its_data(name, home):
    rows = [{"mr": f"name : {n}", "text": f"It is {n} .", "label": n % 2} for n in range(20)]
    rows = [row | {"category": row["label"]} for row in rows]
    (home / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "data.tsv").write_text("".join(f"{row['text']}\t{row['label']}\n" for row in rows))
    file = "data.tsv" if name == "sst2" else "data.jsonl"
    words = [f"--config.task.files.{split}={file}" for split in ("train", "validation", "test")]
    config = configs.load(str(tiny_runs.ROOT / "configs" / f"{name}.py"), words)
    task = make_task(config.task)
    assert len(training_records(task, config.task)) == 20
    for prompt in config.prompts:
        check_fields(prompt, template_fields(task, select_records(task, "test")[0]))
