"""Hand-written prompts: candidates from a file, ranked on one split, the best shown on another."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from prompt_tuning_jax.data.files import check_plain
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.progress import watched


class Candidate(NamedTuple):
    """A template, and where in its file it stands, for errors."""

    text: str
    place: str


class Candidates(NamedTuple):
    """What a file holds, in order, and a sentence about what it holds beside that."""

    found: list[Candidate]
    counted: str


def read(path: str) -> Candidates:
    """Reads candidate prompts: a JSON list of texts if the name ends in .json, else a line each,
    where blank lines and lines that begin with # are skipped. A repeated one counts once.

    Raises:
      UserError: the file cannot be read, is not what its name says, or holds no candidate; names
        the line.
    """
    check_plain(path, "prompts file")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"prompts file {path!r} cannot be read: {error.strerror}") from error
    lines = _decoded(data, path)
    if path.endswith(".json"):
        found, skipped = _items("\n".join(lines), path), []
    else:
        found = [
            Candidate(line, f"{path}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.startswith("#")
        ]
        comments = sum(line.startswith("#") for line in lines)
        blank = len(lines) - len(found) - comments
        skipped = [f"{blank} blank", f"{comments} comments"]
    # The first of equals keeps its place.
    distinct = {candidate.text: candidate for candidate in reversed(found)}
    kept = [candidate for candidate in found if distinct[candidate.text] is candidate]
    if not kept:
        raise UserError(f"prompts file {path!r} holds no prompt: write one template a line")
    counts = ", ".join([*skipped, f"{len(found) - len(kept)} repeated"])
    return Candidates(kept, f"{len(kept)} candidates in {path} (left out: {counts})")


def rank(
    candidates: Sequence[Candidate], score: Callable[[str], dict[str, Any]], log: Callable = print
) -> list[dict[str, Any]]:
    """Scores each candidate, the best first: by accuracy, or by loss where there is none; of equals
    the one that was written first.

    Args:
      candidates: from `read`.
      score: a text's metrics.
      log: takes a line of text, where it takes long.

    Returns:
      a dict each: prompt, and what `score` gave.
    """
    scored = []
    for candidate in watched(candidates, "prompts scored", log, len(candidates)):
        try:
            scored.append({"prompt": candidate.text, **score(candidate.text)})
        except UserError as error:
            raise UserError(f"{candidate.place}: {error}") from error
    return sorted(scored, key=lambda each: -each.get("accuracy", -each["loss"]))


def table(ranking: Sequence[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """Prints a ranking for people, to stdout unless a file is given."""
    from rich.console import Console
    from rich.table import Table

    numbers = [name for name in ("accuracy", "loss", "demonstrations") if name in ranking[0]]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in numbers:
        shown.add_column(name, justify="right")
    shown.add_column("prompt", overflow="fold")
    formats = {"accuracy": "{:.1%}", "loss": "{:.4f}", "demonstrations": "{}"}
    for row in ranking:
        values = (formats[name].format(row[name]) for name in numbers)
        shown.add_row(*values, row["prompt"].replace("\n", "\\n"))
    Console(file=file, markup=False, highlight=False).print(shown)


def _decoded(data: bytes, path: str) -> list[str]:
    lines = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            lines.append(line.decode().removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not UTF-8 at byte {error.start}: convert the file"
            ) from error
    # What ends the last line begins no other.
    return lines[:-1] if lines[-1] == "" else lines


def _items(text: str, path: str) -> list[Candidate]:
    try:
        items = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{where}: not valid JSON: write a list of texts") from error
    if not isinstance(items, list):
        raise UserError(f"{path} holds {type(items).__name__}, expected a JSON list of texts")
    for number, item in enumerate(items, 1):
        if not isinstance(item, str) or not item:
            raise UserError(f"{path}, item {number} is {item!r}: expected a text, not empty")
    return [Candidate(item, f"{path}, item {number}") for number, item in enumerate(items, 1)]
