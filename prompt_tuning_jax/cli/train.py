"""The command `train`: tunes, evaluates and writes the report; typed again, it goes on."""

import contextlib
import functools
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from prompt_tuning_jax import api
from prompt_tuning_jax.cli.evaluate import check_prompts, rank_prompts, warn_of_seen
from prompt_tuning_jax.cli.machine import describe_machine, enough_memory, load_model
from prompt_tuning_jax.cli.show import print_table, say
from prompt_tuning_jax.data.demonstrations import only_read
from prompt_tuning_jax.data.records import digest
from prompt_tuning_jax.data.task import Task, make_task, select_records
from prompt_tuning_jax.data.template import parse, plain_slot_size, with_prompt
from prompt_tuning_jax.errors import RunError, UserError, quote
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import NOTHING
from prompt_tuning_jax.run import folder as folders
from prompt_tuning_jax.run.artifact import TENSORS, write_card
from prompt_tuning_jax.run.card import CARD, predict_command
from prompt_tuning_jax.run.environment import record_start
from prompt_tuning_jax.run.processes import check_processes, join_processes
from prompt_tuning_jax.run.progress import Progress
from prompt_tuning_jax.run.report import TIME, Row, cells, draw_curves, duration, write_report
from prompt_tuning_jax.score import encode_for
from prompt_tuning_jax.teacher import demonstrations_of, is_taught
from prompt_tuning_jax.train import Result, tune

SAVED = 75  # exit status: interrupted, and saved


def train_and_report(config, folder: str, fresh: bool, command: Sequence[str]) -> int:
    """Tunes, evaluates and writes the report; returns the exit status. A run that was stopped goes
    on in its folder, unless `fresh` starts over."""
    with join_processes() as first:
        if first:
            return _lead(config, folder, fresh, command)
        with enough_memory(config):
            task, lm = make_task(config.task), load_model(config)
            _check_records(lm, task, config)
            result = tune(lm, task, config, log=lambda line: None)
            if result.finished and lm.layout.shards > 1:
                score_rows(lm, task, config, result, None)
        return 0 if result.finished else SAVED


def prepare(
    config, run: Path | None, fresh: bool, searched: str = ""
) -> tuple[LanguageModel, Task]:
    """Returns the model and the task of a config, with the template `searched` in a search, and
    prints the machine. A fault of what only the report reads is found here, and not afterwards."""
    if run is not None and not fresh and (run / folders.CONFIG).exists():
        folders.tie_to_config(run, config)
    if config.demonstrations.number:
        raise UserError(
            f"config.demonstrations.number is {config.demonstrations.number}, and training and"
            " a search have no demonstrations: leave it at 0, and give it to evaluate"
        )
    if not searched and getattr(METHODS[config.method.name], "HAS_SLOTS", False):
        # In a chat they have a place.
        text = config.task.template
        text = "{soft}" * (config.task.as_chat and with_prompt(text, "") == text) + text
        plain_slot_size(parse(text), config.method.num_virtual_tokens)
    task = make_task(config.task)
    task = task._replace(template=searched or task.template)
    prompts = dict.fromkeys(config.prompts, "config.prompts")
    prompts |= {config.teacher.prompt: "config.teacher.prompt"} if config.teacher.prompt else {}
    prompts |= {with_prompt(searched, ""): "config.search.template"} if searched else {}
    check_prompts(task, prompts, config.task.test)
    warn_of_seen(task, config, not is_taught(config))
    if len(config.prompts) > 1:  # which the report ranks
        api.held_out(task, config, None)
    lm, rows = load_model(config), select_records(task, config.task.test)
    for prompt, place in {"": config.task.test, **prompts}.items():
        asked = task._replace(template=with_prompt(task.template, prompt))
        try:
            encode_for(lm, asked, rows[:1] if prompt else rows, NOTHING, config.task.max_length)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
    say(describe_machine(lm))
    return lm, task


def _check_records(lm: LanguageModel, task: Task, config) -> None:
    """Refuses processes that have another config or other records, of the report too."""
    if jax.process_count() > 1:
        splits = config.task.train, config.task.validation, config.task.test
        read = digest(*(select_records(task, split, labelled=False) for split in splits))
        check_processes(config, {"model": lm.fingerprint, "data": read})


def _lead(config, folder: str, fresh: bool, command: Sequence[str]) -> int:
    """Trains in the only process, or in the first of several: the one that prints and writes."""
    with folders.claim(folder) as run, record_start(run, command, say) as start:
        lm, task = prepare(config, run, fresh)
        _check_records(lm, task, config)
        with enough_memory(config):
            result = tune(lm, task, config, run, say, fresh)
        program, again = type_again(command)
        if not result.finished:
            return stopped(result.saved, again, start)
        try:
            rows = _report(lm, task, config, result, run, again)
        except KeyboardInterrupt:
            return stopped(result.saved, again, start)
        start |= {"outcome": "finished", "seconds": {row.name: row.seconds for row in rows}}
        kept = str(run / folders.ARTIFACT)
        say(f"next:   {predict_command(config.task.template, program, kept)}")
    return 0


def type_again(command: Sequence[str]) -> tuple[str, str]:
    """Returns how the program was called, and the command that goes on."""
    program = command[0]
    # `python -m` hands over the path of a file that cannot be executed.
    is_module = program.endswith(".py") and not os.access(program, os.X_OK)
    words = [sys.executable, "-m", "prompt_tuning_jax.cli.main"] if is_module else [program]
    again = [*words, *(word for word in command[1:] if word != "--fresh")]
    return shlex.join(words), " ".join(map(quote, again))


def _report(lm: LanguageModel, task, config, result: Result, run: Path, again: str) -> list[Row]:
    """Writes the artifact, compares it on the test split, and writes and prints the report."""
    kept = run / folders.ARTIFACT
    with writing(kept, again):
        api.save(result.artifact, kept)
    say(f"scoring {config.task.test}")
    began = time.perf_counter()
    rows = score_rows(lm, task, config, result, kept)
    scored = time.perf_counter() - began - sum(row.seconds for row in rows[:-1])
    say("")
    print_table(cells(rows), texts=["name"])
    say(f"{TIME}: training, or ranking several prompts; scoring took {duration(scored)} more")
    with writing(run / folders.REPORT, again):
        write_report(run / folders.REPORT, rows)
    with writing(kept / CARD):
        write_card(result.artifact, kept, rows)
    with writing(run / folders.CURVES):
        draw_curves(run / folders.METRICS, run / folders.CURVES)
        say(f"\ncurves: {run / folders.CURVES}")
    return rows


def score_rows(lm: LanguageModel, task, config, result: Result, kept: Path | None) -> list[Row]:
    """Returns the rows of the report on the test split: no prompt, the best written prompt on the
    validation split, the teacher if any, and what was tuned. A process that only scores with the
    first one has no folder of the artifact (`kept`)."""
    log = say if kept else lambda line: None
    prompts = dict.fromkeys(config.prompts, "config.prompts")
    taught = is_taught(config)
    splits = (2 + bool(prompts) + taught) * (1 + taught)
    total = len(select_records(task, config.task.test)) * splits
    progress = Progress("examples scored", log, total)
    how = {"generation": None, "max_length": config.task.max_length}
    score = functools.partial(api.evaluate, lm, task, **how)

    def row(name, trained, size, seconds, **how):
        found = score(split=config.task.test, log=progress, **how)
        accuracy = found.get("accuracy")
        if "shortened" in found:
            counts = f"{found['shortened']} of {found['examples']}"
            log(f"warning: {name}: {counts} examples were too long and lost their end")
        loss = found["loss"] if accuracy is None else None
        began = time.perf_counter()
        if taught:  # again, for the time without compiling
            score(split=config.task.test, log=progress, **how)
        each = (time.perf_counter() - began) / found["examples"] if taught else None
        return Row(name, accuracy, trained, size, seconds, loss, each)

    rows = [row("no prompt", 0, 0, 0.0)]
    if prompts:
        began, best = time.perf_counter(), next(iter(prompts))
        if len(prompts) > 1:
            held = api.held_out(task, config, None)[0]
            ranked = functools.partial(score, split=held, log=lambda line: None)
            best = rank_prompts(prompts, ranked, log)[0]["prompt"]
        seconds = time.perf_counter() - began
        rows.append(row("written prompt", 0, len(best.encode()), seconds, prompt=best))
    if taught:
        shown, prompt = demonstrations_of(lm, task, config, lambda _: None), config.teacher.prompt
        read = task._replace(template=with_prompt(task.template, prompt))
        texts = [prompt, *(text for each in only_read(read, shown) for text in each.values())]
        length = sum(len(text.encode()) for text in texts)
        rows.append(row("teacher", 0, length, 0.0, prompt=prompt, demonstrations=shown))
    size = (kept / TENSORS).stat().st_size if kept else 0
    name, trained = config.method.name.replace("_", " "), result.trainable_parameters
    rows.append(row(name, trained, size, result.seconds, artifact=result.artifact))
    return rows


def stopped(saved: bool, again: str, start: dict[str, Any]) -> int:
    """Says how to go on with what was found so far, and returns the exit status."""
    if not saved:
        last = f"this goes on from the last save: {again}"
        raise RunError(f"stopped and not saved: free disk space; {last}")
    start["outcome"] = "stopped"
    say(f"saved; this goes on from here:\n  {again}")
    return SAVED


@contextlib.contextmanager
def writing(path: Path, again: str = ""):
    """Turns a failed write into an error that says how to go on (`again`). Without `again` it is a
    warning, for a file that a run can do without."""
    try:
        yield
    except OSError as error:
        wrong = f"{path} could not be written ({error.strerror})"
        if not again:
            say(f"warning: {wrong}.")
            return
        last = f"this goes on from the last save: {again}"
        raise RunError(f"{wrong}: free disk space; {last}") from error
