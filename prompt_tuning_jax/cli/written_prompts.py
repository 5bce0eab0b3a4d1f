"""Written prompts: read from a file, checked, and ranked."""

from collections.abc import Callable, Mapping
from typing import Any

from prompt_tuning_jax.config.read import parse_json
from prompt_tuning_jax.data.rows import open_file, read_lines
from prompt_tuning_jax.data.task import check_fields, select_records, template_fields
from prompt_tuning_jax.data.template import parse, plain_slot_size, with_prompt
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.progress import with_progress


def read_prompts(path: str) -> tuple[dict[str, str], str]:
    """Reads a JSON list of texts if the name ends in .json, else a text a line, without blank
    lines, comments (#) and repeated ones. Returns the place of each prompt in the file, in order,
    and a sentence with their numbers."""
    with open_file(path, "prompts file") as file:
        entries = [(place, text.rstrip("\r\n")) for place, text in read_lines(file, path)]
    prompts: dict[str, str] = {}
    if is_json := path.endswith(".json"):
        entries = _parse_list("\n".join(text for _, text in entries), path)
    for place, text in entries:
        if is_json or (text.strip() and not text.startswith("#")):
            prompts.setdefault(text, place)
    if not prompts:
        raise UserError(f"prompts file {path!r} holds no prompt: write one template on each line")
    left_out = len(entries) - len(prompts)
    return prompts, f"{len(prompts)} prompts in {path}; blank, comments or repeated: {left_out}"


def _parse_list(text: str, path: str) -> list[tuple[str, str]]:
    items = parse_json(text, path, list)
    for number, item in enumerate(items, 1):
        if not isinstance(item, str) or not item:
            raise UserError(f"{path}, item {number} is {item!r}: expected a text, not empty")
    return [(f"{path}, item {number}", item) for number, item in enumerate(items, 1)]


def check_prompts(task, prompts: Mapping[str, str], split: str) -> None:
    """Raises a UserError, which begins with its place, for a prompt that does not fit the task."""
    fields = template_fields(task, select_records(task, split)[0])
    for prompt, place in prompts.items():
        try:
            template = with_prompt(task.template, prompt)
            check_fields(template, fields)
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
