"""The five names, as a notebook calls them."""

import itertools
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import tiny_runs

import prompt_tuning_jax
from prompt_tuning_jax import api, train
from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.records import PLACE
from prompt_tuning_jax.data.task import make_task, select_records
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.prepare import check_task
from prompt_tuning_jax.run import artifact
from prompt_tuning_jax.run import folder as workdir

TEXTS = ["banks and funds", "phone games {text}", ""]


@pytest.fixture(scope="module", autouse=True)
def home():
    with pytest.MonkeyPatch.context() as changed, tiny_runs.at_home(changed):
        yield


@pytest.fixture(scope="module")
def given():
    """A model, a task and a config."""
    return tiny_runs.tiny()


@pytest.fixture(scope="module")
def made():
    return artifact.load_artifact(tiny_runs.artifact())


def test_a_model_that_was_loaded_by_name_is_what_a_config_loads(given):
    lm = prompt_tuning_jax.load(str(tiny_runs.world().model))
    assert lm.fingerprint == given[0].fingerprint and lm.spec == given[0].spec


def test_saved_and_loaded_it_scores_and_answers_the_same(given, made, tmp_path):
    lm, task, _ = given
    api.save(made, tmp_path / "a")
    again = artifact.load_artifact(tmp_path / "a")
    scores = [api.evaluate(lm, task, kept, split="test[:20]") for kept in (made, again)]
    answers = [list(api.predict(lm, task, TEXTS, kept)) for kept in (made, again)]
    assert scores[0] == scores[1] and answers[0] == answers[1]
    assert scores[0]["examples"] == 20
    assert scores[0] != api.evaluate(lm, task, split="test[:20]")
    assert answers[0] != list(api.predict(lm, task, TEXTS))


def test_the_scores_behind_an_evaluation_are_there_to_be_read(given, made):
    lm, task, _ = given
    found = api.label_scores(lm, task, made, split="test[:20]", log=print)
    reported = api.evaluate(lm, task, made, split="test[:20]")
    rows = select_records(task, "test[:20]")
    values = [value for value, _ in task.labels]
    assert [values[place] for place in found.answers] == [row["label"] for row in rows]
    assert reported["accuracy"] == np.mean(found.scores.argmax(1) == found.answers)
    assert reported["loss"] == pytest.approx(-found.scores[range(20), found.answers].mean())
    assert found.counts == {} and found.scores.dtype == np.float32


def test_scores_that_are_not_finite_are_no_answer(given, made):
    lm, task, _ = given
    broken = made._replace(tensors={"prompt/vectors": np.full((4, 24), np.nan, np.float32)})
    refused = pytest.raises(RunError, match="scores are not finite, with weights in float32")
    with refused:
        api.evaluate(lm, task, broken, split="test[:5]")
    with refused:
        list(api.predict(lm, task, TEXTS, broken))


def test_records_may_be_fields_or_text_and_their_label_is_not_looked_at(given, made):
    lm, task, _ = given
    texts = list(api.predict(lm, task, TEXTS, made))
    fields = list(api.predict(lm, task, [{"text": text} for text in TEXTS], made))
    labelled = [{"text": text, "label": "no such topic"} for text in TEXTS]
    assert texts == fields == list(api.predict(lm, task, labelled, made))
    with pytest.raises(UserError, match="text"):
        list(api.predict(lm, task, [{"txt": "banks"}], made))


@pytest.mark.parametrize(
    "split",
    [[], [{"text": "banks"}], ["banks"], {"text": "banks", "label": "business"}, 3, None],
)
def test_records_to_score_have_an_answer(given, split):
    with pytest.raises(UserError, match="the name of a split, or a list of records with label"):
        api.evaluate(*given[:2], split=split)
    if split:  # as demonstrations too
        with pytest.raises(UserError, match="or a list of records with label"):
            api.evaluate(*given[:2], split="test[:3]", demonstrations=split)


def test_a_text_alone_is_refused_where_the_template_has_several_fields(given):
    lm, task, _ = given
    asked = task._replace(template="{soft}{title}: {text} {title}", fields=())
    [answer] = api.predict(lm, asked, [{"text": "banks", "title": "funds"}])
    assert answer["label"]
    with pytest.raises(UserError, match="has the fields title, text: give each record as a dict"):
        next(api.predict(lm, asked, ["banks"]))


def test_metrics_that_the_task_names_are_there_with_their_intervals(given, made):
    lm, task, _ = given
    asked = task._replace(metrics=("accuracy", "class_accuracy", "macro_f1"))
    found = api.evaluate(lm, asked, made, split="test[:30]")
    rows = select_records(task, "test[:30]")
    answers = [answer["label"] for answer in api.predict(lm, task, rows, made)]
    for value, share in found["class_accuracy"].items():
        own = [answer for answer, row in zip(answers, rows, strict=True) if row["label"] == value]
        assert share == pytest.approx(own.count(value) / len(own))
    assert found["intervals"].keys() == {"accuracy", "class_accuracy", "macro_f1"}
    low, high = found["intervals"]["macro_f1"]
    assert low <= found["macro_f1"] <= high


def test_records_are_read_as_answers_are_asked_for(given, made):
    lm, task, _ = given
    read = itertools.count()
    endless = (f"banks and funds {next(read)}" for _ in itertools.repeat(None))
    answers = api.predict(lm, task, endless, made)
    first = list(itertools.islice(answers, 300))
    assert len(first) == 300 and next(read) <= 2 * api.PREDICTED_AT_ONCE
    assert list(first[0]["probabilities"]) == [value for value, _ in task.labels]


def test_a_prompt_stands_for_the_slots_or_for_the_whole_template(given):
    lm, task, _ = given
    split = "test[:20]"
    front = api.evaluate(lm, task, prompt="Which one? ", split=split)
    whole = api.evaluate(lm, task, prompt="Which one? Headline: {text}\nTopic:", split=split)
    assert front == whole != api.evaluate(lm, task, split=split)
    with pytest.raises(UserError, match=r"unknown field \{headline\}"):
        api.evaluate(lm, task, prompt="{headline}:", split=split)


def test_demonstrations_are_for_the_model_alone(given, made):
    lm, task, _ = given
    shown = select_records(task, "train[:1]")
    found = api.evaluate(lm, task, split="test[:20]", demonstrations=shown)
    assert found["demonstrations"] == 1
    assert found["loss"] != api.evaluate(lm, task, split="test[:20]")["loss"]
    with pytest.raises(UserError, match="an artifact has its own prompt"):
        api.evaluate(lm, task, made, split="test[:20]", demonstrations=shown)


def test_another_model_is_refused(given, made, tmp_path):
    _, task, _ = given
    folder = tiny_models.write_folder(tmp_path / "other", tiny_models.changed(layers=2))
    other = prompt_tuning_jax.load(str(folder))
    with pytest.raises(UserError, match="the artifact is for the model"):
        api.evaluate(other, task, made)
    with pytest.raises(UserError, match="the artifact is for the model"):
        next(api.predict(other, task, TEXTS, made))


def test_an_artifact_with_a_leaf_that_the_model_has_no_place_for_is_refused(given, made):
    lm, task, _ = given
    misfit = made._replace(tensors={"promt/vectors": made.tensors["prompt/vectors"]})
    with pytest.raises(UserError, match="does not read 'promt/vectors'"):
        api.evaluate(lm, task, misfit)


def test_a_config_of_ones_own_is_checked(given):
    lm, task, config = given
    wrong = config.copy_and_resolve_references()
    with wrong.unlocked():
        wrong.stepz = 3
    with pytest.raises(UserError, match="stepz"):
        train.tune(lm, task, wrong)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"template": "{soft}{text}:"}, "the task's template is '{soft}{text}:'"),
        ({"metrics": ("macro_f1",)}, r"the task's metrics is \('macro_f1',\)"),
        ({"name": "made_up"}, "config.task describes 'bbc_news'"),
        ({"labels": (("business", "b"), ("tech", "t"))}, "the task's labels is"),
        ({"target": "{text}"}, "the task's target is '{text}'"),
    ],
)
def test_a_task_that_is_not_the_configs_is_refused(given, changed, part):
    lm, task, config = given
    with pytest.raises(UserError, match=part):
        train.tune(lm, task._replace(**changed), config, log=len)


def test_a_task_whose_labels_come_from_the_data_is_not_read_again(given, tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"n{n},{n % 2}\n" for n in range(80)))
    words = ["task.name=files", f"task.files.train={path}", "task.template={soft}{text}:"]
    config = configs.load(None, [f"--config.{word}" for word in words])
    task = make_task(config.task)
    path.unlink()
    check_task(task, config)
    with pytest.raises(UserError, match=r"config\.task describes 'x"):
        with config.unlocked():
            config.task.template = "x{soft}{text}"
        check_task(task, config)


def test_stopped_without_a_folder_the_result_is_what_was_learnt(given, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    due = train.due

    def interrupt(step, every):
        if step == 6 and every == given[2].evaluate_every:
            os.kill(os.getpid(), signal.SIGINT)
        return due(step, every)

    monkeypatch.setattr(train, "due", interrupt)
    log = []
    result = train.tune(*given, log=log.append)
    assert not result.finished and any(line.startswith("SIGINT: finishing") for line in log)
    [checked] = [line for line in result.history if "validation/loss" in line]
    assert result.history[-1] == checked and checked["step"] < 12
    manifest = result.artifact.manifest
    assert manifest["metrics"] == {
        "step": checked["step"],
        "validation_loss": checked["validation/loss"],
    }
    assert os.listdir(tmp_path) == []
    api.save(result.artifact, "kept/artifact")
    files = ["README.md", artifact.TENSORS, artifact.MANIFEST]
    assert sorted(os.listdir("kept/artifact")) == files
    assert os.listdir("kept") == ["artifact"]


def test_tuning_in_another_thread_leaves_signals_alone(given, made, tmp_path):
    results = []

    def tune():
        with workdir.claim(tmp_path / "run") as run:
            results.append(train.tune(*given, str(run), log=str))

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=tune)
    thread.start()
    while thread.is_alive():
        assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        thread.join(0.01)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    vectors = [kept.tensors["prompt/vectors"] for kept in (results[0].artifact, made)]
    np.testing.assert_array_equal(*vectors)


def test_one_record_is_not_taken_for_its_characters_or_names(given, made):
    lm, task, _ = given
    table = SimpleNamespace(columns=["text"])  # as one of pandas, which gives its columns' names
    for record in (TEXTS[0], {"text": TEXTS[0]}, table):
        with pytest.raises(UserError, match=r"records is one (str|dict|Simple\w+): give a list"):
            list(api.predict(lm, task, record, made))


def test_numbers_in_records_are_read_as_texts(given, made):
    lm, task, _ = given
    rows = [{"text": text, "label": "tech"} for text in (12, "12")]
    scores = api.label_scores(lm, task, made, split=rows).scores
    np.testing.assert_array_equal(*scores)
    with pytest.raises(UserError, match="record 1: 'text' is null, expected a text"):
        api.evaluate(lm, task, made, split=[rows[0], {"text": None, "label": "tech"}])
    for odd in (rows[0], ["text"], []):
        with pytest.raises(UserError, match="expected the name of a split, or a list of records"):
            api.evaluate(lm, task, made, split=odd)


def test_an_artifact_may_be_its_folder_and_is_nothing_else(given, made, tmp_path):
    lm, task, _ = given
    folder = tiny_runs.artifact()
    whole = api.evaluate(lm, task, made, split="test[:5]")
    assert api.evaluate(lm, task, folder, split="test[:5]") == whole
    assert api.evaluate(lm, task, str(folder), split="test[:5]") == whole
    assert list(api.predict(lm, task, TEXTS, folder)) == list(api.predict(lm, task, TEXTS, made))
    result = train.Result(made, [], True, 96, 1.0, False)
    calls = (
        lambda: api.evaluate(lm, task, result),
        lambda: list(api.predict(lm, task, TEXTS, result)),
        lambda: api.save(result, tmp_path / "artifact"),
    )
    for call in calls:
        with pytest.raises(UserError, match=r"artifact is a Result: give result\.artifact"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("record", [None, 3, ["a"]])
def test_what_is_no_record_is_named_by_its_place(given, made, record):
    lm, task, _ = given
    kind = type(record).__name__
    with pytest.raises(UserError, match=rf"^record 1 is a {kind}: expected a text, or a dict"):
        list(api.predict(lm, task, ["banks", record], made))


def test_a_config_is_one_that_was_made(given):
    lm, task, config = given
    with pytest.raises(UserError, match=r"the config is a dict: make one with config\.load"):
        train.tune(lm, task, config.to_dict())


def test_the_model_alone_reads_no_more_than_it_is_given(given, made):
    lm, task, _ = given
    whole = api.evaluate(lm, task, split="test[:5]")
    cut = api.evaluate(lm, task, split="test[:5]", max_length=20)
    assert cut["shortened"] == 5 and cut["loss"] != whole["loss"] and "shortened" not in whole
    own = api.evaluate(lm, task, made, split="test[:5]")
    assert api.evaluate(lm, task, made, split="test[:5]", max_length=20) == own


def test_evaluate_reads_the_configs_max_length(capsys):
    from prompt_tuning_jax.cli import main

    words = ["--config", str(tiny_runs.world().config), "--config.task.max_length=20"]
    assert main.run(["evaluate", *words, "--split", "test[:5]", "--json"]) == 0
    assert '"shortened": 5' in capsys.readouterr().out


@pytest.mark.parametrize("value", [None, float("nan"), "\ud800", "x" * 10_000_001])
def test_a_field_of_a_record_is_a_text(given, made, value):
    lm, task, _ = given
    for record in ({"text": value}, value) if isinstance(value, str) else ({"text": value},):
        with pytest.raises(UserError, match="record 0: 'text'"):
            next(api.predict(lm, task, [record], made))
    with pytest.raises(UserError, match=r"^new\.csv, line 7: 'text'"):
        next(api.predict(lm, task, [{"text": value, PLACE: "new.csv, line 7"}], made))


def test_a_number_is_the_text_that_json_has_for_it(given, made):
    lm, task, _ = given
    numbers = [{"text": 5.5}, {"text": np.float32(5.5)}, {"text": np.float64(5.5)}, "5.5"]
    *numbers, text = api.predict(lm, task, numbers, made)
    assert all(number == text for number in numbers)
    shown = [{"text": 7, "label": "business"}]
    found = api.evaluate(lm, task, split="test[:3]", demonstrations=shown)
    shown[0]["text"] = "7"
    assert found == api.evaluate(lm, task, split="test[:3]", demonstrations=shown)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"text": "banks"}, "or a list of records with label"),
        ({"text": "banks", "label": "banks"}, "the label is 'banks': expected one of 'business'"),
    ],
)
def test_a_demonstration_has_one_of_the_answers(given, record, fault):
    lm, task, _ = given
    with pytest.raises(UserError, match=fault):
        api.evaluate(lm, task, split="test[:3]", demonstrations=[record])


def test_paths_are_texts_or_paths(given):
    _, task, config = given
    path = Path(tiny_runs.world().config)
    assert configs.load(path, tiny_runs.FEW).to_dict() == config.to_dict()
    read = prompt_tuning_jax.load(Path(config.model.path), dtype="float32")
    # An artifact names the model that was given, and what it was loaded with.
    manifest = artifact.make_manifest(read, task, config, {})
    assert manifest["config"]["model"] == read.settings
    assert read.settings == {**config.model, "dtype": "float32"}


def test_the_chat_of_an_artifact_is_its_own_and_ends_its_texts(given, made, monkeypatch):
    lm, task, config = given
    source = (
        "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|pad|>{% endfor %}<|bos|>it:"
    )
    monkeypatch.setattr(lm.tokenizer, "chat_template", source)
    plain = prompt_tuning_jax.evaluate(lm, task, made)
    section = made.manifest["config"]["task"] | {"as_chat": True, "system": "Be brief"}
    manifest = made.manifest | {"config": made.manifest["config"] | {"task": section}}
    chat = artifact.Artifact(made.tensors, manifest)
    found = prompt_tuning_jax.evaluate(lm, task, chat)
    assert found["loss"] != plain["loss"]
    other = task._replace(chat="Be brief")
    assert prompt_tuning_jax.evaluate(lm, other, chat)["loss"] == found["loss"]
    with pytest.raises(UserError, match=r"the task's chat is 'Be brief', and config\.task"):
        check_task(other, config)
    stops = []
    monkeypatch.setattr(
        api, "generate", lambda lm, asked, given, settings, seed: stops.append(settings.stop) or ()
    )
    written = task._replace(target="{label}", labels=())
    for trained in (chat, made):
        list(prompt_tuning_jax.predict(lm, written, [], trained))
    assert stops == [("<|pad|>",), ()]
