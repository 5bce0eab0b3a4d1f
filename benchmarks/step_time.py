"""One training step with PEFT on torch, or with torch alone for fine-tuning, and with ours.

    python benchmarks/step_time.py --num_virtual_tokens 20 --batch_size 8 --length 64
    python benchmarks/step_time.py --method prefix --num_virtual_tokens 100
    python benchmarks/step_time.py --method lora
    python benchmarks/step_time.py --shape gpt2 --num_virtual_tokens 100
    python benchmarks/step_time.py --batches real --num_virtual_tokens 16 --batch_size 16
    python benchmarks/step_time.py --layers 4 --width 64 --heads 4 --kv_heads 2 \\
        --feedforward 128 --vocabulary 512 --skip_peft

Both sides get the same token ids and the same first values, run in eval mode and update with AdamW.
They take turns in one run, so that a slow moment of the machine affects both. With `real` batches,
PEFT's are padded to the longest of each batch, as its users do, and ours are packed.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import inputs
import measure

METHODS = ("soft_prompt", "prefix", "lora", "ia3", "fine_tuning")
RATES = {"prefix": 1e-4, "fine_tuning": 1e-5}  # 0.001 for the others
SAME_LOSS = 1e-3  # nats, in float32
PASSED_ON = (
    "method",
    "num_virtual_tokens",
    "model",
    "torch_model",
    "cases",
    "dtype",
    "remat",
    "learning_rate",
    "threads",
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--method", choices=METHODS, default="soft_prompt")
    add("--num_virtual_tokens", type=int, help="20; with real batches 16")
    add("--batch_size", type=int, help="examples in an update: 8; with real batches 16")
    add("--length", type=int, default=64, help="random tokens in a row, targets included")
    add("--targets", type=int, default=1, help="how many of a row's last tokens are predicted")
    add("--batches", choices=("random", "real"), default="random", help="real: BBC headlines")
    add("--updates", type=int, default=0, help="of the real epoch; 0 is all of it")
    add("--rounds", type=int, default=7, help="timed steps of each side on random batches")
    add("--model", default="smollm2-135m-instruct", help="a name, GGUF file or folder")
    add("--shape", choices=inputs.CONFIGS, help="of this model, with random weights")
    for name in inputs.Shape._fields:
        add(f"--{name}", type=int, help="with any of these: a Llama with random weights")
    add("--dtype", default="auto", help="of the model; auto: float32 on a CPU, else bfloat16")
    add("--remat", default="named", help="what our backward pass keeps: named, full, none")
    add("--learning_rate", type=float, help="0.001; of a prefix 0.0001")
    add("--threads", type=int, default=2)
    add("--matrix_size", type=int, help="of the product that tells the machine's rate")
    add("--skip_peft", action="store_true", help="our side alone, without torch")
    add("--skip_memory", action="store_true")
    add("--json", action="store_true", help="one object on stdout")
    for name in ("memory_of", "torch_model", "cases"):
        add(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    usual_slots, usual_size = (16, 16) if options.batches == "real" else (20, 8)
    if options.num_virtual_tokens is None:
        options.num_virtual_tokens = usual_slots
    options.batch_size = options.batch_size or usual_size
    if options.learning_rate is None:
        # Behind random keys and values, at a higher rate rounding grows until the losses differ.
        options.learning_rate = RATES.get(options.method, 1e-3)
    if options.method not in ("soft_prompt", "prefix"):
        options.num_virtual_tokens = 0
    return options


def main() -> int:
    """Runs the comparison; 1 if the losses differ."""
    options = parse()
    measure.use_cores(options.threads)
    if options.memory_of:
        print(json.dumps({"bytes": own_peak(options)}))
        return 0
    measure.warn_if_busy()
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, folder)
        result = compare(options)
    measure.show("one training step", result, options.json)
    difference = result.get("loss_difference", 0.0)
    if options.dtype == "float32" and difference > SAME_LOSS:
        print(f"the losses differ by {difference:.2g}, more than {SAME_LOSS}", file=sys.stderr)
        return 1
    return 0


def prepare(options: argparse.Namespace, folder: str) -> None:
    """Resolves `auto` and the defaults, and writes what the other processes read."""
    import jax

    on_cpu = jax.default_backend() == "cpu"
    if options.dtype == "auto":
        options.dtype = "float32" if on_cpu else "bfloat16"
    options.matrix_size = options.matrix_size or (2048 if on_cpu else 8192)
    given = {name: getattr(options, name) for name in inputs.Shape._fields}
    given = {name: value for name, value in given.items() if value is not None}
    if given or options.shape:
        config = inputs.llama_config(inputs.Shape(**given))
        config = inputs.CONFIGS[options.shape] if options.shape else config
        options.model = inputs.random_model(f"{folder}/random", config)
    options.cases = f"{folder}/cases.json"
    with open(options.cases, "w", encoding="utf-8") as file:
        json.dump(updates(options), file)
    if not options.skip_peft:
        options.torch_model = torch_folder(options.model, folder, options.dtype)


def updates(options: argparse.Namespace) -> list[list[inputs.Case]]:
    """Returns the examples of each update."""
    if options.batches == "real":
        import headlines

        given = {"model.path": options.model, "batch_size": options.batch_size}
        given["method.name"] = options.method
        if options.num_virtual_tokens:
            given["method.num_virtual_tokens"] = options.num_virtual_tokens
        config = headlines.settings(overrides=[f"{name}={each}" for name, each in given.items()])
        lm = headlines.model(config)
        train = headlines.examples(config, lm, headlines.first(config, lm), "train")
        epoch = len(train) // options.batch_size
        return headlines.updates(config, train, min(options.updates or epoch, epoch))
    from prompt_tuning_jax.models.files.weights import read_weights

    vocabulary = read_weights(options.model, options.dtype).spec.vocabulary
    return inputs.random_updates(options.batch_size, options.length, options.targets, vocabulary)


def torch_folder(path: str, folder: str, dtype: str) -> str:
    """Returns the model as a Hugging Face folder; transformers converts a GGUF file to one.

    Reading GGUF takes transformers several times the model's memory, which should not count.
    """
    from prompt_tuning_jax.models.files.find import find_model

    found = str(find_model(path))
    if os.path.isdir(found):
        return found
    import peft_side

    return peft_side.save(peft_side.base(found, dtype), f"{folder}/torch")


def read_cases(options: argparse.Namespace) -> list[list[inputs.Case]]:
    """Reads the examples of each update that `prepare` wrote."""
    with open(options.cases, encoding="utf-8") as file:
        return [[inputs.Case(*each) for each in update] for update in json.load(file)]


def our_training(options: argparse.Namespace):
    """Returns our side before its first update."""
    import our_side

    model = our_side.load(options.model, options.dtype, options.remat)
    cases = read_cases(options)
    first = our_side.first(model, options.method, options.num_virtual_tokens)
    return our_side.prepare(model, cases, first, options.learning_rate)


def peft_stepper(options: argparse.Namespace) -> Callable[[int], float]:
    """Returns a function that runs an update of PEFT, by its number, and gives its loss."""
    import peft_side

    peft_side.use_threads(options.threads)
    base = peft_side.base(options.torch_model, options.dtype)
    first = peft_side.first(base, options.method, options.num_virtual_tokens)
    train = peft_side.trainer(peft_side.tuned(base, first), options.learning_rate)
    batches = [peft_side.batch(update) for update in read_cases(options)]
    return lambda number: train(batches[number])


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Returns everything that is printed."""
    import our_side

    training = our_training(options)
    losses: dict[str, list[float]] = {"peft": [], "ours": []}
    sides: dict[str, Callable[[int], Any]] = {}
    if not options.skip_peft:
        sides["peft"] = recorded(peft_stepper(options), losses["peft"])
    sides["ours"] = recorded(our_side.stepper(training), losses["ours"])
    sides["products"] = our_side.bare_products(training)
    count = len(training.batches)
    rounds = list(range(count)) if count > 1 else [0] * options.rounds
    times = measure.interleave(sides, rounds, our_side.first_of_each_kind(training) * 2)

    result = {"model": os.path.basename(options.model)} | our_side.described(training)
    for name in ("method", "batches", "num_virtual_tokens", "batch_size", "dtype", "threads"):
        result[name] = getattr(options, name)
    result |= timed(times, sum if count > 1 else statistics.median) | compared(losses)
    result |= counted(our_side.work(training, rounds), times["ours"], options)
    if not options.skip_memory:
        result |= memories(options)
    return result | measure.machine()


def recorded(step: Callable[[int], float], losses: list[float]) -> Callable[[int], None]:
    """Returns a function that runs `step` and appends its loss to `losses`."""
    return lambda number: losses.append(step(number))


def timed(
    times: dict[str, list[float]], summary: Callable[[list[float]], float]
) -> dict[str, float]:
    """Returns medians of a step, and ratios of medians, or of sums over an epoch."""
    result = {f"{side}_seconds": statistics.median(each) for side, each in times.items()}
    whole = {side: summary(each) for side, each in times.items()}
    if "peft" in times:
        result["ratio"] = whole["peft"] / whole["ours"]
    return result | {"step_over_products": whole["ours"] / whole["products"]}


def compared(losses: dict[str, list[float]]) -> dict[str, float]:
    """Returns the first losses, and the largest difference between the sides at any step."""
    result = {f"{side}_first_loss": each[0] for side, each in losses.items() if each}
    if losses["peft"]:
        pairs = zip(losses["peft"], losses["ours"], strict=True)
        result["loss_difference"] = max(abs(a - b) for a, b in pairs)
    return result


def counted(work, seconds: Sequence[float], options: argparse.Namespace) -> dict[str, float]:
    """Compares the operations of a mean update with the fewest, and the rate with the machine's.

    `work` is that of all the updates that took these seconds.
    """
    rate = measure.matrix_rate(options.matrix_size, options.dtype)
    return {
        "flops": work.flops / len(seconds),
        "recomputed_flops": work.recomputed / len(seconds),
        "least_flops": work.least / len(seconds),
        "flops_ratio": work.flops / work.least,
        "flops_ratio_without_recomputed": (work.flops - work.recomputed) / work.least,
        "matrix_gflops_per_second": rate / 1e9,
        "fraction_of_matrix_rate": work.least / sum(seconds) / rate,
    }


def memories(options: argparse.Namespace) -> dict[str, float]:
    """Returns the peaks of both sides, each in its own process."""
    sides = ("ours",) if options.skip_peft else ("peft", "ours")
    peaks = {side: peak_of(side, options) for side in sides}
    result: dict[str, float] = {f"{side}_peak_bytes": peak for side, peak in peaks.items()}
    if "peft" in peaks:
        result["memory_ratio"] = peaks["ours"] / peaks["peft"]
    return result


def peak_of(side: str, options: argparse.Namespace) -> int:
    """Returns the peak of a process that runs only `side` on the same examples."""
    arguments = ["--memory_of", side]
    for name in PASSED_ON:
        if getattr(options, name) is not None:
            arguments += [f"--{name}", str(getattr(options, name))]
    return measure.in_own_process(arguments)["bytes"]


def own_peak(options: argparse.Namespace) -> int:
    """Returns the peak of this process, weights included, after the largest updates: the memory of
    the accelerator, or of the host on a CPU."""
    if options.memory_of == "peft":
        import peft_side as side

        step = peft_stepper(options)
    else:
        import our_side as side

        step = side.stepper(our_training(options))
    sizes = [sum(len(case.ids) for case in update) for update in read_cases(options)]
    for number in sorted(range(len(sizes)), key=sizes.__getitem__)[-3:] * 2:
        step(number)
    return side.peak_device_bytes() or measure.peak_host_bytes()


if __name__ == "__main__":
    sys.exit(main())
