"""Compares ways to adapt a model to a task. A row is a name with overrides of one config.

A row has a run for each learning rate that is tried, and one for each seed. Each has a folder with
its config, what it found (`found.json`) and how that does on the test split (`test.json`). What is
there is not computed again with the same model and data: a comparison that was stopped goes on.
"""

import contextlib
import functools
import json
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
from prompt_tuning_jax.compare_rows import WAYS, Row, Run, make_run, read_rows
from prompt_tuning_jax.data import task as tasks
from prompt_tuning_jax.data.demonstrations import training_demonstrations
from prompt_tuning_jax.data.records import Record, digest
from prompt_tuning_jax.data.template import with_prompt
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.forgetting import cross_entropy, unrelated_texts
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import NOTHING, Given, from_tensors
from prompt_tuning_jax.prepare import start_from_demonstrations
from prompt_tuning_jax.run import folder as folders
from prompt_tuning_jax.run.artifact import TENSORS, load_artifact
from prompt_tuning_jax.storage import atomic_write
from prompt_tuning_jax.teacher import check_teacher, is_taught

FOUND, TEST, TRIED = "found.json", "test.json", "tried.json"
NEAR = 0.95  # "seconds to 95 % of its own best"


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
    """What all runs share; `alone` gives the cross-entropy of `texts` without an adaptation, and
    `failed` are rows that gave no result."""

    lm: LanguageModel
    config: Any
    folder: Path
    texts: Sequence[str]
    alone: Callable[[], float]
    log: Callable[[str], None]
    enough_memory: Callable  # turns too little memory for a run's config into a RunError
    failed: list[str]


def compare(
    lm: LanguageModel, config, folder: Path, log: Callable, fresh: bool, enough_memory: Callable
) -> tuple[list[Compared], list[str]]:
    """Runs what is not there yet. Returns the results of every row, and then of the curve; and
    the names of rows that failed. `fresh` starts the rows over. `enough_memory` makes a context
    of a run's config, which turns too little memory into a RunError. Raises a UserError for a row
    that cannot be run. If it is asked to stop, it raises a KeyboardInterrupt: finished runs are in
    the folder, with a checkpoint of the stopped one unless the exception's argument is False."""
    folders.check_own(folder)
    rows = check(lm, config, folder, log, fresh)
    old = [each for row in rows for each in (folder / row.folder).glob("*seed-*") if fresh]
    paths = [each / name for each in old for name in (FOUND, TRIED, TEST)]
    for path in [*paths, *(folder / name for name in ("report.md", "report.csv") if fresh)]:
        path.unlink(missing_ok=True)  # first: after a kill on the way, no old number is left
    for number, each in enumerate(old):  # a folder whose deletion is stopped is no run's
        shutil.rmtree(each.rename(folder / f".{number}.partial"))
    folders.tie_to_config(folder, _shared(config), fresh)
    texts = unrelated_texts(config.compare.unrelated)
    alone = functools.cache(lambda: cross_entropy(lm, texts, Given()))
    setting = Setting(lm, config, folder, texts, alone, log, enough_memory, [])
    found = [_attempt(setting, row, _all_examples) for row in rows]
    curve, counts = _curve(config, rows)
    for results in [each for each in found if each and each.row.name in curve]:
        for count in counts:
            rate = results.runs[0].config.learning_rate
            found.append(_attempt(setting, results.row, _every_seed, rate, count))
    return [*filter(None, found)], [*dict.fromkeys(setting.failed)]


def check(lm: LanguageModel, config, folder: Path, log: Callable, fresh: bool = False) -> list[Row]:
    """Returns the rows. Raises a UserError before any is run if one of them cannot be run, or was
    run with another config and does not start over (`fresh`)."""
    rows = read_rows(config)
    unrelated_texts(config.compare.unrelated)
    if not fresh and (folder / folders.CONFIG).exists():
        folders.tie_to_config(folder, _shared(config))
    curve, counts = _curve(config, rows)
    repeated = [(row, count) for row in rows if row.name in curve for count in counts]
    if counts and (config.task.target or not repeated):
        why = "a target has no labels" if config.task.target else "no row is trained"
        raise UserError(f"{why}: leave config.compare.examples_per_class out")
    for row, count in [*((row, 0) for row in rows), *repeated]:
        rates = row.rates[: 1 if count else None] or (None,)
        seeds = [(rate, seed) for rate in rates for seed in config.compare.seeds]
        runs = [make_run(config, folder, row, seed, rate, count) for rate, seed in seeds]
        for run in [] if fresh else runs:
            _check_kept(run)
        task = (run := runs[0]).config.task
        _plan(lm, run, "" if count else _calibration_of(config, run), count)
        if count and row is repeated[0][0] and task.validation_per_class < count:
            log(f"each label has {task.validation_per_class} records to validate with, not {count}")
    return rows


def _shared(config):
    """Returns what all rows share: rows, seeds and rates may be added later."""
    own = ("compare", *WAYS.values())
    return configs.build({name: part for name, part in config.to_dict().items() if name not in own})


def _check_kept(run: Run) -> None:
    """Raises a UserError if there is a run of another config in the folder of this one."""
    path = run.folder / folders.CONFIG
    if not path.exists():
        return
    if changes := configs.difference(path.read_text(encoding="utf-8"), run.config):
        name = "give it another name, or " * run.row.is_trained
        raise UserError(
            f"the row {run.row.name!r} has run with another config: {name}delete"
            f" '{run.folder.parent}' to run it again" + "".join(f"\n  {each}" for each in changes)
        )


def _curve(config, rows: Sequence[Row]) -> tuple[list[str], list[int]]:
    """Returns the rows that are repeated with few examples, and with how many of each label."""
    names = config.compare.curve or [row.name for row in rows if row.is_trained]
    return [*names], [count for count in config.compare.examples_per_class if count]


def _plan(lm: LanguageModel, run: Run, calibrate: str, count: int) -> None:
    """Raises a UserError if a row cannot be run, calibrated or repeated with `count` examples of a
    label; its teacher, if any, is not asked."""
    config = run.config.copy_and_resolve_references()
    try:
        task = tasks.make_task(config.task)
        if run.row.is_trained:
            check_teacher(lm, task, config)
            outline = lm._replace(params=jax.eval_shape(lambda: lm.params))
            if is_taught(config):  # the teacher is not asked: that takes long
                task = start_from_demonstrations(outline, task, config, lambda line: None)[0]
                *_, given = train.make_step(outline, task, config)
                rows = tasks.training_records(task, config.task, labelled=False)[:1]
                scoring.encode_for(outline, task, rows, given, config.task.max_length)
            else:
                train.plan(outline, task, config, lambda line: None)
            return
        api.held_out(task, config, calibrate)
        if run.row.name == "searched prompt":
            search.begin(lm, task, config, lambda line: None)
        elif run.row.name == "written prompt" and not config.prompts:
            raise UserError("it has no prompt: give config.prompts")
        elif run.row.name == "demonstrations" and not _shown(lm, task, config, lambda line: None):
            raise UserError("it has none: give demonstrations.number")
        else:
            rows, most = _read_by(task, config), config.task.max_length
            for prompt in config.prompts or [""]:
                asked = task._replace(template=with_prompt(task.template, prompt))
                scoring.encode_for(lm, asked, rows, NOTHING, most)
    except UserError as error:
        few = f" with {count} examples of each label" * bool(count)
        more = ", or config.compare.calibrate='texts'" * ("calibration.split" in str(error))
        raise UserError(f"the row {run.row.name!r}{few}: {error}{more}") from error


def _read_by(task: tasks.Task, config) -> list[Record]:
    """Returns the records that a row without training is scored or calibrated on."""
    held = api.held_out(task, config, "texts")[1]
    rows = [*tasks.validation_records(task, config.task), *held]
    return rows + tasks.select_records(task, config.task.test)


def _shown(lm: LanguageModel, task: tasks.Task, config, log: Callable) -> Sequence[Record]:
    """Returns the demonstrations of a row: the same in front of all records that it reads."""
    chosen, rows = training_demonstrations(task, config), _read_by(task, config)
    task = task._replace(template=with_prompt(task.template, ""))
    return scoring.fitting(lm, task, rows, chosen, log, config.task.max_length)


def _attempt(setting: Setting, row: Row, run: Callable, *how) -> Compared | None:
    """Returns a row's results, or None if it fails."""
    try:
        return run(setting, row, *how)
    except (RunError, UserError) as error:
        setting.log(f"warning: the row {row.name!r} has failed: {error}")
        setting.failed.append(row.name)
        return None


def _sources(setting: Setting, run: Run, *splits: str) -> str:
    """Returns a digest of the model and of the records that a run reads."""
    task, own = tasks.make_task(run.config.task), run.config.task
    read = [tasks.training_records(task, own, False), tasks.validation_records(task, own, False)]
    read += (tasks.select_records(task, name, labelled=False) for name in splits)
    return digest(setting.lm.fingerprint, *read)


def _all_examples(setting: Setting, row: Row) -> Compared:
    """Tries the learning rates with the first seed, and goes on with the best one and all seeds."""
    seed = setting.config.compare.seeds[0]
    runs = [make_run(setting.config, setting.folder, row, seed, rate) for rate in row.rates]
    tried: list[tuple[float, dict[str, Any]]] = []
    # Where a rate was once the only one, its run is whole, and then the others are compared whole.
    whole = any((run.folder / FOUND).exists() and not (run.folder / TRIED).exists() for run in runs)
    for run in runs:
        try:
            found = _find(setting, run, 0 if whole else trial_steps(row, run.config))
            tried.append((run.config.learning_rate, found))
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
    for run in runs:
        if run.config.learning_rate != rate:
            _clear(run)
    return _every_seed(setting, row, rate)._replace(tried=tried)


def trial_steps(row: Row, config) -> int:
    """Returns how many steps each of a row's rates is tried for: at most half of all, and up to a
    validation. 0 is all: there is one rate, or no such validation."""
    every = config.evaluate_every or config.steps
    return (len(row.rates) > 1) * (config.steps // 2 // every * every)


def _order(found: Mapping[str, Any], by_accuracy: bool) -> tuple[float, ...]:
    """Returns a key that is lower for what is better on the validation split."""
    return (-found["accuracy"] if by_accuracy and "accuracy" in found else 0, found["loss"])


def _every_seed(
    setting: Setting, row: Row, rate: float | None = None, examples: int = 0
) -> Compared:
    seeds = setting.config.compare.seeds
    if not row.is_trained and row.name != "demonstrations":
        seeds = seeds[:1]  # the others would be the same, and another search takes half an hour
    runs = [make_run(setting.config, setting.folder, row, seed, rate, examples) for seed in seeds]
    found = [_find(setting, run) for run in runs]
    # At the end: nothing above has seen the test split.
    test, unrelated = [], digest(*setting.texts)
    for run, each in zip(runs, found, strict=True):
        own = {"calibration": _calibration_of(setting.config, run), "unrelated": unrelated}
        splits = filter(None, (run.config.task.test, run.config.calibration.split))
        own["sources"] = _sources(setting, run, *splits)
        make = functools.partial(_test, setting, run, each)
        with setting.enough_memory(run.config):
            test.append(_kept(run.folder / TEST, make, **own))
    return Compared(row, examples, runs, found, test)


def _kept(path: Path, make: Callable[[], dict[str, Any]], **settings: str) -> dict[str, Any]:
    """Returns the values of a JSON file. Makes it first if it is missing or of other settings."""
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing, or damaged
        kept = dict(json.loads(path.read_text(encoding="utf-8")))
    if not kept or kept | settings != kept:
        kept = make() | settings
        atomic_write(path, (json.dumps(kept) + "\n").encode())
    return kept


def _find(setting: Setting, run: Run, until: int = 0) -> dict[str, Any]:
    """Returns what a run found, after `until` steps or after all (0). Runs it if its folder has
    no result yet."""
    folders.tie_to_config(run.folder, run.config)
    find = functools.partial(_train, until=until) if run.row.is_trained else _choose
    # Records that calibrate do not choose: with another calibration, others choose.
    own = {} if run.row.is_trained else {"calibration": _calibration_of(setting.config, run)}
    own["sources"] = _sources(setting, run)
    with setting.enough_memory(run.config):
        found = _kept(run.folder / (TRIED if until else FOUND), lambda: find(setting, run), **own)
    if not until:
        _clear(run)
    return found


def _clear(run: Run) -> None:
    """Deletes what a run needs to go on."""
    for name in (folders.CHECKPOINTS, folders.TENSORBOARD):  # gigabytes for a whole model
        shutil.rmtree(run.folder / name, ignore_errors=True)
    (run.folder / folders.SEARCH).unlink(missing_ok=True)  # with other data, it would be in the way


def _train(setting: Setting, run: Run, until: int) -> dict[str, Any]:
    """Trains a run. Keeps its artifact, unless it only goes to step `until` for now."""
    config, task = run.config, tasks.make_task(run.config.task)
    setting.log(f"\n{run.folder}")
    result = train.tune(setting.lm, task, config, run.folder, setting.log, until=until)
    if not result.finished:
        raise KeyboardInterrupt(result.saved)
    validated = [line for line in result.history if "validation/loss" in line]
    step, steps = result.artifact.manifest["metrics"]["step"], validated[-1]["step"]
    best = next(line for line in validated if line["step"] == step)
    found = {"loss": best["validation/loss"], "best_step": step, "seconds": result.seconds}
    if "validation/accuracy" in best:
        found["accuracy"] = best["validation/accuracy"]
        enough = NEAR * max(line["validation/accuracy"] for line in validated)
        near = next(line["step"] for line in validated if line["validation/accuracy"] >= enough)
        found["near_best_seconds"] = result.seconds * near / steps
    if until:
        return found
    api.save(result.artifact, run.folder / folders.ARTIFACT)
    own = _bytes(from_tensors(result.artifact.tensors).params)
    rows = tasks.training_records(task, config.task, labelled=False)
    held_out = tasks.validation_records(task, config.task, labelled=False)
    return found | {
        "parameters": result.trainable_parameters,
        "bytes": (run.folder / folders.ARTIFACT / TENSORS).stat().st_size,
        # Without the leaves that the artifact replaces.
        "model_bytes": max(_bytes(setting.lm.params) - own, 0),
        "train_examples": len(rows),
        "examples": len(rows) + len(held_out),
        "step_seconds": result.step_seconds / steps,
        "memory": result.memory,
    }


def _bytes(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _choose(setting: Setting, run: Run) -> dict[str, Any]:
    """Scores a row without training, on the validation records that do not calibrate. Of several
    written prompts it takes the best."""
    config, task, took = run.config, tasks.make_task(run.config.task), 0.0
    setting.log(f"\n{run.folder}")
    found: dict[str, Any] = {"examples": 0, "bytes": 0, "parameters": 0}
    candidates: Sequence[dict[str, Any]] = [{}]
    if run.row.name == "written prompt":
        candidates = [{"prompt": prompt} for prompt in config.prompts]
    elif run.row.name == "searched prompt":
        searched = search.run(setting.lm, task, config, run.folder, setting.log)
        if not searched.finished:
            raise KeyboardInterrupt(searched.saved)
        api.save(searched.artifact, run.folder / folders.ARTIFACT)
        candidates = [{"prompt": searched.template}]
        took = searched.seconds
        rows = tasks.training_records(task, config.task)
        found["examples"] = len(rows) + len(tasks.validation_records(task, config.task))
    elif run.row.name == "demonstrations":
        shown = _shown(setting.lm, task, config, setting.log)
        texts = [text for each in shown for text in each.values()]
        found |= {"examples": len(shown), "bytes": sum(len(text.encode()) for text in texts)}
        candidates = [{"demonstrations": len(shown)}]
    rows, scored = api.held_out(task, config, _calibration_of(setting.config, run))[0], []
    began = time.perf_counter()
    for each in candidates:
        given = _score(setting, task, run, each, rows)
        scored.append(each | scoring.loss_and_accuracy(given.scores, given.answers))
    best = min(scored, key=lambda each: _order(each, by_accuracy=True))
    if "prompt" in best:
        found["bytes"] = len(best["prompt"].encode())
    found["examples"] += best.pop("examples") * (len(candidates) > 1)
    took += time.perf_counter() - began
    return found | {"model_bytes": _bytes(setting.lm.params), "seconds": took} | best


def _calibration_of(config, run: Run) -> str:
    """Returns how a row is calibrated, if at all. A searched prompt is chosen on the whole
    validation split, so none of that is left."""
    if run.row.is_trained or run.row.name == "searched prompt" or run.config.task.target:
        return ""
    return str(config.compare.calibrate)


def _score(setting: Setting, task: tasks.Task, run: Run, found: Mapping[str, Any], split):
    """Scores a split, or records of one, as a run uses the model."""
    how: dict[str, Any] = {"max_length": run.config.task.max_length}
    if run.row.is_trained:
        how = {"artifact": load_artifact(run.folder / folders.ARTIFACT)}
    elif "demonstrations" in found:
        shown = training_demonstrations(task, run.config)[: found["demonstrations"]]
        how["demonstrations"] = shown
    else:
        how["prompt"] = found.get("prompt")
    return api.label_scores(setting.lm, task, split=split, log=setting.log, **how)


def _test(setting: Setting, run: Run, found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `values` on the test split, which are 1 and 0 for right and wrong labels, or the
    log-probabilities of texts; the same as calibrated, if a row is; and forgetting."""
    task, kind = tasks.make_task(run.config.task), _calibration_of(setting.config, run)
    setting.log(f"{run.folder}: scoring {run.config.task.test}")
    scored = _score(setting, task, run, found, run.config.task.test)
    if lost := scored.counts.get("shortened"):
        examples = f"{lost} of {len(scored.answers)} examples"
        setting.log(f"warning: {run.folder}: {examples} were too long and lost their end")
    result: dict[str, Any] = {"values": _values(scored.scores, scored.answers)}
    if kind:
        ranking, held = api.held_out(task, run.config, kind)
        made = calibration.fit(kind, *_score(setting, task, run, found, held)[:2])
        result["calibrated"] = _values(made.apply(scored.scores), scored.answers)
        # By texts, the records that ranked the prompts calibrate too, and count once.
        is_read = held == ranking and run.row.name == "written prompt" and found["examples"]
        result["calibrated_by"] = 0 if is_read else len(held)
    tensors = load_artifact(run.folder / folders.ARTIFACT).tensors if run.row.is_trained else {}
    if setting.texts and (run.row.is_trained or run.row.name == "no prompt"):
        with_it = cross_entropy(setting.lm, setting.texts, from_tensors(tensors))
        result["forgetting"] = with_it - setting.alone()
    return result


def _values(scores: np.ndarray, answers: np.ndarray) -> list[float]:
    is_right = (scores.argmax(1) == answers).astype(int)
    return (is_right if scores.shape[1] > 1 else scores[:, 0]).tolist()
