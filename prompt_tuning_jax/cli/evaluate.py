"""The command `evaluate`: scores an artifact, written prompts, or the model alone on a split."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from prompt_tuning_jax import api, generate
from prompt_tuning_jax import config as configs
from prompt_tuning_jax.cli.machine import load_model
from prompt_tuning_jax.cli.show import print_facts, print_table, say
from prompt_tuning_jax.cli.written_prompts import rank_candidates, read_candidates
from prompt_tuning_jax.data.demonstrations import choose_demonstrations
from prompt_tuning_jax.data.task import (
    check_fields,
    make_task,
    select_records,
    template_fields,
    training_records,
)
from prompt_tuning_jax.data.template import check_slots, field_names, with_prompt
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.run import artifact as artifacts
from prompt_tuning_jax.run import warnings as advice
from prompt_tuning_jax.run.report import FORMATS


def evaluate_split(
    config,
    folder: str | None,
    prompt: str | None,
    split: str | None = None,
) -> dict[str, Any]:
    """Scores an artifact, a written prompt, or the model alone.

    Args:
      config: checked; None is the artifact's own.
      folder: of the artifact, if any.
      prompt: the written prompt, if any.
      split: `config.task.test` unless given.

    Returns:
      what `api.evaluate` returns.
    """
    artifact, known = None, ()
    if folder is not None:
        artifact = artifacts.load_artifact(folder)
        # A config without labels takes those that the artifact was trained for.
        if config is None or not config.task.labels:
            known = artifact.manifest["labels"]
        config = config or configs.from_manifest(artifact.manifest)
    task = make_task(config.task, known)
    split = split or config.task.test
    if artifact is not None:
        for note in (
            advice.other_template(artifact.manifest["template"], config.task.template),
            advice.other_labels(artifact.manifest["labels"], task.labels),
        ):
            if note:
                say(f"warning: {note}")
        if split != config.task.train:
            warn_of_overlap(task, training_records(task, config.task), split)
    if prompt is not None:
        check_prompt(task, prompt, template_fields(task, select_records(task, split)[0]))
    shown = _demonstrations(task, config, split)
    score = _scorer(load_model(config), task, config, shown)
    result = score(artifact, split=split, prompt=prompt)
    say(f"scored {split}")
    for note in task.load().notes:
        say(note)
    return result


def rank_prompts(config, path: str, split: str | None) -> dict[str, Any]:
    """Ranks the written prompts of a file on the validation split, and scores the best one.

    Args:
      config: checked.
      path: of the file.
      split: to score the best prompt on, `config.task.test` unless given.

    Returns:
      prompt, split and metrics of the best one; `candidates` has each prompt with its metrics on
      the validation split, the best first.
    """
    task, split = make_task(config.task), split or config.task.test
    candidates, counted = read_candidates(path)
    fields = template_fields(task, select_records(task, config.task.validation)[0])
    for candidate in candidates:
        check_prompt(task, candidate.text, fields, f"{candidate.place}: ")
    shown = _demonstrations(task, config, config.task.validation, split)
    say(counted)
    scored = _scorer(load_model(config), task, config, shown)

    def score(prompt, split=config.task.validation):
        return scored(split=split, prompt=prompt)

    ranking = rank_candidates(candidates, score, say)
    best = ranking[0]["prompt"]
    result = {"prompt": best, "split": split, **score(best, split), "candidates": ranking}
    return result


def print_result(result: Mapping[str, Any]) -> None:
    """Prints what `evaluate_split` or `rank_prompts` returned, for people."""
    values = dict(result)
    if candidates := values.pop("candidates", None):
        numbers = [n for n in ("accuracy", "loss", "demonstrations") if n in candidates[0]]
        rows = [
            {name: FORMATS.get(name, str)(candidate[name]) for name in numbers}
            | {"prompt": candidate["prompt"].replace("\n", "\\n")}
            for candidate in candidates
        ]
        print_table(rows, texts=["prompt"])
        print()
    print_facts(values)


def check_prompt(task, prompt: str, fields, place: str = ""):
    """Raises a UserError, which begins with `place`, for a written prompt that does not fit."""
    try:
        template = with_prompt(task.template, prompt)
        check_fields(template, fields)
        check_slots(template, 0)
    except UserError as error:
        raise UserError(f"{place}{error}") from error


def warn_of_overlap(task, trained, split: str):
    """Says how many records of a split are among the records `trained`."""
    rows = select_records(task, split)
    if warning := advice.trained_on(rows, trained, field_names(task.template), split):
        say(f"warning: {warning}")


def _demonstrations(task, config, *splits: str) -> list[Any]:
    """Chooses demonstrations; warns if records of `splits` are among them."""
    number = config.demonstrations.number
    if not number:
        return []
    rows, balanced = training_records(task, config.task), bool(task.labels)
    chosen = choose_demonstrations(rows, number, balanced=balanced, seed=config.seed)
    for split in splits:
        warn_of_overlap(task, chosen, split)
    return chosen


def _scorer(lm: LanguageModel, task, config, demonstrations) -> Callable[..., dict[str, Any]]:
    """Returns `api.evaluate` with all that a config says about it."""
    return functools.partial(
        api.evaluate,
        lm,
        task,
        demonstrations=demonstrations,
        generation=generate.read_settings(config.generation),
        seed=config.seed,
        max_length=config.task.max_length,
        log=say,
    )
