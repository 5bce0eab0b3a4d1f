"""Demonstrations: answered training records in front of the question.

The choice depends on the seed and the records' text alone, not on their order or on the machine.
"""

import bisect
import collections
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning_jax.config.key import whole
from prompt_tuning_jax.data.task import Task, training_records
from prompt_tuning_jax.errors import UserError

KEYS = {"number": whole(0)}  # in front of each example that is evaluated without an artifact


def choose_demonstrations(
    rows: Sequence[Mapping[str, str]], number: int, *, balanced: bool, seed: int = 0
) -> list[Mapping[str, str]]:
    """Chooses `number` training records to demonstrate with, of each label in turn if `balanced`.
    The first few are a good choice too."""
    if number > len(rows):
        raise UserError(
            f"config.demonstrations.number is {number} and the training split has {len(rows)}"
            " records: give fewer"
        )
    drawn = sorted(rows, key=lambda row: _digest(row, seed))
    if not balanced:
        return drawn[:number]
    # The other half of the digest: with the same half a frequent label would come first.
    turns = [(turn, _digest(row, seed)[16:], n) for n, (turn, row) in enumerate(_in_turn(drawn))]
    return [drawn[place] for _, _, place in sorted(turns)[:number]]


def training_demonstrations(task: Task, config: Any) -> list[Mapping[str, str]]:
    """Returns the `demonstrations.number` training records that a config shows."""
    rows, number = training_records(task, config.task), config.demonstrations.number
    return choose_demonstrations(rows, number, balanced=bool(task.labels), seed=config.seed)


def spare_half(
    rows: Sequence[Mapping[str, str]], *, balanced: bool, seed: int
) -> list[Mapping[str, str]]:
    """Returns at most half of the records, of each label if `balanced`, in the order in which
    `choose_demonstrations` takes them."""
    chosen = choose_demonstrations(rows, len(rows), balanced=balanced, seed=seed)
    if not balanced:
        return chosen[: len(rows) // 2]
    totals = collections.Counter(row["label"] for row in rows)
    return [row for turn, row in _in_turn(chosen) if 2 * (turn + 1) <= totals[row["label"]]]


def without_demonstrations(
    rows: Sequence[Mapping[str, str]], shown: Sequence[Mapping[str, str]], fields: Sequence[str]
) -> list[Any]:
    """Returns the records whose `fields` none of the demonstrations `shown` answers."""
    answered = {tuple(map(row.get, fields)) for row in shown}
    left = [row for row in rows if tuple(map(row.get, fields)) not in answered]
    if not left:
        raise UserError(f"all {len(rows)} training records are demonstrations: give fewer of these")
    return left


def fit_demonstrations(
    rows: Sequence[Mapping[str, str]],
    chosen: Sequence[Mapping[str, str]],
    encode: Callable[..., list[Any]],
    most: int,
) -> tuple[list[Any], int]:
    """Puts as many of the first demonstrations in front of all records as fit into `most` positions
    without shortening a record. `encode(rows, demonstrations)` returns examples of any length.
    Returns the examples, and the number of demonstrations in front of each."""

    def needed(example: Any) -> int:
        return len(example.trunk) + max(map(len, example.tails), default=1) - 1

    alone = [needed(example) for example in encode(rows, ())]
    longest = alone.index(max(alone))

    def with_front(count: int) -> int:
        return needed(encode([rows[longest]], chosen[:count])[0])

    count = bisect.bisect_right(range(1, len(chosen) + 1), most, key=with_front)
    while count:
        examples = encode(rows, chosen[:count])
        # The text in front changes a record's first tokens, so another may be the longest now.
        if max(map(needed, examples)) <= most:
            return examples, count
        count -= 1
    raise UserError(
        f"none of {len(chosen)} demonstrations fits in front of record {longest}, which takes"
        f" {alone[longest]} of {most} positions itself: give config.demonstrations.number=0"
    )


def _in_turn(rows: Sequence[Mapping[str, str]]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yields each record, and how many of its label came before."""
    seen: collections.Counter[str] = collections.Counter()
    for row in rows:
        yield seen[row["label"]], row
        seen[row["label"]] += 1


def _digest(row: Mapping[str, str], seed: int) -> bytes:
    # A record's place is not one of its fields.
    fields = {name: text for name, text in row.items() if name.isidentifier()}
    return hashlib.sha256(f"{seed}\n{json.dumps(fields, sort_keys=True)}".encode()).digest()
