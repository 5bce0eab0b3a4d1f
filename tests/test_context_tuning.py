"""Virtual tokens that begin as demonstrations: these leave the training records, and before any
training they give the scores that the same demonstrations in context give."""

import re

import jax
import numpy as np
import plain_model
import pytest
import tiny_models
import tiny_runs

from prompt_tuning_jax import api, train
from prompt_tuning_jax.data.demonstrations import spare_half, without_demonstrations
from prompt_tuning_jax.data.task import Source, training_records
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files.tokenizer import Facts, Tokenizer, read_tokenizer
from prompt_tuning_jax.models.sites import NOTHING, to_tensors
from prompt_tuning_jax.run import artifact
from prompt_tuning_jax.score import ANY_LENGTH, encode_for

pytestmark = pytest.mark.usefixtures("home")
MOST = 70
BEGIN = ("init=demonstrations", f"num_virtual_tokens={MOST}")
TEMPLATE = "template={soft}Q: {text}\nA:"


def tiny(method, *more, task=(TEMPLATE,)):
    words = [f"--config.method.{word}" for word in (f"name={method}", *BEGIN, *more)]
    return tiny_runs.tiny(*words, *(f"--config.task.{word}" for word in task))


def test_they_do_not_begin_as_a_record_that_is_scored():
    lm, task, config = tiny("prefix", task=(TEMPLATE, "test=test"))
    splits = dict(task.load().splits)
    splits["test"] = splits["train"][:130]
    run = train.plan(lm, task._replace(load=lambda: Source(splits)), config, lambda line: None)
    begun = lm.tokenizer.decode([*run.task.front])
    assert "Q: " in begun and not [row for row in splits["test"] if row["text"] in begun]


def with_tokenizer(lm, kind, folder):
    if kind != "first":
        words = Tokenizer(tiny_models.tokenizer_json(), Facts(1, 2, 0, kind == "BOS", None))
        return lm._replace(tokenizer=words)
    folder = tiny_models.write_spaced_folder(folder / "spaced", kind, add_bos_token=True)
    lm, _ = plain_model.make(tiny_models.changed(vocabulary=len(tiny_models.SPACED_TOKENS)))
    return lm._replace(tokenizer=read_tokenizer(str(folder)))


@pytest.mark.parametrize(
    ("kind", "method", "more", "task"),
    [
        ("BOS", "prefix", (), ("template={text}\nA:",)),
        ("first", "prefix", ("hidden_size=3",), ("template={soft}q {text}",)),
        ("BOS", "soft_prompt", (), ("template={soft}<|pad|>{text}<|pad|>",)),
        ("no BOS", "prompt_encoder", (), tiny_runs.texts),
    ],
)
def test_before_training_they_score_as_in_context(kind, method, more, task, tmp_path):
    lm, task, config = tiny(method, *more, task=task() if callable(task) else task)
    lm, lines = with_tokenizer(lm, kind, tmp_path), []
    run = train.plan(lm, task, config, lines.append)
    found = re.search(r"the (\d+) virtual tokens begin as (\d+) demonstrations;", "\n".join(lines))
    size, count = map(int, found.groups())
    manifest = artifact.make_manifest(lm, run.task, config, {})
    api.save(artifact.Artifact(to_tensors(run.adapt(run.trainable)), manifest), "artifact")
    rows = training_records(task, config.task)
    spare = spare_half(rows, balanced=bool(task.labels), seed=config.seed)
    found = api.label_scores(lm, task, "artifact", split="test[:6]").scores
    shown = api.label_scores(lm, task, split="test[:6]", demonstrations=spare[:count])
    assert shown.counts == {"demonstrations": count} and count > 1
    np.testing.assert_allclose(found, shown.scores, rtol=0, atol=2e-5)
    assert np.abs(found - api.label_scores(lm, task, split="test[:6]").scores).max() > 0.01
    # As many as fit, and none of them is trained on.
    lengths = [
        len(encode_for(lm, task, rows[:1], NOTHING, ANY_LENGTH, spare[:n])[0].trunk)
        for n in (count, count + 1)
    ]
    assert size <= MOST < size + lengths[1] - lengths[0]
    assert len(run.data.train) == len(rows) - count


def test_at_most_half_of_each_label_is_taken_in_turn_and_equal_inputs_leave_with_them():
    rows = [{"text": f"line {n}", "label": "aaabbc"[n % 6]} for n in range(30)]
    taken = spare_half(rows, balanced=True, seed=0)
    labels = "".join(row["label"] for row in taken)
    assert [labels.count(label) for label in "abc"] == [7, 5, 2] and len({*labels[:3]}) == 3
    assert spare_half(rows[::-1], balanced=True, seed=0) == taken
    assert len(spare_half(rows, balanced=False, seed=0)) == 15
    twice = [*rows, {**rows[0], "(place)": "line 99"}]
    assert without_demonstrations(twice, rows[:1], ["text"]) == rows[1:]
    with pytest.raises(UserError, match="all 31 training records are demonstrations: give fewer"):
        without_demonstrations(twice, rows, ["text"])


def test_planned_again_a_run_begins_with_the_same_demonstrations():
    given = tiny("prompt_encoder", "kind=low_rank", "hidden_size=2")
    one, again = (train.plan(*given, print) for _ in range(2))
    assert one.sources == again.sources and one.task.front == again.task.front != ()
    trees = ((plan.trainable, plan.frozen.fixed) for plan in (one, again))
    jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize("method", ["prefix", "soft_prompt"])
def test_a_start_from_such_an_artifact_scores_as_it_does(method):
    lm, task, config = tiny(method)
    run = train.plan(lm, task, config, print)
    manifest = artifact.make_manifest(lm, run.task, config, {})
    kept = artifact.Artifact(to_tensors(run.adapt(run.trainable)), manifest)
    api.save(kept, "kept")
    size = next(iter(kept.tensors.values())).shape[1 if method == "prefix" else 0]
    words = [f"name={method}", "init=file", "init_file=kept", f"num_virtual_tokens={size}"]
    words = [*(f"--config.method.{word}" for word in words), f"--config.task.{TEMPLATE}"]
    lm, task, config = tiny_runs.tiny(*words)
    again = train.plan(lm, task, config, print)
    begun = artifact.Artifact(
        to_tensors(again.adapt(again.trainable)), artifact.make_manifest(lm, again.task, config, {})
    )
    found, wanted = (
        api.label_scores(lm, task, each, split="test[:6]").scores for each in (begun, kept)
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        (("prefix", "num_virtual_tokens=9"), (), r"none of 79 .*, 9: give at least \d\d, or more"),
        (("soft_prompt",), ("template=Q: {soft}{text}",), r"begin it with \{soft\}, without BOS"),
        (("prefix",), ("train=train[:1]",), "none of 0 records .*: give two records of a label$"),
    ],
)
def test_what_cannot_be_exact_is_refused(method, more, message):
    with pytest.raises(UserError, match=message):
        train.plan(*tiny(*method, task=more), print)
