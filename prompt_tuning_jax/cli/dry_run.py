"""A run without its training: what the model reads, what fits into memory, how long it takes.

Everything up to the first step is `train`'s own. The compiled step is run on a state that is then
thrown away, and nothing is written.
"""

import itertools
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from prompt_tuning_jax import score as scoring
from prompt_tuning_jax import train
from prompt_tuning_jax.data.encode import count_shortened
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.data.task import select_records
from prompt_tuning_jax.models import memory as memories
from prompt_tuning_jax.models.files.tokenizer import Tokenizer
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.run.report import duration, size
from prompt_tuning_jax.step import compile_step, init_state

BATCHES = 64  # of a run, at equal distances, that are looked at
SCORED = 64  # validation examples whose scoring is timed
ROOM = 0.8  # share of the memory up to which a step fits without a word
ANSWERS = 10  # that are shown


def measure(lm: LanguageModel, task, config, log) -> dict[str, Any]:
    """What there is to know of a run beforehand, as plain values by name.

    Args:
      lm, task, config, log: as for `train.tune`.

    Raises:
      UserError: as `train.tune`.
    """
    plan = train.plan(lm, task, config, log)
    data = plan.data
    updates = np.linspace(0, config.steps - 1, min(config.steps, BATCHES)).astype(int)
    looked_at = [data.batch(update) for update in updates.tolist()]
    untrained = plan.adapt(plan.trainable)
    compiled = compile_step(plan.parts, config.parallel)
    frozen = compiled.place(lm.params)
    state = compiled.place(init_state(plan.parts, plan.trainable))
    began = time.perf_counter()
    steps = train.executables(compiled, state, frozen, data, log)
    compiling = time.perf_counter() - began
    step = step_seconds(compiled, steps, state, frozen, looked_at)
    validation = validation_seconds(lm, data.validation, untrained)
    needed = memory(steps.values())
    validations = -(-config.steps // config.evaluate_every) if config.evaluate_every else 1
    return {
        "task": task.name,
        "examples": {
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(select_records(task, config.task.test)),
        },
        "notes": list(task.load().notes),
        "shortened": {
            name: dict(zip(("examples", "tokens"), count_shortened(encoded), strict=True))
            for name, encoded in (("train", data.train), ("validation", data.validation))
        },
        "sample": sample(data.train[0], data.labels, lm.tokenizer),
        "batches": rows(looked_at) | {"shared_positions": data.shared},
        "parameters": {
            "trainable": train.parameter_count(plan.trainable),
            "frozen": train.parameter_count(lm.params),
        },
        "memory": needed,
        "advice": advice(needed, config),
        "batch_size": config.batch_size,
        "steps": config.steps,
        "validations": validations,
        "seconds": {
            "compile": compiling,
            "step": step,
            "validation": validation,
            "run": config.steps * step + validations * validation,
        },
    }


def step_seconds(compiled, steps, state, frozen, looked_at) -> float:
    """Mean seconds of a step over some batches, each shape's by its second run of two."""
    shapes = Counter(batch.tokens.shape for batch in looked_at)
    total = 0.0
    for shape, batch in {batch.tokens.shape: batch for batch in looked_at}.items():
        for _ in range(2):
            began = time.perf_counter()
            state, metrics = steps[shape](state, frozen, compiled.place_batch(batch))
            jax.block_until_ready(metrics)
            seconds = time.perf_counter() - began
        total += shapes[shape] * seconds
    return total / len(looked_at)


def validation_seconds(lm: LanguageModel, examples, collections) -> float:
    """Seconds to score all examples, by those that a part of them takes."""
    part = examples[:SCORED]
    for _ in range(2):
        began = time.perf_counter()
        scoring.score(lm, part, collections)
        seconds = time.perf_counter() - began
    return seconds * len(examples) / len(part)


def rows(looked_at) -> dict[str, Any]:
    """Sizes of batches: how often each shape [R, T] occurs, and what share of it is padding."""
    shapes = Counter(batch.tokens.shape for batch in looked_at)
    filled = sum(int((batch.segments > 0).sum()) for batch in looked_at)
    total = sum(batch.segments.size for batch in looked_at)
    return {
        "shapes": [
            {"rows": count, "positions": length, "share": shapes[count, length] / len(looked_at)}
            for count, length in sorted(shapes)
        ],
        "padding": 1 - filled / total,
        "looked_at": len(looked_at),
    }


def sample(example: Example, labels, tokenizer: Tokenizer) -> dict[str, Any]:
    """An example as the model reads it: text with slots, what each answer adds, and counts."""
    values = [value for value, _ in labels] or [""]
    target = example.tails[example.answer]
    return {
        "text": spelt(example.trunk, tokenizer),
        "target": tokenizer.decode(target.tolist()),
        "tokens": len(example.trunk) + len(target),
        "virtual_tokens": int((example.trunk < 0).sum()),
        "targets": len(target),
        "answers": {
            value: {"text": tokenizer.decode(tail.tolist()), "tokens": len(tail)}
            for value, tail in zip(values, example.tails, strict=True)
        },
    }


def spelt(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of int32[n] ids, with slots as `<soft 0..31>`."""
    parts = []
    for virtual, group in itertools.groupby(ids.tolist(), lambda number: number < 0):
        run = list(group)
        slots = dict.fromkeys((-1 - run[0], -1 - run[-1]))
        parts.append(f"<soft {'..'.join(map(str, slots))}>" if virtual else tokenizer.decode(run))
    return "".join(parts)


def memory(executables: Iterable[Any]) -> dict[str, Any]:
    """Bytes that XLA lays out for the largest of the compiled steps, on a device, and the bytes
    that there are; `devices` is how many of them share these, as those of a CPU do."""
    analyses = [executable.memory_analysis() for executable in executables]

    def needed(analysis):
        # The new state takes the old one's place: what is aliased counts once.
        alive = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        return alive + analysis.temp_size_in_bytes - analysis.alias_size_in_bytes

    largest = max(analyses, key=needed)
    own = memories.device()
    shared_by = 1 if own else jax.local_device_count()
    return {
        "arguments": largest.argument_size_in_bytes,
        "temporaries": largest.temp_size_in_bytes,
        "outputs": largest.output_size_in_bytes - largest.alias_size_in_bytes,
        "needed": needed(largest) * shared_by,
        "available": own or memories.host(),
    }


def advice(found: dict[str, Any], config) -> str:
    """Whether a step fits into memory, and if it hardly does, which keys to change."""
    share = found["needed"] / found["available"]
    return "it fits" if share <= ROOM else f"that is {share:.0%}: {smaller(config)}"


def smaller(config) -> str:
    """What to type so that a step takes less memory, the cheapest change first."""
    changes = []
    if config.microbatches < config.batch_size:
        parts = min(2 * config.microbatches, config.batch_size)
        changes.append(f"--config.microbatches={parts} (about half of the temporaries)")
    if config.model.remat != "full":
        changes.append("--config.model.remat=full (slower, and far less of the temporaries)")
    if config.model.dtype not in ("bfloat16", "float16"):
        changes.append("--config.model.dtype=bfloat16 (half the weights, where they are float32)")
    return f"try {' or '.join(changes)}" if changes else "try a smaller model"


def lines(found: dict[str, Any]) -> list[str]:
    """What `measure` found, for people."""
    examples, read, batches = found["examples"], found["sample"], found["batches"]
    text = (read["text"] + f"[[{read['target']}]]").replace("\n", "\\n").replace("\t", "\\t")
    words = read["tokens"] - read["virtual_tokens"] - read["targets"]
    shown = [
        f"{value} {answer['text']!r} ({answer['tokens']} token{'s' * (answer['tokens'] > 1)})"
        for value, answer in itertools.islice(read["answers"].items(), ANSWERS)
    ]
    more = len(read["answers"]) - len(shown)
    shapes = [
        f"{shape['rows']} x {shape['positions']} ({shape['share']:.0%})"
        for shape in batches["shapes"]
    ]
    shortened = [
        f"{lost['examples']:,} {name} examples shortened by {lost['tokens']:,} tokens"
        for name, lost in found["shortened"].items()
        if lost["examples"]
    ]
    memory, seconds = found["memory"], found["seconds"]
    table = {
        "data": f"{found['task']}: {examples['train']:,} examples to train on, "
        f"{examples['validation']:,} to validate, {examples['test']:,} to test",
        "left out": ", ".join([*found["notes"], *shortened]) or "nothing",
        "model reads": text,
        "": f"{read['tokens']} tokens: {read['virtual_tokens']} virtual, {words} of text, "
        f"{read['targets']} to predict",
        "answers": ", ".join(shown) + (f" and {more} more" if more else ""),
        "a batch": f"{found['batch_size']} examples as {' or '.join(shapes)} in rows, "
        f"{batches['padding']:.0%} padding; {batches['shared_positions']} shared positions once",
        "parameters": f"{found['parameters']['trainable']:,} trainable, "
        f"{found['parameters']['frozen']:,} frozen",
        "memory": f"{size(memory['needed'])} of {size(memory['available'])} a step "
        f"({size(memory['arguments'])} arguments, {size(memory['temporaries'])} temporaries): "
        f"{found['advice']}",
        "time": f"{duration(seconds['compile'])} to compile, {seconds['step']:.3g} s a step, "
        f"{duration(seconds['validation'])} a validation",
        "the run": f"{found['steps']:,} steps and {found['validations']:,} validations: about "
        f"{duration(seconds['run'])}, and then the report",
    }
    return [f"{name:<12} {value}" for name, value in table.items()]
