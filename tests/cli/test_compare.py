"""The command `compare`: what it runs, that it goes on, and that its numbers can be had again."""

import contextlib
import dataclasses
import json
import re
import shlex
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import plain_model
import pytest
import tiny_runs

from prompt_tuning_jax import api, compare, forgetting, train
from prompt_tuning_jax import config as configs
from prompt_tuning_jax.cli.compare import rehearse, summarize
from prompt_tuning_jax.cli.machine import enough_memory
from prompt_tuning_jax.data.records import LABEL
from prompt_tuning_jax.data.task import make_task, validation_records
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.forgetting import cross_entropy
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models.sites import PREFIX, Given, from_tensors
from prompt_tuning_jax.run import comparison, report
from prompt_tuning_jax.run.artifact import TENSORS, load_artifact
from prompt_tuning_jax.run.folder import ARTIFACT
from prompt_tuning_jax.search import loop

ROWS = (
    "no prompt",
    "written prompt",
    "demonstrations: demonstrations.number=2",
    "soft prompt: method.num_virtual_tokens=4",
    "few: method.name=prefix method.num_virtual_tokens=4",
)
PEZ = "search.name=pez search.start=b search.words_only=false"
LONG = "one two three four five six seven eight nine ten {text} "
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
    prompts = "--config.prompts=('One of `b`, `e`, p, s, t.\\n', '`What`?\\n')"
    parts = {"task.validation": "validation[:100]", "calibration.split": "validation[100:160]"}
    prompts = [prompts, *(f"--config.{name}={part}" for name, part in parts.items())]
    config = ["--config", tiny_runs.world().config]
    few = *tiny_runs.FEW, "--config.evaluate_every=5"
    return ["compare", *config, "--workdir", workdir, *prompts, *few, *words, *more]


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

    stopped = [2, 5, 7]

    def stopping(*arguments, until):
        calls.append(until)
        if len(calls) in stopped:
            raise KeyboardInterrupt
        return tune(*arguments, until=until)

    monkeypatch.setattr(api, "label_scores", reading)
    monkeypatch.setattr("prompt_tuning_jax.cli.train.tune", tune)  # that of the command `train`
    monkeypatch.setattr(train, "tune", stopping)
    shown = [typed(*command("whole")) for _ in range(4)]
    assert [each.status for each in shown] == [75, 75, 75, 0]
    assert "going on after step 5" in shown[3].out
    assert calls == [*3 * [0], *3 * [5], *5 * [0]]
    found = {(row["name"], row["examples_per_class"]): row for row in rows(home / "whole")}
    assert [*found] == [
        *((name, 0) for name in ("no prompt", "no prompt, calibrated")),
        *((name, 0) for name in ("written prompt", "written prompt, calibrated")),
        *((name, 0) for name in ("demonstrations", "demonstrations, calibrated")),
        *(("soft prompt", 0), ("few", 0), ("few", 2)),
    ]
    # Once for each row and seed.
    assert read.count("test[:40]") == 1 + 1 + 2 + 2 + 2 + 2
    assert found["no prompt", 0]["forgetting"] == 0
    texts, lm = forgetting.unrelated_texts("bbc_news"), tiny_runs.tiny()[0]
    kept = [load_artifact(path) for path in (home / "whole" / "soft_prompt").glob("*/artifact")]
    nats = [cross_entropy(lm, texts, from_tensors(each.tensors)) for each in kept]
    wanted = np.mean(nats) - cross_entropy(lm, texts, Given())
    assert len(nats) == 2 and found["soft prompt", 0]["forgetting"] == pytest.approx(wanted)
    assert found["few", 0]["examples"] == 260 and found["few", 2]["examples"] == 20
    assert found["few", 2]["learning_rate"] == found["few", 0]["learning_rate"]
    losses = [(each["loss"], each["rate"]) for each in found["few", 0]["tried"]]
    assert found["few", 0]["learning_rate"] == min(losses)[1]
    assert not list((home / "whole").rglob("checkpoints"))
    # Both rates end at the last validation of the first half, and one of them goes on.
    tries = sorted((home / "whole" / "few").glob("*,seed-0/tried.json"))
    assert [path.with_name("artifact").exists() for path in tries] == (
        [each["rate"] == found["few", 0]["learning_rate"] for each in found["few", 0]["tried"]]
    )
    assert all(json.loads(path.read_text())["best_step"] <= 5 for path in tries)

    page = (home / "whole" / "report.md").read_text()
    assert "- time: " in page and "to train, search and choose" in page
    for name in ("written prompt, calibrated", "demonstrations", "few"):
        row = found[name, 0]
        said = f"  # {name}: {100 * row['by_seed'][0]:.1f} %"
        [line] = [line for line in page.splitlines() if line.endswith(said)]
        words = shlex.split(row["command"].replace("DIR", "whole"))[1:]
        assert shlex.split(line, comments=True)[1:] == [w.replace("\n", "\\n") for w in words]
        again = typed(*words, "--json")
        assert again.status == 0, again.err
        values = json.loads(again.out)
        values = values["rows"][-1] if words[0] == "train" else values
        values = values["calibrated"] if "--calibrate" in words else values
        assert values["accuracy"] == pytest.approx(row["first_seed"])
    # The last, `few`, was stopped between its trial and the rest.
    folders = (home / words[2]).parent, home / words[4]
    one, other = ((folder / ARTIFACT / TENSORS).read_bytes() for folder in folders)
    assert one == other

    calls.clear()
    stopped.clear()
    before = rows(home / "whole")
    assert typed(*command("whole")).status == 0
    assert not calls and rows(home / "whole") == before
    # A finished rate is compared with a new one's whole run.
    rates = "few: 0.001 0.1", "soft prompt: 0.1 0.00001"
    words = command("whole", calibrate="texts", unrelated="", learning_rates=rates)
    assert typed(*words).status == 0 and calls == [0]
    changed = {row["name"]: row for row in rows(home / "whole")}
    assert not any("forgetting" in row for row in changed.values())
    assert changed["no prompt, calibrated"]["command"].endswith("--calibrate texts")
    assert changed["no prompt, calibrated"]["mean"] != before[1]["mean"]
    calls.clear()
    new = {"rows": ("lora", "no prompt"), "learning_rates": (), "curve": ()}
    other = typed(*command("whole", "--config.steps=13", **new))
    assert not calls and other.status == 2 and "config.steps was 12 and is 13 now" in other.err
    again = other, typed(*command("whole", "--config.steps=13", "--dry_run", **new))
    assert again[1].status == 2 and again[1].err == again[0].err
    changed = ("lora", "few: method.name=prefix method.num_virtual_tokens=5")
    other = typed(*command("whole", rows=changed))
    assert not calls and other.status == 2 and "method.num_virtual_tokens was 4" in other.err
    assert "the row 'few' has run with another config: give it another name, or" in other.err


def test_a_comparison_stopped_anywhere_ends_as_if_it_had_not_been(typed, home, monkeypatch):
    searched = "search.name=random search.start=b search.words_only=false search.rounds=4"
    searched += " search.validate_every=2 search.template='{soft} {text}\n'"
    all_rows = ("no prompt", "demonstrations", f"searched prompt: {searched}", ROWS[3])
    keys = {"rows": all_rows, "seeds": (0,), "learning_rates": (), "curve": ()}
    # The slots are of the soft prompt alone; most headlines have more than ten tokens.
    more = "--config.task.template={soft:2}{text}{soft:2}\n", "--config.task.max_length=10"
    shown = typed(*command("unbroken", *more, "--config.save_every=5", **keys))
    assert shown.status == 0, shown.err
    for run in ("no_prompt", "demonstrations", "searched_prompt", "soft_prompt"):
        lost = rf"warning: unbroken/{run}/\S+: \d+ of 40 examples were too long and lost their end"
        assert re.search(lost, shown.out), run

    def stopping(function):
        calls = []

        def call(*arguments, **others):
            made = function(*arguments, **others)
            calls.append(made)
            if len(calls) == 1:
                raise KeyboardInterrupt
            return made

        return call

    places = [(loop, "validate"), (loop, "atomic_write"), (train, "save"), (compare, "_values")]
    places += [(compare.calibration, "fit"), (compare, "cross_entropy")]
    places += [(comparison, name) for name in ("draw_pictures", "atomic_write")]
    for module, name in places:
        monkeypatch.setattr(module, name, stopping(getattr(module, name)))
    words = command("broken", *more, "--config.save_every=5", **keys)
    shown = [typed(*words) for _ in range(len(places) + 1)]
    assert [each.status for each in shown] == [75] * len(places) + [0]
    assert rows(home / "broken") == rows(home / "unbroken")


@pytest.mark.parametrize(
    "keys, fault",
    [
        ({"rows": ("lorra",)}, "names no method (did you mean 'lora'?)"),
        ({"rows": ("lora", "lora: steps=1")}, "'lora' twice"),
        ({"rows": ("lora", "LoRA: method.name=lora")}, "'LoRA' twice"),
        ({"rows": ("lora: task.split_seed=1",)}, "which all rows share"),
        ({"rows": ("lora: parallel=pmap",)}, "which all rows share"),
        ({"rows": ("no prompt: teacher.prompt=a",)}, "'no prompt', which does not read it"),
        ({"examples_per_class": (99,)}, "the row 'soft prompt' with 99 examples of each label: "),
        ({"rows": ("ia3: demonstrations.number=4",)}, "'ia3', which does not read it"),
        ({"rows": ("ia3", "demonstrations: demonstrations.number=0")}, "has none: give demonst"),
        ({"rows": ("ia3", "demonstrations: demonstrations.number=999")}, "ions.number is 999"),
        ({"rows": ("lora: method.targets='x",)}, "a quotation mark has no partner"),
        ({"rows": ("lora: step=1",)}, "the row 'lora': config.step is not a known key"),
        ({"rows": ("ia3", 'lora: task.template="{nope}"')}, "the row 'lora': template '{nope}'"),
        ({"rows": ("lora: method.rank 4",)}, "'method.rank' in 'lora': write KEY=VALUE"),
        ({"rows": ("lora: teacher.prompt= step=1",)}, "config.step is not a known key"),
        ({"rows": (f"{61 * 'x'}: method.name=lora",)}, "another name, of at most 60 characters"),
        ({"rows": ("artifact: method.name=lora",)}, "has 'artifact': give another name"),
        (
            {"rows": ("low: method.name=lora",), "learning_rates": ("lora: 1 2",)},
            "learning_rates has 'lora': write 'low'",
        ),
        ({"rows": (": method.name=lora",)}, "has '', which names no method"),
        ({"learning_rates": ("fow: 1",)}, "(did you mean 'few'?)"),
        ({"learning_rates": ("few: fast",)}, "expected 'ROW: RATE RATE'"),
        ({"curve": ("ia3",)}, "expected a trained row, one of soft prompt, few"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (0, 0)}, "expected different whole numbers"),
        ({"rows": ("lora", "searched prompt")}, "has neither start nor num_tokens"),
        ({"rows": ("lora", 'written prompt: prompts="(\\"{foo}\\",)"')}, "config.prompts: "),
        ({"rows": ("ia3", "lora: method.name=prefix method.init=file method.init_file=no")}, "no"),
        ({"unrelated": "missing.txt"}, "missing.txt"),
        ({"rows": ("no prompt",)}, "no row is trained: leave config.compare.examples_per_class"),
        ({"rows": ("ia3", "lora: method.targets=nope")}, "the row 'lora': config.method.targets"),
        ({"rows": ("ia3", "lora: task.max_length=5")}, "the row 'lora': "),
        ({"rows": ("ia3", "lora: teacher.prompt={foo}")}, "config.teacher.prompt: "),
        ({"rows": ("ia3", f"lora: teacher.prompt='{9 * LONG}'")}, "the row 'lora': "),
        ({"rows": ("lora: teacher.demonstrations=9999",)}, "teacher.demonstrations is 9999 and"),
        ({"rows": ("ia3", "prefix: method.init=demonstrations")}, "records (half of each label)"),
        (
            {"rows": ("ia3", "soft prompt: task.template='{text} =' teacher.prompt='A {text}'")},
            "the row 'soft prompt': template",
        ),
        ({"rows": ("ia3", f"searched prompt: {PEZ} search.start_file=no.f")}, "no.f"),
    ],
)
def test_a_comparison_that_cannot_be_run_is_refused(typed, home, keys, fault):
    shown = typed(*command("whole", **{"learning_rates": (), "curve": (), **keys}))
    assert shown.status == 2 and fault in shown.err
    assert not (home / "whole").exists()


def test_a_row_with_a_teacher_may_begin_as_demonstrations(typed, home):
    """And labels that only calibrate by texts need not be known."""
    taught = "method.num_virtual_tokens=60 method.init=demonstrations teacher.prompt='A {text}'"
    keys = {"rows": (f"prefix: {taught}", "no prompt", f"searched prompt: {PEZ}")}
    keys |= {"learning_rates": (), "curve": (), "calibrate": "texts"}
    words = command("whole", "--dry_run", **keys)

    def type_without_labels(is_read, function, *modules):
        def unlabelled(task, given, labelled=True):
            if labelled and is_read(given):
                raise UserError("line 1: no label")
            return function(task, given, labelled)

        with contextlib.ExitStack() as patches:
            for module in modules:
                name = f"prompt_tuning_jax.{module}.{function.__name__}"
                patches.enter_context(mock.patch(name, unlabelled))
            return typed(*words)

    read, where = compare.tasks.select_records, ("data.task", "api", "cli.compare")
    shown = type_without_labels("validation[100:160]".__eq__, read, *where)
    assert shown.status == 0, shown.err
    assert re.search(r"^searched prompt +1 +[\d.]*[1-9]", shown.out, re.MULTILINE), shown.out
    # Those that rank need their labels, also where texts alone calibrate.
    shown = type_without_labels(lambda _: True, validation_records, *where[:2])
    assert shown.status == 2 and "the row 'no prompt': line 1: no label" in shown.err
    with mock.patch.object(compare, "check", side_effect=KeyboardInterrupt):
        assert typed(*[word for word in words if word != "--dry_run"]).status == 130
    assert not (home / "whole" / "config.json").exists()  # and nothing is said to be saved


def test_fresh_deletes_nothing_of_others(typed, home):
    notes = home / "own" / "soft_prompt" / "my-seed-1" / "notes"
    notes.parent.mkdir(parents=True)
    for path in (notes, home / "own" / "config.json", home / "own" / "report.md"):
        path.write_text("{}")
    shown = typed(*command("own"), "--fresh")
    assert shown.status == 2 and "was not written by a run" in shown.err
    assert notes.exists() and (home / "own" / "report.md").exists()


@pytest.mark.parametrize(
    "word, fault",
    [
        ("calibration.split=validation[:2]", "with have 2 of 5 labels: give a"),
        ("prompts=('Bad {foo}',)", "config.prompts: "),
        ("model.quantize=int8", "the row 'fine tuning': config.model.quantize is"),
    ],
)
def test_what_rows_without_training_need_is_checked_before_any_row_is_run(typed, home, word, fault):
    rows = ("soft prompt", "no prompt", "written prompt", "fine tuning")
    shown = typed(*command("whole", f"--config.{word}", rows=rows, learning_rates=(), curve=()))
    assert shown.status == 2 and fault in shown.err
    assert not (home / "whole").exists()


def test_the_number_of_demonstrations_is_that_of_the_row_the_config_or_16(tmp_path):
    plain, own = "demonstrations", "demonstrations: demonstrations.number=2"
    for number, row, wanted in ((0, plain, 16), (3, plain, 3), (3, own, 2)):
        given = {"compare": {"rows": (row,)}, "demonstrations": {"number": number}}
        config = configs.build(given)
        [row] = compare.read_rows(config)
        run = compare.make_run(config, tmp_path, row, 0)
        assert run.config.demonstrations.number == wanted


def test_rows_that_are_not_repeated_need_no_few_examples(monkeypatch, tmp_path):
    """There are 10 with 2 of each label, and 16 demonstrations."""

    def run(*_):
        raise EOFError

    monkeypatch.setattr(compare, "_all_examples", run)
    monkeypatch.setattr(compare, "_plan", lambda *_: None)
    rows = "('demonstrations','ia3')"
    words = [f"compare.rows={rows}", "compare.examples_per_class=(2,)"]
    with tiny_runs.at_home(monkeypatch):
        words = [f"--config.{word}" for word in (*words, "task.validation=validation[:100]")]
        config = configs.load(str(tiny_runs.world().config), words)
        with pytest.raises(EOFError):  # every row is checked, and the first is run
            compare.compare(None, config, tmp_path, print, False, contextlib.nullcontext)


def test_the_folder_of_a_run_is_refused(typed, home):
    (home / "whole").mkdir()
    (home / "whole" / "metrics.jsonl").write_text("")
    shown = typed(*command("whole", learning_rates=(), curve=()))
    assert shown.status == 2 and "'whole' holds what 'train' wrote" in shown.err
    assert [path.name for path in (home / "whole").iterdir()] == ["metrics.jsonl"]


def test_records_that_calibrate_choose_no_prompt_and_count_once(typed, home):
    words = {"rows": ("written prompt",), "learning_rates": (), "curve": (), "unrelated": ""}
    words["examples_per_class"] = ()
    for kind, counts in (("texts", [100, 100]), ("labels", [50, 100])):
        shown = typed(*command("whole", "--config.calibration.split=", calibrate=kind, **words))
        assert shown.status == 0, shown.err
        assert [row["examples"] for row in rows(home / "whole")] == counts
    words["calibrate"] = "texts"
    shown = typed(*command("other", "--config.calibration.split=test[:9]", **words))
    assert "9 of 40 records of test[:40] calibrate too" in shown.out
    shown = typed(*command("dry", "--config.task.test=validation[:9]", "--dry_run", **words))
    assert "9 of 9 records of validation[:9] are validated on too" in shown.out
    shown = typed(*command("more", "--config.task.test=train[:9]", **words | {"calibrate": ""}))
    assert "9 of 9 records of train[:9] are trained on too" in shown.out


def test_with_other_data_the_rows_are_run_again(typed, home):
    def write(labels):
        texts = [f"{'ab'[number % 2]} {number},{labels[number % 2]}" for number in range(90)]
        (home / "own.csv").write_text("\n".join(["text,label", *texts]))

    def run():
        words = {"rows": ("no prompt", "soft prompt"), "learning_rates": (), "curve": ()}
        own = {"name": "files", "files.train": "own.csv", "labels": ("x=x", "y=y")}
        parts = {"train": "train[:50]", "validation": "train[50:70]", "test": "train[70:]"}
        own = [f"--config.task.{name}={value}" for name, value in {**own, **parts}.items()]
        few = {"seeds": (0,), "examples_per_class": (), "calibrate": "", "unrelated": "u.txt"}
        shown = typed(*command("whole", *own, "--config.calibration.split=", **words, **few))
        assert shown.status == 0, shown.err
        found = rows(home / "whole")
        return [[*row["by_seed"], row["forgetting"]] for row in found], shown.out

    write("xy")
    (home / "u.txt").write_text("some words here")
    first, _ = run()
    (home / "u.txt").write_text("quite different ones")
    other, out = run()
    assert "compiling" not in out and [row[:1] for row in other] == [row[:1] for row in first]
    assert other[1][1] != first[1][1]
    write("yx")
    again, out = run()
    assert "compiling" in out and again[1][1] != other[1][1]
    kept, out = run()
    assert kept == again and "compiling" not in out


def test_a_row_that_fails_is_left_out_and_named(typed, home):
    wild = "wild: method.name=lora learning_rate=1e30"
    few = {"seeds": (0,), "examples_per_class": (), "calibrate": "", "unrelated": ""}
    shown = typed(*command("whole", rows=("no prompt", wild), learning_rates=(), curve=(), **few))
    assert shown.status == 1 and "error: wild failed, as said above" in shown.err
    assert "warning: the row 'wild' has failed: 5 updates in a row" in shown.out
    assert [row["name"] for row in rows(home / "whole")] == ["no prompt"]
    assert "- failed: wild" in (home / "whole" / "report.md").read_text()


def test_too_little_memory_or_a_record_that_does_not_fit_ends_one_row_alone(tmp_path):
    config, lines = configs.build({"compare": {"rows": ("fine tuning",)}}), []
    [row] = compare.read_rows(config)
    run = compare.make_run(config, tmp_path, row, 0)
    setting = mock.Mock(failed=[], log=lines.append)
    setting.enough_memory = enough_memory
    little = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory")
    with mock.patch.multiple(compare, _train=mock.Mock(side_effect=little), _sources=mock.Mock()):
        attempt = compare._attempt(setting, row, lambda *_: compare._find(setting, run))
    long = mock.Mock(side_effect=UserError("record 3 does not fit"))
    assert attempt is compare._attempt(setting, row, long) is None
    assert setting.failed == ["fine tuning"] * 2 and "does not fit" in lines[1]
    # What this row can do, not what the config's own method could.
    assert "too little memory" in lines[0] and "quantize" not in lines[0]


def test_numbers_of_examples_stand_apart_on_their_axis():
    _, axes = report.new_figure(8, 4.5)
    counts = {"a": (2, 16, 150, 160), "b": (40,)}
    listed = [
        {"name": name, "train_examples": count, "metric": "accuracy", "mean": 0.5, "deviation": 0.1}
        for name in counts
        for count in counts[name]
    ]
    comparison._by_examples(axes, listed, {name: {"color": "black"} for name in counts})
    assert axes.get_xticks().tolist() == [2, 16, 40, 150]


def test_every_name_is_in_the_legend_and_every_legend_in_the_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "save_figure", lambda figure, path: drawn.append(figure))
    (tmp_path / "metrics").write_text('{"step": 1, "validation/loss": 2.0}\n')
    row = {"metric": "accuracy", "mean": 0.5, "deviation": None, "examples_per_class": 0}
    row |= {"parameters": 4, "method": "lora", "metrics": str(tmp_path / "metrics")}
    names = ["$x_{ $5", *(f"_{number}" for number in range(39))]
    comparison.draw_pictures(tmp_path, [row | {"name": name} for name in names], ["lora"])
    for figure in drawn:
        figure.draw_without_rendering()
        [legend] = figure.legends
        shown = [text.get_text().strip().replace("\\$", "$") for text in legend.get_texts()]
        assert shown == names
        assert figure.bbox.height > legend.get_window_extent().height


def test_a_method_looks_the_same_in_every_report_and_no_row_as_another():
    looks = []
    for names in (("lora",), ("ia3", "prefix", "lora", "lora", "ia3")):
        rows = [{"name": f"{n} {name}", "method": name} for n, name in enumerate(names)]
        looks.append(comparison._styles(rows, [*METHODS]))
    one, more = ([(look["color"], look["marker"]) for look in each.values()] for each in looks)
    assert one[0] == more[2] and len(set(more)) == 5


def test_a_method_s_own_name_and_its_words_are_one_row():
    rates = ("fine tuning: 0.1 1", "fine tuning: 1 10")
    keys = {"rows": ("fine_tuning",), "learning_rates": rates}
    [row] = compare.read_rows(configs.build({"compare": keys}))
    assert (row.name, row.rates) == ("fine tuning", (0.1, 1.0, 10.0))


def test_a_target_has_no_few_examples_of_a_label(tmp_path):
    config = configs.build({"task": {"target": "{text}"}, "compare": {"examples_per_class": (4,)}})
    with pytest.raises(UserError, match="a target has no labels: leave"):
        compare.check(None, config, tmp_path, print)


def test_the_rows_are_all_that_can_be_run(monkeypatch):
    monkeypatch.setitem(METHODS, "ones_own", METHODS["ia3"])
    plain, bytes_ = (
        [row.name for row in compare.read_rows(configs.build({"model": {"quantize": each}}))]
        for each in ("", "int8")
    )
    assert plain[:2] == ["no prompt", "demonstrations"] and "ones own" in plain
    assert set(plain) - set(bytes_) == {"fine tuning"}


def test_a_searched_prompt_is_not_calibrated_with_the_records_that_chose_it(tmp_path):
    config = configs.build({"compare": {"rows": ("no prompt", "searched prompt", "ia3")}})
    runs = [compare.make_run(config, tmp_path, row, 0) for row in compare.read_rows(config)]
    assert [compare._calibration_of(config, run) for run in runs] == ["labels", "", ""]


def test_few_examples_are_validated_with_as_many_if_there_are(monkeypatch, tmp_path):
    rows = "('prefix', 'lora: task.validation_per_class=3')"
    words = [f"--config.compare.rows={rows}", "--config.task.validation=validation[:100]"]
    with tiny_runs.at_home(monkeypatch):
        config = configs.load(str(tiny_runs.world().config), words)
        row, own = compare.read_rows(config)
        task = compare.make_run(config, tmp_path, own, 3, examples=4).config.task
        assert task.validation_per_class == 3  # the row's own
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


def test_fresh_deletes_runs_alone_once_every_row_is_checked(monkeypatch, tmp_path):
    monkeypatch.setattr(
        compare, "_all_examples", lambda _, row: compare.Compared(row, 0, [], [], [])
    )
    monkeypatch.setattr(compare, "_plan", lambda *_: None)
    own, old = tmp_path / "prefix" / "config.json", tmp_path / "prefix" / "rate-1,seed-0"
    for folder in (own, old):
        folder.mkdir(parents=True)
    with tiny_runs.at_home(monkeypatch):
        for rows, kept in ((("prefix", "lora: step=1"), True), (("prefix",), False)):
            words = [f"--config.compare.rows={rows}", "--config.task.validation=validation[:100]"]
            config = configs.load(str(tiny_runs.world().config), words)
            with pytest.raises(UserError) if kept else contextlib.nullcontext():
                compare.compare(None, config, tmp_path, print, True, contextlib.nullcontext)
            assert own.exists() and old.exists() is kept
        found = tmp_path / "prefix" / "seed-1" / compare.FOUND
        found.parent.mkdir()
        for path in (found, tmp_path / "report.csv", tmp_path / "report.md"):
            path.write_text("{}")
        monkeypatch.setattr(compare.shutil, "rmtree", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compare.compare(None, config, tmp_path, print, True, contextlib.nullcontext)
        # With another config, its numbers would count as the new ones.
        assert not found.parent.exists() and not [*tmp_path.glob("report.*")]


def test_a_rate_that_diverges_is_one_of_those_that_were_tried(monkeypatch, tmp_path):
    def find(setting, run, until):
        if run.config.learning_rate > 1:
            raise RunError("the loss is not finite")
        return {"loss": run.config.learning_rate}

    monkeypatch.setattr(compare, "_find", find)
    monkeypatch.setattr(
        compare, "_every_seed", lambda _, row, rate: compare.Compared(row, rate, [], [], [])
    )
    config, lines = configs.build({"compare": {"rows": ("prefix",)}}), []
    log, nothing = lines.append, contextlib.nullcontext
    setting = compare.Setting(None, config, tmp_path, [], None, log, nothing, [])
    [row] = compare.read_rows(config)
    found = compare._all_examples(setting, row._replace(rates=(5.0, 0.2, 0.1)))
    assert found.tried == [(5.0, {}), (0.2, {"loss": 0.2}), (0.1, {"loss": 0.1})]
    assert found.examples == 0.1 and "has failed: the loss is not finite" in lines[0]
    with pytest.raises(RunError):
        compare._all_examples(setting, row._replace(rates=(5.0, 7.0)))
    config.best_by = "accuracy"
    better = {0.2: {"loss": 2.0, "accuracy": 0.9}, 0.1: {"loss": 1.0, "accuracy": 0.8}}
    monkeypatch.setattr(compare, "_find", lambda _, run, __: better[run.config.learning_rate])
    found = compare._all_examples(setting, row._replace(rates=(0.1, 0.2)))
    assert found.examples == 0.2
    shown = [{"rate": 5.0}, {"rate": 0.1, "loss": 0.1}]
    assert [*comparison._tried([{"name": "prefix", "tried": shown}])] == [
        ["prefix", "5", "failed", ""],
        ["prefix", "0.1", "0.1000", ""],
    ]


def test_a_written_prompts_row_is_the_best_on_validation(monkeypatch, tmp_path):
    right = {"a": [1, 0, 0], "b": [1, 1, 0], "c": [0, 1, 0]}

    def score(setting, task, run, found, rows):
        share = np.array(right[found["prompt"]])
        return api.Scored(np.stack([share, 1 - share], 1) - 2.0, np.zeros(3, int), {})

    monkeypatch.setattr(compare, "_score", score)
    monkeypatch.setattr(api, "held_out", lambda *_: ([{}] * 3, []))
    config = configs.build({"prompts": (*right,), "compare": {"rows": ("written prompt",)}})
    run = compare.make_run(config, tmp_path, compare.read_rows(config)[0], 0)
    found = compare._choose(mock.Mock(config=config, lm=SimpleNamespace(params={})), run)
    assert (found["prompt"], found["bytes"], found["examples"]) == ("b", 1, 3)


def test_the_numbers_of_a_row_by_hand(tmp_path):
    config = configs.build({"compare": {"rows": ("no prompt", "lora", "ia3")}})
    right = {
        "no prompt": [[0, 0, 1, 0]],
        "lora": [[1, 1, 0, 0], [1, 1, 1, 0]],
        "ia3": [[1, 1, 1, 1], [1, 1, 1, 0]],
    }
    found = {"accuracy": 0.5, "loss": 1.0, "examples": 8, "bytes": 10, "model_bytes": 1000}
    results = []
    for row in compare.read_rows(config):
        own = found | {"parameters": 50 * row.is_trained}
        values = right[row.name]
        runs = [compare.make_run(config, tmp_path, row, seed) for seed in range(len(values))]
        each = [own | {"seconds": 2.0 + 2 * seed} for seed in range(len(values))]
        test = [{"values": v, "forgetting": seed - 1.0} for seed, v in enumerate(values)]
        results.append(compare.Compared(row, 0, runs, each, test))
    none, first, second = summarize(results, SimpleNamespace(params={"w": np.zeros(200)}))
    assert (first["by_seed"], first["mean"], first["share"]) == ([0.5, 0.75], 0.625, 0.25)
    assert (first["bytes_of_100_tasks"], first["seconds"], first["forgetting"]) == (2000, 3.0, -0.5)
    assert first["deviation"] == pytest.approx(0.125 * 2**0.5) and "difference" not in first
    assert (none["difference"], second["difference"]) == pytest.approx((-0.375, 0.25))


def test_what_a_training_found_is_of_its_best_validation(monkeypatch, tmp_path):
    config = configs.build({"compare": {"rows": ("lora",)}})
    [row] = compare.read_rows(config)
    run = compare.make_run(config, tmp_path, row, 0)
    lines = [(5, 2.0, 0.5), (10, 1.0, 0.96), (15, 3.0, 1.0)]
    names = "step", "validation/loss", "validation/accuracy"
    history = [{"step": 4, "train/loss": 9.0}, *(dict(zip(names, x, strict=True)) for x in lines)]
    made = SimpleNamespace(manifest={"metrics": {"step": 10}}, tensors={})
    result = mock.Mock(history=history, artifact=made, seconds=30.0, finished=True)
    monkeypatch.setattr(train, "tune", lambda *_, **__: result)
    found = compare._train(mock.Mock(), run, until=5)
    assert (found["loss"], found["accuracy"], found["best_step"]) == (1.0, 0.96, 10)
    assert found["near_best_seconds"] == 20.0  # 0.96 of 1.0, at step 10 of 15


def test_a_dry_run_counts_trials_seeds_and_the_curve(monkeypatch, tmp_path):
    keys = {"rows": ("lora", "ia3", "no prompt"), "learning_rates": ("lora: 0.1 0.2 0.3",)}
    keys |= {"seeds": (0, 1), "examples_per_class": (2, 0), "curve": ("lora",)}
    config = configs.build({"steps": 12, "evaluate_every": 5, "compare": keys})
    seconds = {"validation": 1.0, "run": 100.0, "compile": 10.0, "teacher": 7.0}
    measured = {"seconds": seconds, "examples": {"validation": 4, "test": 8}}
    where = "prompt_tuning_jax.cli.compare"
    for name in ("load_model", "describe_machine", "_check_texts", "make_task"):
        monkeypatch.setattr(f"{where}.{name}", lambda *_: "")
    monkeypatch.setattr(f"{where}.dry_run.measure", lambda *_: measured)
    monkeypatch.setattr(compare, "check", lambda _, config, *__: compare.read_rows(config))
    found = rehearse(config, None, False)
    # Two more rates for 5 of 12 steps; two seeds, and as many with two examples of each label.
    assert [*found] == ["lora", "ia3"] and found["ia3"] == {"runs": 2, "seconds": 2 * 119.0}
    assert found["lora"]["runs"] == pytest.approx(2 * 5 / 12 + 4)
    # The teacher answers for each of three trials, for what goes on, and for each other run.
    seconds = 110 * (2 * 5 / 12 + 4) + 4 * 2 + 7 * (3 + 4)
    assert found["lora"]["seconds"] == pytest.approx(seconds)


def test_a_task_without_labels_is_ranked_by_the_loss_and_shown_in_nats():
    assert compare._order({"loss": 2.0}, by_accuracy=True) == compare._order({"loss": 2.0}, False)
    row = {"metric": "log-probability", "mean": -2.34, "deviation": 0.04}
    row |= {"difference": 0.04, "low": 0.01, "high": 0.08}
    assert comparison._metric(row) == "-2.340 ± 0.040 nats"
    assert comparison._difference(row) == "+0.040 [+0.010, +0.080]"


def test_a_text_of_one_token_is_not_measured():
    lm, plain = plain_model.make()
    alone = lm._replace(
        tokenizer=SimpleNamespace(add_bos=False, encode=lambda t: ([*map(ord, t)],))
    )
    given = plain_model.random_given(0, lm.spec, "prompt", size=2)
    for made, front in ((Given(), []), (given, [-1, -2])):
        nats = plain_model.log_probabilities(plain, [*front, *b"ab"], made)[-2:]
        wanted = -(nats[0, ord("b")] + nats[1, ord("c")]) / 2
        assert cross_entropy(alone, ["a", "abc"], made) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(UserError, match="each unrelated text has one token"):
        cross_entropy(alone, ["a"], Given())
    with mock.patch.object(forgetting.scoring, "score", lambda *_: np.array([np.nan])):
        with pytest.raises(RunError, match="not finite"):
            cross_entropy(alone, ["abc"], Given())


def test_unrelated_texts_are_lines_without_their_ends(tmp_path):
    (tmp_path / "texts").write_bytes(b"one\r\n \ntwo\n" + 99 * b"three\n")
    found = forgetting.unrelated_texts(str(tmp_path / "texts"))
    assert found[:3] == ["one", "two", "three"] and len(found) == forgetting.TEXTS


def test_a_full_disk_is_a_sentence_and_what_is_not_saved_is_not_said_to_be(typed, home):
    few = {"rows": ("soft prompt",), "learning_rates": (), "curve": (), "examples_per_class": ()}
    words = command("whole", **few, unrelated="")
    tuned = SimpleNamespace(finished=False, saved=False)
    with mock.patch.object(train, "tune", lambda *_, **__: tuned):
        shown = typed(*words)
    assert shown.status == 1 and "stopped and not saved: free disk space" in shown.err
    with mock.patch.object(compare, "_find", mock.Mock(side_effect=OSError(28, "No space left"))):
        shown = typed(*words)
    assert shown.status == 1 and "whole could not be written (No space left): free" in shown.err


def test_forgetting_is_measured_on_the_same_tokens_with_and_without():
    lm, _ = plain_model.make()
    words = SimpleNamespace(add_bos=False, encode=lambda t: ([*map(ord, t)],))
    lm = lm._replace(spec=dataclasses.replace(lm.spec, max_positions=32), tokenizer=words)
    prefix = np.zeros((lm.spec.layers, 29, lm.spec.kv_heads, lm.spec.head_size), np.float32)
    found = mock.Mock(return_value=np.zeros(1))
    with mock.patch.object(forgetting.scoring, "score", found):
        for given in (Given(), Given(dict.fromkeys(PREFIX.values(), prefix))):
            cross_entropy(lm, ["abcdefghij"], given)
    assert [len(call.args[1][0].tails[0]) for call in found.call_args_list] == [3, 3]


def test_calibration_leaves_validation_examples_to_choose_with():
    config = configs.build({"compare": {"rows": ("no prompt",)}})
    held = [{"label": label, "text": label} for label in ("a", "b")]
    with mock.patch.object(api, "validation_records", lambda *_: held):
        with pytest.raises(UserError, match="no label has two validation records"):
            api.held_out(None, config, "labels")
        assert api.held_out(None, config, "texts") == (held, held)
        config.calibration.split = "nowhere"  # is not read if nothing calibrates
        assert api.held_out(None, config, None) == api.held_out(None, config, "") == (held, held)
