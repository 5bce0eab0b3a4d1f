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
from prompt_tuning_jax.score import ANY_LENGTH, encode_for
from prompt_tuning_jax.search.score import fill

DRAWS = 100  # starts of drawn words that are tried


class Place(NamedTuple):
    """Where the prompt stands: the one slot of the task's template. Texts are tried on `record`.
    `written` is the template with the first prompt, whose tokens begin at `begin`."""

    lm: LanguageModel
    task: Task
    record: Record
    max_length: int
    written: str = ""
    begin: int = 0

    def encode(self, records, template: str, size: int = 0) -> list[Any]:
        """Returns records as examples, with `size` slots in place of as many tokens at `begin`."""
        examples, slots = [], -1 - np.arange(size, dtype=np.int32)
        task = self.task._replace(template=template)
        for each in encode_for(self.lm, task, records, NOTHING, self.max_length):
            parts = each.trunk[: self.begin], slots, each.trunk[self.begin + size :]
            examples.append(each._replace(trunk=np.concatenate(parts)))
        return examples

    def write(self, prompt: np.ndarray) -> tuple[str, str]:
        """Returns the text of int[P] ids as a template has it, and the template with it."""
        text = self.lm.tokenizer.decode(prompt.tolist()).replace("{", "{{").replace("}", "}}")
        # A space in front of the prompt is read with its first word.
        text = text.removeprefix(" " * (" {soft}" in self.task.template))
        return text, with_prompt(self.task.template, text)

    def reads_as(self, prompt: np.ndarray) -> bool:
        """Tells whether the text of a prompt gives back its ids in the template."""
        [slotted] = self.encode([self.record], self.written, len(prompt))
        try:
            [example] = self.encode([self.record], self.write(prompt)[1])
            return np.array_equal(example.trunk, fill(slotted.trunk, prompt[None])[0])
        except UserError:  # the text spells a special token
            return False


def find_place(lm: LanguageModel, task: Task, record: Record, settings, max_length: int) -> Place:
    """Returns where the prompt of `config.search` stands: at the template's {soft}, or in front of
    the template. A line ends behind it if a word or a field would follow directly. Raises a
    UserError if a field stands in front of it, or if there is no start, or one with a field."""
    if not settings.start and not settings.num_tokens:
        raise UserError(
            "config.search has neither start nor num_tokens: give the text to start from, or the"
            " number of words to draw"
        )
    if parse(settings.start).fields or "{soft" in settings.start:
        raise UserError(
            f"config.search.start is {short(settings.start)}, with a field or a slot: give the"
            " prompt alone, and the text around it in config.search.template"
        )
    template = settings.template or task.template
    template = "{soft}" * (with_prompt(template, "") == template) + template
    template = re.sub(r"(\{soft(:\d+)?\})(?=[\w{])", r"\1\n", template)
    kinds = [type(piece) for piece in parse(template).pieces if isinstance(piece, Slot | Field)]
    if kinds[:2] != [Slot, Field] or kinds.count(Slot) > 1:
        raise UserError(
            f"the template {short(template, 200)} has no place for a searched prompt: give one with"
            " one {soft}, in front of all fields, in config.search.template"
        )
    task = task._replace(template=re.sub(r"\{soft:\d+\}", "{soft}", template))
    return Place(lm, task, record, max_length)


def first_prompt(
    place: Place, settings, words, rng: np.random.Generator
) -> tuple[np.ndarray, Place]:
    """Returns int[P], the tokens that the start has in the template, or words that are drawn, and
    the place with them. Raises a UserError if the start has not `config.search.num_tokens` tokens,
    or is not read as it is written."""
    size, start, given = settings.num_tokens, settings.start, place.task.template
    most = min(size, place.lm.spec.max_positions)  # more are refused
    # A full stop at the start's end may join the end of its line: then a space is put between.
    apart = re.sub(r"\{soft\}(?=\s|\\[nt])", "{soft} ", given)
    for template in [given, apart] if start else [given] * DRAWS:
        place = place._replace(task=place.task._replace(template=template))
        drawn = np.array([rng.choice(words.at(number)) for number in range(most)], int)
        prompt, found = _with_first(place, start or place.write(drawn)[0])
        if prompt.size and found.reads_as(prompt) and (start or prompt.size == size):
            if size in (0, prompt.size):
                return prompt, found
            raise UserError(
                f"config.search.start has {prompt.size} tokens and config.search.num_tokens is"
                f" {size}: give num_tokens={prompt.size}, or 0, or another text"
            )
    what = f"config.search.start {short(start)}" if start else f"each of {DRAWS} drawn starts"
    raise UserError(
        f"{what} is not read as it is written in {short(given, 200)}: its first or last word joins"
        " the text beside it, so write a space in front of {soft} in config.search.template, or let"
        " the start end in a letter"
    )


def _with_first(place: Place, text: str) -> tuple[np.ndarray, Place]:
    """Returns int[P], the tokens of a text at the template's {soft}, and the place with them."""
    one, template = Given({PROMPT: jnp.empty((1, 1))}), place.task.template
    # A space in front of the prompt is read with its first word.
    joined = place.task._replace(template=template.replace(" {soft}", "{soft}"))
    [slotted] = encode_for(place.lm, joined, [place.record], one, ANY_LENGTH)
    written = with_prompt(template, text)
    [whole] = place._replace(max_length=ANY_LENGTH).encode([place.record], written)
    begin = int(np.flatnonzero(slotted.trunk < 0)[0])
    # What follows ends at the first token that differs: a tokenizer may read the beginning of it
    # as it does behind this text alone, and not as behind virtual tokens.
    pairs = zip(whole.trunk[::-1], slotted.trunk[::-1], strict=False)
    behind = next((n for n, pair in enumerate(pairs) if pair[0] != pair[1]), len(whole.trunk))
    prompt = whole.trunk[begin : len(whole.trunk) - behind]
    return prompt, place._replace(written=written, begin=begin)
