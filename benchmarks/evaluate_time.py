"""Scoring the test headlines with PEFT over padded batches, and with ours, in one run.

    python benchmarks/evaluate_time.py
    python benchmarks/evaluate_time.py --artifact runs/quickstart/artifact --json

PEFT's side sorts the headlines by length and pads batches of 16. Ours packs them behind a prompt
whose keys and values are computed once. Both have the same prompt and tokens. The time includes
padding and packing, but no tokenising.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import inputs
import measure


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default=inputs.QUICKSTART, help="says model, task and first prompt")
    add("--override", action="append", default=[], metavar="KEY=VALUE", help="of the config")
    add("--artifact", help="a trained adaptation instead of the config's first one")
    add("--split", default="test", help="test, validation or train")
    add("--batch_size", type=int, default=16, help="of PEFT's side")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--skip_peft", action="store_true", help="our side alone, without torch")
    add("--json", action="store_true", help="one object on stdout")
    return parser.parse_args(arguments)


def main() -> int:
    """Runs the comparison."""
    options = parse()
    measure.use_cores(options.threads)
    measure.warn_if_busy()
    measure.show("scoring headlines", compare(options), options.json)
    return 0


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Returns everything that is printed."""
    import headlines
    import numpy as np

    from prompt_tuning_jax.score import loss_and_accuracy, score

    config = headlines.settings(options.config, options.override)
    lm = headlines.model(config)
    given = headlines.first(config, lm, options.artifact)
    examples = headlines.examples(config, lm, given, options.split)
    answers = np.array([example.answer for example in examples])
    scores: dict[str, np.ndarray] = {}
    sides = {}
    if not options.skip_peft:
        score_by_peft = peft_scorer(options, config, lm, given, examples)
        sides["peft"] = lambda _: scores.update(peft=score_by_peft())
    sides["ours"] = lambda _: scores.update(ours=score(lm, examples, given))
    times = measure.interleave(sides, range(options.rounds), warmup=[0])

    result: dict[str, Any] = {"examples": len(examples), "threads": options.threads}
    for side, found in scores.items():
        result[f"{side}_seconds"] = statistics.median(times[side])
        result[f"{side}_accuracy"] = loss_and_accuracy(found, answers)["accuracy"]
    if "peft" in scores:
        peft, ours = scores["peft"], scores["ours"]
        result["ratio"] = result["peft_seconds"] / result["ours_seconds"]
        result["same_answers"] = float((peft.argmax(1) == ours.argmax(1)).mean())
        result["largest_difference"] = float(abs(peft - ours).max())
    return result | measure.machine()


def peft_scorer(options: argparse.Namespace, config, lm, given, examples):
    """Returns a function of no arguments that scores the examples with PEFT."""
    import headlines
    import peft_side

    from prompt_tuning_jax.models.files.find import find_model

    peft_side.use_threads(options.threads)
    base = peft_side.base(str(find_model(config.model.path)), headlines.dtype(lm))
    wrapped = peft_side.tuned(base, given)
    cases, answers = headlines.questions(examples)
    return lambda: peft_side.answer_scores(wrapped, cases, answers, options.batch_size)


if __name__ == "__main__":
    sys.exit(main())
