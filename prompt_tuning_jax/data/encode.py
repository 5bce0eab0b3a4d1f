"""The records of a task as examples: rendered with their answers, and tokenised."""

import functools
from collections.abc import Sequence
from typing import Any

from prompt_tuning_jax.data.chat import in_chat, read_chat
from prompt_tuning_jax.data.example import Example, encode_example, lay_out
from prompt_tuning_jax.data.records import LABEL, PLACE, Record
from prompt_tuning_jax.data.task import Task, check_fields, output_fields, parse_target
from prompt_tuning_jax.data.template import field_names, fill_pieces, parse, with_demonstrations
from prompt_tuning_jax.errors import UserError, short


def encode_examples(
    task: Task,
    records: Sequence[Record],
    tokenizer: Any,
    *,
    num_virtual_tokens: int,
    add_bos: bool,
    max_length: int,
    demonstrations: Sequence[Record] = (),
) -> list[Example]:
    """Returns the example of each record. Its answers are the words of all labels, in order, or the
    target alone, followed by the tokenizer's EOS token, or in a chat by what ends a turn. A record
    without a label has an unknown answer, one without the fields of the target has no answers.

    `demonstrations`, whose answers are known, are rendered in front of every record. The other
    arguments are those of `encode_example`. An error in a record begins with the record's place."""
    text = task.template
    check_fields(text, task.fields, output_fields(task))
    if task.target and tokenizer.eos_id is None:
        raise UserError("the tokenizer has no EOS token to end a text with: use labels instead")
    target = parse_target(task.target, tokenizer.specials) if task.target else None
    ending = [tokenizer.eos_id] if task.target else []
    # A space before a target belongs to the target: how the two become tokens depends on the
    # target's first word, which is unknown when the model is asked. A turn has none at its ends.
    chat = None if task.chat is None else read_chat(tokenizer, task.chat)
    text = text.strip() if chat else text.removesuffix(" ") if task.target else text
    parsed = parse(text, tokenizer.specials)
    answered = []
    for number, record in enumerate(demonstrations):
        words, answer = _answers(task, target, record)
        if answer < 0:
            raise UserError(f"demonstration {number} has no answer: give it the label, or the text")
        answered.append((record, words[answer]))
    markup = {number: text for text, number in tokenizer.specials.items()}
    ends = [markup[number] for number in (tokenizer.eos_id, *tokenizer.end_ids) if number in markup]
    if chat:
        parsed, add_bos = in_chat(parsed, chat, answered), False  # the chat has its own
        ending = [tokenizer.specials[chat.end.markup]] if task.target and chat.end else ending
    else:
        parsed = with_demonstrations(parsed, answered, markup.get(tokenizer.bos_id), ends)
    lay_out(parsed, num_virtual_tokens)  # whose errors are the template's and not a record's
    encode = functools.partial(
        encode_example,
        num_virtual_tokens=num_virtual_tokens,
        add_bos=add_bos and not task.continues,
        max_length=max_length,
        ending=ending,
        continues=task.continues,
    )
    examples = []
    for number, record in enumerate(records):
        try:
            words, answer = _answers(task, target, record)
            examples.append(encode(parsed, record, words, tokenizer, answer=answer))
        except UserError as error:
            raise UserError(f"{record.get(PLACE, f'record {number}')}: {error}") from error
    return examples


def count_shortened(examples: Sequence[Example]) -> tuple[int, int]:
    """Returns how many examples were too long, and how many tokens they lost."""
    lost = [example.dropped for example in examples if example.dropped]
    return len(lost), sum(lost)


def group_by_input(task: Task, records: Sequence[Record]) -> tuple[list[Record], list[list[str]]]:
    """Returns the first record of each distinct input, and the target texts of each input."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    fields, target = field_names(task.template), parse(task.target)
    for record in records:
        groups.setdefault(tuple(record[field] for field in fields), []).append(record)
    texts = [[_text(target, record) for record in group] for group in groups.values()]
    return [group[0] for group in groups.values()], texts


def _answers(task: Task, target, record: Record) -> tuple[Sequence[str], int]:
    """Returns the possible answers to a record and the index of the right one, -1 if unknown."""
    if target is not None:
        if any(field.name not in record for field in target.fields):
            return (), -1
        text = _text(target, record)
        if not text:
            raise UserError("the target is empty: give the record a text to write, or remove it")
        return (text,), 0
    values, words = zip(*task.labels, strict=True)
    if not record.get(LABEL):
        return words, -1
    if record[LABEL] not in values:
        known = ", ".join(map(repr, values))
        raise UserError(f"the label is {short(record[LABEL])}: expected one of {known}")
    return words, values.index(record[LABEL])


def _text(target, record: Record) -> str:
    return fill_pieces(target.pieces, record, target)[1].strip()
