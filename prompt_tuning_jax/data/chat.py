"""Chats: a task's template as the user's turn of the model's own chat template.

The chat template is rendered with marks in place of the turns' texts, so no record enters it. It
is a stranger's program, and runs in a process of its own (`render_chat.py`).
"""

import contextlib
import functools
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prompt_tuning_jax.data import template as templates
from prompt_tuning_jax.data.template import Constant, Piece, Slot, Special, Template, fill_pieces
from prompt_tuning_jax.errors import UserError, short

_SECONDS = 120  # for the whole process, which also limits the template's own time
_MARKS = ("QUESTION7c1f", "ANSWER93d4", "QUESTIONb52e", "ANSWER0d68", "QUESTIONf4a7")
_OTHERWISE = "give config.task.as_chat=false, or another model"


class Chat(NamedTuple):
    """What a chat template writes around texts, as pieces of a template."""

    alone: list[list[Piece]]  # before a single question, and after it up to the answer
    # In front of the first of three questions, before its answer, before the second, before its
    # answer, before the last, which may be another text than before the second, and behind it.
    several: list[list[Piece]]
    bos: Special | None
    end: Special | None  # the special token that ends an answer, if any


def read_chat(tokenizer: Any, system: str) -> Chat:
    """Returns the chat of a model that begins with a system text, if it is not ''. Raises a
    UserError if there is no chat template, or if it cannot be rendered."""
    if not tokenizer.chat_template:
        raise UserError(f"the model has no chat template: {_OTHERWISE}")
    markup = {number: text for text, number in tokenizer.specials.items()}
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    named = {f"{name}_token": markup[number] for name, number in ids.items() if number in markup}
    texts = _render(tokenizer.chat_template, system, tuple(named.items()))
    markups = templates.find_specials(tokenizer.specials)

    def split(text):
        for markup, token in tokenizer.particular.items():  # they take the white space beside them
            pattern = r"\s*" * token.lstrip + re.escape(markup) + r"\s*" * token.rstrip
            text = re.sub(pattern, markup.replace("\\", r"\\"), text)
        return templates.split_at_specials(text, markups)

    alone, several = (list(map(split, parts)) for parts in texts)
    ends = [piece for piece in several[2] if isinstance(piece, Special)]
    bos = Special(named["bos_token"]) if "bos_token" in named else None
    return Chat(alone, several, bos, ends[0] if ends else None)


def in_chat(
    template: Template, chat: Chat, answered: Sequence[tuple[Mapping[str, str], str]]
) -> Template:
    """Returns `template` as the last question of a chat; records with their answers are earlier
    ones. Without a slot, the virtual tokens come first, behind BOS."""
    (head, tail), earlier = chat.alone, []
    if answered:
        head, reply, turn, _, last, tail = chat.several
        turns = [turn] * (len(answered) - 1) + [last]
        for (record, answer), behind in zip(answered, turns, strict=True):
            filled, text = fill_pieces(template.pieces, record, template)
            earlier += [*filled, Constant(text), *reply, Constant(answer), *behind]
    pieces = [piece for piece in (*head, *earlier, *template.pieces, *tail) if piece != ("",)]
    if not any(isinstance(piece, Slot) for piece in pieces):
        # A BOS that comes again begins turns.
        pieces.insert(pieces[:1] == [chat.bos] and pieces.count(pieces[0]) == 1, Slot(None, 1))
    return template._replace(pieces=tuple(pieces), direct=True)


@functools.lru_cache
def _render(
    source: str, system: str, tokens: tuple[tuple[str, str], ...]
) -> tuple[list[str], list[str]]:
    """Returns the parts around the marks of one question, and of three with two answers."""
    first = [{"role": "system", "content": system}] if system else []
    roles = itertools.cycle(("user", "assistant"))
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=False)]
    settings = {"conversations": [[*first, turns[-1]], [*first, *turns]], "chat_template": source}
    fault = "it takes too long"
    marks = re.compile("|".join(_MARKS))
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).with_name("render_chat.py"))],
            input=json.dumps({**settings, **dict(tokens)}),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            texts = json.loads(done.stdout)
            written = [marks.findall(text) for text in texts] == [[_MARKS[-1]], [*_MARKS]]
            lost = system and not any(word in texts[0] for word in system.split())
            if written and not lost:
                alone, several = map(marks.split, texts)
                # With the white space in front of an answer, if that is all that is missing.
                if several[1].rstrip() == alone[1].rstrip():
                    alone[1] = several[-1] = several[1]
                return alone, several
            fault = "it leaves out the system text"
            fault = fault if written else "it does not write each message once, in order"
        elif done.returncode > 0:  # below, it was killed
            fault = done.stderr.strip().rpartition("\n")[2]
    raise UserError(f"the model's chat template cannot be used ({short(fault, 200)}): {_OTHERWISE}")
