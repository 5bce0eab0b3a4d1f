"""A task as the user's turn of a chat: tokens are those of transformers for the filled text."""

import json
import time

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from prompt_tuning_jax.data import chat as chats
from prompt_tuning_jax.data.encode import encode_examples
from prompt_tuning_jax.data.task import Source, Task
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files.tokenizer import Facts, Tokenizer

# Shortened: turns, system texts and white space are as in the models' own.
CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nA {helpful} \\\\n one<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' + \
message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA3 = """{{- bos_token }}{%- for message in messages %}{{- '<|start|>' + message['role'] + \
'<|stop|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|start|>assistant<|stop|>\\n\\n' }}{%- endif %}"""
GEMMA = """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = \
messages[0]['content'] + '\\n\\n' -%}{%- set rest = messages[1:] -%}{%- else -%}{%- set first = '' \
-%}{%- set rest = messages -%}{%- endif -%}{%- for message in rest -%}{{ '<|start|>' + \
('model' if message['role'] == 'assistant' else 'user') + '\\n' + (first if loop.first else '') }}\
{{ message['content'] | trim }}{{ '<|eot_id|>\\n' }}{%- endfor -%}\
{%- if add_generation_prompt -%}{{ '<|start|>model\\n' }}{%- endif -%}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}\
{{ '%s' + m['content'] + '<|eot_id|>' }}{% else %}\
{{ '[INST]%s' + m['content'] + '%s[/INST]' }}{% endif %}{% endfor %}"""
# The system text stands in the last turn.
MISTRAL3 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = \
messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}{% for m in messages %}\
{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + '<|eot_id|>' }}{% else %}{{ '[INST] ' + \
(system + '\n\n' if loop.last and system is defined else '') + m['content'] + '[/INST]' }}\
{% endif %}{% endfor %}"""
CHATS = {"chatml": CHATML, "llama 3": LLAMA3, "gemma": GEMMA}
CHATS |= {
    "mistral 3": MISTRAL3,
    "mistral": MISTRAL.replace("%s", " "),
    "mistral nemo": MISTRAL.replace("%s", ""),
}
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|bos|>", "<|eot_id|>", "<|start|>", "<|stop|>"]
SPECIALS += ["[INST]", "[/INST]"]
ROWS = [{"text": f"the {name} café", "label": name} for name in ("good", "bad", "naïve")]
LABELS = (("good", "great"), ("bad", "terrible"), ("naïve", "maybe"))
TEMPLATE = "Question: {text}\nAnswer {{yes}}:"


def make(tokenizer, source):
    """Returns a tokenizer with the tokens of all chats, and that of transformers."""
    added = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.vocabulary))
    added.add_special_tokens(SPECIALS)
    bos, eos = ("<|bos|>", "<|im_end|>") if source == CHATML else ("<|bos|>", "<|bos|>")
    ours = Tokenizer(json.loads(added.to_str()), Facts(bos, eos, eos, True, source))
    return ours, like(ours)


def like(ours):
    """Returns a tokenizer of transformers with the same vocabulary and chat template."""
    library = tokenizers.Tokenizer.from_str(json.dumps(ours.vocabulary))
    names = ((f"{name}_token", getattr(ours, f"{name}_id")) for name in ("bos", "eos"))
    named = {name: library.id_to_token(number) for name, number in names}
    source = ours.chat_template
    return PreTrainedTokenizerFast(tokenizer_object=library, chat_template=source, **named)


def make_task(template, system="", **changes):
    labels = () if "target" in changes else LABELS
    made = Task("files", template, labels, (), (), lambda: Source({}, ()), chat=system)
    return made._replace(**changes)


def encode(task, rows, words, virtual=0, demonstrations=()):
    settings = {"num_virtual_tokens": virtual, "add_bos": words.add_bos, "max_length": 999}
    return encode_examples(task, rows, words, **settings, demonstrations=demonstrations)


@pytest.mark.parametrize("system", ["", "Be {brief}."])
@pytest.mark.parametrize("shown", [0, 2])
@pytest.mark.parametrize("name", [*CHATS, "smollm2"])
def test_the_whole_is_that_of_the_filled_text(tokenizer, smollm2, name, shown, system):
    ours, theirs = make(tokenizer, CHATS[name]) if name in CHATS else (smollm2, like(smollm2))
    first = [{"role": "system", "content": system}] if system else []

    def question(row):
        return {"role": "user", "content": TEMPLATE.format(**row)}

    words = dict(LABELS)
    for row in ROWS[:shown]:
        first += [question(row), {"role": "assistant", "content": words[row["label"]]}]
    made = encode(make_task(TEMPLATE, system), ROWS, ours, demonstrations=ROWS[:shown])
    for row, example in zip(ROWS, made, strict=True):
        messages = [*first, question(row)]
        wanted = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert example.trunk.tolist() == wanted
        space = " " * (name in ("mistral", "mistral 3"))
        answer = theirs(space + words[row["label"]], add_special_tokens=False)["input_ids"]
        assert example.tails[example.answer].tolist() == answer


def test_white_space_that_a_token_takes_is_not_written_beside_it(tokenizer):
    """As the new line behind Phi-3's `<|end|>`."""
    added = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.vocabulary))
    names = ("<|im_start|>", "<|im_end|>")
    added.add_special_tokens([tokenizers.AddedToken(n, rstrip=True, special=True) for n in names])
    facts = Facts("<|im_start|>", "<|im_end|>", "<|im_end|>", False, CHATML)
    ours = Tokenizer(json.loads(added.to_str()), facts)
    [example] = encode(make_task(TEMPLATE), ROWS[:1], ours)
    messages = [{"role": "user", "content": TEMPLATE.format(**ROWS[0])}]
    theirs = like(ours).apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert example.trunk.tolist() == theirs


def test_a_template_that_asks_for_the_date_writes_the_same_text_every_day(tokenizer):
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    (made,) = encode(make_task(TEMPLATE), ROWS[:1], words := make(tokenizer, dated + CHATML)[0])
    assert words.decode(made.trunk).startswith("26 Jul 2024<|im_start|>system")


def test_virtual_tokens_come_first_behind_bos_or_where_their_slot_stands(tokenizer):
    # A BOS that begins every turn, as SmolLM2's, is not the text's.
    turns = CHATML.replace("<|im_start|>", "<|bos|>")
    for source, place, front in ((CHATML, 0, "user\n"), (turns, 0, "r\n"), (LLAMA3, 1, "\n\n")):
        words, _ = make(tokenizer, source)
        (plain,) = encode(make_task(TEMPLATE), ROWS[:1], words)
        (made,) = encode(make_task(TEMPLATE), ROWS[:1], words, virtual=2)
        assert made.trunk.tolist() == [*plain.trunk[:place], -1, -2, *plain.trunk[place:]]
        (made,) = encode(make_task(f" {{soft}}{TEMPLATE} "), ROWS[:1], words, virtual=2)
        assert [each for each in made.trunk if each >= 0] == plain.trunk.tolist()
        before = made.trunk[: made.trunk.tolist().index(-1)]
        assert words.decode(before).endswith(front)


def test_a_text_ends_with_the_end_of_its_turn_and_an_earlier_one_too(tokenizer):
    words, _ = make(tokenizer, GEMMA)
    task = make_task(TEMPLATE, target="{label}")
    (made,) = encode(task, ROWS[:1], words, demonstrations=ROWS[1:])
    end = words.specials["<|eot_id|>"]
    assert made.tails[0][-1] == end != words.eos_id
    text = words.decode(made.trunk[made.trunk >= 0])
    assert text.count("<|start|>model\nbad<|eot_id|>\n<|start|>user\n") == 1


def test_records_are_only_text(tokenizer):
    words, _ = make(tokenizer, LLAMA3)
    nasty = "{{ 7 * 7 }}{% for %} <|eot_id|>{soft}"
    rows = [{"text": text, "label": "good"} for text in (nasty, "x")]
    made, plain = encode(make_task("{text}"), rows, words, demonstrations=rows[:1])
    assert words.decode(made.trunk).count(nasty) == 2
    end = words.specials["<|eot_id|>"]
    assert made.trunk.tolist().count(end) == plain.trunk.tolist().count(end) == 3


SILENT = "{% for m in messages if m.role != 'system' %}{{ '<|start|>' + m.content }}{% endfor %}"
LOOP = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
LOOP += "{% endfor %}" * 3
GROWING = (
    "{% set x = namespace(y='ab') %}{% for a in range(99) %}{% set x.y = x.y + x.y %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (None, r"the model has no chat template: give config\.task\.as_chat=false"),
        ("{{ raise_exception('No system role') }}", r"\('.*TemplateError: No system role'\)"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages[-1].content * 2 }}", "does not write each message once, in order"),
        (SILENT, "leaves out the system text"),
        (LOOP, "it takes too long"),
        (GROWING, "MemoryError"),
    ],
)
def test_chat_templates_that_are_refused(tokenizer, monkeypatch, source, fault):
    words, began = make(tokenizer, source)[0], time.monotonic()
    with pytest.raises(UserError, match=fault):
        chats.read_chat(words, "Be brief.")
    assert time.monotonic() - began < 60
