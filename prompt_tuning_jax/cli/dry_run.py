"""`train --dry_run`: what the model reads, what fits into memory and how long a run takes. It runs
the code of `train` up to the first step, and a few steps whose result is thrown away."""

import itertools
import time
import timeit
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prompt_tuning_jax import train
from prompt_tuning_jax.cli.machine import enough_memory, less_memory
from prompt_tuning_jax.cli.show import print_facts, say
from prompt_tuning_jax.cli.train import prepare
from prompt_tuning_jax.data.encode import count_shortened
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.data.task import select_records
from prompt_tuning_jax.memory import device_bytes, host_bytes, step_bytes
from prompt_tuning_jax.models.files.tokenizer import Tokenizer
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import Given
from prompt_tuning_jax.run.folder import check_local
from prompt_tuning_jax.run.report import duration, size
from prompt_tuning_jax.score import score, spread
from prompt_tuning_jax.step import compile_step, init_state
from prompt_tuning_jax.teacher import is_taught

BATCHES = 64  # batches that are looked at, evenly spaced over the run
SCORED = 64  # validation examples whose scoring is timed
ROOM = 0.8  # up to this share of the memory, nothing is advised
ANSWERS = 10  # the most answers that are shown


def rehearse(config, folder: str | None, fresh: bool) -> dict[str, Any]:
    """Does everything but training, with the arguments of `train_and_report`; writes nothing."""
    check_local(folder or "")
    lm, task = prepare(config, None if folder is None else Path(folder), fresh)
    with enough_memory(config):
        return measure(lm, task, config, say)


def measure(lm: LanguageModel, task, config, log) -> dict[str, Any]:
    """Returns what is known about a run before it. Takes and raises what `train.tune` does."""
    began = time.perf_counter()
    plan = train.plan(lm, task, config, log)
    teacher = (time.perf_counter() - began) * is_taught(config)  # each run asks it
    data = plan.data
    updates = np.linspace(0, config.steps - 1, min(config.steps, BATCHES)).astype(int)
    batches = [data.batch(update) for update in updates.tolist()]
    untrained = plan.adapt(plan.trainable)  # before a step takes its memory
    compiled = compile_step(plan.parts, config.parallel.name, layout=lm.layout)
    frozen = compiled.place(plan.frozen)
    state = compiled.place(init_state(plan.parts, plan.trainable))
    began = time.perf_counter()
    steps = train.executables(compiled, state, frozen, data, log)
    seconds = {"compile": time.perf_counter() - began, "teacher": teacher}
    seconds["step"] = _step_seconds(compiled, steps, state, frozen, batches)
    seconds["validation"] = _validation_seconds(lm, data.validation, untrained)
    validations = -(-config.steps // config.evaluate_every) if config.evaluate_every else 1
    seconds["run"] = config.steps * seconds["step"] + validations * seconds["validation"]
    memory = _memory(steps.values())
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
        "sample": _sample(data.train[0], data.labels, lm.tokenizer),
        "batches": _shapes(batches) | {"shared_positions": data.shared},
        "parameters": {
            "trainable": train.parameter_count(plan.trainable),
            "frozen": train.parameter_count(plan.frozen.params),
        },
        "memory": memory,
        "advice": advice(memory, config),
        "batch_size": config.batch_size,
        "steps": config.steps,
        "validations": validations,
        "seconds": seconds,
    }


def advice(memory: dict[str, Any], config) -> str:
    """Says whether a step fits into memory and, if it hardly does, what to type."""
    share = memory["needed"] / memory["available"]
    return "it fits" if share <= ROOM else f"that is {share:.0%}: {less_memory(config)}"


def print_plan(found: dict[str, Any]) -> None:
    """Prints what `measure` found, for people."""
    examples, sample, batches = found["examples"], found["sample"], found["batches"]
    text = f"{sample['text']}[[{sample['target']}]]"
    words = sample["tokens"] - sample["virtual_tokens"] - sample["targets"]
    answers = [
        f"{value} {answer['text']!r} ({answer['tokens']} token{'s' * (answer['tokens'] > 1)})"
        for value, answer in sample["answers"].items()
    ]
    if len(answers) > ANSWERS:
        answers[ANSWERS:] = [f"{len(answers) - ANSWERS} more"]
    shapes = [
        f"{shape['rows']} x {shape['positions']} ({shape['share']:.0%})"
        for shape in batches["shapes"]
    ]
    notes = found["notes"] + [
        f"{lost['examples']:,} {name} examples shortened by {lost['tokens']:,} tokens"
        for name, lost in found["shortened"].items()
        if lost["examples"]
    ]
    memory, seconds = found["memory"], found["seconds"]
    print()
    print_facts(
        {
            "data": f"{found['task']}: {examples['train']:,} examples to train on, "
            f"{examples['validation']:,} to validate, {examples['test']:,} to test",
            "notes": ", ".join(notes) or "none",
            "model reads": text.replace("\n", "\\n").replace("\t", "\\t"),
            "tokens": f"{sample['tokens']}: {sample['virtual_tokens']} virtual, {words} of text, "
            f"{sample['targets']} to predict",
            "answers": ", ".join(answers),
            "a batch": f"{found['batch_size']} examples in {' or '.join(shapes)} rows x positions,"
            f" {batches['padding']:.0%} padding; {batches['shared_positions']} shared positions",
            "parameters": f"{found['parameters']['trainable']:,} trainable, "
            f"{found['parameters']['frozen']:,} frozen",
            "memory": f"{size(memory['needed'])} of {size(memory['available'])} a step "
            f"({size(memory['arguments'])} arguments, {size(memory['temporaries'])} temporaries): "
            f"{found['advice']}",
            "time": f"{duration(seconds['compile'])} to compile, {seconds['step']:.3g} s a step, "
            f"{duration(seconds['validation'])} a validation",
            "the run": f"{found['steps']:,} steps and {found['validations']:,} validations: about "
            f"{duration(seconds['teacher'] + seconds['run'])}, and then the report",
        }
    )


def _step_seconds(compiled, steps, state, frozen, batches) -> float:
    """Returns the mean seconds of a step, by a second run of a batch of each shape."""
    seconds = {}
    for shape, batch in {batch.tokens.shape: batch for batch in batches}.items():
        for _ in range(2):
            began = time.perf_counter()
            state, metrics = steps[shape](state, frozen, compiled.place_batch(batch))
            jax.block_until_ready(metrics)
            seconds[shape] = time.perf_counter() - began
    return sum(seconds[batch.tokens.shape] for batch in batches) / len(batches)


def _validation_seconds(lm: LanguageModel, examples, given: Given) -> float:
    """Returns the seconds to score all examples, by a second run of a part of them."""
    part, (lm, given, _) = examples[:SCORED], spread(lm, given)
    seconds = timeit.repeat(lambda: score(lm, part, given), number=1, repeat=2)[1]
    return seconds * len(examples) / len(part)


def _shapes(batches) -> dict[str, Any]:
    """Returns how often each shape [R, T] of batches occurs, and their share of padding."""
    counts = Counter(batch.tokens.shape for batch in batches)
    filled = sum(int((batch.segments > 0).sum()) for batch in batches)
    return {
        "shapes": [
            {"rows": rows, "positions": length, "share": counts[rows, length] / len(batches)}
            for rows, length in sorted(counts)
        ],
        "padding": 1 - filled / sum(batch.segments.size for batch in batches),
        "looked_at": len(batches),
    }


def _sample(example: Example, labels, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns an example as the model reads it: text with slots, answers, and numbers of tokens."""
    values = [value for value, _ in labels] or [""]
    # Those of a teacher are all answers.
    targets = example.tails if example.answer < 0 else [example.tails[example.answer]]
    size = sum(map(len, targets))
    return {
        "text": _spell(example.trunk, tokenizer),
        "target": " | ".join(tokenizer.decode(tail.tolist()) for tail in targets),
        "tokens": len(example.trunk) + size,
        "virtual_tokens": int((example.trunk < 0).sum()),
        "targets": size,
        "answers": {
            value: {"text": tokenizer.decode(tail.tolist()), "tokens": len(tail)}
            for value, tail in zip(values, example.tails, strict=True)
        },
    }


def _spell(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """Returns the text of int32[n] ids, with slots as `<soft 0..31>`."""
    parts = []
    for virtual, group in itertools.groupby(ids.tolist(), lambda number: number < 0):
        run = list(group)
        slots = dict.fromkeys((-1 - run[0], -1 - run[-1]))
        parts.append(f"<soft {'..'.join(map(str, slots))}>" if virtual else tokenizer.decode(run))
    return "".join(parts)


def _memory(executables: Iterable[Any]) -> dict[str, Any]:
    """Returns the bytes that the largest compiled step needs, and the bytes there are. All CPU
    devices share the host's memory; any other device has its own."""
    largest = max(executables, key=step_bytes)
    analysis = largest.memory_analysis()
    own = device_bytes()
    shared_by = 1 if own else jax.local_device_count()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "needed": step_bytes(largest) * shared_by,
        "available": own or host_bytes(),
    }
