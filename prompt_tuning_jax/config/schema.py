"""Collects the keys of a config from what they configure, and completes a config. Keys have
dotted names here, such as `method.name`."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from prompt_tuning_jax.config.key import Key, among, convert, strings, whole
from prompt_tuning_jax.errors import nearest

EPOCHS = (
    "write config.steps = epochs x examples / batch_size (--dry_run shows the number of examples)"
)
# Names that transformers, PEFT and others have for a key, and ours; with a value where theirs is
# another.
_PAIRS = """
lr:learning_rate max_steps:steps num_steps:steps num_training_steps:steps iterations:steps
per_device_train_batch_size:batch_size train_batch_size:batch_size random_seed:seed data_seed:seed
gradient_accumulation_steps:microbatches eval_steps:evaluate_every save_steps:save_every
logging_steps:log_every early_stopping_patience:early_stopping patience:early_stopping
metric_for_best_model:best_by report_to:tracker model:model.path model_name:model.path
model_name_or_path:model.path base_model_name_or_path:model.path torch_dtype:model.dtype
bf16:model.dtype=bfloat16 fp16:model.dtype=float16 gradient_checkpointing:model.remat=full
task:task.name dataset_name:task.name train_file:task.files.train
validation_file:task.files.validation
test_file:task.files.test max_seq_length:task.max_length max_seq_len:task.max_length
max_source_length:task.max_length model_max_length:task.max_length method:method.name
peft_type:method.name prompt_tuning_init:method.init prompt_tuning_init_text:method.init_text
encoder_hidden_size:method.hidden_size prefix_projection:method.hidden_size=SIZE
r:method.rank lora_alpha:method.alpha target_modules:method.targets optim:optimizer.name
use_rslora:method.rank_stabilised load_in_8bit:model.quantize=int8 optimizer:optimizer.name
adam_beta1:optimizer.b1 adam_beta2:optimizer.b2 adam_epsilon:optimizer.eps schedule:schedule.name
max_grad_norm:optimizer.clip_norm lr_scheduler_type:schedule.name
num_warmup_steps:schedule.warmup_steps warmup_ratio:schedule.warmup_steps=STEPS
max_target_length:generation.max_new_tokens
"""
OTHERS = dict(pair.split(":") for pair in _PAIRS.split())
# The keys of the loop, which stand outside of sections.
LOOP = {
    "seed": Key(0, "a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "steps": whole(200, 1),
    # Examples in an update, and in how many parts they are computed, one after the other.
    "batch_size": whole(16, 1),
    "microbatches": whole(1, 1).if_fits(
        "at most config.batch_size, so that every part holds an example",
        lambda value, loop: value <= loop["batch_size"],
    ),
    "learning_rate": Key(0.02, "a number above 0", lambda value: 0 < value < math.inf),
    # Steps from one to the next; 0: only at the end.
    "evaluate_every": whole(50),
    "save_every": whole(50),
    "log_every": whole(10, 1),
    # What the validations choose the result by; equal accuracies by their loss.
    "best_by": among("loss", ("loss", "accuracy")),
    # Validations in a row without a better result, after which a run ends; 0: all steps are taken.
    "early_stopping": whole(0).if_fits(
        "config.evaluate_every of at least 1 beside it, because it counts validations",
        lambda value, loop: not value or loop["evaluate_every"] > 0,
    ),
    # Steps to trace with jax's profiler.
    "profile_steps": whole(0),
    # An installed package that gets the metrics too.
    "tracker": among("", ("", "wandb", "trackio")),
    # Written prompts that the report compares with the trained one.
    "prompts": strings(),
}


def collect() -> dict[tuple[str, str], dict[str, Key]]:
    """Returns all keys by dotted name, in groups: by a section, and by the name of the method,
    optimizer, search or kind of task that has them, or "" if every config has them."""
    # Imported here, because they import this package for their keys.
    from prompt_tuning_jax import calibration, compare_rows, generate, optimizers, search, teacher
    from prompt_tuning_jax.data import demonstrations, task
    from prompt_tuning_jax.methods import METHODS
    from prompt_tuning_jax.models import language_model
    from prompt_tuning_jax.sharding import KEYS as PARALLEL_KEYS

    declared: dict[tuple[str, str], Mapping[str, Key]] = {
        ("model", ""): language_model.KEYS,
        ("parallel", ""): PARALLEL_KEYS,
        ("task", ""): task.KEYS,
        **{("task", name): kind.keys for name, kind in task.KINDS.items()},
        ("method", ""): {"name": among(next(iter(METHODS)), METHODS)},
        **{("method", name): method.KEYS for name, method in METHODS.items()},
        ("optimizer", ""): optimizers.KEYS,
        **{("optimizer", name): optimizers.own_keys(name) for name in optimizers.OPTIMIZERS},
        ("schedule", ""): optimizers.SCHEDULE_KEYS,
        ("generation", ""): generate.KEYS,
        ("demonstrations", ""): demonstrations.KEYS,
        ("calibration", ""): calibration.KEYS,
        ("compare", ""): compare_rows.KEYS,
        ("search", ""): search.KEYS,
        **{("search", name): each.KEYS for name, each in search.SEARCHES.items()},
        ("teacher", ""): teacher.KEYS,
    }
    return {("", ""): LOOP} | {
        (section, owner): {f"{section}.{name}": key for name, key in keys.items()}
        for (section, owner), keys in declared.items()
    }


def all_keys() -> dict[str, Key]:
    """Returns the keys of every method, optimizer and kind of task by dotted name."""
    return {name: key for keys in collect().values() for name, key in keys.items()}


def complete(
    given: Mapping[str, Any], typed: Collection[str] = ()
) -> tuple[dict[str, Key], dict[str, Any], dict[str, str]]:
    """Adds the defaults to values by dotted name. Returns the keys of a config with this method,
    optimizer and kind of task; their values; and a fault for each other key that was given. A key
    of another method, optimizer or kind of task that is not one of `typed` is no fault if it has
    its default (configs of earlier versions have the keys of all), or if the name of its section is
    typed."""
    from prompt_tuning_jax.methods import METHODS
    from prompt_tuning_jax.optimizers import RENAMED

    owners, given = collect(), dict(given)
    if isinstance(given.get("parallel"), str):  # in front of the section was its name
        given["parallel.name"] = given.pop("parallel")
        typed = {"parallel.name" if name == "parallel" else name for name in typed}
    keys = {name: key for place in owners if not place[1] for name, key in owners[place].items()}
    chosen = {}
    for section in dict.fromkeys(section for section, owner in owners if owner):
        name = given.get(f"{section}.name", keys[f"{section}.name"].default)
        # A kind of task may have more behind it, as in tfds:ag_news.
        chosen[section] = str(name).partition(":")[0]
        keys |= owners.get((section, chosen[section]), {})
    for name, default in getattr(METHODS.get(chosen["method"]), "DEFAULTS", {}).items():
        keys[name] = keys[name]._replace(default=default)
    for old, new in RENAMED.get(chosen["optimizer"], {}).items():
        if old in given and new not in given:
            given[new] = given.pop(old)
    values = {name: convert(given.get(name, key.default), key) for name, key in keys.items()}
    unknown = {name: value for name, value in given.items() if name not in keys}
    unknown |= {name: None for name in unknown if name in typed}  # which is nowhere the default
    faults = {name: _unknown(name, unknown[name], keys, owners, chosen, typed) for name in unknown}
    return keys, values, {name: fault for name, fault in faults.items() if fault}


def _unknown(name, value, keys, owners, chosen, typed) -> str:
    """Returns the fault of a key that is not among `keys`, or "" if it can be ignored."""
    having = {owner: own[name] for (_, owner), own in owners.items() if name in own}
    if having:
        section, key = name.partition(".")[0], next(iter(having.values()))
        is_known = (section, chosen[section]) in owners  # else that is the fault
        was_for_another = name not in typed and f"{section}.name" in typed
        if was_for_another or not is_known or convert(value, key) == key.default:
            return ""
        return (
            f"config.{name} is a key of {' and '.join(having)}, and config.{section}.name is"
            f" {chosen[section]!r}: leave it out"
        )
    every = [each for own in owners.values() for each in own]
    if any(each.startswith(f"{name}.") for each in every):
        inside = [each.removeprefix(f"{name}.") for each in keys if each.startswith(f"{name}.")]
        found = f"config.{name} is a section: set its keys {', '.join(inside)}"
        return found if value != {} else ""
    if "epoch" in name:
        return f"config.{name} is not a known key: {EPOCHS}"
    same = " or ".join(map(repr, known_as(name, keys) or known_as(name, every)))
    meant = f" (did you mean {same}?)" if same else nearest(name, keys) or nearest(name, every)
    return f"config.{name} is not a known key{meant}"


def known_as(name: str, keys: Iterable[str]) -> list[str]:
    """Returns the keys that a name may mean, ours or another program's; some with `=VALUE`."""
    name = name.replace("-", "_")
    last = name.rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == last]
    for one in (name, last):
        if one in same or one in OTHERS:
            return [OTHERS.get(one, one)]
    return same if len(same) == 1 or "." not in name else []
