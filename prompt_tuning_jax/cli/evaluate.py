"""The command `evaluate`: scores an artifact, written prompts, or the model alone on a split."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prompt_tuning_jax import api, exchange, generate
from prompt_tuning_jax.calibration import fit
from prompt_tuning_jax.cli.exchange import keep
from prompt_tuning_jax.cli.machine import find_artifact, load_model
from prompt_tuning_jax.cli.show import print_facts, print_table, say
from prompt_tuning_jax.config import from_manifest
from prompt_tuning_jax.config.read import parse_json
from prompt_tuning_jax.data import task as tasks
from prompt_tuning_jax.data.demonstrations import training_demonstrations
from prompt_tuning_jax.data.records import digest
from prompt_tuning_jax.data.rows import open_file, read_lines
from prompt_tuning_jax.data.template import field_names, parse, plain_slot_size, with_prompt
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.artifact import MANIFEST, PROMPTED, load_artifact
from prompt_tuning_jax.run.processes import check_processes
from prompt_tuning_jax.run.progress import with_progress
from prompt_tuning_jax.run.report import FORMATS
from prompt_tuning_jax.run.warnings import other_task, trained_on
from prompt_tuning_jax.score import fitting
from prompt_tuning_jax.storage import sha256

_EVEN = "texts without their labels: this assumes that each label is equally frequent in them"


def evaluate_split(
    config,
    folder: str | None,
    prompt: str | None,
    path: str | None,
    split: str | None,
    calibrate: str | None,
    out: str | None,
    parallel: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores the artifact in `folder`, a written prompt, the best prompt of the file `path`, or the
    model alone on a split. Without a config, the artifact's own is used, with the
    overrides `parallel`. Keeps prompt and calibration in the folder `out`, if any. Returns what
    `api.evaluate` returns; with a file also prompt, split, and `candidates`, each prompt with its
    metrics on validation, the best first."""
    artifact, known, seal = None, (), ""
    if folder is not None:
        artifact = load_artifact(folder := find_artifact(folder))
        seal = sha256(f"{folder}/{MANIFEST}")  # which has the digest of the tensors
        # A config without labels takes those that the artifact was trained for.
        if config is None or not config.task.labels:
            known = artifact.manifest["labels"]
        config = config or from_manifest(artifact.manifest, parallel)
    task, split = tasks.make_task(config.task, known), split or config.task.test
    ranking, held = _held_out(task, config, path, calibrate, split)
    prompts, counted = {} if prompt is None else {prompt: "--prompt"}, ""
    if path is not None:
        prompts, counted = read_prompts(path)
    if prompts:
        check_prompts(task, prompts, config.task.validation if path else split)
    if artifact is not None:
        _warn_of_differences(artifact.manifest, task, config, split, calibrate)
    rows = [*ranking, *held, *tasks.select_records(task, split)]
    demonstrations = training_demonstrations(task, config, prompts, scored=rows)
    lm = load_model(config)
    read = digest([*prompts], rows, demonstrations, calibrate, seal)
    check_processes(config, {"model": lm.fingerprint, "data": read})
    use = functools.partial(_use, lm, task, config, rows, demonstrations)
    drawn = {"generation": generate.Settings(**config.generation), "seed": config.seed}
    score = functools.partial(api.evaluate, lm, task, artifact=artifact, **drawn)
    result: dict[str, Any] = {}
    if path is not None:
        say(counted)
        rank = functools.partial(score, split=ranking, generation=None)  # no metrics of texts
        quiet = functools.partial(use, log=lambda line: None)
        ranking = rank_prompts(prompts, lambda prompt: rank(**quiet(prompt)), say)
        prompt = ranking[0]["prompt"]
        result = {"candidates": ranking, "prompt": prompt, "split": split}
    calibration, how = None, use(prompt)
    if calibrate is not None:
        scores, answers, _ = api.label_scores(lm, task, artifact, split=held, **how)
        calibration = fit(calibrate, scores, answers)
        say(f"calibrated with {len(held)} {'labelled records' if calibrate == 'labels' else _EVEN}")
    result |= score(split=split, calibration=calibration, **how)
    say(f"scored {split} of {task.name}")
    if out is not None:
        shown = how["demonstrations"]
        kept = artifact or exchange.keep_prompt(lm, task, config, prompt or "", shown)
        own = {"labels": task.labels, "calibration": calibration._asdict()} if calibration else {}
        best = ranking[0] if path else {}
        chosen_by = {f"validation_{n}": best[n] for n in ("loss", "accuracy") if n in best}
        own |= {"metrics": chosen_by} if path else {}
        keep(kept._replace(manifest=kept.manifest | own), out)
    for note in task.load().notes:
        say(note)
    return result


def print_result(result: Mapping[str, Any]) -> None:
    """Prints what `evaluate_split` returned, for people."""
    values = dict(result)
    if candidates := values.pop("candidates", None):
        numbers = [name for name in FORMATS if name in candidates[0]]
        rows = [
            {name: FORMATS[name](candidate[name]) for name in numbers}
            | {"prompt": candidate["prompt"].replace("\n", "\\n")}
            for candidate in candidates
        ]
        print_table(rows, texts=["prompt"])
        print()
    print_facts(values)


def _held_out(task, config, path, calibrate, split):
    """Returns the records that rank prompts, and those that calibrate."""
    if calibrate and task.target:
        raise UserError("--calibrate is for labels, and the task has a target: leave it out")
    if not (path or calibrate):
        return [], []
    ranking, held = api.held_out(task, config, calibrate)
    if path:
        warn_of_overlap(task, ranking, split, "rank prompts")
        if calibrate == "labels" and (own := config.calibration.split):
            warn_of_overlap(task, ranking, own, "rank prompts")
    if calibrate == "labels":
        warn_of_overlap(task, held, split, "calibrate")
    return ranking if path else [], held


def _use(lm, task, config, rows, shown, prompt, log=say) -> dict[str, Any]:
    """Returns how a prompt is used: it is ranked, calibrated and scored behind the same
    demonstrations, which fit in front of all `rows`."""
    read, most = with_prompt(task.template, prompt or ""), config.task.max_length
    shown = shown and fitting(lm, task._replace(template=read), rows, shown, log, most)
    return {"prompt": prompt, "demonstrations": shown, "max_length": most, "log": log}


def warn_of_overlap(task, known: Sequence[Mapping[str, str]], split: str, *use: str) -> None:
    """Says how many records of a split are among the records `known`, which have a use."""
    rows = tasks.select_records(task, split)
    if warning := trained_on(rows, known, field_names(task.template), split, *use):
        say(f"warning: {warning}")


def warn_of_seen(task, config, labelled: bool) -> None:
    """Says how many records of the test split a run trains on or validates on too."""
    warn_of_overlap(task, tasks.training_records(task, config.task, labelled), config.task.test)
    held = tasks.validation_records(task, config.task, labelled)
    warn_of_overlap(task, held, config.task.test, "are validated on")


def _warn_of_differences(manifest, task, config, split: str, calibrate: str | None) -> None:
    own = config.calibration.split
    if calibrate == "labels" and own and PROMPTED not in manifest:
        warn_of_overlap(task, tasks.training_records(task, config.task, False), own)
    if calibrate and manifest["metrics"] and own in ("", config.task.validation):
        say(
            "warning: the records that calibrate chose the artifact too, so the numbers look too"
            " good: name others in config.calibration.split, with --config FILE"
        )
    for warning in other_task(manifest, config.task.template, task.labels, config.task.max_length):
        say(f"warning: {warning}")
    if PROMPTED in manifest:
        warn_of_overlap(task, manifest[PROMPTED], split, "are demonstrations")
    elif split != config.task.train:
        warn_of_overlap(task, tasks.training_records(task, config.task, False), split)


def read_prompts(path: str) -> tuple[dict[str, str], str]:
    """Reads a JSON list of texts if the name ends in .json, else a text a line, without blank
    lines, comments (#) and repeated ones. Returns the place of each prompt in the file, in order,
    and a sentence with their numbers."""
    with open_file(path, "prompts file") as file:
        entries = [(place, text.rstrip("\r\n")) for place, text in read_lines(file, path)]
    prompts: dict[str, str] = {}
    if is_json := path.endswith(".json"):
        items = parse_json("\n".join(text for _, text in entries), path, list)
        entries = [(f"{path}, item {number}", item) for number, item in enumerate(items, 1)]
    for place, text in entries:
        if is_json and not (isinstance(text, str) and text):
            raise UserError(f"{place} is {text!r}: expected a text, not empty")
        if is_json or (text.strip() and not text.startswith("#")):
            prompts.setdefault(text, place)
    if not prompts:
        raise UserError(f"prompts file {path!r} holds no prompt: write one template on each line")
    left_out = len(entries) - len(prompts)
    return prompts, f"{len(prompts)} prompts in {path}; blank, comments or repeated: {left_out}"


def check_prompts(task, prompts: Mapping[str, str], split: str) -> None:
    """Raises a UserError, which begins with its place, for a prompt that does not fit the task."""
    rows = tasks.select_records(task, split)
    common = {name: "" for name in rows[0] if all(name in row for row in rows)}
    fields = tasks.template_fields(task, common)
    for prompt, place in prompts.items():
        try:
            template = with_prompt(task.template, prompt)
            tasks.check_fields(template, fields)
            plain_slot_size(parse(template), 0)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error


def rank_prompts(
    prompts: Mapping[str, str], score: Callable[..., dict[str, Any]], log: Callable
) -> list[dict[str, Any]]:
    """Returns each prompt with what `score(prompt=...)` returns, the best first: by accuracy
    if the task has labels, then by loss."""
    ranked = []
    for prompt, place in with_progress(prompts.items(), "prompts scored", log, len(prompts)):
        try:
            ranked.append({"prompt": prompt, **score(prompt=prompt)})
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
    return sorted(ranked, key=lambda found: (-found.get("accuracy", 0), found["loss"]))
