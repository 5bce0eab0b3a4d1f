"""Searches for a hard prompt, on the small model and by the command."""

import errno
import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import plain_model
import pytest
import tiny_models
import tiny_runs
from scipy.spatial import distance

from prompt_tuning_jax import api, search
from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.batch import evaluation_batches, evaluation_shape
from prompt_tuning_jax.data.task import Source, Task
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.models.files.tokenizer import (
    LLAMA3,
    SPLITTINGS,
    Facts,
    Tokenizer,
    read_tokenizer,
)
from prompt_tuning_jax.models.sites import PROMPT, Given
from prompt_tuning_jax.run.artifact import load_artifact
from prompt_tuning_jax.score import encode_for
from prompt_tuning_jax.search import gradient, loop, pez, score, text, words

LM, PLAIN = plain_model.make()
LABELS = (("0", "the"), ("1", "bin"), ("2", "t"))
TOPICS = ("fast cars", "tea and milk", "old ships")
ROWS = [{"text": f"{TOPICS[n % 3]} {n * 7 % 10}", "label": str(n % 3)} for n in range(24)]
SPLITS = {"train": ROWS[:12], "validation": ROWS[12:18], "test": ROWS[18:]}
TASK = Task(
    *("made_up", "{soft}: {text}", LABELS, ("accuracy",), ("text",)), lambda: Source(SPLITS)
)
SETTINGS = {
    "start": "we see",
    "words_only": False,
    "rounds": 4,
    "candidates": 5,
    "examples": 4,
    "validate_every": 1,
}


def make_config(**settings):
    return configs.build({"best_by": "accuracy", "search": SETTINGS | settings})


def merging(*merges):
    """The small model with other merges, five of them, and text split as by Llama 3."""
    content = tiny_models.tokenizer_json()
    tokens = *tiny_models.VOCABULARY[:-5], *(merge.replace(" ", "") for merge in merges)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    content["model"] |= {"vocab": vocabulary, "merges": [merge.split() for merge in merges]}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": SPLITTINGS[LLAMA3]}
    return LM._replace(tokenizer=Tokenizer(content, Facts(1, 2, 0, True, None)))


def find(folder=None, log=lambda line: None, fresh=False, **settings):
    return search.run(LM, TASK, make_config(**settings), folder, log, fresh)


def pack(examples):
    """All examples in one ranked batch, in the order of the answers."""
    shared = 5  # of `plain_model.random_examples`
    shape = evaluation_shape(examples, shared, positions=10**6)
    [(batch, index)] = evaluation_batches(examples, shared, shape)
    answers = np.array([examples[number].answer for number in index])
    return score.Part(batch, answers, len(examples[0].tails)), [examples[n] for n in index]


def label_loss(scores, answers):
    """Written out, one example after the other."""
    shares = [
        row[answer] - np.logaddexp.reduce(row) for row, answer in zip(scores, answers, strict=True)
    ]
    return -np.mean(shares)


def test_scores_of_many_prompts_are_those_of_each_alone():
    part, examples = pack(plain_model.random_examples(0, 7))
    prompts = np.random.default_rng(1).integers(3, 260, (6, 3))
    scores, own = score.score_prompts(LM, prompts, part)
    for prompt, found, likelihood in zip(prompts, scores, own, strict=True):
        alone = [each._replace(trunk=score.fill(each.trunk, prompt[None])[0]) for each in examples]
        wanted = plain_model.answer_scores(PLAIN, alone)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert score.label_loss(found, part.answers) == pytest.approx(
            label_loss(wanted, part.answers), abs=1e-4
        )
        front = [1, *prompt]
        nats = plain_model.log_probabilities(PLAIN, front)[np.arange(3), prompt]
        assert likelihood == pytest.approx(-nats.mean(), abs=1e-4)


def test_the_gradient_and_its_linearisation_are_the_slopes_of_the_plain_loss():
    part, examples = pack(plain_model.random_examples(2, 4))
    prompt = np.array([40, 50, 60])
    found = score.loss_gradient(LM, prompt, part)

    def loss(vectors):
        given = Given({PROMPT: vectors})
        return label_loss(plain_model.answer_scores(PLAIN, examples, given), part.answers)

    table = PLAIN.outside["embed/embedding"]
    np.testing.assert_allclose(found, plain_model.slope(loss, table[prompt]), atol=1e-4)
    pool = words.find_words(LM, words_only=False)
    changes = pool.changes(found, prompt)
    for place, token in ((0, 7), (2, 99)):
        towards = np.zeros((3, LM.spec.width))
        towards[place] = table[token] - table[prompt[place]]
        slope = (loss(table[prompt] + 1e-4 * towards) - loss(table[prompt] - 1e-4 * towards)) / 2e-4
        assert changes[place, token] == pytest.approx(slope, abs=1e-3)


def test_guided_swaps_change_one_token_to_one_of_the_best_by_the_average_gradient():
    pool, prompt = words.find_words(LM, words_only=False), np.array([40, 50, 60])
    slopes = np.random.default_rng(3).normal(size=(3, 3, LM.spec.width)).astype(np.float32)
    settings = configs.build({"search": {"top_k": 2, "candidates": 40}}).search
    state, propose = gradient.make(settings, pool, prompt)
    scored = loop.Scored(np.array([prompt + 9, prompt]), np.array([1.0, 0.5]))
    # The length of a round's gradient does not count.
    for given in (100 * slopes[0], slopes[1], slopes[2]):
        state = json.loads(json.dumps(state))
        state, made = propose(state, np.random.default_rng(0), scored, given)
    for row in made:
        [place] = np.flatnonzero(row != prompt)
        old, middle, last = (each[place] / np.sqrt((each[place] ** 2).sum()) for each in slopes)
        products = pool.embeddings @ (0.81 * old + 0.9 * middle + last)
        others = np.setdiff1d(pool.at(place), prompt[place])
        assert row[place] in others[products[others].argsort()[:2]]
    joined = loop.join(
        prompt, [np.array([1, 50, 60]), np.array([2, 50, 60]), np.array([40, 3, 60])]
    )
    assert np.array_equal(joined, [[1, 50, 60], [1, 50, 60], [1, 3, 60]])


def test_pez_stands_at_the_nearest_words_of_a_copy_that_adam_moves(tmp_path):
    pool = words.find_words(LM, words_only=False)
    vectors = np.random.default_rng(4).normal(0, 0.3, (3, LM.spec.width)).astype(np.float32)
    made = find(name="random", num_tokens=3, start="").artifact
    made.manifest["method"] = "soft_prompt"
    made.manifest.pop("demonstrations")
    api.save(made._replace(tensors={PROMPT: vectors}), tmp_path / "soft")
    settings = make_config(name="pez", start_file=str(tmp_path / "soft"), learning_rate=0.1).search
    state, propose = pez.make(settings, pool, np.array([40, 50, 60]))
    slopes = np.random.default_rng(5).normal(size=vectors.shape).astype(np.float32)
    moved = vectors - 0.1 * np.sign(slopes)  # the first step of Adam
    for wanted in (vectors, moved):
        far = distance.cdist(wanted, pool.embeddings)
        nearest = [pool.at(n)[far[n, pool.at(n)].argmin()] for n in range(3)]
        assert state["prompt"] == nearest
        np.testing.assert_allclose(state["vectors"], wanted, atol=1e-5)
        state, made = propose(json.loads(json.dumps(state)), None, None, slopes)
        assert made.tolist() == [state["prompt"]]
    found = find(name="pez", start="", num_tokens=3, start_file=settings.start_file, rounds=1)
    made = pez.make(settings, pool, np.array([40, 50, 60]))[0]["prompt"]
    assert found.history[0]["ids"] == made
    with pytest.raises(UserError, match=r"holds \(3, 24\): expected a soft prompt of \(2, 24\)"):
        pez.make(settings, pool, np.array([40, 50]))


def test_words_are_whole_printable_and_read_as_they_are_written():
    lm = merging("Ġ t", "h e", "Ġ he", "i n", ". Ċ")
    pool = words.find_words(lm, words_only=True)
    shown = [{lm.tokenizer.decode([index]) for index in ids} for ids in pool[:2]]
    assert shown == [{"t", "he"}, {" t", " he"}]
    spaced = words.find_words(lm, words_only=True, spaced=True)
    assert np.array_equal(spaced.first, pool.others)


@pytest.mark.parametrize("name", search.SEARCHES)
def test_a_search_changes_whole_words_alone(name):
    given = {"name": name, "words_only": True, "template": "Say {soft}: {text}"}
    found = find(**given, start="the. t t the", rounds=6).history
    texts = {entry["prompt"] for entry in found}
    assert found[0]["prompt"] == "the. t t the" and len(texts) > 1
    for prompt in texts:
        assert re.fullmatch(r"(the|t)(\.| t| the) (t|the) (t|the) (t|the)", prompt)
    drawn = find(**given, start="", num_tokens=3)
    assert {word for entry in drawn.history for word in entry["prompt"].split()} <= {"t", "the"}


@pytest.mark.parametrize("name", search.SEARCHES)
def test_the_rate_counts_every_prompt_that_is_scored(name, monkeypatch):
    said, done, plain = [], [], score.score_prompts
    monkeypatch.setattr(loop, "score_prompts", lambda *a: done.append(len(a[1])) or plain(*a))
    add = loop.Progress.add

    def adding(self, count):
        add(self, count)
        said.append((count, self.done, self.total))

    monkeypatch.setattr(loop.Progress, "add", adding)
    find(name=name)
    assert sum(count for count, *_ in said) == sum(done) == said[-1][1]
    # About as many in each round that is left.
    left = [total - now for _, now, total in said]
    assert left == [3 * said[0][0], 2 * said[1][0], said[2][0], 0]


@pytest.mark.parametrize("name", search.SEARCHES)
def test_a_search_that_was_stopped_ends_as_one_that_was_not(name, tmp_path, monkeypatch):
    settings = {"name": name} | ({"learning_rate": 0.5} if name == "pez" else {})
    whole, lines = find(**settings), []

    def stop(line):
        if line.startswith("after round 2"):
            os.kill(os.getpid(), signal.SIGTERM)

    first = find(tmp_path, stop, **settings)
    assert not first.finished and first.history == whole.history[: len(first.history)]
    # A stop between two validations keeps the best prompt of then, and what goes on forgets it.
    seldom = settings | {"validate_every": 3, "rounds": 3}
    finish = find(**seldom)
    monkeypatch.setattr(
        loop.Progress, "add", lambda self, count: os.kill(os.getpid(), signal.SIGTERM)
    )
    (tmp_path / "seldom").mkdir()
    assert find(tmp_path / "seldom", **seldom).history[-1]["round"] == 1
    monkeypatch.undo()
    ended = find(tmp_path / "seldom", **seldom)
    assert ended._replace(seconds=0, artifact=None) == finish._replace(seconds=0, artifact=None)
    again = find(tmp_path, lines.append, **settings)
    assert again.finished and "going on after round 2" in lines
    assert again._replace(seconds=0, artifact=None) == whole._replace(seconds=0, artifact=None)
    assert again.history[-1]["round"] > 0


def test_a_search_goes_on_when_a_save_fails(tmp_path, monkeypatch):
    write, lines = loop.atomic_write, []

    def fill_disk(*rounds):
        def written(path, data):
            if json.loads(data)["round"] in rounds:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, data)

        monkeypatch.setattr(loop, "atomic_write", written)

    fill_disk(1, 2)
    found = find(tmp_path, lines.append, name="random", rounds=3)
    assert found.finished and found.saved
    failed = [f"warning: round {n} could not be saved (No space left on device)." for n in (1, 2)]
    assert [line for line in lines if line.startswith("warning")] == failed
    fill_disk(3)
    assert not find(tmp_path, name="random", rounds=3, fresh=True).saved


def test_what_is_too_long_is_said_and_what_is_not_finite_refused(monkeypatch):
    config, lines = configs.build({"search": SETTINGS, "task": {"max_length": 22}}), []
    search.run(LM, TASK, config, None, lines.append)
    for name, count in (("training", 4), ("validation", 2)):
        wanted = f"warning: {count} {name} examples were too long and lost their end"
        assert lines.count(wanted) == 1, lines
    monkeypatch.setattr(loop, "score", lambda lm, examples, given: np.full((6, 3), np.nan))
    with pytest.raises(RunError, match="the model's scores are not finite"):
        find()


def test_a_search_goes_on_from_its_best_validated_prompt(monkeypatch):
    begun, swaps = [], search.random_swaps

    def make(*given):
        state, propose = swaps.make(*given)

        def watched(state, rng, scored, gradient):
            begun.append(scored.best.tolist())
            return propose(state, rng, scored, gradient)

        return state, watched

    watching = SimpleNamespace(KEYS={}, GUIDED=False, make=make)
    monkeypatch.setitem(search.SEARCHES, "random", watching)
    found, left = find(name="random", rounds=12, again=1, validate_every=2), 0
    for after in range(2, 12, 2):
        known = [entry for entry in found.history if entry["round"] <= after]
        best = min(known, key=lambda entry: entry["loss"])
        assert begun[after] == best["ids"]
        left += best["round"] < after and known[-1]["round"] == after
    assert left, "no validation was worse than an earlier one"


def test_what_is_reported_is_what_the_text_alone_gives(tmp_path):
    found = find(name="gradient", rounds=3)
    best = max(found.history, key=lambda entry: (entry["accuracy"], -entry["loss"]))
    assert best["template"] == found.template == f"{found.prompt}: {{text}}"
    assert found.artifact.tensors == {}
    for how in ({"prompt": found.template}, {"artifact": found.artifact}):
        scored = api.evaluate(LM, TASK, **how, split="validation", log=lambda line: None)
        assert scored["accuracy"] == best["accuracy"]
        assert scored["loss"] == pytest.approx(
            found.artifact.manifest["metrics"]["validation_loss"]
        )
    task = TASK._replace(template=found.template)
    examples = encode_for(LM, task, SPLITS["validation"], Given())
    scores = plain_model.answer_scores(PLAIN, examples)
    answers = [example.answer for example in examples]
    assert best["loss"] == pytest.approx(label_loss(scores, answers), abs=1e-4)


def test_a_start_may_follow_a_space_and_end_in_a_full_stop():
    lm = merging("Ġ t", "h e", "Ġ he", "Ġ Ġ", ". Ċ")
    for start, template, read in (
        ("he t.", "Say: {soft}\\n{text}:", "Say: he t. \\n{text}:"),
        ("he t", "Say: {soft}\n{text}:", "Say: he t\n{text}:"),
        ("t he.", "{soft}\n{text}:", "t he. \n{text}:"),
        (" t", "Say: {soft} {text}:", "Say:  t {text}:"),
        ("he t.", "Say: {soft}\n{text}:", "Say: he t. \n{text}:"),
    ):
        config = make_config(start=start, template=template, name="random", words_only=True)
        prompt, place, *_ = search.begin(lm, TASK, config, print)
        pool = words.find_words(lm, True, " {soft}" in template)
        assert place.write(prompt) == (start, read) and place.written == read
        assert {*pool.at(0)} == {*(pool.others if "Say" in read else pool.first)}
    found = search.run(lm, TASK, config, None, lambda line: None)
    assert found.history[0]["template"] == read
    scored = api.evaluate(lm, TASK, prompt=found.template, split="validation", log=print)
    assert scored["loss"] == pytest.approx(found.artifact.manifest["metrics"]["validation_loss"])


def test_a_prompt_whose_text_gives_other_tokens_is_left_out():
    place = text.find_place(LM, TASK, ROWS[0], settings := make_config(start="hee").search, 0)
    pool = words.find_words(LM, words_only=False)
    place = text.first_prompt(place, settings, pool, np.random.default_rng(0))[1]
    h, e, he = (LM.tokenizer.encode(part)[0][0] for part in ("h", "e", "he"))
    assert place.reads_as(np.array([he, e])) and not place.reads_as(np.array([h, e]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_tokens": 3}, "start has 6 tokens and config.search.num_tokens is 3"),
        ({"start": ""}, "neither start nor num_tokens"),
        ({"start": "see {text}"}, "'see {text}', with a field or a slot: give"),
        ({"start": "see {soft} b"}, "'see {soft} b', with a field or a slot: give"),
        ({"start": "e we", "template": "h{soft} {text}"}, "joins the text beside it"),
        ({"start": "", "num_tokens": 10**9}, "positions and 128 are allowed"),
        ({"template": "{text} {soft}"}, "no place for a searched prompt"),
        ({"template": "{soft}"}, "no place for a searched prompt"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        find(**given)


def test_an_empty_record_with_no_text_behind_the_prompt_is_refused():
    rows = SPLITS | {"train": [*ROWS[:11], {"text": "", "label": "0"}]}
    task = TASK._replace(template="{soft} {text}", load=lambda: Source(rows))
    with pytest.raises(UserError, match="a record to train on is empty"):
        search.run(LM, task, make_config(), None, lambda line: None)


def spaced(kind, folder):
    """The small model with a tokenizer that may put a space in front of a text."""
    read = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        *({"type": name} for name in ("ByteFallback", "Fuse")),
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    folder = tiny_models.write_spaced_folder(folder, kind, add_bos_token=True)
    tiny_models.rewrite(folder / "tokenizer.json", decoder={"type": "Sequence", "decoders": read})
    lm, _ = plain_model.make(tiny_models.changed(vocabulary=len(tiny_models.SPACED_TOKENS)))
    return lm._replace(tokenizer=read_tokenizer(str(folder)))


@pytest.mark.parametrize(
    ("kind", "front", "start"),
    [
        ("llama 2", "", {"start": "we see"}),
        ("first", "", {"start": "", "num_tokens": 3}),
        ("first", "b ", {"start": "the t"}),
    ],
)
def test_a_tokenizer_that_puts_a_space_in_front_of_a_text_is_searched_too(
    kind, front, start, tmp_path
):
    lm = spaced(kind, tmp_path / "model")
    given = {"name": "random", "rounds": 2, "template": front + "{soft}\nBBC: {text}"}
    config, lines = make_config(**given, **start), []
    found = search.run(lm, TASK, config, None, lines.append)
    assert len(found.history) > 1, lines
    scored = api.evaluate(lm, TASK, prompt=found.template, split="validation", log=print)
    best = max(found.history, key=lambda entry: (entry["accuracy"], -entry["loss"]))
    assert scored["accuracy"] == best["accuracy"]
    assert scored["loss"] == pytest.approx(best["nats"], abs=1e-4)


def test_a_start_of_drawn_words_that_no_text_gives_is_refused(monkeypatch):
    monkeypatch.setattr(text.Place, "reads_as", lambda self, prompt: False)
    with pytest.raises(UserError, match="each of 100 drawn starts is not read as it is written"):
        find(start="", num_tokens=3)


def test_a_line_ends_before_a_field():
    place = text.find_place(LM, TASK, ROWS[0], make_config(template="{text} is").search, 0)
    assert place.task.template == "{soft}\n{text} is"


def test_braces_are_text_and_a_line_ends_before_a_word():
    found = find(start="we {{", template="{soft}e {text}", rounds=1)
    assert found.history[0]["template"] == "we {{\ne {text}"


def test_another_model_does_not_go_on_with_a_search(tmp_path):
    find(tmp_path)
    other = LM._replace(fingerprint="other")
    with pytest.raises(UserError, match="the model or the data of"):
        search.run(other, TASK, make_config(), tmp_path, lambda line: None)


@pytest.mark.parametrize("sign", [1, -1])
def test_of_equally_good_prompts_the_more_fluent_one_stays(sign, monkeypatch):
    scored = []

    def score_prompts(lm, prompts, part):
        scored.append(prompts)
        return np.zeros((len(prompts), len(part.answers), 3)), sign * prompts.sum(1)

    monkeypatch.setattr(loop, "score_prompts", score_prompts)
    given = {"name": "random", "rounds": 1, "again": 1, "candidates": 20}
    history = find(**given, fluency=1.0).history
    best = scored[-1][(sign * scored[-1].sum(1)).argmin()]
    assert len(scored[-1]) == 4 and history[1]["ids"] == best.tolist()


def test_a_target_and_a_vocabulary_without_words_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"leave out config\.task\.target"):
        search.run(LM, TASK._replace(target="{text}"), make_config())
    for ids in ([LM.tokenizer.encode("1")[0][0]], LM.tokenizer.encode("the")[0]):
        monkeypatch.setattr(LM.tokenizer, "text_ids", ids)
        with pytest.raises(UserError, match="no two words to choose from: give --config"):
            find(words_only=True, start="", num_tokens=3)
    monkeypatch.setattr(LM.tokenizer, "text_ids", ids[:1])
    with pytest.raises(UserError, match="to choose from: give another model"):
        find(words_only=False, start="", num_tokens=3)


def test_the_command_stops_goes_on_and_reports_the_text(typed, monkeypatch):
    command = [
        *("search", "--config", tiny_runs.world().config, "--workdir", "found"),
        *("--config.search.start=say b", "--config.search.words_only=false"),
        *("--config.search.rounds=3", "--config.search.candidates=4"),
        *("--config.search.validate_every=1", "--config.search.examples=6"),
    ]
    wrong = typed(*command, "--config.task.test=tset")
    assert wrong.status == 2 and "'tset'" in wrong.err and not Path("found").exists()
    own = "--config.search.template={soft} {headline}:", "--config.model.path=gone"
    wrong = typed(*command, *own)
    assert wrong.status == 2 and "headline" in wrong.err and not Path("found").exists()
    own = "--config.search.template={soft:2} {text}:", "--config.search.start={text}"
    wrong = typed(*command, "--config.task.test=train[:9]", *own)
    assert "9 of 9 records of train[:9] are trained on too" in wrong.out
    assert "is '{text}', with a field or a slot" in wrong.err, wrong.err
    with monkeypatch.context() as patch:
        patch.setattr(
            loop.Progress, "add", lambda self, count: os.kill(os.getpid(), signal.SIGTERM)
        )
        with monkeypatch.context() as full:
            fails = mock.Mock(side_effect=OSError(errno.ENOSPC, "full"))
            full.setattr(loop, "atomic_write", fails)
            lost = typed(*command)
        stopped = typed(*command)
    assert lost.status == 1 and "stopped and not saved: free disk space; this goes on" in lost.err
    assert stopped.status == 75 and "this goes on from here" in stopped.out, stopped.err
    stops = [stopped]
    assert load_artifact("found/artifact").tensors == {}
    with monkeypatch.context() as patch:
        patch.setattr(api, "evaluate", mock.Mock(side_effect=KeyboardInterrupt))
        stops.append(stopped := typed(*command))
    assert stopped.status == 75 and "this goes on from here" in stopped.out, stopped.err
    done = typed(*command, "--json")
    assert done.status == 0 and "going on after round 3" in done.err, done.err
    rows = json.loads(done.out)["rows"]
    assert [row["name"] for row in rows] == ["start", "searched prompt"]
    kept = load_artifact("found/artifact")
    # What is printed can be typed, and has the loss that is printed.
    assert f" so far: {kept.manifest['template']!r}" in done.err
    held = ["--prompt", kept.manifest["template"], "--split", "validation[:40]", "--json"]
    found = json.loads(typed("evaluate", "--config", command[2], *held).out)
    said = f"validation {found['accuracy']:.1%}, loss {found['loss']:.3f}, "
    assert any(said in each.out for each in (lost, wrong, *stops))
    for how in (
        ["--artifact", "found"],
        ["--config", command[2], "--prompt", kept.manifest["template"]],
    ):
        again = typed("evaluate", *how, "--json")
        assert json.loads(again.out)["accuracy"] == rows[1]["accuracy"], again.err
    assert "another config" in typed(*command, "--config.search.rounds=4").err
