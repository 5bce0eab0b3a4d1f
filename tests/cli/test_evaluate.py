"""Evaluations as they are typed: of artifacts, written prompts and demonstrations."""

import json

import tiny_models
import tiny_runs
from safetensors.numpy import load_file, save_file

from prompt_tuning_jax import api
from prompt_tuning_jax.cli import evaluate as cli_evaluate
from prompt_tuning_jax.cli import show
from prompt_tuning_jax.run import artifact


def test_evaluate_an_artifact_a_written_prompt_or_neither(typed):
    def result(*words):
        shown = typed("evaluate", *words, "--split", "test[:30]", "--json")
        assert shown.status == 0, shown.err
        return json.loads(shown.out)

    tiny = ["--config", tiny_runs.world().config]
    prompt = r"One of b, e, p, s, t.\n"
    tuned, alone = result("--artifact", tiny_runs.artifact()), result(*tiny)
    whole = result(*tiny, "--prompt", prompt + r"Headline: {text}\nTopic:")
    for found in (tuned, alone, whole):
        assert found.keys() == {"loss", "accuracy", "examples", "intervals"}
        low, high = found["intervals"]["accuracy"]
        assert 0 <= low <= found["accuracy"] <= high <= 1
        assert found["examples"] == 30 and 0 <= found["accuracy"] <= 1
    assert len({tuned["loss"], alone["loss"], whole["loss"]}) == 3
    # A prompt that names no field takes the place of the template's slots.
    assert result(*tiny, "--prompt", prompt) == whole
    lines = typed("evaluate", *tiny, "--split", "test[:30]").out.splitlines()
    assert lines == show.facts(alone) and lines[0] == f"loss: {alone['loss']}"


def test_processes_compare_what_they_read(typed, home, monkeypatch):
    compared = []
    note = lambda config, sources: compared.append(sources["data"])  # noqa: E731
    monkeypatch.setattr(cli_evaluate, "check_processes", note)
    prompts = home / "prompts.txt"
    own, ranked = ["--artifact", tiny_runs.artifact()], ["--prompts", prompts]
    tiny = ["--config", tiny_runs.world().config]
    for split in (9, 9, 8):
        assert typed("evaluate", *own, f"--split=test[:{split}]").status == 0
    for text in ("It: {text}", "Is: {text}"):
        prompts.write_text(text)
        assert typed("evaluate", *tiny, *ranked, "--split=test[:9]").status == 0
    assert compared[0] == compared[1] and len({*compared}) == 4


def test_evaluate_takes_the_split_that_the_report_is_of(typed, home):
    tiny = ["evaluate", "--config", tiny_runs.world().config, "--json"]
    (home / "prompts.txt").write_text("It: {text}")
    for words in ([], ["--prompts", "prompts.txt"]):
        given = typed(*tiny, *words, "--split", "test[:40]")
        assert typed(*tiny, *words).out == given.out
        assert json.loads(given.out)["examples"] == 40
    own = typed("evaluate", "--artifact", tiny_runs.artifact(), "--json")
    assert json.loads(own.out)["examples"] == 40 and "scored test[:40]" in own.err


def test_records_that_are_trained_on_are_counted_and_said(typed, home):
    tuned = ["evaluate", "--artifact", tiny_runs.artifact(), "--split"]
    said = "records of {} are trained on too"
    assert (
        "warning: 40 of 80 " + said.format("train[120:200]") in typed(*tuned, "train[120:200]").err
    )
    for split in ("train[:160]", "test[:10]"):
        assert "trained on" not in typed(*tuned, split).err
    written = ["evaluate", "--config", tiny_runs.world().config, "--prompt", "It: "]
    assert typed(*written, "--demonstrations", "1", "--out", "kept").status == 0
    shown = typed("evaluate", "--artifact", "kept", "--split", "train").err
    assert "warning: 1 of 200 records of train are demonstrations too" in shown
    assert "trained on" not in shown
    rehearsed = typed(
        *[*tiny_runs.training("run"), *tiny_runs.FEW, "--dry_run"],
        *("--config.task.validation=train[:20]", "--config.task.test=train[150:170]"),
    )
    assert "warning: 20 of 20 " + said.format("train[:20]") in rehearsed.out
    assert "warning: 10 of 20 " + said.format("train[150:170]") in rehearsed.out
    (home / "prompts.txt").write_text("It: {text}")
    words = ["--prompts", "prompts.txt", "--split", "validation[:9]"]
    shown = typed("evaluate", "--config", tiny_runs.world().config, *words)
    assert "warning: 9 of 9 records of validation[:9] rank prompts too" in shown.err + shown.out


def test_a_template_that_the_artifact_does_not_read_is_said(typed):
    words = ["evaluate", "--artifact", tiny_runs.artifact(), "--config", tiny_runs.world().config]
    plain = typed(*words, "--split", "test[:10]", "--json")
    other = typed(*words, "--config.task.template={soft}{text}:", "--split", "test[:10]", "--json")
    assert plain.out == other.out and "template" not in plain.err
    assert "warning: the artifact's own template is read, '{soft}Headline" in other.err


def test_scores_that_are_not_finite_are_no_accuracy(typed, home):
    """float16 that overflows; what had been the answer is whatever argmax finds first."""
    model = tiny_models.write_folder(home / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] *= 30_000
    save_file(tensors, model / "model.safetensors")
    words = ["evaluate", "--config", tiny_runs.world().config, f"--config.model.path={model}"]
    assert typed(*words).status == 0
    shown = typed(*words, "--config.model.dtype=float16")
    assert (shown.status, shown.out) == (1, "")
    assert "scores are not finite, with weights in float16: give" in shown.err


def test_ranked_prompts_write_as_the_config_says(typed, home, monkeypatch):
    seen = []

    def evaluate(lm, task, *, generation, seed, **_):
        seen.append(generation and (generation.max_new_tokens, generation.stop, seed))
        return {"loss": 1.0, "examples": 1}

    monkeypatch.setattr(api, "evaluate", evaluate)
    (home / "written.txt").write_text("It: {text}")
    words = ["generation.max_new_tokens=3", "generation.stop=('x',)", "seed=5"]
    tiny = ["evaluate", "--config", tiny_runs.world().config, "--prompts", "written.txt"]
    shown = typed(*tiny, *(f"--config.{word}" for word in words))
    # Nothing is written to rank them.
    assert shown.status == 0 and seen == [None, (3, ("x",), 5)], shown.err


def test_prompts_of_a_file_are_ranked_and_the_best_is_scored(typed, home):
    lines = ["# mine", r"Headline: {text}\nTopic:", "", "One of b, e, p, s, t. ", "It: {text}"]
    (home / "prompts.txt").write_text("\n".join(lines))
    tiny = ["evaluate", "--config", tiny_runs.world().config, "--json"]
    shown = typed(*tiny, "--prompts", "prompts.txt", "--split", "test[:30]")
    assert "3 prompts in prompts.txt; blank, comments or repeated: 2" in shown.err
    result = json.loads(shown.out)
    candidates = result.pop("candidates")
    assert {row["prompt"] for row in candidates} == {lines[1], *lines[3:]}
    accuracies = [row["accuracy"] for row in candidates]
    assert accuracies == sorted(accuracies, reverse=True)
    for row in candidates:
        prompt = row.pop("prompt")
        alone = typed(*tiny, "--prompt", prompt, "--split", "validation[:40]")
        assert json.loads(alone.out) == row
        if prompt == result["prompt"]:
            best = typed(*tiny, "--prompt", prompt, "--split", "test[:30]")
            assert json.loads(best.out) | {"prompt": prompt, "split": "test[:30]"} == result
    assert result["prompt"] in {lines[1], *lines[3:]}


def test_demonstrations_stand_in_front_and_what_does_not_fit_is_said(typed):
    def result(*words):
        shown = typed(
            *["evaluate", "--config", tiny_runs.world().config, "--json", *words],
            *["--split", "test[:10]"],
        )
        return json.loads(shown.out), shown.err

    alone, _ = result()
    one, said = result("--demonstrations", "1")
    assert "warning" not in said and one["demonstrations"] == 1 and one["loss"] != alone["loss"]
    many, said = result("--demonstrations", "50")
    assert f"warning: {many['demonstrations']} of 50 demonstrations are used" in said
    assert 1 <= many["demonstrations"] < 5


def test_what_is_compared_has_the_same_demonstrations_and_only_what_is_read_is_kept(typed, home):
    """The longest records rank and calibrate; a column that no prompt names stays at home."""
    for name, size in (("train", 3), ("held", 70), ("test", 4)):
        lines = [f"{size * 'x'} {n},{'ab'[n % 2]},me{n}@home,{n}" for n in range(8)]
        (home / f"{name}.csv").write_text("\n".join(["text,label,mail,number", *lines]))
    given = ["name=files", "template={soft}{text} is", "labels=()", "files.validation=held.csv"]
    given += [f"{split}={split}" for split in ("train", "test", "validation")]
    given += [f"files.{split}={split}.csv" for split in ("train", "test")]
    tiny = ["evaluate", "--config", tiny_runs.world().config, "--demonstrations", "6", "--json"]
    tiny += [*(f"--config.task.{word}" for word in given)]
    (home / "prompts.txt").write_text("{number} {text}:")
    read = {"text", "label"}
    for more, all_fit, names in (
        (["--prompt", "It: "], True, read),
        (["--calibrate", "labels"], False, read),
        (["--prompts", "prompts.txt"], False, {*read, "number"}),
    ):
        shown = typed(*tiny, *more, "--out", more[0].strip("-"))
        count = json.loads(shown.out)["demonstrations"]
        assert (count == 6) == all_fit and shown.err.count("demonstrations are used") == (count < 6)
        kept = artifact.load_artifact(more[0].strip("-")).manifest["demonstrations"]
        assert len(kept) == count and all(row.keys() == names for row in kept)


def test_no_demonstration_is_in_a_split_that_is_scored(typed, home):
    """By their inputs: the same text may stand in several files, or a part of a split be scored."""
    lines = [f"text {number},{'ab'[number % 2]}" for number in range(12)]
    files = {"train": lines, "validation": lines[:3], "test": lines[3:6]}
    for name, rows in files.items():
        (home / f"{name}.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    words = [f"task.files.{name}={name}.csv" for name in files]
    words += [f"task.{name}={name}" for name in files]
    words += ["task.name=files", "task.labels=()", "task.template={soft}{text} is"]
    tiny = ["evaluate", "--config", tiny_runs.world().config, "--prompt", "{text} is"]
    tiny += [f"--config.{word}" for word in words]
    scored = [*tiny, "--split", "train[6:8]", "--demonstrations", "4", "--out", "kept"]
    assert typed(*scored).status == 0
    shown = artifact.load_artifact("kept").manifest["demonstrations"]
    assert sorted(row["text"] for row in shown) == ["text 10", "text 11", "text 8", "text 9"]
    held = ["--config.calibration.split=train[8:10]", "--demonstrations", "4", "--out", "few"]
    assert typed(*tiny, "--split", "train[6:8]", *held).status == 2  # two can be shown
    held[2] = "2"
    assert typed(*tiny, "--split", "train[6:8]", *held).status == 0
    shown = artifact.load_artifact("few").manifest["demonstrations"]
    assert sorted(row["text"] for row in shown) == ["text 10", "text 11"]
    refused = typed(*tiny, "--split", "train", "--demonstrations", "1")
    assert refused.status == 2 and "are in a split that is scored, and none is left" in refused.err
