"""Compares ways to adapt a model to a task. A row is a name with overrides of one config.

A row has a run for each learning rate that is tried, and one for each seed. Each has a folder with
its config, what it found (`found.json`) and how that does on the test split (`test.json`). What is
there is not computed again, so a comparison that was stopped goes on.
"""

import functools
import json
import math
import re
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_tuning_jax import api, calibration, search, train
from prompt_tuning_jax import config as configs
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.config.key import Key, among, string, strings
from prompt_tuning_jax.data.demonstrations import training_demonstrations
from prompt_tuning_jax.data.records import LABEL, PLACE
from prompt_tuning_jax.data.task import Task, make_task, training_records, validation_records
from prompt_tuning_jax.errors import RunError, UserError, nearest, short
from prompt_tuning_jax.forgetting import cross_entropy, unrelated_texts
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import Given, from_tensors
from prompt_tuning_jax.run.artifact import TENSORS, load_artifact, load_start
from prompt_tuning_jax.run.folder import ARTIFACT, CHECKPOINTS, TENSORBOARD, tie_to_config
from prompt_tuning_jax.storage import atomic_write

FOUND, TEST = "found.json", "test.json"
NEAR = 0.95  # "seconds to 95 % of its own best"

# Rows without training, and the part of the config that each reads alone, if any.
WAYS = {
    "no prompt": "",
    "written prompt": "prompts",
    "demonstrations": "demonstrations",
    "searched prompt": "search",
}
_SHARED = re.compile(r"(model|parallel|compare)\.|seed=|task\.(test|split_seed|name|files)\b")
_NAMES = (*WAYS, *(name.replace("_", " ") for name in METHODS))


def _numbers(default: tuple) -> Key:
    def holds(value: tuple) -> bool:
        numbers = all(type(item) is int and item >= 0 for item in value)
        return numbers and len({*value}) == len(value)

    return Key(default, "different whole numbers of at least 0, as (0, 1, 2)", holds)


KEYS = {
    # 'NAME' or 'NAME: KEY=VALUE KEY=VALUE'. The name is one of `WAYS`, a method, or any other
    # beside `method.name=`. A row with another method than the config begins at its defaults.
    # () is all but the search, which takes half an hour, and written prompts if there are none.
    "rows": strings(),
    "seeds": _numbers((0, 1, 2)).if_fits("at least one", lambda value, _: bool(value)),
    # 'NAME: RATE RATE': tried with the first seed. The best on the validation split is taken.
    "learning_rates": strings(),
    # Examples of each label to train on, and to validate with if there are so many; 0: all.
    "examples_per_class": _numbers(()),
    # The trained rows that are repeated with so few, at the best rate with all examples; () is all.
    "curve": strings(),
    # How rows without training are calibrated too, see `evaluate --calibrate`; '' for not at all.
    "calibrate": among("labels", ("", "labels", "texts")),
    # The texts that forgetting is measured on: a file with a text a line, or 'bbc_news', articles.
    "unrelated": string(""),
}


class Row(NamedTuple):
    """A row: its name, its overrides as typed, and the learning rates to try, if any."""

    name: str
    overrides: tuple[str, ...]
    rates: tuple[float, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether it has a method."""
        return self.name not in WAYS

    @property
    def folder(self) -> str:
        """The name of the folder with its runs."""
        return re.sub(r"\W+", "_", self.name)


class Run(NamedTuple):
    """A run of a row: its config and folder."""

    row: Row
    config: Any
    folder: Path


def read_rows(config) -> list[Row]:
    """Returns the rows of a config; raises a UserError for one that cannot be run."""
    rows: dict[str, Row] = {}
    missing = ("searched prompt", *(("written prompt",) if not config.prompts else ()))
    for entry in config.compare.rows or [name for name in _NAMES if name not in missing]:
        row = _read_row(entry)
        if any(row.folder == other.folder for other in rows.values()):
            raise UserError(
                f"config.compare.rows has {row.name!r} twice: give each row its own name"
            )
        rows[row.name] = row
    trained = [name for name, row in rows.items() if row.is_trained]
    for entry in config.compare.learning_rates:
        name, _, rest = (part.strip() for part in entry.partition(":"))
        # A method that is not among the rows may have rates too.
        _check_name(name, [*trained, *_NAMES[len(WAYS) :]], "learning_rates")
        try:
            rates = tuple(float(word) for word in rest.replace(",", " ").split())
        except ValueError:
            rates = ()
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise UserError(
                f"config.compare.learning_rates has {entry!r}: expected 'ROW: RATE RATE' with"
                " numbers above 0"
            )
        if name in rows:
            rows[name] = rows[name]._replace(rates=rates)
    for name in config.compare.curve:
        _check_name(name, trained, "curve")
    return list(rows.values())


def _read_row(entry: str) -> Row:
    """Reads 'NAME: KEY=VALUE KEY=VALUE'."""
    name, _, rest = (part.strip() for part in entry.partition(":"))
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UserError(
            f"config.compare.rows has {short(entry, 200)}: a quotation mark has no partner"
        ) from error
    if shared := [word for word in words if _SHARED.match(word)]:
        raise UserError(
            f"config.compare.rows has {shared[0]!r} in {name!r}, which all rows share: leave it out"
        )
    method = name.replace(" ", "_")
    if (name and any(word.startswith("method.name=") for word in words)) or name in WAYS:
        words = ["demonstrations.number=16"] * (name == "demonstrations") + words
    elif method in METHODS:
        name, words = method.replace("_", " "), [f"method.name={method}", *words]
    else:
        raise UserError(
            f"config.compare.rows has {name!r}, which names no method{nearest(name, _NAMES)}:"
            f" expected one of {', '.join(_NAMES)}, or method.name=METHOD behind a colon"
        )
    return Row(name, tuple(f"--config.{word}" for word in words))


def _check_name(name: str, trained: Sequence[str], key: str) -> None:
    if name not in trained:
        raise UserError(
            f"config.compare.{key} has {name!r}{nearest(name, trained)}: expected a trained row,"
            f" one of {', '.join(dict.fromkeys(trained))}"
        )


def make_run(
    config, folder: Path, row: Row, seed: int, rate: float | None = None, examples: int = 0
) -> Run:
    """Returns a run of a row. Rows that are added later leave its config as it is."""
    values = config.to_dict()
    del values["compare"]
    for name, part in WAYS.items():
        if part and name != row.name:
            del values[part]
    chosen = [word.partition("=")[2] for word in row.overrides if "method.name=" in word]
    if chosen and chosen[-1] != config.method.name:
        # These are the config's method's own.
        del values["method"], values["learning_rate"]
    words = [*row.overrides, f"--config.seed={seed}"]
    if rate is not None:
        words.append(f"--config.learning_rate={rate}")
    if examples:
        held = validation_records(make_task(config.task), config.task)
        labels = [record.get(LABEL) for record in held]
        few = {"examples_per_class": examples, "draw_seed": seed}
        few["validation_per_class"] = min(examples, *map(labels.count, set(labels)))
        words += [f"--config.task.{name}={value}" for name, value in few.items()]
    made = configs.build(values, words, f"the row {row.name!r}")
    parts = [f"seed-{seed}", f"examples-{examples}" * bool(examples)]
    if row.is_trained:
        parts.insert(0, f"rate-{made.learning_rate:g}")
    return Run(row, made, folder / row.folder / ",".join(filter(None, parts)))


class Compared(NamedTuple):
    """A row's results."""

    row: Row
    examples: int  # of each label that it was trained on, 0 for all
    runs: list[Run]  # one for each seed
    found: list[dict[str, Any]]  # by run: `loss` and `accuracy` in validation, and what it cost
    test: list[dict[str, Any]]  # by run: how it does on the test split, `values` by example
    # Each learning rate that was tried, with what was found.
    tried: Sequence[tuple[float, dict[str, Any]]] = ()


class Setting(NamedTuple):
    """What all runs share; `forgetting` takes what a run gives to the model."""

    lm: LanguageModel
    config: Any
    folder: Path
    forgetting: Callable[[Given], float]
    log: Callable[[str], None]


def compare(
    lm: LanguageModel, config, folder: Path, log: Callable, fresh: bool = False
) -> list[Compared]:
    """Runs what is not there yet, and returns the results of every row, and then of the curve.
    `fresh` starts the rows over.

    Raises:
      UserError: a row cannot be run.
      KeyboardInterrupt: asked to stop; what is finished, and a checkpoint, are in the folder.
    """
    rows = read_rows(config)
    few = [count for count in config.compare.examples_per_class if count]
    curve = config.compare.curve or [row.name for row in rows if row.is_trained]
    repeated = [(row, count) for row in rows if row.name in curve for count in few]
    # A fault of the last run is found before the first.
    for row, count in [*((row, 0) for row in rows), *repeated]:
        task = (run := make_run(config, folder, row, 0, examples=count)).config.task
        made, kind = make_task(task), "" if count else _calibration_of(config, run)
        training_records(made, task)
        api.held_out(made, run.config, kind)
        trains_weights = getattr(METHODS[run.config.method.name], "TRAINS_WEIGHTS", False)
        if row.is_trained and trains_weights and run.config.model.quantize:
            raise UserError(f"config.model.quantize is 'int8': leave the row {row.name!r} out")
        if row.name == "written prompt" and not run.config.prompts:
            raise UserError("the row 'written prompt' has no prompt: give config.prompts")
        if row.name == "demonstrations" and not training_demonstrations(made, run.config):
            raise UserError("the row 'demonstrations' has none: give demonstrations.number")
        if row.name == "searched prompt":
            search.begin(lm, made, run.config)
        load_start(run.config.method)
        if count and row is repeated[0][0] and task.validation_per_class < count:
            log(f"validation has {task.validation_per_class} for each label, not {count}")
    texts = unrelated_texts(config.compare.unrelated)
    # What all rows share: rows, seeds and rates may be added later.
    own = ("compare", *WAYS.values())
    shared = {name: value for name, value in config.to_dict().items() if name not in own}
    tie_to_config(folder, configs.build(shared), fresh)
    for old in (each for row in rows for each in (folder / row.folder).glob("*seed-*") if fresh):
        shutil.rmtree(old)
    alone = functools.cache(lambda: cross_entropy(lm, texts, Given()))
    setting = Setting(
        lm, config, folder, lambda given: cross_entropy(lm, texts, given) - alone(), log
    )
    found = [_all_examples(setting, row) for row in rows]
    for results in [each for each in found if each.row.name in curve]:
        for count in few:
            rate = results.runs[0].config.learning_rate
            found.append(_every_seed(setting, results.row, rate, count))
    return found


def _all_examples(setting: Setting, row: Row) -> Compared:
    """Tries the learning rates with the first seed, and runs the others at the best one."""
    seed = setting.config.compare.seeds[0]
    runs = [make_run(setting.config, setting.folder, row, seed, rate) for rate in row.rates]
    tried: list[tuple[float, dict[str, Any]]] = []
    for run in runs:
        try:
            tried.append((run.config.learning_rate, _find(setting, run)))
        except RunError as error:
            if run is runs[-1] and not any(found for _, found in tried):
                raise
            setting.log(f"{run.folder} has failed: {error}")
            tried.append((run.config.learning_rate, {}))
    if not tried:
        return _every_seed(setting, row)
    by_accuracy = runs[0].config.best_by == "accuracy"
    finished = (pair for pair in tried if pair[1])
    rate = min(finished, key=lambda pair: _order(pair[1], by_accuracy))[0]
    return _every_seed(setting, row, rate)._replace(tried=tried)


def _order(found: Mapping[str, Any], by_accuracy: bool) -> tuple[float, ...]:
    """Returns a key that is lower for what is better on the validation split."""
    return (-found["accuracy"] if by_accuracy and "accuracy" in found else 0, found["loss"])


def _every_seed(
    setting: Setting, row: Row, rate: float | None = None, examples: int = 0
) -> Compared:
    seeds = setting.config.compare.seeds
    if not row.is_trained and row.name != "demonstrations":
        seeds = seeds[:1]  # the others would be the same
    runs = [make_run(setting.config, setting.folder, row, seed, rate, examples) for seed in seeds]
    found = [_find(setting, run) for run in runs]
    # At the end: nothing above has seen the test split.
    test, unrelated = [], setting.config.compare.unrelated
    for run, each in zip(runs, found, strict=True):
        own = {"calibration": _calibration_of(setting.config, run), "unrelated": unrelated}
        test.append(_kept(run.folder / TEST, functools.partial(_test, setting, run, each), **own))
    return Compared(row, examples, runs, found, test)


def _kept(path: Path, make: Callable[[], dict[str, Any]], **settings: str) -> dict[str, Any]:
    """Returns the values of a JSON file, which is made if it does not exist with these settings."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not kept or kept | settings != kept:
        kept = make() | settings
        atomic_write(path, (json.dumps(kept) + "\n").encode())
    return kept


def _find(setting: Setting, run: Run) -> dict[str, Any]:
    """Returns what a run found; trains it if that is not in its folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    tie_to_config(run.folder, run.config)
    find = _train if run.row.is_trained else _choose
    # Records that calibrate do not choose: with another calibration, others choose.
    kind = {} if run.row.is_trained else {"calibration": _calibration_of(setting.config, run)}
    found = _kept(run.folder / FOUND, functools.partial(find, setting, run), **kind)
    for name in (CHECKPOINTS, TENSORBOARD):  # gigabytes for a whole model
        shutil.rmtree(run.folder / name, ignore_errors=True)
    return found


def _train(setting: Setting, run: Run) -> dict[str, Any]:
    """Trains a run and keeps its artifact."""
    config, task = run.config, make_task(run.config.task)
    setting.log(f"\n{run.folder}")
    result = train.tune(setting.lm, task, config, run.folder, setting.log)
    if not result.finished:
        raise KeyboardInterrupt
    api.save(result.artifact, run.folder / ARTIFACT)
    own = sum(leaf.nbytes for leaf in from_tensors(result.artifact.tensors).params.values())
    validated = [line for line in result.history if "validation/loss" in line]
    step, steps = result.artifact.manifest["metrics"]["step"], validated[-1]["step"]
    best = next(line for line in validated if line["step"] == step)
    found = {"loss": best["validation/loss"], "best_step": step}
    if "validation/accuracy" in best:
        found["accuracy"] = best["validation/accuracy"]
        enough = NEAR * max(line["validation/accuracy"] for line in validated)
        near = next(line["step"] for line in validated if line["validation/accuracy"] >= enough)
        found["near_best_seconds"] = result.seconds * near / steps
    rows, held_out = training_records(task, config.task), validation_records(task, config.task)
    return found | {
        "parameters": result.trainable_parameters,
        "bytes": (run.folder / ARTIFACT / TENSORS).stat().st_size,
        # Without the leaves that the artifact replaces.
        "model_bytes": max(_bytes(setting.lm) - own, 0),
        "train_examples": len(rows),
        "examples": len(rows) + len(held_out),
        "seconds": result.seconds,
        "step_seconds": result.step_seconds / steps,
        "memory": result.memory,
    }


def _bytes(lm: LanguageModel) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params))


def _choose(setting: Setting, run: Run) -> dict[str, Any]:
    """Scores a row that is not trained on the validation records that calibrate nothing. Of several
    written prompts it takes the best."""
    config, task, took = run.config, make_task(run.config.task), 0.0
    found: dict[str, Any] = {"examples": 0, "bytes": 0, "parameters": 0}
    candidates: Sequence[dict[str, Any]] = [{}]
    if run.row.name == "written prompt":
        candidates = [{"prompt": prompt} for prompt in config.prompts]
    elif run.row.name == "searched prompt":
        searched = search.run(setting.lm, task, config, run.folder, setting.log)
        if not searched.finished:
            raise KeyboardInterrupt
        candidates = [{"prompt": searched.template}]
        took = searched.seconds
        sources = training_records(task, config.task), validation_records(task, config.task)
        found["examples"] = sum(map(len, sources))
    elif run.row.name == "demonstrations":
        candidates = [{"demonstrations": config.demonstrations.number}]
    rows, scored = api.held_out(task, config, _calibration_of(setting.config, run))[0], []
    began = time.perf_counter()
    for each in candidates:
        given = _score(setting, task, run, each, rows)
        scored.append(each | scoring.loss_and_accuracy(given.scores, given.answers))
    best = min(scored, key=lambda each: _order(each, "accuracy" in each))
    if "prompt" in best:
        found["bytes"] = len(best["prompt"].encode())
    elif "demonstrations" in best:
        shown = training_demonstrations(task, config)[: given.counts["demonstrations"]]
        texts = (text for each in shown for name, text in each.items() if name != PLACE)
        found |= {"examples": len(shown), "bytes": sum(len(text.encode()) for text in texts)}
    found["examples"] += best.pop("examples") * (len(candidates) > 1)
    took += time.perf_counter() - began
    return found | {"model_bytes": _bytes(setting.lm), "seconds": took} | best


def _calibration_of(config, run: Run) -> str:
    """Returns how a row is calibrated, if at all. A searched prompt is chosen on the whole
    validation split, so none of that is left."""
    if run.row.is_trained or run.row.name == "searched prompt" or run.config.task.target:
        return ""
    return str(config.compare.calibrate)


def _score(setting: Setting, task: Task, run: Run, found: Mapping[str, Any], split):
    """Scores a split, or records of one, as a run uses the model."""
    how: dict[str, Any] = {"max_length": run.config.task.max_length}
    if run.row.is_trained:
        how = {"artifact": load_artifact(run.folder / ARTIFACT)}
    elif "demonstrations" in found:
        how["demonstrations"] = training_demonstrations(task, run.config)
    else:
        how["prompt"] = found.get("prompt")
    return api.label_scores(setting.lm, task, split=split, log=setting.log, **how)


def _test(setting: Setting, run: Run, found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `values` on the test split, which are 1 and 0 for right and wrong labels, or the
    log-probabilities of texts; the same as calibrated, if a row is; and forgetting."""
    task, kind = make_task(run.config.task), _calibration_of(setting.config, run)
    scored = _score(setting, task, run, found, run.config.task.test)
    result: dict[str, Any] = {"values": _values(scored.scores, scored.answers)}
    if kind:
        ranking, held = api.held_out(task, run.config, kind)
        made = calibration.fit(kind, *_score(setting, task, run, found, held)[:2])
        result["calibrated"] = _values(made.apply(scored.scores), scored.answers)
        # By texts, the records that ranked the prompts calibrate too, and count once.
        is_read = held is ranking and run.row.name == "written prompt" and found["examples"]
        result["calibrated_by"] = 0 if is_read else len(held)
    tensors = load_artifact(run.folder / ARTIFACT).tensors if run.row.is_trained else {}
    if setting.config.compare.unrelated and (run.row.is_trained or run.row.name == "no prompt"):
        result["forgetting"] = setting.forgetting(from_tensors(tensors))
    return result


def _values(scores: np.ndarray, answers: np.ndarray) -> list[float]:
    is_right = (scores.argmax(1) == answers).astype(int)
    return (is_right if scores.shape[1] > 1 else scores[:, 0]).tolist()
