"""Tasks whose texts are written, and streams of any length, from Python."""

import itertools
import random
import re

import jax
import numpy as np
import plain_model
import pytest
import tiny_models

from prompt_tuning_jax import api, metrics
from prompt_tuning_jax import config as configs
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.data.records import Source
from prompt_tuning_jax.data.task import Task
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.generate import Generation, Settings, generate
from prompt_tuning_jax.models.language_model import load
from prompt_tuning_jax.models.sites import from_tensors, to_tensors
from prompt_tuning_jax.run.artifact import Artifact, make_manifest

TEMPLATE = "{soft}Facts: {facts}\nText:"
ROWS = [
    {"facts": f"price {number // 2}", "text": f"It is {number}."} for number in range(10)
]  # two texts for each of five inputs
TASK = Task(
    *("tiny", TEMPLATE, (), ("exact_match", "token_f1"), ()),
    lambda: Source({"test": ROWS}),
    "{text}",
)
LABELLED = Task("tiny", "{facts}:", (("a", "b"), ("c", "d")), (), (), lambda: Source({}))
SETTINGS = Settings(max_new_tokens=10)
FACTS = [row["facts"] for row in ROWS[::2]]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load(str(tiny_models.write_folder(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="module")
def made(lm):
    given = plain_model.random_given(0, lm.spec, "prompt", size=3)
    return Artifact(to_tensors(given), make_manifest(lm, TASK, configs.build({}), {}))


def texts(lm, records, made=None, settings=SETTINGS, **named):
    return [
        row["text"] for row in api.predict(lm, TASK, records, made, generation=settings, **named)
    ]


def test_a_text_for_each_record_is_what_is_generated(lm, made):
    rows = [{"facts": fact} for fact in FACTS]
    examples = scoring.encode_for(lm, TASK, rows, from_tensors(made.tensors))
    wanted = [each.text for each in generate(lm, examples, from_tensors(made.tensors), SETTINGS)]
    assert texts(lm, FACTS, made) == wanted
    assert len(set(wanted)) > 1


def test_what_is_to_be_found_is_not_looked_at(lm, made):
    wanted = texts(lm, FACTS, made)
    assert texts(lm, ROWS[::2], made) == wanted
    assert texts(lm, ({**row, "text": "x" * 500} for row in ROWS[::2]), made) == wanted


def test_rows_say_what_was_cut(lm, made):
    [short, long] = api.predict(lm, TASK, ["a", "long " * 60], made, generation=SETTINGS)
    assert short.keys() == {"text", "finished"} and short["finished"] is False
    assert long["shortened"] > 0
    # As many positions are left as the text may take.
    [whole] = api.predict(lm, TASK, ["long " * 60], made, generation=Settings(max_new_tokens=1))
    assert whole["shortened"] == long["shortened"] - 9


def test_more_tokens_than_the_model_has_positions_are_refused(lm):
    with pytest.raises(UserError, match=r"generation\.max_new_tokens is 200 .* 128 positions"):
        texts(lm, FACTS, settings=Settings(max_new_tokens=200))


def test_records_are_read_as_texts_are_asked_for(lm, made):
    read = itertools.count()
    endless = ({"facts": f"price {next(read)}"} for _ in itertools.repeat(None))
    settings = SETTINGS._replace(batch_size=4)
    answers = api.predict(lm, TASK, endless, made, generation=settings)
    assert len(list(itertools.islice(answers, 6))) == 6
    assert next(read) == 8


def test_evaluate_measures_the_texts_and_the_loss_of_all_references(lm, made):
    found = api.evaluate(lm, TASK, made, generation=SETTINGS)
    assert found["examples"] == 10 and found["texts"] == 5 and found["unfinished"] == 5
    references = [[row["text"] for row in ROWS[n : n + 2]] for n in range(0, 10, 2)]
    written = [text.strip() for text in texts(lm, FACTS, made)]
    wanted = metrics.text_metrics(written, references, TASK.metrics)
    assert {name: found[name] for name in wanted} == wanted
    alone = api.evaluate(lm, TASK, made, generation=None)
    assert alone == {"loss": found["loss"], "examples": 10}


def test_inputs_are_those_of_the_prompt_that_is_written(lm, monkeypatch):
    """Not those of the task's template, which may have other fields."""
    monkeypatch.setattr(metrics, "text_metrics", lambda texts, references, *_: {"seen": references})
    rows = [{"facts": "price", "area": n % 3, "text": f"It is {n}."} for n in range(6)]
    rows = [{name: str(value) for name, value in row.items()} for row in rows]
    asked = TASK._replace(fields=("facts", "area", "text"))
    found = api.evaluate(lm, asked, split=rows, prompt="{area} {facts}:", generation=SETTINGS)
    assert found["texts"] == 3
    assert found["seen"] == [[f"It is {n}.", f"It is {n + 3}."] for n in range(3)]


def test_the_tokenizer_of_the_metrics_is_the_tasks_and_is_named(lm, made):
    measured = TASK._replace(metrics=("rouge_l",), tokenizer="char")
    found = api.evaluate(lm, measured, made, generation=SETTINGS)
    assert found["tokenizer"] == "char"
    found = api.evaluate(lm, measured._replace(tokenizer="auto"), made, generation=SETTINGS)
    assert found["tokenizer"] == "13a"


def test_inputs_that_are_cut_to_make_room_for_a_text_are_counted(lm, made):
    found = api.evaluate(lm, TASK, made, generation=Settings(max_new_tokens=108))
    assert "shortened" not in found and found["texts_shortened"] == found["texts"] == 5
    assert "texts_shortened" not in api.evaluate(lm, TASK, made, generation=SETTINGS)


def test_texts_that_are_right_are_measured_as_right(lm, made, monkeypatch):
    written = iter([Generation(f" It is {2 * number}. ", [], True) for number in range(5)])
    monkeypatch.setattr(api, "generate", lambda lm, examples, *_: (next(written) for _ in examples))
    found = api.evaluate(lm, TASK, made, generation=SETTINGS)
    assert found["exact_match"] == 1.0 and "unfinished" not in found


def test_draws_are_those_of_the_seed(lm, made):
    settings = SETTINGS._replace(temperature=1.0)
    drawn = [texts(lm, FACTS, made, settings, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("task", [TASK, LABELLED])
def test_an_error_counts_records_over_the_whole_stream(lm, task, monkeypatch):
    monkeypatch.setattr(api, "PREDICTED_AT_ONCE", 4)
    records = [*FACTS, *FACTS, {"fact": "x"}]
    with pytest.raises(UserError, match=r"^record 10: .*'facts'"):
        list(api.predict(lm, task, records, generation=SETTINGS._replace(batch_size=4)))


def test_a_stream_of_records_compiles_few_shapes_and_the_next_none(lm, monkeypatch):
    monkeypatch.setattr(api, "PREDICTED_AT_ONCE", 8)
    compiled = scoring._compile(lm.module, scoring.make_mesh(jax.devices()), lm.layout)

    def stream(seed):
        draw = random.Random(seed)
        for chunk in range(20):
            for _ in range(8 if chunk < 19 else 3):
                yield "ab " * draw.randint(0, 2 + chunk)

    counts = [compiled._cache_size()]
    for seed in (0, 0, 1, 2):
        answers = list(api.predict(lm, LABELLED, stream(seed)))
        assert len(answers) == 155
        counts.append(compiled._cache_size())
    first, again, *others = np.diff(counts)
    assert first <= 4 and again == 0 and max(others) <= 1


def test_a_streams_answers_are_those_of_each_record(lm):
    records = ["ab " * size for size in (1, 30, 2, 0, 17)]
    together = list(api.predict(lm, LABELLED, records))
    for record, answer in zip(records, together, strict=True):
        [alone] = api.predict(lm, LABELLED, [record])
        shares = [list(each["probabilities"].values()) for each in (answer, alone)]
        np.testing.assert_allclose(*shares, atol=2e-6)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"stop": "END"}, "generation.stop is 'END': expected texts"),
        ({"stop": ("",)}, "generation.stop is"),
        ({"temperature": -1.0}, "generation.temperature is -1.0: expected"),
        ({"top_p": 0}, "generation.top_p is 0.0: expected"),
        ({"max_new_tokens": 2.5}, "generation.max_new_tokens is 2.5: expected"),
        ({"batch_size": 0}, "generation.batch_size is 0: expected"),
        (None, "generation is a NoneType: give"),
    ],
)
def test_settings_are_those_that_a_config_could_have(lm, given, fault):
    settings = given if given is None else Settings(**given)
    with pytest.raises(UserError, match=re.escape(fault)):
        next(api.predict(lm, TASK, FACTS, generation=settings))
    with pytest.raises(UserError, match="seed is -1: expected"):
        next(api.predict(lm, TASK, FACTS, seed=-1))
