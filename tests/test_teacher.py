"""Distillation: what a teacher gives to train on, and what is not read."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_runs

from prompt_tuning_jax import api, train
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.data.records import PLACE, UNLABELLED, Source
from prompt_tuning_jax.data.task import select_records
from prompt_tuning_jax.data.template import with_prompt
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.generate import Settings
from prompt_tuning_jax.run.folder import REPORT
from prompt_tuning_jax.step import loss_fn
from prompt_tuning_jax.teacher import demonstrations_of

pytestmark = pytest.mark.usefixtures("home")
PROMPT = "One of b, e, p, s, t. "
TAUGHT = f"--config.teacher.prompt={PROMPT}"
VECTORS = "prompt/vectors"
SHOWN = "--config.teacher.demonstrations=2"


def softmax(scores):
    powers = np.exp(scores - scores.max(1, keepdims=True).astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


def test_the_loss_is_the_cross_entropy_to_the_teachers_probabilities():
    lm, task, config = tiny_runs.tiny(TAUGHT)
    run = train.plan(lm, task, config, print)
    teacher = api.label_scores(lm, task, prompt=PROMPT, split=config.task.train).scores
    shares, given = softmax(teacher), run.adapt(run.trainable)
    scores = scoring.score(lm, run.data.train, given)
    chosen = run.data.planned[0]
    key = jax.random.key(0)
    loss, _ = loss_fn(run.trainable, run.frozen, run.data.batch(0), key, run.parts)
    wanted = -sum(shares[n, c] * scores[n, c] for n in chosen for c in range(5))
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert {example.answer for example in run.data.train} == {-1}
    # The same on the validation split, by which the result is chosen.
    result = train.tune(lm, task, config, log=print)
    split = config.task.validation
    teacher = softmax(api.label_scores(lm, task, prompt=PROMPT, split=split).scores)
    found = api.label_scores(lm, task, result.artifact, split=split)
    wanted = -(teacher * found.scores).sum(1).mean()
    assert result.artifact.manifest["metrics"]["validation_loss"] == pytest.approx(wanted, rel=1e-5)


def test_the_labels_of_the_training_records_are_not_read():
    lm, task, config = tiny_runs.tiny(TAUGHT)
    splits = dict(task.load().splits)
    labels = [row["label"] for row in splits["train"]]
    moved = zip(splits["train"], labels[1:] + labels[:1], strict=True)
    splits["train"] = [{**row, "label": label} for row, label in moved]
    other = task._replace(load=lambda: Source(splits))
    one, two = (train.plan(lm, each, config, print).data for each in (task, other))
    assert one.fingerprint() == two.fingerprint()
    np.testing.assert_array_equal(one.train_shares, two.train_shares)


def test_records_without_labels_are_taught():
    lm, task, config = tiny_runs.tiny(TAUGHT)
    splits = dict(task.load().splits)
    fault = {"label": "", UNLABELLED: "line 1: no label"}
    for name in ("train", "validation"):
        splits[name] = [row | fault for row in splits[name]]
    other = task._replace(load=lambda: Source(splits))
    found = [train.tune(lm, each, config, log=print) for each in (task, other)]
    one, two = (each.artifact for each in found)
    np.testing.assert_array_equal(one.tensors[VECTORS], two.tensors[VECTORS])
    # The accuracy is the share of the teacher's likeliest labels.
    held = select_records(task, config.task.validation)
    guessed = [
        api.label_scores(lm, task, *how, split=held, prompt=prompt).scores.argmax(1)
        for how, prompt in (((), PROMPT), ((two,), None))
    ]
    share = (guessed[0] == guessed[1]).mean()
    assert found[1].history[-1]["validation/accuracy"] == pytest.approx(share)
    with pytest.raises(UserError, match="line 1: no label"):
        train.tune(lm, other, tiny_runs.tiny()[2], log=print)


def test_with_a_target_the_teachers_texts_are_the_targets():
    words = [f"--config.task.{word}" for word in tiny_runs.texts()]
    words += ["--config.prompts=()", "--config.generation.stop=('@@@@@@@@@', '@*')"]
    lm, task, config = tiny_runs.tiny(TAUGHT, *words, "--config.generation.max_new_tokens=12")
    asked = task._replace(template=with_prompt(task.template, PROMPT))
    texts = [{"text": row["text"]} for row in select_records(task, "train")]
    found = list(api.predict(lm, asked, texts, generation=Settings(**config.generation)))
    wanted = [row["text"].strip() for row in found if row["finished"] and row["text"].strip()]
    ends = [example.tails[0] for example in train.plan(lm, task, config, print).data.train]
    assert {end[-1] for end in ends} == {lm.tokenizer.eos_id}
    assert [lm.tokenizer.decode(end[:-1].tolist()).strip() for end in ends] == wanted
    assert 0 < len(wanted) < len(texts)
    with pytest.raises(UserError, match=r"ends none of \d+ texts: raise .*max_new_tokens from 1"):
        train.plan(*tiny_runs.tiny(TAUGHT, *words, "--config.generation.max_new_tokens=1"), print)


def test_the_report_has_a_row_for_the_teacher_whose_demonstrations_are_not_trained_on(typed):
    plan = json.loads(typed(*tiny_runs.training("run", SHOWN, "--dry_run", "--json")).out)
    answers, sample = plan["sample"]["answers"].values(), plan["sample"]
    assert sample["target"] == " | ".join(answer["text"] for answer in answers)
    assert sample["targets"] == sum(answer["tokens"] for answer in answers)
    refused = typed(*tiny_runs.training("run", "--config.teacher.prompt={no}"))
    assert refused.status == 2 and "config.teacher.prompt: template '{no}'" in refused.err
    done = typed(*tiny_runs.training("run", *tiny_runs.FEW, SHOWN))
    assert done.status == 0 and "158 examples to train on" in done.out
    rows = json.loads(Path("run", REPORT).read_text())["rows"]
    assert [row["name"] for row in rows][1:] == ["written prompt", "teacher", "soft prompt"]
    assert all(0 < row["seconds_an_example"] < 9 for row in rows)
    card = Path("run", "artifact", "README.md").read_text()
    assert "| teacher |" in card and "second" not in card


def test_the_teacher_has_as_many_demonstrations_in_front_of_all_splits(home):
    """As many as fit in front of the longest record, which is one of the test split."""

    def plan(split, text, *overrides):
        lm, task, config = tiny_runs.tiny("--config.teacher.demonstrations=40", *overrides)
        splits = {name: [*rows] for name, rows in task.load().splits.items()}
        splits[split][0] = {**splits[split][0], "text": text, PLACE: "a.csv, line 7"}
        task, said = task._replace(load=lambda: Source(splits)), []
        rows = train.plan(lm, task, config, said.append).data.train
        used = [line for line in said if "demonstrations are used" in line]
        shown = demonstrations_of(lm, task, config, said.append)
        assert len(rows) == 160 - len(shown) and len(used) == 1
        assert used[0].startswith(f"warning: {len(shown)} of 40 demonstrations are used: with")
        for name in (config.task.train, config.task.test):
            found = api.label_scores(
                lm, task, split=name, demonstrations=shown, max_length=config.task.max_length
            )
            assert found.counts["demonstrations"] == len(shown)
        return len(shown), [line for line in said if line.startswith("warning: teacher: ")]

    assert plan("test", "x" * 20) == (2, [])
    assert plan("test", "x" * 55) == (1, [])
    for split in ("test", "train"):
        fault = (
            r"fits in front of a\.csv, line 7, .*: give .* \(config\.teacher\.demonstrations\) out"
        )
        with pytest.raises(UserError, match=fault):
            plan(split, "x" * 90)
        cut = ["warning: teacher: 1 of 158 records were too long and lost their end"]
        wanted = 2, cut * (split == "train")
        assert plan(split, "x" * 200, "--config.task.max_length=44") == wanted
