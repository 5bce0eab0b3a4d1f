"""Prompts scored in a second by a search, with the prompt computed once, and with the prompt in
front of every example in the rows.

Command: python benchmarks/search_time.py
Measured: 32 headlines and 52 tokens, in a second of one core 0.68 and 0.14 prompts: 4.75x.
"""

import argparse
import time
from collections.abc import Sequence

import jax
import numpy as np

from prompt_tuning_jax import config as configs
from prompt_tuning_jax import load
from prompt_tuning_jax.cli.machine import describe_machine
from prompt_tuning_jax.data.batch import pack_batch, plan_shapes
from prompt_tuning_jax.data.task import make_task, select_records
from prompt_tuning_jax.search.loop import plan
from prompt_tuning_jax.search.score import Part, fill, label_loss, score_prompts
from prompt_tuning_jax.search.text import find_place, first_prompt
from prompt_tuning_jax.step import target_scores

PROMPTS, REPEATS = 4, 2


def rate(function):
    """Returns prompts in a second of a processor, the best of a few times: other work on the
    machine does not count."""
    function()
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return PROMPTS / min(times)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/search.py", help="whose start is scored")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace):
    config = configs.load(options.config, ["--config.search.rounds=1"])
    lm, task = load(config.model), make_task(config.task)
    rows = select_records(task, "train")
    place = find_place(lm, task, rows[0], config.search, 0)
    prompt, place = first_prompt(place, config.search, None, np.random.default_rng(0))
    prompts = np.repeat(prompt[None], PROMPTS, axis=0)
    part: Part = plan(place, rows, len(prompt), config, print)(0, 0)

    count = len(part.answers)
    whole = [
        example._replace(trunk=fill(example.trunk, prompts[:1])[0])
        for example in place.encode(rows[:count], place.written, len(prompt))
    ]
    order = np.arange(count)[None]
    shapes = plan_shapes(whole, order, 0, ranked=True)
    batch = pack_batch(whole, 0, shapes, ranked=True)
    plain = jax.jit(lambda params, batch: target_scores(lm.module, {"params": params}, batch)[0])

    def each():
        for _ in prompts:
            np.asarray(plain(lm.params, batch))

    print(describe_machine(lm), f"{count} examples, {len(prompt)} tokens")
    once = rate(lambda: label_loss(score_prompts(lm, prompts, part)[0], part.answers))
    every = rate(each)
    print(f"in a second of one core: the prompt once, {once:.2f}; in every example, {every:.2f}")
    print(f"{once / every:.2f}x")


if __name__ == "__main__":
    main(parse())
