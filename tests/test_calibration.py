"""Calibrated scores: fitted as an independent optimiser does, kept, and used."""

import json
import math

import numpy as np
import pytest
import tiny_runs
from scipy.optimize import minimize

from prompt_tuning_jax import api, metrics
from prompt_tuning_jax import calibration as calibrations
from prompt_tuning_jax.data.task import make_task, select_records
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.artifact import load_artifact

DRAW = np.random.default_rng(3)
ANSWERS = DRAW.integers(0, 3, 60)
SCORES = (DRAW.normal(size=(60, 3)) + np.eye(3)[ANSWERS] + [-9, -3, -5]).astype(np.float32)


def loss(values, scores, answers):
    """The mean over a plain loop, of scores as they are given."""
    total = calibrations.PULL * sum(log**2 for log in values[:3])
    for row, answer in zip(scores.tolist(), answers, strict=True):
        made = [math.exp(values[c]) * row[c] + values[3 + c] for c in range(3)]
        total += math.log(sum(map(math.exp, made))) - made[answer]
    return total / len(answers)


def test_the_fit_is_the_best_one_and_its_probabilities_are_those_of_its_loss():
    found = calibrations.fit_labels(SCORES, ANSWERS)
    wanted = minimize(loss, np.zeros(6), (SCORES, ANSWERS), method="BFGS", tol=1e-9)
    own = np.array([*np.log(found.scale), *found.bias])
    assert loss(own, SCORES, ANSWERS) <= wanted.fun + 1e-9
    # Whatever is added to all biases changes nothing.
    own[3:], wanted.x[3:] = (part[3:] - part[3] for part in (own, wanted.x))
    np.testing.assert_allclose(own, wanted.x, atol=2e-3)
    made = found.apply(SCORES)
    np.testing.assert_allclose(np.exp(made).sum(axis=1), 1, rtol=1e-5)
    right = -made[range(60), ANSWERS].mean()
    assert right + (own[:3] ** 2).sum() / 60 == pytest.approx(wanted.fun, rel=1e-5)


@pytest.mark.parametrize("constant", [4.0, -64.0])
def test_a_constant_that_is_added_to_a_labels_scores_is_undone(constant):
    moved = SCORES + np.float32(constant) * np.eye(3, dtype=np.float32)[1]
    made = [calibrations.fit_labels(each, ANSWERS).apply(each) for each in (SCORES, moved)]
    np.testing.assert_allclose(*made, atol=2e-4)
    np.testing.assert_array_equal(*(each.argmax(axis=1) for each in made))
    assert (moved.argmax(axis=1) != SCORES.argmax(axis=1)).any()


def test_without_labels_probabilities_are_divided_by_their_mean():
    shares = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)
    wanted = shares / shares.mean(axis=0)
    made = np.exp(calibrations.fit_texts(SCORES).apply(SCORES))
    np.testing.assert_allclose(made, wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("answers", [np.zeros(60, int), ANSWERS % 2])
def test_each_label_has_to_have_an_example(answers):
    with pytest.raises(UserError, match=r"have \d of 3 labels: give"):
        calibrations.fit_labels(SCORES, answers)


def test_the_calibration_error_is_what_a_loop_over_bins_gives():
    scores = calibrations.fit_labels(SCORES, ANSWERS).apply(SCORES)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    pairs = sorted(zip(shares.max(axis=1), shares.argmax(axis=1) == ANSWERS, strict=True))
    bins = [pairs[4 * number : 4 * number + 4] for number in range(metrics.BINS)]
    gaps = [abs(np.mean([right for _, right in b]) - np.mean([p for p, _ in b])) for b in bins]
    found = metrics.label_metrics(scores, ANSWERS, "abc", ["calibration_error"])
    assert found["calibration_error"] == pytest.approx(np.mean(gaps), rel=1e-5)
    low, high = found["intervals"]["calibration_error"]
    assert 0 < low < high < 1


@pytest.mark.parametrize("by", ["labels", "texts"])
def test_a_calibrated_artifact_answers_as_evaluate_says(typed, home, by):
    words = ["evaluate", "--artifact", tiny_runs.artifact(), "--json"]
    plain = json.loads(typed(*words).out)
    shown = typed(*words, "--calibrate", by, "--out", "kept")
    assert shown.status == 0, shown.err
    found = json.loads(shown.out)
    assert "each label is equally frequent" in shown.err or by == "labels"
    assert {name: found[name] for name in plain if name != "intervals"} | {
        "intervals": {"accuracy": found["intervals"]["accuracy"]}
    } == plain
    assert found["calibrated"].keys() == {"accuracy", "calibration_error", "intervals"}
    assert json.loads(typed(*words[:2], "kept", "--json").out) == found
    kept, (lm, task, _) = load_artifact(home / "kept"), tiny_runs.tiny()
    rows = select_records(task, "test[:40]")
    answers = [*api.predict(lm, task, rows, kept)]
    right = [answer["label"] == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert np.mean(right) == found["calibrated"]["accuracy"]
    scored = api.label_scores(lm, task, kept, split=rows).scores
    held = select_records(task, "validation[:40]")
    held = calibrations.halves(held)[1] if by == "labels" else held
    fitted = api.label_scores(lm, task, kept, split=held)
    again = getattr(calibrations, f"fit_{by}")(*fitted[: 1 + (by == "labels")])
    shares = [[*answer["probabilities"].values()] for answer in answers]
    np.testing.assert_allclose(np.exp(again.apply(scored)), shares, atol=1e-5)
    other = task._replace(labels=task.labels[::-1])
    with pytest.raises(UserError, match="calibrated for its own labels"):
        api.evaluate(lm, other, kept, split=rows)


def test_what_calibrates_ranks_no_prompt(typed, home):
    (home / "prompts.txt").write_text("It: {text}\n{text} is")
    tiny = ["evaluate", "--config", tiny_runs.world().config, "--json", "--prompts", "prompts.txt"]
    counts = []
    for more in ([], ["--calibrate", "labels"], ["--calibrate", "texts"]):
        shown = typed(*tiny, *more)
        counts.append({row["examples"] for row in json.loads(shown.out)["candidates"]})
        assert ("calibrated with" in shown.err) == bool(more)
    own = typed(*tiny, "--calibrate", "labels", "--config.calibration.split=test[:30]")
    assert "warning: 30 of 40 records of test[:40] calibrate too" in own.err
    assert "calibrated with 30 labelled" in own.err
    task = make_task(tiny_runs.tiny()[2].task)
    ranking, held = map(len, calibrations.halves(select_records(task, "validation[:40]")))
    assert counts == [{40}, {ranking}, {40}] and ranking + held == 40 and held > 15


def test_equal_probabilities_are_in_one_bin():
    right = np.arange(30) % 5 < 3
    scores = np.log([[0.6, 0.4]] * 30)
    for order in (np.arange(30), np.argsort(right), np.argsort(~right)):
        found = metrics.calibration_error(scores, 1 - right[order])
        assert found[0] == pytest.approx(0, abs=1e-9)


def test_texts_without_labels_calibrate(typed, home):
    """Not a column of labels, and an empty one: the same as with the labels, which are not read."""
    [_, task, _] = tiny_runs.tiny()
    held = select_records(task, "validation[:40]")
    rows = {name: select_records(task, f"{name}[:40]") for name in ("train", "test")}
    rows |= {"all": held, "none": [{"text": row["text"]} for row in held]}
    rows |= {"empty": [{**row, "label": ""} for row in held]}
    rows |= {"null": [{**row, "label": None} for row in held]}
    for name, records in rows.items():
        (home / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    words = [f"files.{name}={name}.jsonl" for name in ("train", "test")]
    words += ["name=files", "train=train", "validation=validation", "test=test"]
    tiny = ["evaluate", "--config", tiny_runs.world().config, "--json"]
    tiny += [f"--config.task.{word}" for word in words]
    (home / "prompts.txt").write_text("It: {text}")
    found = []
    for name in ("all", "none", "empty", "null"):
        given = [*tiny, f"--config.task.files.validation={name}.jsonl"]
        found.append(json.loads(typed(*given, "--calibrate", "texts").out))
        refused = typed(*given, "--calibrate", "labels")
        assert (refused.status == 2) == (name != "all")
        if name != "all":
            ranked = typed(*given, "--prompts", "prompts.txt")
            assert ranked.status == 2 and "label" in ranked.err
    assert all(each == found[0] for each in found) and "calibrated" in found[0]


def test_what_ranked_a_prompt_is_said_to_calibrate_it(typed, home):
    (home / "prompts.txt").write_text("It: {text}\n{text} is")
    tiny = ["evaluate", "--config", tiny_runs.world().config, "--prompts", "prompts.txt"]
    assert typed(*tiny, "--out", "kept").status == 0
    assert {*load_artifact("kept").manifest["metrics"]} == {
        "validation_loss",
        "validation_accuracy",
    }
    shown = typed("evaluate", "--artifact", "kept", "--calibrate", "labels")
    assert "the records that calibrate chose the artifact too" in shown.err
    held = ["--calibrate", "labels", "--config.calibration.split=validation[:40]"]
    shown = typed("evaluate", "--artifact", "kept", "--config", tiny[2], *held)
    assert "the records that calibrate chose the artifact too" in shown.err
    shown = typed(*tiny, *held)
    assert "records of validation[:40] rank prompts too" in shown.err


def test_texts_are_not_calibrated(typed):
    own = ("name=files", "files.train=a.csv", "target={short}", "labels=()")
    words = [*(f"--config.task.{word}" for word in own), "--calibrate", "texts"]
    shown = typed("evaluate", "--config", tiny_runs.world().config, *words)
    assert shown.status == 2 and "--calibrate is for labels, and the task has a target" in shown.err
