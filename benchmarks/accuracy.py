"""The accuracy of a recipe on the headlines, trained by PEFT on torch or by us.

    python benchmarks/accuracy.py --side ours --seeds 0,1,2
    python benchmarks/accuracy.py --side peft --seeds 0,1,2 --override steps=200
    python benchmarks/accuracy.py --side ours --config configs/lora.py --json | tee ours.jsonl
    python benchmarks/accuracy.py --side peft --config configs/lora.py --against ours.jsonl

Both sides run the config's recipe with the same first values, order of batches, learning rates,
clipping and AdamW. They keep the values with the lowest loss on the validation split. PEFT's prompt
encoder is its P-tuning, which starts at random; its side of fine-tuning is torch alone.

`--against` compares the test accuracy with what an earlier run printed with `--json`, seed by seed
and example by example. The interval is the middle 95 % of 2,000 resamples of the examples: it
shows what other examples would change, not what other seeds would. `--read` takes this side's
results from a file as well.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import inputs
import measure
import numpy as np

from prompt_tuning_jax.metrics import paired_difference
from prompt_tuning_jax.models.sites import from_tensors

# Keys of `config.method` that only our side has, by method, and the values that both have.
PLAIN: dict[str, dict[str, Any]] = {
    "prefix": {"hidden_size": 0, "dropout": 0.0},
    "prompt_encoder": {"kind": "residual"},
    "lora": {"dropout": 0.0},
    "fine_tuning": {"leaves": ()},
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default=inputs.QUICKSTART)
    add("--override", action="append", default=[], metavar="KEY=VALUE", help="of the config")
    add("--side", choices=("ours", "peft"), required=True)
    add("--seeds", default="0,1,2")
    add("--threads", type=int, default=2)
    add("--read", metavar="FILE", help="its lines are the results: nothing is trained")
    add("--against", metavar="FILE", help="what an earlier run printed with --json")
    add("--json", action="store_true", help="one object a line on stdout")
    return parser.parse_args(arguments)


def main() -> int:
    """Trains once for each seed."""
    options = parse()
    measure.use_cores(options.threads)
    measure.warn_if_busy()
    import headlines

    train = {"ours": ours, "peft": peft}[options.side]
    results = read(options.read) if options.read else []
    for seed in [] if options.read else options.seeds.split(","):
        config = headlines.settings(options.config, [*options.override, f"seed={seed}"])
        given = {"side": options.side, "seed": config.seed, "learning_rate": config.learning_rate}
        results.append(given | train(config, options.threads))
        hidden = () if options.json else ("test_right",)
        shown = {name: value for name, value in results[-1].items() if name not in hidden}
        measure.show(f"seed {seed}", shown, options.json)
    means = {
        name: statistics.mean(result[name] for result in results)
        for name in ("validation_accuracy", "test_accuracy", "seconds")
    }
    if options.against:
        means |= compared(results, read(options.against))
    measure.show(f"mean of {len(results)}", {"side": options.side, **means}, options.json)
    return 0


def read(path: str) -> list[dict[str, Any]]:
    """Returns the results of single seeds in a file of lines that were printed with `--json`."""
    with open(path, encoding="utf-8") as file:
        return [found for found in map(json.loads, file) if "seed" in found]


def compared(results: Sequence[dict], others: Sequence[dict]) -> dict[str, Any]:
    """Returns the difference in test accuracy, a mean over the seeds that both have, and its 95 %
    interval: a bootstrap over the examples, paired by example and seed."""
    ours, theirs = (
        {each["seed"]: np.array([*each["test_right"]], int) for each in side}
        for side in (results, others)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    if len({right.shape for side in (ours, theirs) for right in side.values()}) != 1 or not seeds:
        raise SystemExit("the two sides have no seed in common, or other test examples")
    both = (np.array([side[seed] for seed in seeds], float) for side in (ours, theirs))
    difference, low, high = paired_difference(*both)
    return {"seeds": seeds, "difference": difference, "low": low, "high": high}


def ours(config: Any, threads: int) -> dict[str, Any]:
    """Runs `tune`; its seconds are those of steps and validation."""
    import headlines

    from prompt_tuning_jax import train
    from prompt_tuning_jax.data.task import make_task

    lm = headlines.model(config)
    task = make_task(config.task)
    result = train.tune(lm, task, config, log=lambda line: print(line, file=sys.stderr))
    found = headlines.accuracies(config, lm, from_tensors(result.artifact.tensors))
    return {"seconds": result.seconds} | found


def peft(config: Any, threads: int) -> dict[str, Any]:
    """Runs the recipe with PEFT; the result is scored by the same code as ours."""
    import headlines
    import peft_side

    from prompt_tuning_jax.models.files.find import find_model
    from prompt_tuning_jax.optimizers import make_schedule

    if config.optimizer.name != "adamw" or config.optimizer.weight_decay:
        raise SystemExit("PEFT's side knows AdamW without decay only")
    if config.best_by != "loss":
        raise SystemExit("PEFT's side keeps the values with the lowest loss: best_by=loss")
    peft_side.use_threads(threads)
    lm = headlines.model(config)
    path = str(find_model(config.model.path))
    base = peft_side.base(path, headlines.dtype(lm))
    start = headlines.first(config, lm)
    wrapped = wrap(config, base, start)
    schedule = make_schedule(config)
    step = peft_side.trainer(
        wrapped, lambda done: float(schedule(done)), config.optimizer.clip_norm
    )
    train, validation = (
        headlines.examples(config, lm, start, split) for split in ("train", "validation")
    )
    updates = headlines.updates(config, train, config.steps)
    held_out = headlines.answered(validation)
    lowest, best, began = math.inf, None, time.perf_counter()
    for number, update in enumerate(updates, start=1):
        loss = step(peft_side.batch(update))
        if number % (config.evaluate_every or config.steps) == 0 or number == config.steps:
            held = peft_side.mean_loss(wrapped, held_out)
            print(f"step {number}: loss {loss:.4f}, validation {held:.4f}", file=sys.stderr)
            if held < lowest:
                lowest, best = held, peft_side.trained(wrapped)
    seconds = time.perf_counter() - began
    return {"seconds": seconds} | headlines.accuracies(config, lm, best)


def wrap(config: Any, base, start):
    """Wraps the base as PEFT does for the config's method."""
    import peft_side

    method = config.method
    for key, value in PLAIN.get(method.name, {}).items():
        if method[key] != value:
            raise SystemExit(f"PEFT's side has no method.{key}: it has to be {value!r}")
    if method.name == "prompt_encoder":
        width = base.get_input_embeddings().embedding_dim
        size = method.hidden_size or width
        return peft_side.encoded(base, method.num_virtual_tokens, size, config.seed)
    if method.name == "lora":
        scale = {"lora_alpha": method.alpha, "use_rslora": method.rank_stabilised}
        return peft_side.tuned(base, start, **scale)
    return peft_side.tuned(base, start)


if __name__ == "__main__":
    sys.exit(main())
