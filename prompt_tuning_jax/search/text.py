"""The text of a searched prompt: where it stands in the template, and its tokens there."""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.data.records import Record
from prompt_tuning_jax.data.task import Task
from prompt_tuning_jax.data.template import Field, Slot, parse, with_prompt
from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import NOTHING, PROMPT, Given
from prompt_tuning_jax.score import encode_for
from prompt_tuning_jax.search.score import fill


class Place(NamedTuple):
    """Where the prompt stands: a template with one slot, and a record to try texts on."""

    lm: LanguageModel
    task: Task
    template: str
    record: Record
    max_length: int

    def encode(self, records, template: str = "", size: int = 0) -> list[Any]:
        """Returns records as examples, with so many slots in the place of the prompt."""
        given = Given({PROMPT: jnp.empty((size, 1))}) if size else NOTHING
        template = template or self.template
        return encode_for(self.lm, self.task, records, given, self.max_length, template)

    def trunk(self, template: str = "", size: int = 0) -> np.ndarray:
        """Returns the tokens of the record."""
        return self.encode([self.record], template, size)[0].trunk

    def write(self, prompt: np.ndarray) -> tuple[str, str]:
        """Returns the text of int[P] ids as a template has it, and the template with it."""
        text = self.lm.tokenizer.decode(prompt.tolist()).replace("{", "{{").replace("}", "}}")
        return text, with_prompt(self.template, text)

    def reads_as(self, prompt: np.ndarray) -> bool:
        """Tells whether the text of a prompt gives back its ids in the template."""
        wanted = fill(self.trunk(size=len(prompt)), prompt[None])[0]
        try:
            return np.array_equal(self.trunk(self.write(prompt)[1]), wanted)
        except UserError:  # the text spells a special token
            return False


def find_place(lm: LanguageModel, task: Task, record: Record, settings, max_length: int) -> Place:
    """Returns where the prompt of `config.search` stands: at the template's {soft}, or in front of
    the template. A line ends behind it if a word would follow directly.

    Raises:
      UserError: a field stands in front of it.
    """
    template = settings.template or task.template
    template = template if "{soft" in template else "{soft}" + template
    template = re.sub(r"(\{soft(:\d+)?\})(?=\w)", r"\1\n", template)
    kinds = [type(piece) for piece in parse(template).pieces if isinstance(piece, Slot | Field)]
    if kinds[:2] != [Slot, Field] or kinds.count(Slot) > 1:
        raise UserError(
            f"the template {short(template, 200)} has no place for a searched prompt: give one with"
            " one {soft}, in front of all fields, in config.search.template"
        )
    return Place(lm, task, re.sub(r"\{soft:\d+\}", "{soft}", template), record, max_length)


def first_prompt(place: Place, settings, words, rng: np.random.Generator) -> np.ndarray:
    """Returns int[P], the tokens that the start has in the template, or words that are drawn.

    Raises:
      UserError: the start has another number of tokens than `config.search.num_tokens`, or is not
        read as it is written.
    """
    size, start = settings.num_tokens, settings.start
    if not start and not size:
        raise UserError(
            "config.search has neither start nor num_tokens: give the text to start from, or the"
            " number of words to draw"
        )
    if not start:
        return np.array([rng.choice(words.at(number)) for number in range(size)])
    if parse(start).fields:
        raise UserError(
            f"config.search.start is {short(start)}, with a field: give the prompt alone, and the"
            " text around it in config.search.template"
        )
    whole, slotted = place.trunk(with_prompt(place.template, start)), place.trunk(size=1)
    begin, count = int(np.flatnonzero(slotted < 0)[0]), len(whole) - len(slotted) + 1
    if size and count != size:
        raise UserError(
            f"config.search.start has {count} tokens and config.search.num_tokens is {size}: give"
            f" num_tokens={count}, or 0, or another text"
        )
    prompt = whole[begin : begin + max(count, 0)]
    filled = fill(place.trunk(size=len(prompt)), prompt[None])[0]
    if not (len(prompt) and np.array_equal(whole, filled) and place.reads_as(prompt)):
        raise UserError(
            f"config.search.start {short(start)} is not read as it is written in"
            f" {short(place.template, 200)}: its first or last word joins the text beside it"
        )
    return prompt
