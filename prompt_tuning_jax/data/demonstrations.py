"""Demonstrations: answered records of the training split that stand in front of the question.

Which they are is a function of the seed and the records alone, so that another order in the file,
another version of a library or another machine chooses the same.
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
    """How many demonstrations, how they are chosen (one of `CHOICES`), and by which seed."""

    number: int
    choice: str = CHOICES[0]
    seed: int = 0


def choose(
    rows: Sequence[Mapping[str, str]], labels: Sequence[str], wanted: Wanted
) -> list[Mapping[str, str]]:
    """Chooses records to demonstrate with.

    Args:
      rows: to choose from, of the training split.
      labels: the task's, as they stand in the data; none for a task without.
      wanted: 'balanced' takes a record of each label in turn, 'random' whatever comes.

    Returns:
      `wanted.number` records, of which the first few are as good a choice as all.

    Raises:
      UserError: more than there are, or of a label more than it has.
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
        # By the other half of the digest: by the same, a frequent label would come first.
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
    """Puts as many demonstrations in front of all records as leave every record whole.

    Args:
      rows: the records that are asked about.
      chosen: the demonstrations; the first of them are kept.
      encode: `(rows, demonstrations) -> examples` of whatever length.
      most: the most positions that an example may take.

    Returns:
      the examples, and how many demonstrations stand in front of each.

    Raises:
      UserError: not one fits.
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
        # Where the text begins decides about its first tokens: another may be the longest here.
        if max(map(needed, examples)) <= most:
            return examples, count
        count -= 1
    raise UserError(
        f"not one of {len(chosen)} demonstrations fits in front of record {longest}, which takes"
        f" {alone[longest]} of {most} positions itself: leave --demonstrations out"
    )


def _digest(row: Mapping[str, str], seed: int) -> bytes:
    # What no template can name is no field of the record, such as where it comes from.
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
