"""`train --dry_run --topology`: the memory that a step needs on each chip of a TPU slice. The
step is compiled for these chips where libtpu is installed; a TPU is not needed for that."""

import importlib.metadata
import importlib.util
import math
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from prompt_tuning_jax import train
from prompt_tuning_jax.cli.machine import less_memory
from prompt_tuning_jax.cli.show import print_facts, say
from prompt_tuning_jax.data.batch import Shape, empty_batch
from prompt_tuning_jax.data.task import make_task
from prompt_tuning_jax.errors import UserError, nearest
from prompt_tuning_jax.memory import step_bytes
from prompt_tuning_jax.models.language_model import outline
from prompt_tuning_jax.models.sites import virtual_tokens
from prompt_tuning_jax.run.report import duration, size
from prompt_tuning_jax.sharding import make_mesh
from prompt_tuning_jax.step import compile_step, init_state, row_specs
from prompt_tuning_jax.teacher import is_taught

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
# Bytes of a chip (https://cloud.google.com/tpu/docs/system-architecture-tpu-vm), and the slices.
CHIPS = {"v4": (32, CUBES), "v5e": (16, FLAT), "v5p": (95, CUBES), "v6e": (32, FLAT)}
SLICES = [f"{chip}:{shape}" for chip, (_, shapes) in CHIPS.items() for shape in shapes]
# Google Cloud's names, such as v6e-8: with the chips, or for v4 and v5p their cores, two in each.
CORES = {"v4": 2, "v5p": 2}
CLOUD = {
    f"{chip}-{CORES.get(chip, 1) * math.prod(map(int, shape.split('x')))}": f"{chip}:{shape}"
    for chip, (_, shapes) in CHIPS.items()
    for shape in shapes
}
# Without a tokenizer there are no examples: the positions and targets of a row.
POSITIONS, TARGETS = 256, 16
COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\(")


def rehearse_on(config, topology: str) -> dict[str, Any]:
    """Returns what a step needs on each chip of a slice, such as 'v5e:2x4'; writes nothing. Raises
    a UserError if the slice or libtpu is not known, or the model cannot be divided so."""
    topology = CLOUD.get(topology.replace("v5litepod", "v5e"), topology)
    if topology not in SLICES:
        known = ", ".join(SLICES)
        raise UserError(
            f"--topology takes one of {known}, not {topology!r}{nearest(topology, SLICES)}"
        )
    chip, shape = topology.split(":")
    count = math.prod(map(int, shape.split("x")))
    if is_taught(config):
        raise UserError("--topology has no model that can teach: leave config.teacher out")
    jax.config.update("jax_platforms", "cpu")  # an installed libtpu would look for a TPU
    config = config.copy_and_resolve_references().unlock()
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"  # as on a TPU
    lm = outline(config, count)
    step, state, frozen, batch, read = _arguments(lm, config, count)
    kinds = {"weights": lm.params, "trained": state.trainable, "optimizer": state.optimizer_state}
    sizes = {name: _bytes(tree, lm.layout) for name, tree in kinds.items()}
    devices, compiler = _devices(topology)
    found: dict[str, Any] = {"slice": topology, "chips": count, "chip": CHIPS[chip][0] << 30}
    found |= {"batch": read, "model_axis": lm.layout.shards, "bytes": sizes, "compiler": compiler}
    least, began = sum(sizes.values()), time.perf_counter()
    found |= {"needed": least, "temporaries": None}
    if devices:
        found |= _compile(step, state, frozen, batch, lm.layout, devices)
        found["seconds"] = time.perf_counter() - began
        # The frozen copy of weights that are trained stays too, though the step does not read it.
        found["needed"] += sizes["weights"] - _bytes(frozen.params, lm.layout)
    found.setdefault("fits", found["needed"] <= found["chip"])
    # Fewer temporaries help if the rest fits.
    advice = f"{less_memory(config, count, least <= found['chip'])} or a larger slice"
    found["advice"] = "it fits" if found["fits"] else advice
    if found["temporaries"] is None and found["fits"]:
        found["advice"] = "that fits without the temporaries, which only a compiler knows"
    return found


def _arguments(lm, config, count):
    """Returns the parts of a step, its arguments as shapes, and what the batch is."""
    if lm.tokenizer is not None:
        plan = train.plan(lm, make_task(config.task), config, say, count)
        parts, trainable, frozen = plan.parts, plan.trainable, plan.frozen
        front, shape = plan.data.train[0].trunk[: plan.data.shared], plan.data.shapes[-1]
        source = "of the data"
    else:
        if "init" in config.method:
            config.method.init = "zero" if config.method.name == "prefix" else "uniform"
        parts, trainable, frozen, _, given = train.make_step(lm, None, config)
        multiple = count * config.microbatches
        rows = -(-config.batch_size // multiple) * multiple
        length = min(config.task.max_length or POSITIONS, lm.spec.max_positions)
        front = jnp.zeros(virtual_tokens(given) + 1, jnp.int32)
        shape = Shape(rows, length, TARGETS, TARGETS)
        source = f"{TARGETS} targets in each: assumed"
    state = jax.eval_shape(lambda tree: init_state(parts, tree), trainable)
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, empty_batch(front, shape)))
    read = f"{shape.rows} rows of {shape.length} positions after {len(front)} shared ones, {source}"
    return parts, state, frozen, batch, read


def _bytes(tree, layout) -> int:
    """Returns the bytes of a tree of shapes on one device."""
    specs = jax.tree.leaves(layout.specs(tree))
    return sum(
        leaf.size * leaf.dtype.itemsize // (layout.shards if any(spec) else 1)
        for leaf, spec in zip(jax.tree.leaves(tree), specs, strict=True)
    )


def _devices(topology: str) -> tuple[list, str]:
    """Returns the devices of a slice and what compiles for them; none without libtpu, and then how
    to install it."""
    needs = " ".join(importlib.metadata.requires("jax") or ())
    [wanted] = re.findall(r"libtpu==([\d.]+)\.\*", needs)
    found = importlib.util.find_spec("libtpu")
    if found is None:
        return [], f"none: type `pip install 'libtpu=={wanted}.*'`"
    kept = importlib.metadata.distributions(name="libtpu")
    version = next((each.version for each in kept), "nightly")
    if not f"{version}.".startswith(f"{wanted}."):
        raise UserError(
            f"libtpu {version} does not fit jax {jax.__version__}: type"
            f" `pip install 'libtpu=={wanted}.*'`"
        )
    from jax.experimental import topologies

    # It would ask a TPU about itself, and keep a second process from compiling.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"
    os.environ["TPU_LIBRARY_PATH"] = str(Path(str(found.origin)).with_name("libtpu.so"))
    one = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    # One device for the two cores of a chip, as jax has it on a TPU.
    whole = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    how: dict[str, Any] = {"platform": "tpu", "topology_name": topology, **one, **whole}
    described = topologies.get_topology_desc(**how)
    return list(described.devices), f"libtpu {version}"


def _compile(parts, state, frozen, batch, layout, devices) -> dict[str, Any]:
    mesh = make_mesh(devices, layout.shards)

    def placed(leaf, spec):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    state, frozen = (jax.tree.map(placed, tree, layout.specs(tree)) for tree in (state, frozen))
    step = compile_step(parts, "jit", devices, layout).step
    lowered = step.lower(state, frozen, jax.tree.map(placed, batch, row_specs()))
    say("compiling the step: a minute or a few")
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # '… HLO temporaries (16.52G) exceeds …', with the arguments, or '… hbm. Used 16.52G of …'
        said = re.search(r"(?:temporaries \(|hbm\. Used )([\d.]+)([GT])", str(error))
        if not said:
            raise
        needed = int(float(said[1]) * 2 ** {"G": 30, "T": 40}[said[2]])
        return {"needed": needed, "temporaries": None, "fits": False}
    analysis = compiled.memory_analysis()
    found = Counter(match[1] for match in COLLECTIVE.finditer(compiled.as_text()))
    return {
        "needed": getattr(analysis, "peak_memory_in_bytes", 0) or step_bytes(compiled),
        "temporaries": analysis.temp_size_in_bytes,
        "arguments": analysis.argument_size_in_bytes,
        "collectives": dict(found),
    }


def print_topology(found: dict[str, Any]) -> None:
    """Prints what `rehearse_on` found, for people."""
    parts = ", ".join(f"{size(each)} {name}" for name, each in found["bytes"].items())
    if found["temporaries"] is not None:
        parts += f", {size(found['temporaries'])} temporaries"
    compiled = f" in {duration(found['seconds'])}" if "seconds" in found else ""
    facts = {
        "slice": f"{found['slice']}, {found['chips']} chips of {size(found['chip'])}",
        "parallel.model": found["model_axis"],
        "a batch": found["batch"],
        "a chip": f"{size(found['needed'])} of {size(found['chip'])} ({parts})",
        "so": found["advice"],
        "compiled by": f"{found['compiler']}{compiled}",
    }
    if counts := found.get("collectives"):
        facts["in the program"] = ", ".join(f"{n} {name}" for name, n in counts.items())
    print()
    print_facts(facts)
