"""The command `compare`: what it runs, that it goes on, and that its numbers can be had again."""

import json
import shlex
from collections import Counter

import pytest
import tiny_runs

from prompt_tuning_jax import api, compare, train
from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.records import LABEL
from prompt_tuning_jax.data.task import make_task, validation_records

ROWS = (
    "no prompt",
    "written prompt",
    "demonstrations: demonstrations.number=2",
    "soft prompt: method.num_virtual_tokens=4",
    "few: method.name=prefix method.num_virtual_tokens=4",
)
TIMES = ("seconds", "step_seconds", "near_best_seconds")


def command(workdir, *more, **keys):
    keys = {
        "rows": ROWS,
        "seeds": (0, 1),
        "learning_rates": ("few: 0.001 0.1",),
        "examples_per_class": (2, 0),
        "curve": ("few",),
        "unrelated": "bbc_news",
        **keys,
    }
    words = [f"--config.compare.{name}={value}" for name, value in keys.items()]
    prompts = "--config.prompts=('One of b, e, p, s, t. ', 'What? ')"
    parts = {"task.validation": "validation[:100]", "calibration.split": "validation[100:160]"}
    prompts = [prompts, *(f"--config.{name}={part}" for name, part in parts.items())]
    config = ["--config", tiny_runs.world().config]
    return ["compare", *config, "--workdir", workdir, *prompts, *tiny_runs.FEW, *words, *more]


def rows(folder):
    """The rows of a report without what is a time."""
    found = json.loads((folder / "report.json").read_text())["rows"]
    for row in found:
        assert all(row.pop(name, 1) > 0 for name in TIMES), row
        row["command"] = row["command"].replace(str(folder.name), "DIR")
        row["metrics"] = ""
    return found


def test_a_comparison_goes_on_and_its_numbers_can_be_had_again(typed, home, monkeypatch):
    read, tune, calls = [], train.tune, []
    label_scores = api.label_scores

    def reading(*arguments, split, **others):
        read.append(split)
        return label_scores(*arguments, split=split, **others)

    monkeypatch.setattr(api, "label_scores", reading)
    shown = typed(*command("whole"))
    assert shown.status == 0, shown.err
    found = {(row["name"], row["examples_per_class"]): row for row in rows(home / "whole")}
    assert [*found] == [
        *((name, 0) for name in ("no prompt", "no prompt, calibrated")),
        *((name, 0) for name in ("written prompt", "written prompt, calibrated")),
        *((name, 0) for name in ("demonstrations", "demonstrations, calibrated")),
        *(("soft prompt", 0), ("few", 0), ("few", 2)),
    ]
    # Once for each row and seed, behind everything that chooses.
    assert read.count("test[:40]") == 1 + 1 + 2 + 2 + 2 + 2
    assert found["no prompt", 0]["forgetting"] == 0
    assert found["few", 0]["examples"] == 260 and found["few", 2]["examples"] == 20
    assert found["few", 2]["learning_rate"] == found["few", 0]["learning_rate"]
    losses = [(each["loss"], each["rate"]) for each in found["few", 0]["tried"]]
    assert found["few", 0]["learning_rate"] == min(losses)[1]
    assert not list((home / "whole").rglob("checkpoints"))

    for name in ("written prompt, calibrated", "demonstrations", "few"):
        row = found[name, 0]
        words = [word.replace("DIR", "whole") for word in shlex.split(row["command"])[1:]]
        again = typed(*words, "--json")
        assert again.status == 0, again.err
        values = json.loads(again.out)
        values = values["rows"][-1] if words[0] == "train" else values
        values = values["calibrated"] if "--calibrate" in words else values
        assert values["accuracy"] == pytest.approx(row["by_seed"][0])

    stopped = []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) in stopped:
            raise KeyboardInterrupt
        return tune(*arguments)

    monkeypatch.setattr(train, "tune", stopping)
    before = rows(home / "whole")
    assert typed(*command("whole")).status == 0
    assert not calls and rows(home / "whole") == before
    other = typed(*command("whole", "--config.steps=13"))
    assert other.status == 2 and "config.steps was 12 and is 13 now" in other.err
    stopped += [2, 5]
    assert [typed(*command("other")).status for _ in range(3)] == [75, 75, 0]
    assert rows(home / "other") == before


@pytest.mark.parametrize(
    "keys, fault",
    [
        ({"rows": ("lorra",)}, "names no method (did you mean 'lora'?)"),
        ({"rows": ("lora", "lora: steps=1")}, "'lora' twice"),
        ({"rows": ("soft prompt", "soft_prompt")}, "'soft_prompt' twice"),
        ({"rows": ("lora: method.targets='x",)}, "a quotation mark has no partner"),
        ({"rows": ("lora: step=1",)}, "config.step is not a known key"),
        ({"curve": ("no prompt",)}, "expected a trained row, one of soft prompt, few"),
        ({"learning_rates": ("fow: 1",)}, "(did you mean 'few'?)"),
        ({"learning_rates": ("few: fast",)}, "expected 'ROW: RATE RATE'"),
        ({"seeds": ()}, "at least one"),
        ({"unrelated": "missing.txt"}, "missing.txt"),
    ],
)
def test_a_comparison_that_cannot_be_run_is_refused(typed, home, keys, fault):
    shown = typed(*command("whole", **{"learning_rates": (), "curve": (), **keys}))
    assert shown.status == 2 and fault in shown.err
    assert not (home / "whole").exists()


def test_the_folder_of_a_run_is_refused(typed, home):
    (home / "whole").mkdir()
    (home / "whole" / "config.json").write_text("{}")
    shown = typed(*command("whole", learning_rates=(), curve=()))
    assert shown.status == 2 and "'whole' holds a single run" in shown.err
    assert [path.name for path in (home / "whole").iterdir()] == ["config.json"]


def test_a_searched_prompt_is_not_calibrated_with_the_records_that_chose_it(tmp_path):
    config = configs.build({"compare": {"rows": ("no prompt", "searched prompt", "ia3")}})
    setting = compare.Setting(None, config, tmp_path, None, print)
    runs = [compare.make_run(config, tmp_path, row, 0) for row in compare.read_rows(config)]
    assert [compare._calibration_of(setting, run) for run in runs] == ["labels", "", ""]


def test_few_examples_are_validated_with_as_many_if_there_are(monkeypatch, tmp_path):
    words = ["--config.compare.rows=('prefix',)", "--config.task.validation=validation[:100]"]
    with tiny_runs.at_home(monkeypatch):
        config = configs.load(str(tiny_runs.world().config), words)
        [row] = compare.read_rows(config)
        tasks = [
            compare.make_run(config, tmp_path, row, 3, examples=count).config.task
            for count in (4, 25)
        ]
        all_, few, most = (
            Counter(record[LABEL] for record in validation_records(make_task(task), task))
            for task in (config.task, *tasks)
        )
    assert [(task.examples_per_class, task.draw_seed) for task in tasks] == [(4, 3), (25, 3)]
    assert set(few.values()) == {4} and 4 < min(all_.values()) < 25
    assert set(most.values()) == {min(all_.values())}
