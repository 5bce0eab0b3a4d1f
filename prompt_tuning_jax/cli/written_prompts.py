"""Written prompts: candidates from a file, ranked on one split, the best scored on another."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from prompt_tuning_jax.data.rows import open_file, read_lines
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.progress import with_progress


class Candidate(NamedTuple):
    """A template, and its place in the file for errors."""

    text: str
    place: str


def read_candidates(path: str) -> tuple[list[Candidate], str]:
    """Reads candidate prompts: a JSON list of texts if the name ends in .json, else one a line.

    Blank lines and lines that begin with # are skipped. A repeated prompt counts once.

    Returns:
      the candidates in order, and a sentence with counts of what was left out.

    Raises:
      UserError: the file cannot be read or holds no candidate; names the line.
    """
    with open_file(path, "prompts file") as file:
        lines = [Candidate(text.rstrip("\r\n"), place) for place, text in read_lines(file, path)]
    if path.endswith(".json"):
        found, skipped = _parse_list(lines, path), []
    else:
        comments = sum(line.text.startswith("#") for line in lines)
        found = [line for line in lines if line.text.strip() and not line.text.startswith("#")]
        skipped = [f"{len(lines) - len(found) - comments} blank", f"{comments} comments"]
    distinct: dict[str, Candidate] = {}
    for candidate in found:
        distinct.setdefault(candidate.text, candidate)
    if not distinct:
        raise UserError(f"prompts file {path!r} holds no prompt: write one template on each line")
    counts = ", ".join([*skipped, f"{len(found) - len(distinct)} repeated"])
    return [*distinct.values()], f"{len(distinct)} candidates in {path} (left out: {counts})"


def _parse_list(lines: Sequence[Candidate], path: str) -> list[Candidate]:
    try:
        items = json.loads("\n".join(line.text for line in lines))
    except (json.JSONDecodeError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{where}: not valid JSON: write a list of texts") from error
    if not isinstance(items, list):
        raise UserError(f"{path} holds {type(items).__name__}, expected a JSON list of texts")
    for number, item in enumerate(items, 1):
        if not isinstance(item, str) or not item:
            raise UserError(f"{path}, item {number} is {item!r}: expected a text, not empty")
    return [Candidate(item, f"{path}, item {number}") for number, item in enumerate(items, 1)]


def rank_candidates(
    candidates: Sequence[Candidate], score: Callable[[str], dict[str, Any]], log: Callable = print
) -> list[dict[str, Any]]:
    """Scores each candidate and sorts them, the best first.

    Accuracy decides, or the loss if there is none; equal candidates keep their order.

    Args:
      candidates: from `read_candidates`.
      score: returns a text's metrics.
      log: takes a line of text about the progress.

    Returns:
      the prompt and its metrics, a dict for each.
    """
    scored = []
    for candidate in with_progress(candidates, "prompts scored", log, len(candidates)):
        try:
            scored.append({"prompt": candidate.text, **score(candidate.text)})
        except UserError as error:
            raise UserError(f"{candidate.place}: {error}") from error
    return sorted(scored, key=lambda each: -each.get("accuracy", -each["loss"]))
