"""A record and its answers, filled into a template, as tokens.

The whole text with its answer is tokenised in one piece between slots and special tokens, and the
targets are found by character offsets: the tokens of a word depend on what stands before it, so
neither a field nor a label is ever tokenised alone.
"""

import functools
import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.data.template import (
    Constant,
    Field,
    Slot,
    Special,
    Template,
    joint,
    remaining,
    text_of,
)
from prompt_tuning_jax.errors import UserError, short

# A record's text is in memory once for each of its fields, so a template must not multiply it.
_MOST_CHARACTERS = 1 << 20
_MOST_TOKENISED = 1 << 25  # the text is tokenised once for each answer, and all are in memory


class Example(NamedTuple):
    """A record as tokens."""

    trunk: np.ndarray  # int32[n]: what all answers share; slot j is -1 - j
    tails: tuple[np.ndarray, ...]  # int32[m] each, m >= 1: what each answer adds, all of it targets
    answer: int  # index of the right answer in tails, -1 if unknown
    constant: int  # how many front tokens lie wholly before the first field
    dropped: int  # tokens lost with the end of the longest field: the example was too long


def encode(
    template: Template,
    record: Mapping[str, str],
    answers: Sequence[str],
    tokenizer: Any,
    *,
    num_virtual_tokens: int,
    add_bos: bool,
    max_length: int,
    answer: int = -1,
    ending: Sequence[int] = (),
) -> Example:
    """Renders `template` with each answer behind it and tokenises the whole.

    An answer follows after one space, or after none where the rendered text ends in white space.
    What a field's text spells is text: it makes no special token, slot or field.

    Args:
        template: from `parse` with the tokenizer's specials.
        record: the text of each field of the template.
        answers: C texts, none empty; without any, the trunk is what it would be before most words.
        tokenizer: a `models.tokenizer.Tokenizer`.
        num_virtual_tokens: P; with 0 a plain `{soft}` is nothing.
        add_bos: begin with the BOS token, unless the template does so itself.
        max_length: the most positions that the trunk and the longest tail without its last token
            may take: what the model has, less a prefix's length. Of a longer example the longest
            field is cut at its end, and no other.
        answer: index of the right answer.
        ending: tokens behind each answer.

    Raises:
        UserError: slots that do not add up to P, a field that the record lacks, fields that make
            over a million characters, or very many for all answers, an example that is too long
            with one character of its longest field, or one with nothing before its answer.
    """
    layout = _layout(template, num_virtual_tokens)
    _check_embedded(template, tokenizer)
    bos = _bos(template, tokenizer, add_bos)
    fields = {field.name: text_of(field, record, template) for field in template.fields}
    size = sum(len(fields[field.name]) for field in template.fields)
    if size > _MOST_CHARACTERS:
        raise UserError(
            f"the template's fields make {size:,} characters of the record, expected at most"
            f" {_MOST_CHARACTERS:,}: shorten the record, or the template"
        )
    size += sum(len(piece.text) for piece in template.pieces if isinstance(piece, Constant))
    if size * len(answers) > _MOST_TOKENISED:
        raise UserError(
            f"the template and its fields make {size:,} characters for each of {len(answers):,}"
            f" answers, expected at most {_MOST_TOKENISED:,} in all: shorten one of them"
        )
    shortened, whole = "", 0
    while True:
        _check_neighbours(template, layout, fields, answers or ("a",), tokenizer)
        rendered = _render(layout, fields, tokenizer, bos)
        trunk, tails = _answered(rendered, answers or ("a",), tokenizer)
        tails = [[*tail, *ending] for tail in tails] if answers else []
        length = len(trunk.ids) + max(map(len, tails), default=1) - 1
        whole = whole or length
        if length <= max_length:
            break
        shortened = shortened or _longest(rendered.spans, trunk)
        spans = rendered.spans.get(shortened, [(0, 0)])
        excess = -(-(length - max_length) // len(spans))
        kept = fields.get(shortened, "")[: _cut(spans[0], trunk, excess)]
        if not kept:
            raise UserError(
                f"the example takes {length} positions and {max_length} are allowed, with nothing"
                f" left to shorten{shortened and f' but the whole of {shortened!r}'}: use a shorter"
                " template, shorter answers or fewer virtual tokens, or raise task.max_length"
            )
        fields[shortened] = kept
    if not trunk.ids:
        raise UserError(
            f"template {short(template.text, 200)} puts nothing before the answer: give it"
            " text, a slot or a field that is not empty"
        )
    # A slot or special token behind a field that is empty stands where the field does.
    constant = min(_constant(rendered.first_field, trunk.ends), rendered.most)
    return Example(
        np.array(trunk.ids, np.int32),
        tuple(np.array(tail, np.int32) for tail in tails),
        answer,
        constant,
        whole - length,
    )


class _Tokens(NamedTuple):
    """Tokens and the characters that they come from, counted over the rendered text.

    Slots and special tokens have no characters: they start and end where they stand.
    """

    ids: list[int]
    starts: list[int]
    ends: list[int]


class _Rendered(NamedTuple):
    """A template filled in: tokens up to its last run of text, and that run, still as text."""

    front: _Tokens
    last: str
    begins: int  # where the last run begins
    continues: bool  # whether text or a special token stands before it
    spans: dict[str, list[tuple[int, int]]]  # characters of each occurrence of each field
    first_field: int | None  # where the first field begins
    most: int  # front tokens up to the end of the first field's run, if that is not the last


# What tokenises in one piece (constants and fields), or tokens without text.
_Run = tuple[Constant | Field, ...]


@functools.lru_cache(maxsize=256)
def _layout(template: Template, num_virtual_tokens: int) -> tuple[_Run | Special | range, ...]:
    """Joins pieces into runs of text; a slot is the range of its virtual tokens.

    The last item is a run, empty if the template ends in a slot or a special token.
    """
    rest = remaining(template, num_virtual_tokens)
    layout: list[_Run | Special | range] = []
    run: list[Constant | Field] = []
    used = 0
    for piece in template.pieces:
        if isinstance(piece, Constant | Field):
            run.append(piece)
            continue
        slots = range(0)
        if isinstance(piece, Slot):
            slots = range(used, used + (rest if piece.size is None else piece.size))
            used = slots.stop
            if not slots:
                continue
        if run:
            layout.append(tuple(run))
            run = []
        layout.append(piece if isinstance(piece, Special) else slots)
    return (*layout, tuple(run))


def _render(
    layout: Sequence[_Run | Special | range],
    fields: Mapping[str, str],
    tokenizer: Any,
    bos: Sequence[int],
) -> _Rendered:
    specials: dict[str, int] = tokenizer.specials
    front = _Tokens(list(bos), [0] * len(bos), [0] * len(bos))
    spans: dict[str, list[tuple[int, int]]] = {}
    first_field, most = None, sys.maxsize
    begins = place = 0
    text, continues = "", False
    for number, item in enumerate(layout):
        if isinstance(item, Special | range):
            ids = [-1 - j for j in item] if isinstance(item, range) else [specials[item.markup]]
            _extend(front, ids, [(0, 0)] * len(ids), place)
            continues = continues or isinstance(item, Special)
        else:
            begins, text, continues = place, "", continues or place > 0
            for piece in item:
                added = piece.text if isinstance(piece, Constant) else fields[piece.name]
                if isinstance(piece, Field):
                    spans.setdefault(piece.name, []).append((place, place + len(added)))
                    first_field = place if first_field is None else first_field
                text += added
                place += len(added)
            if number < len(layout) - 1:
                ids, offsets = tokenizer.encode(text, continues=continues)
                _extend(front, ids, offsets, begins)
                if first_field is not None:
                    most = min(most, len(front.ids))
    return _Rendered(front, text, begins, continues, spans, first_field, most)


def _check_embedded(template: Template, tokenizer: Any) -> None:
    """Raises a UserError for a special token for which the model has no embedding, as of a padding
    token that was added for training alone: its scores would be NaN."""
    for piece in template.pieces:
        if tokenizer.embeddings is None or not isinstance(piece, Special):
            continue
        number = tokenizer.specials[piece.markup]
        if number >= tokenizer.embeddings:
            raise UserError(
                f"template {short(template.text, 200)} has {piece.markup!r}, id {number}, and the"
                f" model embeddings for {tokenizer.embeddings} ids: use another token"
            )


def _check_neighbours(
    template: Template,
    layout: Sequence[_Run | Special | range],
    fields: Mapping[str, str],
    answers: Sequence[str],
    tokenizer: Any,
) -> None:
    """Raises a UserError where the tokenizer would take more or less for a special token than its
    markup, because of what stands beside it."""
    if not tokenizer.particular:
        return
    written = [_written(item, fields) for item in layout]
    lasts = [written[-1] + joint(written[-1]) + answer for answer in answers]
    for number, item in enumerate(layout):
        token = isinstance(item, Special) and tokenizer.particular.get(item.markup)
        if not token:
            continue
        left = written[number - 1][-1:] if number else ""
        followers = lasts if number == len(layout) - 2 else [written[number + 1]]
        rights = "".join(follower[:1] for follower in followers)
        taken = (token.lstrip and left.isspace()) or (
            token.rstrip and any(map(str.isspace, rights))
        )
        if taken or (token.single_word and re.search(r"\w", left + rights)):
            what = "takes white space beside it away" if taken else "is text beside a letter"
            raise UserError(
                f"template {short(template.text, 200)} has {token.content!r}, which the model's"
                f" tokenizer.json says {what}, as here: write something else between, or leave it"
                " out"
            )


def _written(item: _Run | Special | range, fields: Mapping[str, str]) -> str:
    """An item of a layout as text; a slot has none."""
    if isinstance(item, range):
        return ""
    if isinstance(item, Special):
        return item.markup
    return "".join(
        piece.text if isinstance(piece, Constant) else fields[piece.name] for piece in item
    )


def _extend(
    tokens: _Tokens, ids: Sequence[int], offsets: Sequence[tuple[int, int]], place: int
) -> None:
    tokens.ids.extend(ids)
    tokens.starts.extend([start + place for start, _ in offsets])
    tokens.ends.extend([end + place for _, end in offsets])


def _answered(
    rendered: _Rendered, answers: Sequence[str], tokenizer: Any
) -> tuple[_Tokens, list[list[int]]]:
    """Returns the trunk that all answers share and the tokens that each adds.

    The trunk ends before the first token that holds any of an answer or of the space before it:
    whether a token's offsets count the space in front is the tokenizer's own habit.
    """
    text = rendered.last
    between = joint(text)
    encoded = [
        tokenizer.encode(text + between + answer, continues=rendered.continues)
        for answer in answers
    ]
    ids, offsets = encoded[0]
    shared = len(ids)
    for other, other_offsets in encoded:
        shared = min(shared, _constant(len(text), [end for _, end in other_offsets]))
        # A space on its own that leaves itself out of its offsets: they are empty.
        while between and shared and len(set(offsets[shared - 1])) == 1:
            shared -= 1
        while other[:shared] != ids[:shared]:
            shared -= 1
    front = rendered.front
    trunk = _Tokens(front.ids.copy(), front.starts.copy(), front.ends.copy())
    _extend(trunk, ids[:shared], offsets[:shared], rendered.begins)
    return trunk, [other[shared:] for other, _ in encoded]


def _constant(place: int | None, ends: Sequence[int]) -> int:
    """Returns how many front tokens end at or before `place`; all for None."""
    if place is None:
        return len(ends)
    return next((number for number, end in enumerate(ends) if end > place), len(ends))


def _longest(spans: Mapping[str, Sequence[tuple[int, int]]], tokens: _Tokens) -> str:
    """Returns the field with the most tokens, the first of equals; '' if there is none."""
    return max(
        spans, key=lambda name: sum(len(_within(span, tokens)) for span in spans[name]), default=""
    )


def _within(span: tuple[int, int], tokens: _Tokens) -> range:
    start, end = span
    return range(bisect_right(tokens.ends, start), bisect_left(tokens.starts, end))


def _cut(span: tuple[int, int], tokens: _Tokens, excess: int) -> int:
    """Returns how many characters of the field at `span` stay if it loses `excess` tokens."""
    start, end = span
    numbers = _within(span, tokens)
    kept = len(numbers) - excess
    if kept <= 0:
        return 0
    # A character of several tokens may go on past the last that is kept: then it stays at first.
    return max(min(tokens.ends[numbers[kept - 1]], end - 1) - start, 0)


def _bos(template: Template, tokenizer: Any, add_bos: bool) -> list[int]:
    if not add_bos:
        return []
    if tokenizer.bos_id is None:
        raise UserError("the tokenizer has no BOS token to begin with: set add_bos to false")
    first = next((piece for piece in template.pieces if not isinstance(piece, Slot)), None)
    if isinstance(first, Special) and tokenizer.specials[first.markup] == tokenizer.bos_id:
        return []
    return [tokenizer.bos_id]
