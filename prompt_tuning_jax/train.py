"""The training loop: restore or start, step, log, validate, save, stop. Read it from the top. The
mathematics of a step is in `step.py`; the files of a run are written in `run/`."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_tuning_jax import config as configs
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.data.batch import empty_batch
from prompt_tuning_jax.data.records import digest
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.memory import step_bytes
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models import sites
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.optimizers import make_optimizer
from prompt_tuning_jax.prepare import Data, check_task, prepare, start_from_demonstrations
from prompt_tuning_jax.quantization import is_quantized
from prompt_tuning_jax.run import warnings
from prompt_tuning_jax.run.artifact import Artifact, load_start, make_manifest
from prompt_tuning_jax.run.checkpoint import Checkpoints
from prompt_tuning_jax.run.folder import CHECKPOINTS, tie_to_config
from prompt_tuning_jax.run.log import RunLog
from prompt_tuning_jax.run.processes import agreed, check_processes, must_stop, stop_requested
from prompt_tuning_jax.run.tracking import check_tracker, profiler, tracker
from prompt_tuning_jax.sharding import fetch, is_spread, shard
from prompt_tuning_jax.step import Compiled, Frozen, Parts, State, compile_step, init_state

LARGE = 10**8  # numbers of a tree; of a larger one only the newest checkpoint is kept


class Plan(NamedTuple):
    """A run before anything is compiled or written."""

    parts: Parts  # what the step is made of
    trainable: Any  # the first trainable tree
    frozen: Frozen  # what an update only reads
    adapt: Callable  # from a trainable tree to what the model is given in an evaluation
    data: Data  # the examples and their batches
    sources: dict[str, str]  # fingerprints by 'model' and 'data', which are not in the config
    task: Any  # the task, with the tokens that its virtual tokens begin with, if any


class Best(NamedTuple):
    """The best so far."""

    trainable: Any
    loss: float  # in validation
    step: int
    since: int  # validations since then
    accuracy: float = 0.0  # 0 if the task has no labels


class Result(NamedTuple):
    """What training gave."""

    artifact: Artifact  # the best adaptation
    history: list[dict]  # the lines of metrics
    finished: bool  # whether it ended by itself, after all steps or early, and was not stopped
    trainable_parameters: int  # how many numbers were trained
    seconds: float  # the time of the steps and validations
    saved: bool  # whether its end is in a checkpoint
    step_seconds: float = 0.0  # the time of the steps alone
    memory: int = 0  # the bytes that the compiled step needs on a device


def tune(
    lm: LanguageModel,
    task,
    config,
    folder: str | os.PathLike | None = None,
    log=print,
    fresh: bool = False,
    until: int = 0,
) -> Result:
    """Adapts the frozen model to a task.

    Args:
      lm: from `load`.
      task: from `data.task.make_task`.
      config: from `config.load` or `config.build`.
      folder: a claimed run folder (`run/folder.py`) for metrics and checkpoints, in which a run
        that was stopped goes on; None keeps nothing.
      log: takes a line of text.
      fresh: delete what an earlier run left in the folder, and start over.
      until: the update after which to stop for now; the next call goes on. 0 runs to the end.

    Raises:
      UserError: a setting, template or record cannot be used; the folder is not changed.
      RunError: five updates in a row, or all validation losses, were not finite.
    """
    run = plan(lm, task, config, log)
    folder = None if folder is None else Path(folder)
    kept = agreed(folder is not None)
    with contextlib.ExitStack() as opened:
        before_step = opened.enter_context(profiler(config.profile_steps, folder, log))
        track = opened.enter_context(tracker(config, folder))
        if folder:
            # Not before everything is checked: a config that cannot run must not own the folder.
            tie_to_config(folder, config, fresh)
        stopping = opened.enter_context(stop_requested(log))
        # Each has the newest state and the best tree: gigabytes if the whole model is trained.
        kept_steps = 1 if parameter_count(run.trainable) > LARGE else 2
        checkpoints = Checkpoints(folder / CHECKPOINTS, kept_steps) if folder else None
        state, best, spent, memory = agreed(restore(checkpoints, run, log))
        start = int(state.step)
        end = start if enough(best, config) else max(start, min(until or math.inf, config.steps))
        run_log = opened.enter_context(RunLog(config, folder, log, start, spent, track, end))
        warn_of_norm(run_log, lm, run.adapt(state.trainable))

        compiled = compile_step(run.parts, config.parallel.name, layout=lm.layout)
        frozen, state = compiled.place(run.frozen), compiled.place(state)
        placed = lm._replace(params=frozen.params) if config.parallel.name == "jit" else lm
        steps = executables(compiled, state, frozen, run.data, log) if start < end else {}
        memory = max(map(step_bytes, steps.values()), default=memory)
        run_log.start_clock()
        saved = start == end
        for step in range(start, end):
            before_step(state)
            batch = run.data.batch(step)
            state, metrics = steps[batch.tokens.shape](state, frozen, compiled.place_batch(batch))
            run_log.add(step + 1, metrics, batch)

            stop, last = must_stop(stopping, step), step + 1 == end
            # A run without a folder cannot go on later: what it has learnt is its result.
            if last or (stop and not kept) or due(step + 1, config.evaluate_every):
                run_log.flush()
                current = compiled.fetch(state.trainable)
                given = run.adapt(current)
                found = validate(placed, run.data, given, step + 1, run_log)
                warn_of_norm(run_log, lm, given)
                best = better(best, current, found, step + 1, config.best_by)
            ended = stop or last or enough(best, config)
            if kept and (ended or due(step + 1, config.save_every)):
                run_log.flush()
                spent, fetched = run_log.seconds(), compiled.fetch(state)
                if checkpoints is not None:
                    saved = save(checkpoints, run, fetched, best, spent, memory, log)
            if ended:
                break

    taken, refused = map(int, compiled.fetch((state.step, state.refused)))
    if refused:
        log(f"{refused} of {taken} updates were left out: their gradient or result was not finite")
    finished = not stopping and (taken == end or enough(best, config))
    if finished and not math.isfinite(best.loss):
        raise RunError("no validation loss of this run is finite: lower learning_rate.")
    if enough(best, config):
        log(f"stopped early after step {taken}: no better validation in the last {best.since}")
    given = jax.tree.map(fetch, run.adapt(best.trainable))
    metrics = {"step": best.step, "validation_loss": best.loss}
    artifact = Artifact(sites.to_tensors(given), make_manifest(lm, run.task, config, metrics))
    size, seconds = parameter_count(run.trainable), run_log.seconds()
    return Result(artifact, run_log.lines, finished, size, seconds[0], saved, seconds[1], memory)


def plan(lm: LanguageModel, task, config, log: Callable, devices: int = 0) -> Plan:
    """Reads the data and makes everything that can be refused; writes nothing. The rows are for so
    many devices, by default all that there are."""
    configs.validate(config)
    if lm.layout.shards != (wanted := config.parallel.model):
        raise UserError(
            f"config.parallel.model is {wanted}, and the model was loaded over {lm.layout.shards}:"
            " give load(config.model, config.parallel)"
        )
    check_task(task, config)
    check_tracker(config.tracker)
    task, shown = start_from_demonstrations(lm, task, config, log)
    check_processes(config, {"model": lm.fingerprint})  # before they compute anything together
    parts, trainable, frozen, run, given = make_step(lm, task, config)

    def adapt(tree):
        return run(shard(tree, lm.layout), frozen.fixed, lm.params)

    trained, left = parameter_count(trainable), parameter_count(frozen.params)
    share = trained / (trained + left)
    log(f"{trained:,} trainable parameters, {left:,} frozen ({share:.4%} trained)")
    if warning := warnings.unread_init(config.method, lm.tokenizer, task.labels):
        log(warning)
    for warning in warnings.odd_settings(config):
        log(f"warning: {warning}")
    data = prepare(lm, task, config, given, log, shown, devices or jax.device_count())
    sources = {"model": lm.fingerprint, "data": data.fingerprint()}
    # What is not trained is made again from it, and all else is in the checkpoint.
    begun = load_start(config.method).values() if frozen.fixed else ()
    sources["method.init_file"] = digest(*(leaf.tolist() for leaf in begun))
    check_processes(config, sources)
    return Plan(parts, trainable, frozen, adapt, data, sources, task)


def make_step(lm: LanguageModel, task, config):
    """Returns the parts of a step, the first trainable tree, what a step only reads, a compiled
    `adapt(tree, fixed, params)`, and the shapes of its result. All are shapes if the weights are
    (`outline`)."""
    start = sites.from_tensors(load_start(config.method))
    method = METHODS[config.method.name].make(config.method, start)
    parts = Parts(lm.module, method, make_optimizer(config), config.seed, config.microbatches)
    key = jax.random.key(config.seed)

    def init(params):
        return method.init(key, lm._replace(params=params), task)

    is_outline = isinstance(jax.tree.leaves(lm.params)[0], jax.ShapeDtypeStruct)
    made = jax.eval_shape(init, lm.params) if is_outline else init(lm.params)
    trainable, fixed = jax.tree.map(lambda leaf: fetch(leaf) if is_spread(leaf) else leaf, made)
    # The frozen weights are an argument: what a jitted function closes over is compiled in.
    run = jax.jit(lambda tree, fixed, params: method.adapt(tree, fixed, params, key, False))
    given = jax.eval_shape(run, trainable, fixed, lm.params)
    sites.check_given(lm.spec, given)
    if given.params and lm.settings.get("quantize"):
        held = "the method trains weights of the model: leave one of the two out"
        raise UserError(f"config.model.quantize is 'int8', and {held}")
    frozen = Frozen(sites.without_leaves(lm.params, given.params), fixed)
    return parts, trainable, frozen, run, given


def better(best: Best, trainable, found: Mapping[str, float], step: int, by: str) -> Best:
    """Returns the better of two trees, or the earlier one if they are equal."""
    new = Best(trainable, found["loss"], step, 0, found.get("accuracy", 0.0))
    if by == "accuracy" and math.isfinite(new.loss) and new.accuracy != best.accuracy:
        better = new.accuracy > best.accuracy
    else:
        better = new.loss < best.loss
    return new if better else best._replace(since=best.since + 1)


def enough(best: Best, config) -> bool:
    """Returns whether a run ends early: the last validations brought nothing better."""
    return 0 < config.early_stopping <= best.since


def due(step: int, every: int) -> bool:
    """Returns whether something that happens every so many steps happens now; 0 is never."""
    return every > 0 and step % every == 0


def parameter_count(tree) -> int:
    """Returns how many numbers a tree holds, without the scales of matrices in int8."""
    leaves = jax.tree.leaves(tree, is_leaf=is_quantized)
    return sum((leaf["q"] if is_quantized(leaf) else leaf).size for leaf in leaves)


def restore(checkpoints: Checkpoints | None, run: Plan, log) -> tuple[State, Best, tuple, int]:
    """Returns the newest state of a run, the best tree so far, the seconds spent (see
    `RunLog.seconds`) and the bytes that a step needs. Another model or other data is refused."""
    # An optimizer's numbers may not all fit on one device: the CPU makes them, if jax may use it.
    has_cpu = "cpu" in (jax.config.values["jax_platforms"] or "cpu")
    with jax.default_device(jax.local_devices(backend="cpu")[0] if has_cpu else None):
        state = init_state(run.parts, run.trainable)
    best = Best(jax.tree.map(np.array, state.trainable), math.inf, 0, 0)
    kept = checkpoints.restore((state, best.trainable)) if checkpoints else None
    if kept is None:
        return state, best, (0.0, 0.0), 0
    (state, trainable), extra = kept.state, kept.extra
    own, before = run.sources, extra["sources"]
    changed = [name for name in own if own[name] != before.get(name, own[name])]
    if changed:
        raise UserError(
            f"the {' and the '.join(changed)} changed since step {kept.step} of this run: put back"
            " what was there, give another --workdir, or --fresh to start over here."
        )
    devices = warnings.other_devices(extra["devices"], jax.device_count())
    for warning in filter(None, (kept.warning, devices)):
        log(f"warning: {warning}")
    log(f"going on after step {kept.step}")
    step, since = extra["best_step"], extra["since_best"]
    best = Best(trainable, extra["best_loss"], step, since, extra.get("best_accuracy", 0.0))
    seconds = extra["seconds"]
    return state, best, (seconds, extra.get("step_seconds", seconds)), extra.get("memory", 0)


def save(
    checkpoints: Checkpoints, run: Plan, state: State, best: Best, spent: tuple, memory: int, log
) -> bool:
    """Saves all that a run needs to go on; on a full disk it only warns, and returns False."""
    extra = {
        "best_loss": best.loss,
        "best_accuracy": best.accuracy,
        "best_step": best.step,
        "since_best": best.since,
        "seconds": spent[0],
        "step_seconds": spent[1],
        "memory": memory,
        "devices": jax.device_count(),
        "sources": run.sources,
    }
    warning = checkpoints.save(int(state.step), (state, best.trainable), extra)
    if warning:
        log(f"warning: {warning}")
    return not warning


def executables(compiled: Compiled, state: State, frozen, data: Data, log: Callable) -> dict:
    """Compiles the step for each shape of the run; the keys are the shapes [R, T] of tokens."""
    log("compiling the step, once for each shape of rows")
    began, made = time.perf_counter(), {}
    front = data.train[0].trunk[: data.shared]
    for shape in data.shapes:
        batch = compiled.place_batch(empty_batch(front, shape))
        made[shape.rows, shape.length] = compiled.step.lower(state, frozen, batch).compile()
    log(f"compiled in {time.perf_counter() - began:.1f} s, which the speeds below leave out")
    return made


def validate(lm: LanguageModel, data: Data, given: sites.Given, step: int, run_log: RunLog) -> Any:
    """Returns loss (nats an example; with a teacher the cross-entropy to its probabilities) and
    accuracy on the validation examples, and logs them."""
    began = time.perf_counter()
    scores = scoring.score(lm, data.validation, given, log=run_log.log)
    answers = np.array([example.answer for example in data.validation])
    if data.validation_shares is not None:  # its likeliest label, if the right one is not known
        answers = np.where(answers < 0, data.validation_shares.argmax(1), answers)
    metrics = scoring.loss_and_accuracy(scores, answers)
    if data.validation_shares is not None:
        metrics["loss"] = -float((data.validation_shares * scores).sum(1).mean())
    run_log.add_validation(step, metrics, time.perf_counter() - began)
    run_log.warn("answers", warnings.one_answer(scores.argmax(1), answers, data.labels))
    return agreed(metrics)


def warn_of_norm(run_log: RunLog, lm: LanguageModel, given: sites.Given) -> None:
    """Warns once of virtual tokens whose norm is far from that of the model's embeddings."""
    if sites.PROMPT in given.sites:
        # As the embeddings are before the model scales them.
        vectors = given.sites[sites.PROMPT] / lm.spec.embedding_scale
        run_log.warn("norm", warnings.prompt_norm(vectors, lm.params["embed"]["embedding"]))
