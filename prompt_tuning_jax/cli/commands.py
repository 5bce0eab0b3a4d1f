"""What the commands do, once the command line is understood. Text for people goes to stdout."""

import contextlib
import functools
import itertools
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import jaxlib

from prompt_tuning_jax import api, generate
from prompt_tuning_jax import config as configs
from prompt_tuning_jax import storage as cache
from prompt_tuning_jax.cli import dry_run
from prompt_tuning_jax.cli import written_prompts as written
from prompt_tuning_jax.cli.output import spoken
from prompt_tuning_jax.data.demonstrations import Wanted, choose
from prompt_tuning_jax.data.prediction_input import input_form, prediction_records
from prompt_tuning_jax.data.records import PLACE, task_fields
from prompt_tuning_jax.data.rows import Form, is_object, read_rows
from prompt_tuning_jax.data.task import (
    check_fields,
    make_task,
    select_records,
    template_fields,
    training_records,
)
from prompt_tuning_jax.data.template import check_slots, field_names, with_prompt
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.models.language_model import LanguageModel, load
from prompt_tuning_jax.run import artifact, card, environment, processes, report
from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.run import warnings as advice
from prompt_tuning_jax.run.progress import watched
from prompt_tuning_jax.train import Result, tune

INTERRUPTED = 75


def train(config, folder: str, fresh: bool, command: list[str]) -> int:
    """Tunes, evaluates and writes the report; the same command again goes on where it stopped.

    Args:
      config: checked, with the keys of `config.KEYS`.
      folder: of the run.
      fresh: start over where the folder holds a run.
      command: as it was typed, to be shown to a person who stopped it.

    Returns:
      Exit status: 0 done, 75 interrupted and saved.
    """
    with processes.joined() as first:
        return lead(config, folder, fresh, command) if first else follow(config)


def lead(config, folder: str, fresh: bool, command: list[str]) -> int:
    """`train` in a process alone, or in the first of several."""
    with workdir.claim(folder) as run, environment.recorded(run, command) as start:
        if not fresh and (run / workdir.CONFIG).exists():
            workdir.settle(run, config)
        task = make_task(config.task)
        check_report(task, config)
        lm = load_model(config)
        say(machine(lm))
        with enough_memory(config):
            result = tune(lm, task, config, run, say, fresh)
        words = [*program_of(command), *command[1:]]
        again = shlex.join(word for word in words if word != "--fresh")
        if not result.finished:
            return stopped(result, again, start)
        kept = run / workdir.ARTIFACT
        try:
            with needed(kept, again):
                api.save(result.artifact, kept)
            rows = reported(lm, task, config, result, run, again)
        except KeyboardInterrupt:
            return stopped(result, again, start)
        start |= {"outcome": "finished", "seconds": {row.name: row.seconds for row in rows}}
        program = ["prompt-tuning"] if shutil.which("prompt-tuning") else program_of(command)
        asking = card.asking(config.task.template, shlex.join(program), str(kept))
        say(f"next:   {asking}")
    return 0


def program_of(command: Sequence[str]) -> list[str]:
    """How the program is typed: `python -m` hands over the path of a file that is none."""
    if command[0].endswith(".py") and not os.access(command[0], os.X_OK):
        return [sys.executable, "-m", "prompt_tuning_jax.cli.main"]
    return [command[0]]


def stopped(result: Result, again: str, start: dict[str, Any]) -> int:
    """Says how to go on with what has been trained, and gives the exit status."""
    if not result.saved:
        raise RunError(
            f"stopped and not saved: make room; this goes on from the last save: {again}"
        )
    start["outcome"] = "stopped"
    say(f"saved; this goes on from here:\n  {again}")
    return INTERRUPTED


def reported(lm: LanguageModel, task, config, result: Result, run: Path, again: str):
    """Scores what was tuned, and writes and says the report; gives back its rows."""
    kept = run / workdir.ARTIFACT
    say(f"scoring {config.task.test}")
    rows = compare(lm, task, config, result, kept)
    say("")
    with spoken():
        report.table(rows)
    with needed(run / workdir.REPORT, again):
        report.write_report(run / workdir.REPORT, rows)
    with spared(kept / card.CARD):
        artifact.write_card(result.artifact, kept, rows)
    with spared(run / workdir.CURVES):
        report.curves(run / workdir.METRICS, run / workdir.CURVES)
        say(f"\ncurves: {run / workdir.CURVES}")
    return rows


def follow(config) -> int:
    """`train` in the other processes: steps with the first, says nothing and keeps nothing."""
    with enough_memory(config):
        result = tune(load_model(config), make_task(config.task), config, log=lambda line: None)
    return 0 if result.finished else INTERRUPTED


def rehearse(config, folder: str | None, fresh: bool) -> dict[str, Any]:
    """Everything but training, as `dry_run.measure` says it; refuses what `train` would refuse and
    writes nothing. `folder` and `fresh` are as for `train`, or None for no folder."""
    if folder is not None and not fresh and (Path(folder) / workdir.CONFIG).exists():
        workdir.settle(Path(folder), config)
    task = make_task(config.task)
    check_report(task, config)
    lm = load_model(config)
    say(machine(lm))
    with enough_memory(config):
        return dry_run.measure(lm, task, config, say)


@contextlib.contextmanager
def needed(path: Path, again: str):
    """Turns the disk's refusal of what a run is for into a sentence that says what to type."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} could not be written ({error.strerror}): make room; this goes on from the last"
            f" save: {again}"
        ) from error


@contextlib.contextmanager
def spared(path: Path):
    """Turns the disk's refusal of what a run can do without into a warning."""
    try:
        yield
    except OSError as error:
        say(f"warning: {path} could not be written ({error.strerror}).")


@contextlib.contextmanager
def enough_memory(config):
    """Turns a device's refusal of memory into a sentence that says what to type."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            f"the device has too little memory for a step: {dry_run.smaller(config)}."
        ) from error


def check_report(task, config):
    """Raises a UserError for what only the report reads, before the time for training is spent."""
    fields = template_fields(task, select_records(task, config.task.test)[0])
    for prompt in config.prompts:
        check_prompt(task, prompt, fields)
    warn_of_overlap(task, config, config.task.test)


def warn_of_overlap(task, config, split: str):
    """Says how many records of a split are trained on."""
    rows, trained = select_records(task, split), training_records(task, config.task)
    if warning := advice.trained_on(rows, trained, field_names(task.template), split):
        say(f"warning: {warning}")


def check_prompt(task, prompt: str, fields, place: str = ""):
    """Raises a UserError, which begins with `place`, for a written prompt that does not fit."""
    try:
        written_out = with_prompt(task.template, prompt)
        check_fields(written_out, fields)
        check_slots(written_out, 0)
    except UserError as error:
        raise UserError(f"{place}{error}") from error


def compare(lm: LanguageModel, task, config, result: Result, kept: Path) -> list[report.Row]:
    """Rows of the report on the test split: no prompt, the written prompt that is best on the
    validation split (by accuracy, or without labels by loss), and what was tuned."""

    def row(name, trained, size, seconds, **how):
        found = api.evaluate(lm, task, split=config.task.test, generation=None, log=say, **how)
        accuracy = found.get("accuracy")
        if "shortened" in found:
            counts = f"{found['shortened']} of {found['examples']}"
            say(f"warning: {name}: {counts} examples were too long and lost their end")
        loss = found["loss"] if accuracy is None else None
        return report.Row(name, accuracy, trained, size, seconds, loss)

    def merit(prompt):
        found = api.evaluate(
            lm, task, split=config.task.validation, prompt=prompt, generation=None, log=say
        )
        return found.get("accuracy", -found["loss"])

    rows = [row("no prompt", 0, 0, 0.0)]
    if config.prompts:
        began = time.perf_counter()
        best = max(config.prompts, key=merit)
        ranked = time.perf_counter() - began if len(config.prompts) > 1 else 0.0
        rows.append(row("written prompt", 0, len(best.encode()), ranked, prompt=best))
    size = (kept / artifact.TENSORS).stat().st_size
    name = config.method.name.replace("_", " ")
    trained = result.trainable_parameters
    rows.append(row(name, trained, size, result.seconds, artifact=result.artifact))
    return rows


def evaluate(
    config,
    folder: str | None,
    prompt: str | None,
    split: str | None = None,
    wanted: Wanted | None = None,
) -> dict[str, Any]:
    """Scores an artifact, a written prompt, or the model alone; `config` is None with an artifact
    that brings its own; the split is `config.task.test` unless given; `wanted` demonstrations stand
    in front where there is no artifact."""
    made = None if folder is None else artifact.load(folder)
    own = config is None
    if own:
        config = configs.of_artifact(made.manifest) if made else configs.build({})
    # Labels that a config leaves to the data are those that the artifact was trained for.
    ours = made.manifest["labels"] if made and (own or not config.task.labels) else ()
    task = make_task(config.task, ours)
    split = split or config.task.test
    if made is not None:
        for note in (
            advice.other_template(made.manifest["template"], config.task.template),
            advice.other_labels(made.manifest["labels"], task.labels),
        ):
            if note:
                say(f"warning: {note}")
        if split != config.task.train:
            warn_of_overlap(task, config, split)
    if prompt is not None:
        check_prompt(task, prompt, template_fields(task, select_records(task, split)[0]))
    shown = demonstrations(task, config, wanted, split)
    score = scorer(load_model(config), task, config)
    result = score(made, split=split, prompt=prompt, demonstrations=shown)
    say(f"scored {split}")
    for note in task.load().notes:
        say(note)
    left_out([result], wanted)
    return result


def rank(config, path: str, split: str | None, wanted: Wanted | None) -> dict[str, Any]:
    """Ranks the written prompts of a file on the validation split and scores the best on `split`,
    or `config.task.test`.

    Returns:
      prompt, split and metrics of the best; and `candidates`, what each gave on the validation
      split, the best first.
    """
    task, split = make_task(config.task), split or config.task.test
    candidates, counted = written.read_candidates(path)
    fields = template_fields(task, select_records(task, config.task.validation)[0])
    for candidate in candidates:
        check_prompt(task, candidate.text, fields, f"{candidate.place}: ")
    shown = demonstrations(task, config, wanted, config.task.validation, split)
    say(counted)
    scored = scorer(load_model(config), task, config)

    def score(prompt, split=config.task.validation):
        return scored(split=split, prompt=prompt, demonstrations=shown)

    ranking = written.rank(candidates, score, say)
    best = ranking[0]["prompt"]
    result = {"prompt": best, "split": split, **score(best, split), "candidates": ranking}
    left_out([result, *ranking], wanted)
    return result


def scorer(lm: LanguageModel, task, config) -> Callable[..., dict[str, Any]]:
    """`api.evaluate` with all that a config says of it."""
    return functools.partial(
        api.evaluate,
        lm,
        task,
        generation=generate.settings(config.generation),
        seed=config.seed,
        max_length=config.task.max_length,
        log=say,
    )


def demonstrations(task, config, wanted: Wanted | None, *splits: str) -> list[Any]:
    """The demonstrations that are wanted, from the training split; says how many of the records
    that are asked about are among them."""
    if wanted is None:
        return []
    rows = training_records(task, config.task)
    chosen = choose(rows, [value for value, _ in task.labels], wanted)
    shown = [without_place(row) for row in chosen]
    for split in splits:
        known = sum(without_place(row) in shown for row in select_records(task, split))
        if known:
            say(f"warning: {known} records of {split} are demonstrations: they tell the answer")
    return chosen


def without_place(record: Mapping[str, str]) -> dict[str, str]:
    """A record's fields: the same in another file or line is the same record."""
    return {name: text for name, text in record.items() if name != PLACE}


def left_out(results: list[dict[str, Any]], wanted: Wanted | None):
    """Says how many demonstrations the model has no positions for."""
    if wanted is None:
        return
    least = min(result["demonstrations"] for result in results)
    if least < wanted.number:
        say(
            f"warning: {wanted.number - least} of {wanted.number} demonstrations are left out: with"
            " more, the longest example takes more positions than the model has"
        )


def predict(
    folder: str,
    stream: BinaryIO,
    as_json: bool | None,
    overrides: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Yields a label and its probabilities, or a text, for every row; warns of cut ones on stderr.

    Args:
      folder: of the artifact.
      stream: a file or stdin.
      as_json: whether a row is a JSON object or a text; None goes by the file's ending.
      overrides: of `generation.*`, for a task with a target.
    """
    made = artifact.load(folder)
    config = configs.of_artifact(made.manifest, overrides)
    task = make_task(config.task, made.manifest["labels"])
    if overrides and not task.target:
        raise UserError(f"the artifact {folder!r} finds labels, which {overrides[0]!r} is not for")
    template, name = made.manifest["template"], getattr(stream, "name", "<stdin>")
    form = input_form(name, as_json, config.task.files)
    columns = task_fields(config.task).columns
    records = prediction_records(read_rows(stream, name, form), template, columns, form)
    first = next(records, None)
    if first is None:
        print(f"warning: {name} holds no record: nothing is answered", file=sys.stderr)
        return
    if as_json is None and form == Form() and is_object(first[field_names(template)[0]]):
        note = f"warning: {first[PLACE]} is read as a text: for JSON objects give --jsonl"
        print(note, file=sys.stderr)
    counts: Counter[str] = Counter()
    settings = generate.settings(config.generation)
    records = itertools.chain([first], records)
    rows = api.predict(
        load_model(config), task, records, made, generation=settings, seed=config.seed
    )
    for row in watched(rows, "records", functools.partial(print, file=sys.stderr)):
        counts.update(
            rows=1, shortened=int("shortened" in row), unfinished=int(not row.get("finished", True))
        )
        yield row
    for line in cut(counts, settings):
        print(line, file=sys.stderr)


def cut(counts: Mapping[str, int], settings: generate.Settings) -> Iterator[str]:
    """A line for each way in which something was cut."""
    rows, shortened, unfinished = (counts[name] for name in ("rows", "shortened", "unfinished"))
    if shortened:
        yield f"warning: {shortened} of {rows} records were too long and lost their end"
    if unfinished:
        yield (
            f"warning: {unfinished} of {rows} texts were cut: config.generation.max_new_tokens is"
            f" {settings.max_new_tokens}"
        )


def machine(lm: LanguageModel) -> str:
    """One line: the devices, and the rate at which one multiplies large matrices of the model's
    dtype, which is what bounds a step. Takes a tenth of a second."""
    size, dtype = 1536, lm.params["embed"]["embedding"].dtype
    square = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        multiply(square, square).block_until_ready()
        seconds.append(time.perf_counter() - began)
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    rate = 2 * size**3 / min(seconds) / 1e9
    return f"{count} x {kind}, {dtype} matrix products at {rate:,.0f} GFLOP/s"


def load_model(config) -> LanguageModel:
    """The frozen model that a config names; what XLA compiles for it is kept."""
    settings = config.model
    lm = load(
        settings.path,
        dtype=settings.dtype,
        remat=settings.remat,
        matmul_precision=settings.matmul_precision,
    )
    # Behind it: what is refused writes nothing.
    keep_compiled()
    return lm


def keep_compiled():
    """Keeps what XLA compiles, for the next time the same command is typed. A folder for each
    version and host: what another machine compiled has been seen to crash."""
    name = f"{jaxlib.__version__}-{platform.node()}-{platform.machine()}"
    folder = cache.cache_folder() / "compiled" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Tried beforehand: jax warns of each function that it could not keep.
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        cache.warn(error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def say(line: str):
    """A line for people, at once."""
    with spoken():
        print(line, flush=True)
