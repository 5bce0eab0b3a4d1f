"""Writing after headlines with transformers' `generate` and its cache, and with ours, in one run.

    python benchmarks/generate_time.py --prompts 1
    python benchmarks/generate_time.py --prompts 16 --json

Both sides decode greedily from the same token ids and write as many tokens after every prompt: the
end of a text is ignored. The time is from ids to ids, padding included. Also prints the share of
prompts after which both wrote the same.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import inputs
import measure

from prompt_tuning_jax.models.sites import NOTHING


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default=inputs.QUICKSTART, help="says model and task")
    add("--override", action="append", default=[], metavar="KEY=VALUE", help="of the config")
    add("--prompts", type=int, default=16, help="how many at once")
    add("--tokens", type=int, default=64, help="to be written after each")
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=2)
    add("--skip_transformers", action="store_true", help="our side alone, without torch")
    add("--json", action="store_true", help="one object on stdout")
    return parser.parse_args(arguments)


def main() -> int:
    """Runs the comparison."""
    options = parse()
    measure.use_cores(options.threads)
    measure.warn_if_busy()
    measure.show("writing texts", compare(options), options.json)
    return 0


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Returns everything that is printed."""
    import headlines

    config = headlines.settings(options.config, options.override)
    lm = headlines.model(config)
    made = headlines.examples(config, lm, NOTHING, "test")[: options.prompts]
    cases, _ = headlines.questions(made)
    written: dict[str, list[list[int]]] = {}
    sides = {}
    if not options.skip_transformers:
        theirs = transformers_writer(options, config, lm, cases)
        sides["transformers"] = lambda _: written.update(transformers=theirs())
    ours = our_writer(options, lm, cases)
    sides["ours"] = lambda _: written.update(ours=ours())
    times = measure.interleave(sides, range(options.rounds), warmup=[0])

    result: dict[str, Any] = {"prompts": len(cases), "tokens": options.tokens}
    result["threads"] = options.threads
    for side in sides:
        result[f"{side}_seconds"] = statistics.median(times[side])
        result[f"{side}_best"] = min(times[side])
    if "transformers" in written:
        result["ratio"] = result["transformers_seconds"] / result["ours_seconds"]
        pairs = zip(written["transformers"], written["ours"], strict=True)
        result["same_texts"] = statistics.mean(float(one == other) for one, other in pairs)
    return result | measure.machine()


def our_writer(options: argparse.Namespace, lm, cases: Sequence[inputs.Case]):
    """Returns a function of no arguments that gives the ids written after each case."""
    import copy

    import numpy as np

    from prompt_tuning_jax.data.example import Example
    from prompt_tuning_jax.generate import Settings, generate

    endless = copy.copy(lm.tokenizer)
    endless.end_ids = []
    lm = lm._replace(tokenizer=endless)
    examples = [Example(np.array(case.ids), (), -1, case.constant, 0) for case in cases]
    settings = Settings(max_new_tokens=options.tokens, batch_size=len(cases))
    return lambda: [each.ids for each in generate(lm, examples, NOTHING, settings)]


def transformers_writer(options: argparse.Namespace, config, lm, cases: Sequence[inputs.Case]):
    """Returns the same function with transformers."""
    import headlines
    import peft_side

    from prompt_tuning_jax.models.files.find import find_model

    peft_side.use_threads(options.threads)
    base = peft_side.base(str(find_model(config.model.path)), headlines.dtype(lm))
    return lambda: peft_side.write(base, cases, options.tokens)


if __name__ == "__main__":
    sys.exit(main())
