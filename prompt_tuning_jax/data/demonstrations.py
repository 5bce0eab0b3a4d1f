"""Demonstrations: answered training records in front of the question.

The choice depends on the seed and the records alone: another order in the file, another version of
a library or another machine makes the same choice.
"""

import bisect
import collections
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prompt_tuning_jax.errors import UserError

CHOICES = ("balanced", "random")


class Wanted(NamedTuple):
    """The number of demonstrations, how they are chosen (one of `CHOICES`), and the seed."""

    number: int
    choice: str = CHOICES[0]
    seed: int = 0


def choose(
    rows: Sequence[Mapping[str, str]], labels: Sequence[str], wanted: Wanted
) -> list[Mapping[str, str]]:
    """Chooses records to demonstrate with.

    Args:
      rows: records of the training split.
      labels: the task's, as in the data; () for a task with a target.
      wanted: 'balanced' takes a record of each label in turn, 'random' takes any.

    Returns:
      `wanted.number` records. The first few of them are a good choice too.

    Raises:
      UserError: there are not enough records, or not enough with one of the labels.
    """
    if wanted.number > len(rows):
        raise UserError(
            f"--demonstrations is {wanted.number} and the training split has {len(rows)} records:"
            " give fewer"
        )
    drawn = sorted(rows, key=lambda row: _digest(row, wanted.seed))
    if wanted.choice == "random":
        return drawn[: wanted.number]
    _check_balance(rows, labels, wanted.number)
    seen: collections.Counter[str] = collections.Counter()
    turns = []
    for row in drawn:
        # Sorted by the other half of the digest; with the same half a frequent label would come
        # first.
        turns.append((seen[row["label"]], _digest(row, wanted.seed)[16:]))
        seen[row["label"]] += 1
    in_turn = sorted(range(len(drawn)), key=turns.__getitem__)
    return [drawn[number] for number in in_turn[: wanted.number]]


def fitted(
    rows: Sequence[Mapping[str, str]],
    chosen: Sequence[Mapping[str, str]],
    encode: Callable[..., list[Any]],
    most: int,
) -> tuple[list[Any], int]:
    """Puts as many demonstrations in front of all records as fit without shortening any record.

    Args:
      rows: the records to answer.
      chosen: the demonstrations, of which the first ones are kept.
      encode: `(rows, demonstrations) -> examples` of any length.
      most: the most positions of an example.

    Returns:
      the examples, and the number of demonstrations in front of each.

    Raises:
      UserError: not even one fits.
    """

    def needed(example: Any) -> int:
        return len(example.trunk) + max(map(len, example.tails)) - 1

    alone = [needed(example) for example in encode(rows, ())]
    longest = alone.index(max(alone))

    def too_many(count: int) -> bool:
        return needed(encode([rows[longest]], chosen[:count])[0]) > most

    count = bisect.bisect_left(range(1, len(chosen) + 1), True, key=too_many)
    while count:
        examples = encode(rows, chosen[:count])
        # The text in front changes a record's first tokens, so another may be the longest now.
        if max(map(needed, examples)) <= most:
            return examples, count
        count -= 1
    raise UserError(
        f"none of {len(chosen)} demonstrations fits in front of record {longest}, which takes"
        f" {alone[longest]} of {most} positions itself: leave --demonstrations out"
    )


def _digest(row: Mapping[str, str], seed: int) -> bytes:
    # A record's place is not one of its fields.
    fields = {name: text for name, text in row.items() if name.isidentifier()}
    content = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(f"{seed}\n{content}".encode()).digest()


def _check_balance(rows: Sequence[Mapping[str, str]], labels: Sequence[str], count: int) -> None:
    if not labels:
        raise UserError(
            "balanced demonstrations need a task with labels: type --demonstrations_choice random"
        )
    each = count // len(labels)
    having = collections.Counter(row["label"] for row in rows)
    for label in labels:
        if having[label] < each:
            raise UserError(
                f"{count} balanced demonstrations take {each} of each label, and the training split"
                f" has {having[label]} of {label!r}: give fewer, or --demonstrations_choice random"
            )
