"""Templates: text with fields, slots for virtual tokens, and special tokens. `example.py` turns
them into tokens."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from prompt_tuning_jax.errors import UserError, nearest, short


class Constant(NamedTuple):
    """Text that is the same in every example."""

    text: str


class Special(NamedTuple):
    """A special token, written as its markup, such as `<|im_start|>`."""

    markup: str


class Field(NamedTuple):
    """A place for a text of the record. `place` counts the template's characters from 1."""

    name: str
    place: int


class Slot(NamedTuple):
    """A place for `size` virtual tokens; with None, for all that no other slot takes."""

    size: int | None
    place: int


Piece = Constant | Special | Field | Slot


class Template(NamedTuple):
    """A template's text and its pieces in order; whether its answer follows without a space."""

    text: str
    pieces: tuple[Piece, ...]
    direct: bool = False

    @property
    def fields(self) -> tuple[Field, ...]:
        """Every occurrence of a field, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Field))


_PARTS = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|\\[nt]|[^{}\\]+|\\")
_MOST_FILLED, _LONGEST_NAME = 1000, 200
_WRITTEN = {"{{": "{", "}}": "}", "\\n": "\n", "\\t": "\t"}


def parse(text: str, specials: Iterable[str] = ()) -> Template:
    """Parses a template. `{name}` is a field, `{soft:8}` eight virtual tokens, `{soft}` all that no
    other slot takes, `{{` and `}}` are braces, `\\n` and `\\t` as typed in a shell are a new line
    and a tab, and each of `specials` (`<|im_start|>`) is that special token. All else is text."""
    pieces: list[Piece] = []
    constant = ""
    markups = find_specials(specials)
    filled: list[Field | Slot] = []
    for match in _PARTS.finditer(text):
        part, place = match[0], match.start() + 1
        if part in ("{", "}"):
            raise _misplaced(text, place, f"{part!r} without its partner: write {part * 2!r}")
        if part in _WRITTEN or not part.startswith("{"):
            constant += _WRITTEN.get(part, part)
            continue
        if len(filled) == _MOST_FILLED:
            raise _misplaced(text, place, f"more than {_MOST_FILLED:,} fields and slots: use fewer")
        filled.append(_field_or_slot(text, part[1:-1], place))
        pieces += [*split_at_specials(constant, markups), filled[-1]]
        constant = ""
    pieces += split_at_specials(constant, markups)
    plain = [piece for piece in filled if isinstance(piece, Slot) and piece.size is None]
    if len(plain) > 1:
        fault = "a second {soft}: write {soft:8} for a part of the virtual tokens"
        raise _misplaced(text, plain[1].place, fault)
    return Template(text, tuple(pieces))


def plain_name(name: str) -> str:
    """Returns a field's, column's or label's name in Unicode form NFC: lookalikes are one."""
    return unicodedata.normalize("NFC", name)


def field_names(text: str) -> tuple[str, ...]:
    """Returns the names of a template's fields, each once, in order."""
    return tuple(dict.fromkeys(field.name for field in parse(text).fields))


def with_prompt(text: str, prompt: str) -> str:
    """Returns the template `text` with a written prompt in place of its virtual tokens, or in front
    if it has none. A prompt with a field replaces the whole template."""
    if parse(prompt).fields:
        return prompt
    slots = [piece for piece in parse(text).pieces if isinstance(piece, Slot)]
    if not slots:
        return prompt + text
    for slot in reversed(slots):
        written = prompt if slot is slots[0] else ""
        text = text[: slot.place - 1] + written + text[text.index("}", slot.place) + 1 :]
    return text


def with_demonstrations(
    template: Template,
    answered: Sequence[tuple[Mapping[str, str], str]],
    bos: str | None = None,
    ends: Sequence[str] = (),
) -> Template:
    """Returns `template` with demonstrations in front: records with their answers, filled into the
    same template without its slots. Each ends as `_turn_end` says. The template's BOS, with the
    markup `bos`, comes once at the very front, unless it comes again later, to begin turns."""
    pieces: list[Piece] = []
    rest = template.pieces
    own: list[Piece] = [piece for piece in rest if not isinstance(piece, Slot)]
    if answered and own.count(Special(bos or "")) == 1 and own[0] == Special(bos or ""):
        pieces, rest = own[:1], tuple(piece for piece in rest if piece != own[0])
    for record, answer in answered:
        filled, text = fill_pieces(rest, record, template)
        pieces += [*filled, Constant(f"{text}{separator(text)}{answer}"), *_turn_end(rest, ends)]
    return template._replace(pieces=(*pieces, *rest))


def fill_pieces(
    pieces: Iterable[Piece], record: Mapping[str, str], template: Template
) -> tuple[list[Piece], str]:
    """Fills a record into pieces, and leaves out slots. Returns the pieces up to the last special
    token, and the text behind it."""
    filled: list[Piece] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, Special):
            filled += [Constant(text), piece] if text else [piece]
            text = ""
        elif isinstance(piece, Field):
            text += field_text(piece, record, template)
        elif isinstance(piece, Constant):
            text += piece.text
    return filled, text


def _turn_end(pieces: Sequence[Piece], ends: Sequence[str]) -> list[Piece]:
    """Returns what follows a demonstration's answer, by the special tokens behind the last field.
    The first of several, or one of `ends`, such as `<|im_end|>`, ends the turn, with the white
    space behind it. A single other one, such as `[/INST]`, opens the answer, and EOS, the first of
    `ends`, ends it. Without a special token a blank line ends the answer."""
    last = max((n for n, piece in enumerate(pieces) if isinstance(piece, Field)), default=-1)
    behind = pieces[last + 1 :]
    places = [n for n, piece in enumerate(behind) if isinstance(piece, Special)]
    if places and (len(places) > 1 or behind[places[0]] in [*map(Special, ends)]):
        after = "".join(getattr(piece, "text", "") for piece in behind[places[0] + 1 :][:1])
        return [behind[places[0]], Constant(after[: len(after) - len(after.lstrip())])]
    return [Special(ends[0]) if places and ends else Constant("\n\n")]


def plain_slot_size(template: Template, num_virtual_tokens: int) -> int:
    """Returns the size of a plain `{soft}`: what other slots leave of P. All must add up to P."""
    slots = [piece for piece in template.pieces if isinstance(piece, Slot)]
    if not slots and num_virtual_tokens:
        raise UserError(
            f"template {short(template.text, 200)} has no slot for the {num_virtual_tokens} virtual"
            " tokens: write {soft} where they stand"
        )
    counts = [slot.size for slot in slots if slot.size is not None]
    rest = num_virtual_tokens - sum(counts)
    if not counts or rest == 0 or (rest > 0 and len(counts) < len(slots)):
        return rest
    fault = "there are no virtual tokens for this slot: remove it, or write a plain {soft}"
    if num_virtual_tokens:
        fault = (
            f"the slots add up to {sum(counts)} virtual tokens, expected num_virtual_tokens,"
            f" {num_virtual_tokens}: change one of them, or write a plain {{soft}} for the rest"
        )
    raise _misplaced(template.text, slots[-1].place, fault)


def separator(text: str, direct: bool = False) -> str:
    """Returns what goes between a rendered text and its answer: a space, unless it ends in one."""
    return "" if direct or text[-1:].isspace() else " "


def field_text(field: Field, record: Mapping[str, str], template: Template) -> str:
    """Returns a record's text for a field, or raises a UserError that names the known fields."""
    name, place = field
    if name not in record:
        known = [other for other in record if other.isidentifier()]  # without its place in a file
        meant = nearest(name, [*known, "soft"])
        fault = f"the data has no field {name!r}{meant}: expected one of: {', '.join(known)}"
        raise _misplaced(template.text, place, fault)
    return record[name]


def _field_or_slot(text: str, inside: str, place: int) -> Field | Slot:
    name, colon, count = inside.partition(":")
    shown = repr(inside[:60])[1:-1]  # escaped, so that it stays on one line
    if name == "soft":
        if not colon:
            return Slot(None, place)
        if re.fullmatch("[1-9][0-9]{0,8}", count):
            return Slot(int(count), place)
        raise _misplaced(text, place, f"{{{shown}}} is not a slot: write {{soft}} or {{soft:8}}")
    if not inside.isidentifier() or len(inside) > _LONGEST_NAME:
        wanted = f"{{{inside.strip()}}}" if inside.strip().isidentifier() else "a plain name"
        fault = f"{{{shown}}} is not a field: write {wanted[:60]}, or {{{{ for a brace"
        raise _misplaced(text, place, fault)
    return Field(plain_name(inside), place)


def find_specials(specials: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern that finds any of some special tokens, the longest first."""
    longest_first = sorted(specials, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def split_at_specials(text: str, markups: re.Pattern[str]) -> list[Piece]:
    """Returns a text as pieces, in which only special tokens are more than text."""
    # Every second part is a match of the pattern's group.
    parts = enumerate(markups.split(text))
    return [Special(part) if number % 2 else Constant(part) for number, part in parts if part]


def _misplaced(text: str, place: int, fault: str) -> UserError:
    return UserError(f"template {short(text, 200)}, position {place}: {fault}")
