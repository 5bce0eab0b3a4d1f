"""The loop: restore or start, step, log, evaluate, save, stop. Read it from top to bottom.

The mathematics is in `step.py`, what is kept on disk in `workdir.py` and `checkpoint.py`.
"""

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_tuning_jax import config as configs
from prompt_tuning_jax import methods, optimizers
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.data.batch import (
    batch_indices,
    empty_batch,
    make_order,
    pack_batch,
    plan_shapes,
    shared_length,
)
from prompt_tuning_jax.data.encode import count_shortened
from prompt_tuning_jax.data.task import select_records, training_records
from prompt_tuning_jax.data.template import field_names
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.run import artifact as artifacts
from prompt_tuning_jax.run import processes, tracking
from prompt_tuning_jax.run import warnings as advice
from prompt_tuning_jax.run.checkpoint import Checkpoints
from prompt_tuning_jax.run.folder import CHECKPOINTS, settle
from prompt_tuning_jax.run.log import Journal
from prompt_tuning_jax.run.processes import agreed, stop_requested
from prompt_tuning_jax.run.profiling import profiler
from prompt_tuning_jax.run.progress import watched
from prompt_tuning_jax.step import Compiled, Parts, State, compile_step, init_state


class Data(NamedTuple):
    """A run's examples, tokenised: those to train on, those to choose by, and the batches' plan."""

    train: list
    validation: list
    shared: int
    order: Any
    shapes: tuple
    batch_size: int
    labels: tuple

    def batch(self, step: int):
        """The numpy batch of update `step`, counted from 0: a function of the step alone."""
        chosen = [self.train[index] for index in batch_indices(self.order, step, self.batch_size)]
        return pack_batch(chosen, self.shared, self.shapes, ranked=False)


class Plan(NamedTuple):
    """A run before anything of it is compiled or written: what its step is made of, the first
    trainable tree, `adapt` from such a tree to the collections of evaluation, its data, and the
    fingerprints of what is not in its config: by 'model' and 'data'."""

    parts: Parts
    trainable: Any
    adapt: Callable
    data: Data
    sources: dict[str, str]


class Best(NamedTuple):
    """The trainable tree with the lowest validation loss so far, that loss, its step, and how many
    validations there have been since."""

    trainable: Any
    loss: float
    step: int
    since: int


class Result(NamedTuple):
    """What tuning leaves: the best adaptation as an `artifact.Artifact`, the lines of metrics,
    whether it ended by itself (after all steps, or early) before anybody asked it to stop, how many
    numbers were trained, the seconds that the steps and validations took, and whether its end is in
    a checkpoint."""

    artifact: artifacts.Artifact
    history: list[dict]
    finished: bool
    trainable_parameters: int
    seconds: float
    saved: bool


def tune(
    lm: LanguageModel,
    task,
    config,
    folder: str | os.PathLike | None = None,
    log=print,
    fresh: bool = False,
) -> Result:
    """Tailors the frozen model to a task.

    Args:
      lm: from `models.load`.
      task: from `data.task.make_task`.
      config: with the keys of `config.KEYS`.
      folder: a claimed run folder (`workdir.py`) for metrics and checkpoints, where a run that was
        stopped goes on; None keeps nothing.
      log: takes a line of text.
      fresh: delete what an earlier run left in the folder, and start over.

    Raises:
      UserError: a setting, template or record that cannot be used; the folder is as it was then.
      RunError: five updates in a row that were not finite, or no validation loss that is.
    """
    run = plan(lm, task, config, log)
    folder = None if folder is None else Path(folder)
    kept = agreed(folder is not None)
    with contextlib.ExitStack() as opened:
        track = opened.enter_context(tracking.tracker(config, folder))
        before_step = opened.enter_context(profiler(config.profile_steps, folder, log))
        if folder:
            # Once nothing can be refused: a config that cannot run would have tied the folder.
            settle(folder, config, fresh)
        stopping = opened.enter_context(stop_requested(log))
        checkpoints = opened.enter_context(Checkpoints(folder / CHECKPOINTS)) if folder else None
        state, best, spent = agreed(restore(checkpoints, run, log))
        start = config.steps if enough(best, config) else int(state.step)
        journal = opened.enter_context(Journal(int(state.step), spent, config, folder, log, track))
        journal.warn("norm", advice.prompt_norm(lm, run.adapt(state.trainable)))

        compiled = compile_step(run.parts, config.parallel)
        frozen, state = compiled.place(lm.params), compiled.place(state)
        steps = executables(compiled, state, frozen, run.data, log) if start < config.steps else {}
        journal.begin()
        saved = start == config.steps
        for step in range(start, config.steps):
            before_step(state)
            batch = run.data.batch(step)
            placed = compiled.place_batch(batch)
            state, metrics = steps[batch.tokens.shape](state, frozen, placed)
            journal.add(step + 1, metrics, batch)

            stop, last = processes.stops(stopping, step), step + 1 == config.steps
            # Stopped without a folder, a run cannot go on: what it has learnt is its result.
            if last or (stop and not kept) or due(step + 1, config.evaluate_every):
                journal.settle()
                current = compiled.fetch(state.trainable)
                loss = validate(lm, run.data, run.adapt(current), step + 1, journal)
                best = better(best, current, loss, step + 1)
            ended = stop or last or enough(best, config)
            if checkpoints is not None and (ended or due(step + 1, config.save_every)):
                journal.settle()
                saved = save(checkpoints, run, compiled.fetch(state), best, journal.seconds(), log)
            if ended:
                break

    taken, refused = map(int, compiled.fetch((state.step, state.refused)))
    if refused:
        log(f"{refused} of {taken} updates were left out: their gradient or result was not finite")
    finished = not stopping and (taken == config.steps or enough(best, config))
    if finished and not math.isfinite(best.loss):
        raise RunError("no validation loss of this run is finite: lower learning_rate.")
    if enough(best, config):
        log(f"stopped early after step {taken}: no better validation loss in the last {best.since}")
    adaptation = jax.device_get(run.adapt(best.trainable))
    artifact = artifacts.Artifact(adaptation, manifest(lm, task, config, best))
    size = parameter_count(run.trainable)
    return Result(artifact, journal.lines, finished, size, journal.seconds(), saved)


def plan(lm: LanguageModel, task, config, log: Callable) -> Plan:
    """All of a run that can be refused; reads data and writes nothing."""
    configs.validate(config)
    tracking.check(config.tracker)
    method = methods.make(config.method)
    parts = Parts(lm.module, method, optimizers.make(config), config.seed, config.microbatches)
    key = jax.random.key(config.seed)
    trainable = method.init(key, lm, task)
    adapt = jax.jit(lambda tree: method.adapt(tree, key, False))
    log(parameters(trainable, lm))
    if note := advice.first_values(config.method, lm):
        log(note)
    data = prepare(lm, task, config, adapt(trainable), log)
    sources = {"model": lm.fingerprint, "data": fingerprint(data)}
    processes.check(config, sources)
    return Plan(parts, trainable, adapt, data, sources)


def better(best: Best, trainable, loss: float, step: int) -> Best:
    """The better of two, the earlier one of equals."""
    if loss < best.loss:
        return Best(trainable, loss, step, 0)
    return best._replace(since=best.since + 1)


def enough(best: Best, config) -> bool:
    """Whether so many validations have brought nothing better that a run is to end."""
    return 0 < config.early_stopping <= best.since


def manifest(lm: LanguageModel, task, config, best: Best) -> dict:
    """What the artifact says of itself; its config names the model that was given."""
    given = config.to_dict()
    given["model"]["path"] = lm.name
    return artifacts.describe(
        method=config.method.name,
        lm=lm,
        template=task.template,
        labels=task.labels,
        max_length=config.task.max_length,
        add_bos=lm.tokenizer.add_bos,
        config=given,
        metrics={"step": best.step, "validation_loss": best.loss},
    )


def restore(checkpoints: Checkpoints | None, run: Plan, log) -> tuple[State, Best, float]:
    """The newest state of a run, the best tree so far, and the seconds spent; or the beginning.

    Raises:
      UserError: the model or the data are others than those that the state was trained with.
    """
    state = init_state(run.parts, run.trainable)
    best = Best(jax.tree.map(np.array, state.trainable), math.inf, 0, 0)
    kept = checkpoints.restore((state, best.trainable)) if checkpoints else None
    if kept is None:
        return state, best, 0.0
    before = kept.extra.get("sources", run.sources)
    changed = [name for name, source in run.sources.items() if source != before[name]]
    if changed:
        raise UserError(
            f"the {' and the '.join(changed)} changed since step {kept.step} of this run, under the"
            " same config: put back what was there, give another --workdir, or --fresh to start"
            " over here."
        )
    if kept.warning:
        log(f"warning: {kept.warning}")
    log(f"going on after step {kept.step}")
    (state, trainable), extra = kept.state, kept.extra
    if warning := advice.other_devices(extra["devices"], jax.device_count()):
        log(f"warning: {warning}")
    best = Best(trainable, extra["best_loss"], extra["best_step"], extra["since_best"])
    return state, best, extra["seconds"]


def save(
    checkpoints: Checkpoints, run: Plan, state: State, best: Best, seconds: float, log
) -> bool:
    """Saves all that a run needs to go on; a full disk is a warning, and the run goes on."""
    extra = {
        "best_loss": best.loss,
        "best_step": best.step,
        "since_best": best.since,
        "seconds": seconds,
        "devices": jax.device_count(),
        "sources": run.sources,
    }
    warning = checkpoints.save(int(state.step), (state, best.trainable), extra)
    if warning:
        log(f"warning: {warning}")
    return not warning


def fingerprint(data: Data) -> str:
    """Hex digest of the examples as the model reads them, and of the labels' values and words."""
    digest = hashlib.sha256(repr(data.labels).encode(errors="backslashreplace"))
    for examples in (data.train, data.validation):
        digest.update(b"%d" % len(examples))
        for example in examples:
            parts = example.trunk, *example.tails
            digest.update(repr((example.answer, *map(len, parts))).encode())
            digest.update(b"".join(part.tobytes() for part in parts))
    return digest.hexdigest()


def parameter_count(tree) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def parameters(trainable, lm: LanguageModel) -> str:
    """One line: how much is trained, how much is frozen."""
    trained, frozen = parameter_count(trainable), parameter_count(lm.params)
    share = trained / (trained + frozen)
    return f"{trained:,} trainable parameters, {frozen:,} frozen ({share:.4%} trained)"


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens now."""
    return every > 0 and step % every == 0


def prepare(lm: LanguageModel, task, config, collections, log: Callable) -> Data:
    """Both splits as tokens, and the shapes of every batch of the run."""
    for note in task.load().notes:
        log(note)
    rows = training_records(task, config.task)
    held_out = select_records(task, config.task.validation)
    train, validation = (
        scoring.encode_for(lm, task, split, collections, config.task.max_length)
        for split in (rows, held_out)
    )
    order = make_order(len(train), config.seed)
    steps = watched(range(config.steps), "updates planned", log, config.steps)
    planned = np.stack([batch_indices(order, step, config.batch_size) for step in steps])
    shared = shared_length(train)
    shapes = plan_shapes(
        train, planned, shared, row_multiple=jax.device_count() * config.microbatches
    )
    log(
        f"{len(train)} examples to train on, {len(validation)} to validate; {shared} shared "
        f"positions and {' or '.join(f'{s.rows} x {s.length}' for s in shapes)} in rows an update"
    )
    for name, encoded in (("training", train), ("validation", validation)):
        shortened, tokens = count_shortened(encoded)
        if shortened:
            log(
                f"warning: {shortened} {name} examples were too long and lost {tokens} tokens: "
                "raise task.max_length if the model has more positions, or shorten the template"
            )
    overlap = advice.trained_on(held_out, rows, field_names(task.template), config.task.validation)
    repeated = advice.repeated(config.batch_size, len(train))
    for sentence in (overlap, repeated, *advice.alike(task.labels, train[0].tails)):
        if sentence:
            log(f"warning: {sentence}")
    return Data(train, validation, shared, order, shapes, config.batch_size, task.labels)


def executables(compiled: Compiled, state: State, frozen, data: Data, log: Callable) -> dict:
    """The step compiled for every shape of the run, by the shape [R, T] of its tokens."""
    log("compiling the step, once for each shape of rows")
    began, made = time.perf_counter(), {}
    front = data.train[0].trunk[: data.shared]
    for shape in data.shapes:
        batch = compiled.place_batch(empty_batch(front, shape))
        made[shape.rows, shape.length] = compiled.step.lower(state, frozen, batch).compile()
    log(f"compiled in {time.perf_counter() - began:.1f} s, which the rates below leave out")
    return made


def validate(lm: LanguageModel, data: Data, collections, step: int, journal: Journal) -> float:
    """The loss on the validation examples, in nats an example; goes into the journal."""
    began = time.perf_counter()
    scores = scoring.score(lm, data.validation, collections, log=journal.log)
    answers = np.array([example.answer for example in data.validation])
    metrics = scoring.metrics(scores, answers)
    journal.validated(step, metrics, time.perf_counter() - began)
    journal.warn("answers", advice.one_answer(scores.argmax(1), answers, data.labels))
    journal.warn("norm", advice.prompt_norm(lm, collections))
    return agreed(metrics["loss"])
