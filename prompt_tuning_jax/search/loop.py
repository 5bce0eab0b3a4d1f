"""The loop of every search: propose, score on training examples, keep the best by other examples,
go on from the best on the validation split. A prompt counts as its text is tokenised again."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax import search
from prompt_tuning_jax.data import batch as batching
from prompt_tuning_jax.data.encode import count_shortened
from prompt_tuning_jax.data.records import digest
from prompt_tuning_jax.data.task import Task, training_records, validation_records
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.exchange import keep_prompt
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import NOTHING
from prompt_tuning_jax.run.artifact import Artifact
from prompt_tuning_jax.run.folder import SEARCH, tie_to_config
from prompt_tuning_jax.run.processes import stop_requested
from prompt_tuning_jax.run.progress import Progress
from prompt_tuning_jax.score import finite, loss_and_accuracy, score
from prompt_tuning_jax.search.score import Part, label_loss, loss_gradient, score_prompts
from prompt_tuning_jax.search.text import Place, find_place, first_prompt
from prompt_tuning_jax.search.words import find_words
from prompt_tuning_jax.storage import atomic_write

SCORED_AGAIN = 4  # prompts of a round that are scored on further examples, with its first one
VALIDATED = 2  # the best of these, at most


class Scored(NamedTuple):
    """Prompts int[n, P], and their losses float[n] on the same examples."""

    prompts: np.ndarray
    losses: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """The prompt with the lowest loss, the first of equals."""
        return self.prompts[self.losses.argmin()]


class Found(NamedTuple):
    """What `run` returns."""

    prompt: str  # the text of the prompt that is the best on the validation split
    template: str  # the template with it, as `evaluate --prompt` takes it
    artifact: Artifact  # of this template, without tensors
    # Of each prompt that was validated, the start first: round, ids, prompt, template, and by the
    # validation split accuracy, nats (as `evaluate` gives them) and loss (nats among the labels).
    history: list[dict[str, Any]]
    finished: bool  # false if the search was stopped
    seconds: float  # of all starts together
    saved: bool = True  # false if its end could not be written to the folder


def run(
    lm: LanguageModel,
    task: Task,
    config: Any,
    folder: Path | None = None,
    log: Callable = print,
    fresh: bool = False,
) -> Found:
    """Searches for a prompt as `config.search` says. The test split is not read.

    With a folder a search that was stopped goes on there, and ends as if it had not been; `fresh`
    starts over.

    Raises:
      UserError: the task has no labels, or the start, its template or the words do not fit.
    """
    settings = config.search
    rows, held_out = training_records(task, config.task), validation_records(task, config.task)
    first, place, state, take_round = begin(lm, task, config, log)
    if folder:
        tie_to_config(Path(folder), config, fresh)
    # All that a search needs to go on.
    now: dict[str, Any] = {"sources": [lm.fingerprint, digest(rows, held_out)], "round": 0}
    now |= {"state": state, "scored": [], "history": [], "left_out": 0, "seconds": 0.0}
    now |= restore(folder, now["sources"], log)
    began, saved = time.perf_counter() - now["seconds"], True
    progress = Progress("prompts scored", log)
    if not now["history"]:
        starts = [first, np.array(state.get("prompt", first))]
        # A given text is the start. Drawn words are not, if there is a `start_file`.
        starts = starts if settings.start else starts[::-1]
        validate(place, held_out, filter(place.reads_as, starts), now, log)
    with stop_requested(log) as stopping:
        while now["round"] < settings.rounds and not stopping:
            scored, count = take_round(now, Scored(*map(np.array, now["scored"])))
            # About as many in each round that is left.
            progress.total = progress.done + count * (settings.rounds - now["round"])
            now["scored"], now["round"] = [part.tolist() for part in scored], now["round"] + 1
            progress.add(count)
            due = now["round"] == settings.rounds or now["round"] % settings.validate_every == 0
            if due:
                order = scored.losses.argsort(kind="stable")[:VALIDATED]
                validate(place, held_out, scored.prompts[order], now, log)
            now["seconds"] = time.perf_counter() - began
            if folder and (due or stopping):
                try:
                    atomic_write(Path(folder, SEARCH), json.dumps(now).encode())
                    saved = True
                except OSError as error:
                    log(f"warning: round {now['round']} could not be saved ({error.strerror}).")
                    saved = False
    if stopping:  # not in the file: a search that goes on ends as if it had not been stopped
        now = now | {"history": [*now["history"]]}
        validate(place, held_out, [Scored(*map(np.array, now["scored"])).best], now, log)
    if now["left_out"]:
        log(f"{now['left_out']} prompts were left out: their text is read as other tokens")
    by_accuracy = config.best_by == "accuracy"
    best = min(now["history"], key=lambda e: (-e["accuracy"] * by_accuracy, e["loss"]))
    artifact = keep_prompt(lm, place.task, config, best["template"])
    metrics = {"validation_loss": best["nats"], "validation_accuracy": best["accuracy"]}
    artifact = artifact._replace(manifest=artifact.manifest | {"metrics": metrics})
    end = now["history"], now["round"] == settings.rounds, now["seconds"], saved
    return Found(best["prompt"], best["template"], artifact, *end)


def rehearse(lm: LanguageModel, task: Task, config: Any, log: Callable) -> float:
    """Returns about how many seconds a search takes, by a round and a validation."""
    first, place, state, take_round = begin(lm, task, config, log)
    held_out, settings = validation_records(task, config.task), config.search
    for _ in range(2):  # the first compiles
        now, began = {"state": state, "round": 0, "history": [], "left_out": 0}, time.perf_counter()
        take_round(now, Scored(first[None], np.zeros(1)))
        scored = time.perf_counter()
        validate(place, held_out, [first], now, lambda line: None)
        validated = (time.perf_counter() - scored) * VALIDATED / settings.validate_every
    return settings.rounds * (scored - began + validated)


def begin(lm: LanguageModel, task: Task, config: Any, log: Callable) -> tuple:
    """Returns the first prompt, its place, the state of the search, and the function that runs a
    round; raises a UserError if they do not fit."""
    if task.target or config.demonstrations.number:
        given = "config.task.target" if task.target else "config.demonstrations.number"
        raise UserError(f"a search ranks labels behind a prompt alone: leave out {given}")
    settings, rows = config.search, training_records(task, config.task)
    place = find_place(lm, task, rows[0], settings, config.task.max_length)
    words = find_words(lm, settings.words_only, " {soft}" in place.task.template)
    first, place = first_prompt(place, settings, words, np.random.default_rng(config.seed))
    state, propose = search.SEARCHES[settings.name].make(settings, words, first)
    part_of = plan(place, rows, len(first), config, log)
    return first, place, state, make_round(place, config, propose, part_of)


def make_round(place: Place, config: Any, propose: Callable, part_of: Callable) -> Callable:
    """Returns the function that runs a round, given what is known and the last round's prompts. It
    returns the best of these and the best new ones, scored again, and how many were scored."""
    settings, lm = config.search, place.lm
    guided = getattr(search.SEARCHES[settings.name], "GUIDED", True)

    def losses(prompts, part):
        scores, own = score_prompts(lm, prompts, part)
        loss = label_loss(finite(lm, scores), part.answers)
        return np.asarray(loss + settings.fluency * own, np.float64)

    def take_round(now, scored):
        rng = np.random.default_rng([config.seed, now["round"]])
        new, *others = (part_of(now["round"], number) for number in range(1 + settings.again))
        at = np.array(now["state"].get("prompt", scored.best))
        gradient = loss_gradient(lm, at, new) if guided else None
        now["state"], made = propose(now["state"], rng, scored, gradient)
        made = np.unique(made[(made != scored.best).any(1)], axis=0)
        readable = [prompt for prompt in made if place.reads_as(prompt)]
        now["left_out"] += len(made) - len(readable)
        best = [scored.best]
        if readable:
            order = losses(np.array(readable), new).argsort(kind="stable")[: SCORED_AGAIN - 1]
            best += filter(place.reads_as, join(scored.best, [readable[n] for n in order]))
        found = np.array(best)
        count = len(readable) + len(found) * settings.again
        return Scored(found, np.mean([losses(found, part) for part in others], axis=0)), count

    return take_round


def validate(place: Place, rows, prompts: Iterable, now: dict[str, Any], log: Callable) -> None:
    """Adds entries to the history, the scores of prompts' texts alone, and goes on from its best:
    few examples also accept worse prompts, and without this, a search drifts away."""
    for ids in map(np.ndarray.tolist, prompts):
        if ids in [entry["ids"] for entry in now["history"]]:
            continue
        text, template = place.write(np.array(ids))
        examples = place.encode(rows, template)
        if not now["history"] and (lost := count_shortened(examples)[0]):
            log(f"warning: {lost} validation examples were too long and lost their end")
        scores = finite(place.lm, score(place.lm, examples, NOTHING))
        answers = np.array([example.answer for example in examples])
        nats, accuracy, _ = loss_and_accuracy(scores, answers).values()
        loss = float(label_loss(scores, answers))
        entry = {"round": now["round"], "ids": ids, "prompt": text, "template": template}
        now["history"].append(entry | {"loss": loss, "nats": nats, "accuracy": accuracy})
        losses = f"loss {nats:.3f}, {loss:.3f} among the labels"
        log(f"after round {now['round']}, validation {accuracy:.1%}, {losses}: {text!r}")
    now["scored"] = [[min(now["history"], key=lambda entry: entry["loss"])["ids"]], [0.0]]


def plan(place: Place, rows, size: int, config: Any, log: Callable) -> Callable:
    """Returns a function that packs the examples of one part of a round; both count from 0."""
    settings, labels = config.search, len(place.task.labels)
    examples, each = place.encode(rows, place.written, size), 1 + settings.again
    if lost := count_shortened(examples)[0]:
        log(f"warning: {lost} training examples were too long and lost their end")
    order = batching.make_order(len(examples), config.seed)
    if (shared := batching.shared_length(examples)) < place.begin + size:
        empty = "a record to train on is empty, and no text stands behind the prompt"
        raise UserError(f"{empty}: remove the record, or end config.search.template in a text")
    steps = range(settings.rounds * each)
    planned = np.stack([batching.batch_indices(order, step, settings.examples) for step in steps])
    shapes = batching.plan_shapes(examples, planned, shared, ranked=True)
    log(f"{len(rows):,} examples; the prompt is {size} of the {shared} tokens in front of all")

    def part_of(number: int, which: int) -> Part:
        chosen = [examples[index] for index in planned[number * each + which]]
        answers = np.array([example.answer for example in chosen])
        return Part(batching.pack_batch(chosen, shared, shapes, ranked=True), answers, labels)

    return part_of


def join(prompt: np.ndarray, ranked: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the prompts, the best first. Each takes over the changes to `prompt` of those before
    it and adds its own; where two change one place, the better prompt's change stays."""
    return [*accumulate(ranked, lambda best, other: np.where(best == prompt, other, best))]


def restore(folder: Path | None, sources: Sequence[str], log: Callable) -> dict[str, Any]:
    """Returns what a search that was stopped left in its folder, if any."""
    if not folder or not (path := Path(folder, SEARCH)).exists():
        return {}
    again = "give another --workdir, or --fresh to start over here"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["sources"] != sources:
            raise UserError(f"the model or the data of '{folder}' changed: {again}")
        log(f"going on after round {saved['round']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is damaged: {again}") from error
    return dict(saved)
