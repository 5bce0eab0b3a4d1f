"""A record and its answers, filled into a template, as tokens.

Between slots and special tokens, the whole text with its answer is tokenised in one piece, and the
targets are found by character offsets. The tokens of a word depend on the text before it, so
neither a field nor a label is ever tokenised alone.
"""

import functools
import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.data import template as templates
from prompt_tuning_jax.data.template import Constant, Field, Slot, Special, Template, field_text
from prompt_tuning_jax.errors import UserError, short

# A template that repeats a field must not multiply the record's text without limit.
_MOST_CHARACTERS = 1 << 20


class Example(NamedTuple):
    """A record as tokens."""

    trunk: np.ndarray  # int32[n], the tokens that all answers share; slot j is -1 - j
    tails: tuple[np.ndarray, ...]  # int32[m] each, m >= 1, the rest for each answer, all targets
    answer: int  # index of the right answer in tails, -1 if unknown
    constant: int  # how many front tokens lie wholly before the first field
    dropped: int  # tokens that a too long example lost at the end of its longest field


def encode_example(
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
    continues: bool = False,
) -> Example:
    """Renders `template`, parsed with the tokenizer's specials, with each answer behind it, and
    tokenises the whole. Without answers, the trunk is the one that most answers would give.

    An answer follows after one space, or directly if the rendered text ends in white space. A
    field's text is only text: it never makes a special token, a slot or a field.

    Args:
        num_virtual_tokens: P; with 0 a plain `{soft}` is nothing.
        add_bos: begin with the BOS token, unless the template already does.
        max_length: the most positions for the trunk and the longest tail without its last token.
            In a longer example the longest field is cut at its end.
        ending: tokens behind each answer.
        continues: whether another text is in front, in the virtual tokens.
    """
    layout = lay_out(template, num_virtual_tokens)
    _check_embedded(template, tokenizer)
    first = next((piece for piece in template.pieces if not isinstance(piece, Slot)), None)
    begins = isinstance(first, Special) and tokenizer.specials[first.markup] == tokenizer.bos_id
    bos = [tokenizer.bos_id] if add_bos and not begins else []
    fields = {field.name: field_text(field, record, template) for field in template.fields}
    size = sum(len(fields[field.name]) for field in template.fields)
    if size > _MOST_CHARACTERS:
        raise UserError(
            f"the template's fields make {size:,} characters of the record, expected at most"
            f" {_MOST_CHARACTERS:,}: shorten the record, or the template"
        )
    shortened, whole = "", 0
    while True:
        _check_neighbours(template, layout, fields, answers or ("a",), tokenizer)
        rendered = _render(layout, fields, tokenizer, bos, continues)
        trunk, tails = _answered(rendered, answers or ("a",), tokenizer, template.direct)
        tails = [[*tail, *ending] for tail in tails] if answers else []
        length = len(trunk) + max(map(len, tails), default=1) - 1
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
                " template, shorter answers, fewer virtual tokens or generation.max_new_tokens, or"
                " raise task.max_length"
            )
        fields[shortened] = kept
    if not trunk:
        wrong = f"template {short(template.text, 200)} puts nothing before the answer"
        raise UserError(f"{wrong}: give it text, a slot or a field that is not empty")
    # If the first field is empty, a slot or special token behind it begins at the same character.
    constant = min(bisect_right(trunk, rendered.first_field, key=_END), rendered.most)
    ids, *arrays = (np.array(part, np.int32) for part in (list(map(_ID, trunk)), *tails))
    return Example(ids, tuple(arrays), answer, constant, whole - length)


# A token, and where the characters of the rendered text that it comes from start and end. Slots and
# special tokens have no characters: they start and end at the same place.
_Tokens = list[tuple[int, int, int]]
_ID, _START, _END = map(itemgetter, range(3))


class _Rendered(NamedTuple):
    """A filled template: tokens up to its last run of text, and that run as text."""

    front: _Tokens
    last: str
    begins: int  # where the last run begins
    continues: bool  # whether text or a special token is before it
    spans: dict[str, list[tuple[int, int]]]  # characters of each occurrence of each field
    first_field: int  # where the first field begins
    most: int  # front tokens up to the end of the first field's run, if that is not the last


# Constants and fields that are tokenised in one piece.
_Run = tuple[Constant | Field, ...]
_Layout = tuple[_Run | Special | range, ...]


@functools.lru_cache(maxsize=256)
def lay_out(template: Template, num_virtual_tokens: int) -> _Layout:
    """Joins pieces into runs of text, the last one maybe empty, and turns a slot into the range of
    its virtual tokens. Raises a UserError if the slots do not add up to P."""
    rest = templates.plain_slot_size(template, num_virtual_tokens)
    layout: list[_Run | Special | range] = []
    run: list[Constant | Field] = []
    used = 0
    for piece in template.pieces:
        if isinstance(piece, Constant | Field):
            run.append(piece)
            continue
        if isinstance(piece, Slot):
            start, used = used, used + (rest if piece.size is None else piece.size)
        if item := range(start, used) if isinstance(piece, Slot) else piece:
            layout += [tuple(run), item] if run else [item]
            run = []
    return (*layout, tuple(run))


def _render(
    layout: _Layout, fields: Mapping[str, str], tokenizer: Any, bos: Sequence[int], continues: bool
) -> _Rendered:
    specials: dict[str, int] = tokenizer.specials
    front = [(number, 0, 0) for number in bos]
    spans: dict[str, list[tuple[int, int]]] = {}
    first_field = most = sys.maxsize
    begins = place = 0
    text = ""
    for number, item in enumerate(layout):
        if isinstance(item, Special | range):
            ids = [-1 - j for j in item] if isinstance(item, range) else [specials[item.markup]]
            front += [(number, place, place) for number in ids]
            continues = continues or isinstance(item, Special)
        else:
            begins, text, continues = place, "", continues or place > 0
            for piece in item:
                added = piece.text if isinstance(piece, Constant) else fields[piece.name]
                if isinstance(piece, Field):
                    spans.setdefault(piece.name, []).append((place, place + len(added)))
                    first_field = min(first_field, place)
                text += added
                place += len(added)
            if number < len(layout) - 1:
                ids, offsets = tokenizer.encode(text, continues=continues)
                front += _placed(ids, offsets, begins)
                most = min(most, len(front)) if spans else most
    return _Rendered(front, text, begins, continues, spans, first_field, most)


def _check_embedded(template: Template, tokenizer: Any) -> None:
    """Raises a UserError for a special token without an embedding, such as a padding token that was
    added for training alone: scores would be NaN."""
    markups = [piece.markup for piece in template.pieces if isinstance(piece, Special)]
    for markup in markups if tokenizer.embeddings is not None else ():
        number = tokenizer.specials[markup]
        if number >= tokenizer.embeddings:
            raise UserError(
                f"template {short(template.text, 200)} has {markup!r}, id {number}, and the"
                f" model has embeddings for {tokenizer.embeddings} ids: use another token"
            )


def _check_neighbours(
    template: Template,
    layout: _Layout,
    fields: Mapping[str, str],
    answers: Sequence[str],
    tokenizer: Any,
) -> None:
    """Raises a UserError if the text beside a special token would change how it is read: some
    tokenizers remove white space there, or ignore one beside a letter."""
    if not tokenizer.particular:
        return
    texts = [_text_of(item, fields) for item in layout]
    for number, item in enumerate(layout):
        token = isinstance(item, Special) and tokenizer.particular.get(item.markup)
        if not token:
            continue
        left, rights = texts[number - 1][-1:] if number else "", texts[number + 1][:1]
        if number == len(layout) - 2:
            last = texts[-1] + templates.separator(texts[-1], template.direct)
            rights = "".join((last + answer)[:1] for answer in answers)
        spaced = any(map(str.isspace, rights))
        taken = (token.lstrip and left.isspace()) or (token.rstrip and spaced)
        if taken or (token.single_word and re.search(r"\w", left + rights)):
            fault = "removes white space beside it" if taken else "is text beside a letter"
            raise UserError(
                f"template {short(template.text, 200)} has {token.content!r}, which {fault} by the"
                " model's tokenizer.json: write something else between, or remove it"
            )


def _text_of(item: _Run | Special | range, fields: Mapping[str, str]) -> str:
    if isinstance(item, range):
        return ""
    if isinstance(item, Special):
        return item.markup
    return "".join(fields[each.name] if isinstance(each, Field) else each.text for each in item)


def _placed(ids: Sequence[int], offsets: Sequence[tuple[int, int]], place: int) -> _Tokens:
    found = zip(ids, offsets, strict=True)
    return [(number, start + place, end + place) for number, (start, end) in found]


def _answered(
    rendered: _Rendered, answers: Sequence[str], tokenizer: Any, direct: bool
) -> tuple[_Tokens, list[list[int]]]:
    """Returns the trunk that all answers share and the tokens that each adds. The trunk ends before
    any part of an answer or of the space before it, which a token's offsets may include or not."""
    text = rendered.last
    between = templates.separator(text, direct)
    texts = (text + between + answer for answer in answers)
    encoded = [tokenizer.encode(each, continues=rendered.continues) for each in texts]
    ids, offsets = encoded[0]
    shared = len(ids)
    for other, other_offsets in encoded:
        shared = min(shared, bisect_right([end for _, end in other_offsets], len(text)))
        # A token that is only a space may have empty offsets.
        while between and shared and len(set(offsets[shared - 1])) == 1:
            shared -= 1
        while other[:shared] != ids[:shared]:
            shared -= 1
    own = _placed(ids[:shared], offsets[:shared], rendered.begins)
    return rendered.front + own, [other[shared:] for other, _ in encoded]


def _longest(spans: Mapping[str, Sequence[tuple[int, int]]], tokens: _Tokens) -> str:
    """Returns the field with the most tokens, the first of equals, or '' without fields."""
    return max(spans, key=lambda n: sum(len(_within(s, tokens)) for s in spans[n]), default="")


def _within(span: tuple[int, int], tokens: _Tokens) -> range:
    start, end = span
    return range(bisect_right(tokens, start, key=_END), bisect_left(tokens, end, key=_START))


def _cut(span: tuple[int, int], tokens: _Tokens, excess: int) -> int:
    """Returns how many characters the field at `span` keeps if it loses `excess` tokens."""
    start, end = span
    numbers = _within(span, tokens)
    kept = len(numbers) - excess
    if kept <= 0:
        return 0
    # A character of several tokens may continue after the last kept token; it stays for now.
    return max(min(_END(tokens[numbers[kept - 1]]), end - 1) - start, 0)
