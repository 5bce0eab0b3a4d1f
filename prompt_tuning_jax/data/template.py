"""Templates: text with fields, slots for virtual tokens, and special tokens.

How one becomes tokens is in `example.py`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from prompt_tuning_jax.errors import UserError, nearest, short


class Constant(NamedTuple):
    """Text that is the same in every example."""

    text: str


class Special(NamedTuple):
    """The markup of a special token, such as `<|im_start|>`."""

    markup: str


class Field(NamedTuple):
    """Where a record's text goes. `place` counts the template's characters from 1."""

    name: str
    place: int


class Slot(NamedTuple):
    """Where virtual tokens stand: `size` of them, or all P for None."""

    size: int | None
    place: int


Piece = Constant | Special | Field | Slot


class Template(NamedTuple):
    """A template's text and its pieces in order."""

    text: str
    pieces: tuple[Piece, ...]

    @property
    def fields(self) -> tuple[Field, ...]:
        """Every occurrence of a field, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Field))


_PARTS = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|\\[nt]|[^{}\\]+|\\")
_MOST_FILLED, _LONGEST_NAME = 1000, 200
_WRITTEN = {"{{": "{", "}}": "}", "\\n": "\n", "\\t": "\t"}


def parse(text: str, specials: Iterable[str] = ()) -> Template:
    """Parses a template such as '{soft}Headline: {text}\\nTopic:'.

    `{name}` is a field, `{soft:8}` eight virtual tokens, `{soft}` all that no other slot takes,
    `{{` and `}}` are braces, `\\n` and `\\t` as typed in a shell are a new line and a tab, and each
    of `specials` (`<|im_start|>`) is that special token. All else is text.

    Raises:
        UserError: a brace without its partner, anything but a plain name as a field, or more than
            one `{soft}`, or very many of both; names the position.
    """
    pieces: list[Piece] = []
    constant = ""
    markups = _any_of(specials)
    filled: list[Field | Slot] = []
    for match in _PARTS.finditer(text):
        part, place = match[0], match.start() + 1
        if part in ("{", "}"):
            raise _misplaced(text, place, f"{part!r} without its partner: write {part * 2!r}")
        if part in _WRITTEN:
            constant += _WRITTEN[part]
        elif part.startswith("{"):
            pieces += _split_at_specials(constant, markups)
            constant = ""
            if len(filled) == _MOST_FILLED:
                raise _misplaced(
                    text, place, f"more than {_MOST_FILLED:,} fields and slots: use fewer"
                )
            filled.append(_field_or_slot(text, part[1:-1], place))
            pieces.append(filled[-1])
        else:
            constant += part
    pieces += _split_at_specials(constant, markups)
    plain = [piece for piece in filled if isinstance(piece, Slot) and piece.size is None]
    if len(plain) > 1:
        raise _misplaced(
            text, plain[1].place, "a second {soft}: write {soft:8} for a part of the virtual tokens"
        )
    return Template(text, tuple(pieces))


def with_prompt(text: str, prompt: str) -> str:
    """Returns the template `text` with a hand-written prompt where its virtual tokens stand, or in
    front if it has none. A prompt that names a field is a template of its own."""
    if parse(prompt).fields:
        return prompt
    slots = [piece for piece in parse(text).pieces if isinstance(piece, Slot)]
    if not slots:
        return prompt + text
    for slot in reversed(slots):
        written = prompt if slot is slots[0] else ""
        text = text[: slot.place - 1] + written + text[text.index("}", slot.place) + 1 :]
    return text


def check_slots(text: str, num_virtual_tokens: int) -> None:
    """Raises a UserError if the slots of the template `text` do not add up to P."""
    remaining(parse(text), num_virtual_tokens)


def with_demonstrations(
    template: Template, answered: Sequence[tuple[Mapping[str, str], str]]
) -> Template:
    """Returns `template` with records and their answers in front, filled into it likewise, a blank
    line after each. What a field's text spells is text there too; slots are not repeated.

    Raises:
        UserError: a field that a record lacks.
    """
    pieces: list[Piece] = []
    for record, answer in answered:
        text = ""
        for piece in template.pieces:
            if isinstance(piece, Special):
                pieces += [Constant(text), piece] if text else [piece]
                text = ""
            elif isinstance(piece, Field):
                text += text_of(piece, record, template)
            elif isinstance(piece, Constant):
                text += piece.text
        pieces.append(Constant(f"{text}{joint(text)}{answer}\n\n"))
    return template._replace(pieces=(*pieces, *template.pieces))


def remaining(template: Template, num_virtual_tokens: int) -> int:
    """How many virtual tokens a plain `{soft}` stands for: those that no other slot takes."""
    slots = [piece for piece in template.pieces if isinstance(piece, Slot)]
    if not slots and num_virtual_tokens:
        raise UserError(
            f"template {short(template.text, 200)} has no slot for the {num_virtual_tokens} virtual"
            " tokens: write {soft} where they stand"
        )
    counts = [slot.size for slot in slots if slot.size is not None]
    if counts and not num_virtual_tokens:
        raise _misplaced(
            template.text,
            next(slot.place for slot in slots if slot.size is not None),
            "there are no virtual tokens for this slot: take it out, or write a plain {soft}",
        )
    rest = num_virtual_tokens - sum(counts)
    if counts and (rest < 0 or (rest and len(counts) == len(slots))):
        raise _misplaced(
            template.text,
            slots[-1].place,
            f"the slots add up to {sum(counts)} virtual tokens, expected num_virtual_tokens,"
            f" {num_virtual_tokens}: change one of them, or write a plain {{soft}} for the rest",
        )
    return rest


def joint(text: str) -> str:
    """What stands between a rendered text and its answer."""
    return "" if text[-1:].isspace() else " "


def text_of(field: Field, record: Mapping[str, str], template: Template) -> str:
    if field.name not in record:
        raise _misplaced(
            template.text,
            field.place,
            f"the data has no field {field.name!r}{nearest(field.name, [*record, 'soft'])}:"
            f" expected one of: {', '.join(record)}",
        )
    return record[field.name]


def _field_or_slot(text: str, inside: str, place: int) -> Field | Slot:
    name, colon, count = inside.partition(":")
    shown = repr(inside[:60])[1:-1]  # on one line, whatever it is
    if name == "soft":
        if not colon:
            return Slot(None, place)
        if re.fullmatch("[1-9][0-9]{0,8}", count):
            return Slot(int(count), place)
        raise _misplaced(text, place, f"{{{shown}}} is no slot: write {{soft}} or {{soft:8}}")
    if not inside.isidentifier() or len(inside) > _LONGEST_NAME:
        raise _misplaced(
            text, place, f"{{{shown}}} is no field: write a plain name, or {{{{ for a brace"
        )
    return Field(inside, place)


def _any_of(markups: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds the longest of some markups, and nothing where there is none."""
    longest_first = sorted(markups, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _split_at_specials(text: str, markups: re.Pattern[str]) -> list[Constant | Special]:
    # Every second part is what the pattern's group found.
    parts = enumerate(markups.split(text))
    return [Special(part) if number % 2 else Constant(part) for number, part in parts if part]


def _misplaced(text: str, place: int, fault: str) -> UserError:
    return UserError(f"template {short(text, 200)}, position {place}: {fault}")
