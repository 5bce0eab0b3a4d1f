"""What a command needs of the machine: a run's artifact, the model, compiled programs, memory."""

import contextlib
import logging
import os
import platform
import timeit
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from prompt_tuning_jax.cli.show import say
from prompt_tuning_jax.config import from_manifest
from prompt_tuning_jax.data.task import Task, make_task
from prompt_tuning_jax.errors import RunError
from prompt_tuning_jax.memory import device_bytes
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models.language_model import LanguageModel, load
from prompt_tuning_jax.run.artifact import MANIFEST, Artifact, load_artifact
from prompt_tuning_jax.run.folder import ARTIFACT
from prompt_tuning_jax.storage import cache_folder

SIZE = 1536  # of the matrices that a device's speed is measured with


def find_artifact(folder: str) -> str:
    """Returns the folder of an artifact, which may be given by the folder of its run."""
    inside = Path(folder, ARTIFACT)
    if not os.path.exists(inside / MANIFEST):
        return folder
    say(f"the artifact of the run {folder!r} is used: {inside}")
    return str(inside)


def open_artifact(folder: str, overrides: Sequence[str]) -> tuple[Artifact, Any, Task]:
    """Returns an artifact, its own config with overrides, and the task it was trained for."""
    artifact = load_artifact(find_artifact(folder))
    config = from_manifest(artifact.manifest, overrides)
    return artifact, config, make_task(config.task, artifact.manifest["labels"])


def load_model(config) -> LanguageModel:
    """Reads the frozen model of a config, and keeps from then on what XLA compiles."""
    lm = load(config.model, config.parallel)
    # Not before: a command that is rejected writes nothing.
    keep_compiled()
    return lm


def keep_compiled() -> None:
    """Keeps compiled programs for the next start, in a folder for this version and host alone:
    those of another machine can crash. On CPUs `sharding.shard` may prevent it."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # a folder of the user's own
        return
    name = f"{jaxlib.__version__}-{platform.node()}-{platform.machine()}"
    folder = cache_folder() / "compiled" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.getLogger(__name__).warning(
            "warning: the cache folder '%s' cannot be written (%s), so its content is made again"
            " each time: set PROMPT_TUNING_CACHE to a folder that can be written",
            cache_folder(),
            error.strerror,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def describe_machine(lm: LanguageModel) -> str:
    """Returns a line with the devices, and how fast one multiplies large matrices: 0.1 seconds."""
    dtype, multiply = lm.dtype, jax.jit(jnp.matmul)
    square = jnp.ones((SIZE, SIZE), dtype)
    seconds = timeit.repeat(lambda: multiply(square, square).block_until_ready(), number=1)
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    rate = 2 * SIZE**3 / min(seconds) / 1e9
    return f"{count} x {kind}, {dtype} matrix products at {rate:,.0f} GFLOP/s"


@contextlib.contextmanager
def enough_memory(config):
    """Turns XLA's error about too little memory into a RunError that says what to type."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        less = less_memory(config)
        raise RunError(f"the device has too little memory for a step: {less}.") from error


def less_memory(config, devices: int = 0, temporaries: bool = True) -> str:
    """Says what to type for less memory of each of so many devices, the cheapest change first; by
    default of those that are here, unless they share the host's. `temporaries`: whether it helps
    to have fewer of these."""
    devices = devices or (jax.device_count() if device_bytes() else 1)
    changes = []
    if config.parallel.model < devices and config.parallel.name == "jit":
        changes.append(f"--config.parallel.model={devices} or a divisor (the weights in parts)")
    axes = config.parallel.axes
    if config.method.name == "lora" and config.parallel.model > 1 and "r" not in axes:
        changes.append(f'--config.parallel.axes="{(*axes, "r")}" (LoRA and its optimizer in parts)')
    if temporaries and config.microbatches * devices < config.batch_size:
        parts = min(2 * config.microbatches, config.batch_size)
        changes.append(f"--config.microbatches={parts} (about half of the temporaries)")
    if temporaries and config.model.remat != "full":
        changes.append("--config.model.remat=full (slower, far fewer temporaries)")
    if config.model.dtype not in ("bfloat16", "float16"):
        changes.append("--config.model.dtype=bfloat16 (half the bytes of float32 weights)")
    trains_weights = getattr(METHODS[config.method.name], "TRAINS_WEIGHTS", False)
    if not config.model.quantize and not trains_weights:
        changes.append("--config.model.quantize=int8 (half the bytes of bfloat16 weights)")
    smaller = "task.max_length or model" if temporaries else "model"
    return f"try {' or '.join(changes or [f'a smaller {smaller}'])}"
