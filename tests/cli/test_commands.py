"""The commands as they are typed: what they answer, and one sentence for whatever is wrong."""

import json
import os
import shlex
import shutil
from types import SimpleNamespace

import jax
import pytest
import tiny_runs

from prompt_tuning_jax import api
from prompt_tuning_jax import config as configs
from prompt_tuning_jax.cli import train as cli_train
from prompt_tuning_jax.cli.machine import keep_compiled
from prompt_tuning_jax.data.task import make_task
from prompt_tuning_jax.run import artifact, progress
from prompt_tuning_jax.run.progress import with_progress

pytestmark = pytest.mark.usefixtures("home")

LINES = [
    "banks and funds 1",
    "films {text} {soft} {",
    "votes <|eos|> <|im_end|>",
    "",
    "naïve 日本 🙂",
]


@pytest.fixture
def refused(typed, home):
    """Types a command that is refused in one sentence, and nothing is written."""

    def refuse(*arguments, **options):
        before = tiny_runs.listing(home)
        shown = typed(*arguments, **options)
        assert shown.status == 2, shown
        assert shown.err.startswith("error: ") and shown.err.count("\n") == 1, shown.err
        assert len(shown.err) < 500
        after = tiny_runs.listing(home)
        assert set(after) == set(before)
        assert all(after[name] == was for name, was in before.items() if name != ".")
        return shown.err

    return refuse


def train(*overrides):
    """Words that train in the folder `run` of the current folder, with overrides."""
    return [*tiny_runs.training("run"), *(f"--config.{word}" for word in overrides)]


# Command lines and parts of the sentence that refuses them.
MISTAKES = {
    "key": (train("method.num_virtual_token=3"), "did you mean 'method.num_virtual_tokens'?"),
    "no model": (train("model.path=no/su/ch"), "does not exist", "smollm2-135m-instruct"),
    "no model there": (train("model.path=no/such"), "'no/such' does not exist", "HF_HUB_OFFLINE"),
    # Before a model is fetched.
    "few": (train("model.path=no/such", "task.examples_per_class=99999"), "examples_per_class"),
    "field": (train("task.template={soft}{txt}"), "{txt}", "did you mean 'text'?", "position 7"),
    "init file": (train("method.init=file", "method.init_file=x.npy"), "'x.npy'"),
    "label": (train('task.labels=("business=b","sport=s")'), "'politics'", "business, sport"),
    "written prompt": (train('prompts=("About {subject}:",)'), "{subject}", "{text}"),
    "no artifact": (["evaluate", "--artifact", "none"], "'none' does not exist"),
    "prompt's field": (["evaluate", "--prompt", "{txt}:"], "{txt}", "did you mean 'text'?"),
    "evaluated split": (["evaluate", "--prompt", "It:", "--split", "tset"], "split 'tset'"),
    "no workdir's name": ([*train()[:-1], ""], "needs both --config FILE and --workdir DIR"),
    "a folder for its artifact": (["predict", "--artifact", "made"], "is not an artifact"),
    "no such file": (
        ["predict", "--artifact", "{run}/artifact", "in.csv"],
        "'in.csv' cannot be read",
    ),
    "a folder of records": (
        ["predict", "--artifact", "{run}/artifact", "made"],
        "'made' cannot be read",
    ),
    "two files": (
        ["predict", "--artifact", "{run}/artifact", "prompts", "x"],
        "'prompts' stands beside",
    ),
    "prompts file": (["evaluate", "--prompts", "none.txt"], "'none.txt' does not exist"),
    "prompts' line": (
        ["evaluate", "--prompts", "{prompts}"],
        "line 3: template",
        "{txt}",
        "'text'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(refused, mistake, home):
    words, *parts = MISTAKES[mistake]
    if "--prompt" in words:  # which is checked before the model is read
        words = [*words, "--config.model.path=gone"]
    (home / "prompts").write_text("{text}:\n\n{txt}:\n")
    shutil.copytree(tiny_runs.artifact(), home / "made" / "run" / "artifact")
    words = [word.replace("{prompts}", "prompts").replace("{run}", "made/run") for word in words]
    sentence = refused(*words)
    assert all(part in sentence for part in parts), sentence


def test_a_run_that_started_over_does_not_tell_to_start_over_again():
    words = ["prompt tuning", *train(), "--fresh"]
    assert shlex.split(cli_train.type_again(words)[1]) == words[:-1]


def test_the_written_prompt_of_the_report_is_the_best_on_validation(monkeypatch, home):
    config = configs.load(
        str(tiny_runs.world().config),
        [
            '--config.prompts=("one","twelve","six")',
            "--config.task.validation_per_class=1",
            "--config.task.max_length=99",
        ],
    )
    scores = {("validation[:40]", "one"): 0.2, ("validation[:40]", "twelve"): 0.9}
    scores |= {("validation[:40]", "six"): 0.5, ("test[:40]", "twelve"): 0.4}

    scored = []

    def evaluate(lm, task, artifact=None, *, split, prompt=None, generation, max_length, log):
        if not isinstance(split, str):  # the records that `validation_per_class` leaves
            assert len(split) == 5 and max_length == 99
            split = "validation[:40]"
        for _ in with_progress([20] * 2, "examples", log, 40, int):
            scored.append(split)
            now[0] += 6.0
        return {
            "accuracy": scores[split, prompt] if prompt else 0.7 if artifact else 0.1,
            "loss": 2,
        }

    monkeypatch.setattr(api, "evaluate", evaluate)
    result = SimpleNamespace(artifact="made", trainable_parameters=96, seconds=3.0)
    (home / artifact.TENSORS).write_bytes(b"1234")
    now, said = [0.0], []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cli_train, "say", said.append)
    rows = cli_train.score_rows(None, make_task(config.task), config, result, home)
    assert [row._replace(seconds=0)[:6] for row in rows] == [
        ("no prompt", 0.1, 0, 0, 0, None),
        ("written prompt", 0.4, 0, len("twelve"), 0, None),
        ("soft prompt", 0.7, 96, 4, 0, None),
    ]
    assert (rows[0].seconds, rows[1].seconds, rows[2].seconds) == (0, 36, 3.0)
    # The three rows have one count of examples, and ranking has one of prompts.
    assert [line.partition("/s")[0] for line in said] == [
        "40 of 120 examples scored  3.3",
        "2 of 3 prompts scored  0.1",
        "60 of 120 examples scored  0.8",
        "80 of 120 examples scored  1.1",
        "100 of 120 examples scored  1.3",
    ]
    scored.clear()
    one = configs.load(str(tiny_runs.world().config), ['--config.prompts=("twelve",)'])
    assert cli_train.score_rows(None, make_task(one.task), one, result, home)[1].seconds == 0
    assert "validation[:40]" not in scored  # a single prompt is not ranked


def test_predict_from_a_file_stdin_and_to_a_file(typed, home):
    text = "\n".join(LINES) + "\n"
    (home / "lines.txt").write_bytes(text.encode())
    words = ["predict", "--artifact", tiny_runs.artifact()]
    shown = typed(*words, "lines.txt")
    assert (shown.status, shown.err) == (0, "")
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert len(rows) == len(LINES)
    for row in rows:
        assert row.keys() == {"label", "probabilities"}
        shares = row["probabilities"]
        assert list(shares) == ["business", "entertainment", "politics", "sport", "tech"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert shares[row["label"]] == max(shares.values())
    assert len({str(row) for row in rows}) > 1
    assert typed(*words, stdin=text).out == shown.out
    silent = typed(*words, "lines.txt", "--output", "out.jsonl")
    assert (silent.status, silent.out) == (0, "")
    assert (home / "out.jsonl").read_text(encoding="utf-8") == shown.out


def test_predict_takes_texts(typed, home):
    words = ["predict", "--artifact", tiny_runs.artifact()]
    texts = ["banks and funds 1", "and/or", "films, albums", "", "two\nlines"]
    shown = typed(*words, *texts)
    assert (shown.status, shown.err) == (0, "")
    objects = [json.dumps({"text": text}) for text in texts]
    assert typed(*words, "--jsonl", *objects).out == shown.out
    assert typed(*words, "-", stdin=texts[0]).out == typed(*words, texts[0]).out
    wrong = typed(*words, "--jsonl", "banks", "{")
    assert wrong.status == 2 and "the texts, line 1: not a JSON object" in wrong.err


def test_the_folder_of_a_run_stands_for_its_artifact(typed, home):
    shutil.copytree(tiny_runs.artifact(), home / "run" / "artifact")
    said = "the artifact of the run 'run' is used: run/artifact\n"
    for words in (["predict", "banks"], ["evaluate", "--json"]):
        shown = typed(*words, "--artifact", "run")
        assert shown.status == 0 and said in shown.err
        assert shown.out == typed(*words, "--artifact", "run/artifact").out


def test_processes_compare_the_records_of_the_report_too(monkeypatch):
    compared = []
    note = lambda config, sources: compared.append(sources["data"])  # noqa: E731
    monkeypatch.setattr(cli_train, "check_processes", note)
    lm, task, config = tiny_runs.tiny()
    source = task.load()
    other = source._replace(splits={**source.splits, "test": source.splits["test"][1:]})
    for count, each in ((1, source), (2, source), (2, source), (2, other)):
        monkeypatch.setattr(jax, "process_count", lambda count=count: count)
        cli_train._check_records(lm, task._replace(load=lambda each=each: each), config)
    assert len(compared) == 3 and compared[0] == compared[1] != compared[2]


def test_what_xla_compiles_is_kept_for_the_next_time(monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    keep_compiled()
    assert before == {name: getattr(jax.config, name) for name in names}  # the user's own
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    keep_compiled()
    kept = jax.config.jax_compilation_cache_dir
    assert os.path.dirname(kept) == str(tiny_runs.world().cache / "compiled")
    for name, value in before.items():
        jax.config.update(name, value)
