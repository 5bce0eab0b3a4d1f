"""Frozen weights in parts over devices, and in int8."""

import collections
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import plain_model
import pytest
import test_methods
import tiny_methods
import tiny_runs
from test_step import COLLECTIVE, assert_near
from tiny_models import changed

from prompt_tuning_jax import api, load, train
from prompt_tuning_jax import config as configs
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.generate import DEFAULTS, generate
from prompt_tuning_jax.models.cached import bake
from prompt_tuning_jax.models.decoder import param_shapes
from prompt_tuning_jax.models.sites import NOTHING, Given
from prompt_tuning_jax.models.spec import matrices
from prompt_tuning_jax.quantization import full_matrix, quantize
from prompt_tuning_jax.run.artifact import load_artifact
from prompt_tuning_jax.sharding import KEYS, make_layout, make_mesh, shard
from prompt_tuning_jax.step import compile_step, init_state

LM, SPEC = test_methods.LM, test_methods.SPEC


def divided(shards, lm=LM):
    """The model with its weights over so many devices."""
    layout = tiny_methods.layout(lm.spec, shards)
    return lm._replace(params=shard(jax.device_get(lm.params), layout), layout=layout)


@pytest.mark.parametrize(("shards", "more"), [(8, ()), (4, ("r",))])
def test_a_mesh_of_any_form_trains_the_same(shards, more):
    wanted, losses, _ = test_methods.after("lora", "jit", 8)
    state, found, frozen = test_methods.after("lora", "jit", 8, 1, shards, more)
    np.testing.assert_allclose(found, losses, rtol=0, atol=1e-6)
    assert_near(state.trainable, wanted.trainable, 1e-4)
    assert_near(frozen.params, LM.params, 0)


PROGRAM = """
import sys
from prompt_tuning_jax import config, load, tune
from prompt_tuning_jax.data.task import make_task
words = ["steps=12", "microbatches=1", "parallel.model=4", "method.name=fine_tuning"]
made = config.load(sys.argv[1], [f"--config.{word}" for word in words])
tune(load(made.model, made.parallel), make_task(made.task), made)
"""


def test_programs_that_were_kept_do_not_end_a_process_with_divided_weights(home):
    """The second start would read back what the first one kept."""
    own = {"JAX_COMPILATION_CACHE_DIR": "kept", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    own = tiny_runs.environment(JAX_NUM_CPU_DEVICES="8", **own)
    for _ in range(2):
        words = [sys.executable, "-c", PROGRAM, str(tiny_runs.world().bare)]
        done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0 and "step 12: " in done.stdout, done.stderr


@pytest.mark.parametrize("is_int8", [False, True])
def test_a_device_holds_its_part_and_one_layer_is_gathered_at_a_time(is_int8):
    spec = changed(layers=5, width=64, heads=8, kv_heads=8, head_size=8, feedforward=256)
    lm, given = plain_model.make(spec)[0], test_methods.tried("lora")
    if is_int8:
        lm = in_int8(lm)
    lm = divided(4, lm)
    bytes_of = lambda leaves: sum(leaf.nbytes for leaf in leaves)  # noqa: E731
    whole = bytes_of(jax.tree.leaves(lm.params))
    held = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(lm.params)]
    assert bytes_of(held) <= (0.30 if is_int8 else 0.26) * whole  # scales are whole

    made = tiny_methods.make(name="lora", rank=2)
    parts = given.parts._replace(module=lm.module, method=made)
    compiled = compile_step(parts, "jit", jax.devices(), lm.layout)
    state = init_state(parts, made.init(jax.random.key(0), lm, tiny_methods.TASK)[0])
    frozen = given.frozen._replace(params=lm.params, fixed={})
    arguments = compiled.place(state), compiled.place(frozen)
    batch = compiled.place_batch(given.batch(given.examples))
    text = compiled.step.lower(*arguments, batch).compile().as_text()
    found = collections.Counter(match[1] for match in COLLECTIVE.finditer(text))
    # The sum over devices; forward and backward of the scanned layers, the last layer, the
    # embedding, which is the head too.
    assert found["all-reduce"] == 1 and set(found) == {"all-reduce", "all-gather"}
    assert found["all-gather"] <= 7 + 7 + 7 + 7 + 3
    # No gather gives a whole stack.
    assert "[4,256,64]" not in text and "[4,64,256]" not in text


def test_what_is_trained_of_the_model_and_its_optimizer_lie_in_parts_too():
    given, layout = test_methods.tried("fine_tuning"), tiny_methods.layout(SPEC, 4)
    compiled = compile_step(given.parts, "jit", jax.devices(), layout)
    frozen = compiled.place(given.frozen)
    state = compiled.place(init_state(given.parts, given.trainable))
    lowered = compiled.step.lower(state, frozen, compiled.place_batch(given.batch(given.examples)))
    executable = lowered.compile()
    found = collections.Counter(match[1] for match in COLLECTIVE.finditer(executable.as_text()))
    # A gradient comes back in parts, and those of `data` are added.
    assert found["reduce-scatter"] and found["all-reduce"] and "all-to-all" not in found
    state, _ = executable(state, frozen, compiled.place_batch(given.batch(given.examples)))
    leaves = jax.tree.leaves(state)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert held <= 0.3 * sum(leaf.nbytes for leaf in leaves)


def test_with_r_lora_and_its_optimizer_lie_in_parts_where_these_fit():
    given, layout = test_methods.tried("lora"), tiny_methods.layout(SPEC, 4, ("r",))
    method = tiny_methods.make(name="lora", rank=4)
    trainable = {
        path: leaf for path, leaf in tiny_methods.first(method, lm=LM).items() if "/q/" in path
    }
    compiled = compile_step(given.parts._replace(method=method), "jit", jax.devices(), layout)
    state = compiled.place(init_state(given.parts, trainable))
    frozen = compiled.place(given.frozen._replace(params=LM.params))
    state, _ = compiled.step(state, frozen, compiled.place_batch(given.batch(given.examples)))
    leaves = jax.tree.leaves(state)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert held <= 0.26 * sum(leaf.nbytes for leaf in leaves)
    # Two columns cannot be cut in four.
    thin = layout.specs({"decoder/attention/q/a": np.zeros((3, 2, 24))})
    assert not any(jax.tree.leaves(thin)[0])

    tensors = tiny_methods.adapt(method, trainable)
    drawn = np.random.default_rng(0)
    sites = {path: drawn.normal(size=leaf.shape) for path, leaf in tensors.sites.items()}
    divided_sites = Given(shard({path: np.float32(leaf) for path, leaf in sites.items()}, layout))
    examples = plain_model.random_examples(5, 6, (1, 40))
    lm = divided(4)._replace(layout=layout)
    ours = scoring.score(lm, examples, divided_sites)
    wanted = scoring.score(LM, examples, Given({k: np.float32(v) for k, v in sites.items()}))
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4)


def test_scores_texts_and_baked_positions_are_those_of_whole_weights():
    examples = plain_model.random_examples(5, 6, (1, 40))
    lm = divided(4)
    ours, wanted = (scoring.score(each, examples, NOTHING) for each in (lm, LM))
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
    front = np.arange(3, 9, dtype=np.int32)
    assert_near(bake(lm, front, NOTHING), bake(LM, front, NOTHING), 1e-5)
    settings = DEFAULTS._replace(max_new_tokens=5)
    texts = [[each.text for each in generate(one, examples, NOTHING, settings)] for one in (lm, LM)]
    assert texts[0] == texts[1]


def in_int8(lm=LM):
    """The model with its matrices in int8."""
    params = quantize(jax.device_get(lm.params), matrices(lm.spec))
    return lm._replace(params=params, settings={**lm.settings, "quantize": "int8"})


def test_in_int8_each_row_is_near_and_a_quarter_of_the_bytes():
    spec = changed(width=256, heads=8, kv_heads=8, head_size=32, feedforward=512)
    lm = plain_model.make(spec)[0]
    small = in_int8(lm)
    assert train.parameter_count(small.params) == train.parameter_count(lm.params)
    bytes_of = [sum(leaf.nbytes for leaf in jax.tree.leaves(one.params)) for one in (small, lm)]
    assert bytes_of[0] <= 0.27 * bytes_of[1]
    found, wanted = (one.params["layers"]["attention"]["q"]["weight"] for one in (small, lm))
    assert found["q"].dtype == np.int8 and found["scale"].shape == wanted.shape[:-1]
    # Half of a step, which is a 127th of the row's largest number.
    most = np.abs(wanted).max(axis=-1, keepdims=True) / 127 / 2
    assert (np.abs(full_matrix(found, wanted.shape) - wanted) <= most * 1.0001).all()
    zero = quantize({"embed": {"embedding": np.zeros((3, 4), np.float32)}}, matrices(spec))["embed"]
    np.testing.assert_array_equal(full_matrix(zero["embedding"], (3, 4)), np.zeros((3, 4)))
    with np.errstate(divide="raise", invalid="raise"):  # a scale that float16 rounds to 0
        quantize({"embed": {"embedding": np.full((3, 4), 1e-6, np.float16)}}, matrices(spec))
    none = quantize({"embed": {"embedding": np.zeros((0, 3, 4), np.float32)}}, matrices(spec))
    assert none["embed"]["embedding"]["q"].shape == (0, 3, 4)  # the stack of a model of one layer


# Rows that give the model other sites; what the others give, these have.
@pytest.mark.parametrize("row", ["soft_prompt", "prefix", "lora", "ia3"])
def test_methods_train_over_int8_as_over_the_same_numbers_in_float32(row):
    small, given = in_int8(), test_methods.tried(row)
    same = jax.tree.map(np.asarray, _floats(small.params))
    results = []
    for params, shards in ((same, 1), (small.params, 2 if row == "lora" else 1)):
        layout = tiny_methods.layout(SPEC, shards)
        compiled = compile_step(given.parts, "jit", jax.devices()[:2], layout)
        frozen = compiled.place(given.frozen._replace(params=shard(params, layout)))
        state = compiled.place(init_state(given.parts, given.trainable))
        for _ in range(2):
            batch = compiled.place_batch(given.batch(given.examples))
            state, metrics = compiled.step(state, frozen, batch)
        results.append((compiled.fetch(state).trainable, compiled.fetch(metrics)["loss"]))
    assert_near(results[1], results[0], 1e-4)


def _floats(tree):
    if isinstance(tree, dict) and "q" in tree and "scale" in tree and len(tree) == 2:
        if not isinstance(tree["q"], dict):
            return tree["q"].astype(np.float32) * tree["scale"][..., None]
    return {name: _floats(leaf) for name, leaf in tree.items()} if isinstance(tree, dict) else tree


def test_fine_tuning_over_int8_is_refused(tmp_path):
    artifact = tiny_methods.keep(
        tmp_path / "kept", Given(params={"final_norm/scale": np.ones(24, np.float32)})
    )
    with pytest.raises(UserError, match=r"'int8', and the artifact holds weights of the model"):
        api.label_scores(in_int8(tiny_methods.LM), tiny_methods.TASK, artifact, split=[])
    with pytest.raises(UserError, match=r"config.model.quantize is 'int8', and fine-tuning trains"):
        tiny_methods.make(name="fine_tuning").init(jax.random.key(0), in_int8(), tiny_methods.TASK)


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        UserError, match=r"model is 3, and the number of devices is 8: give 1, 2, 4,"
    ):
        make_mesh(jax.devices(), 3)
    with pytest.raises(
        UserError, match=r"model is 7, and 'embed/embedding' is 264 \(V\) x 24 \(E\): "
    ):
        tiny_methods.layout(SPEC, 7)
    for wrong in ("L", "r"):
        with pytest.raises(UserError, match=rf"axes is \('{wrong}',\): expected some of V, E, "):
            configs.build({"parallel": {"axes": (wrong,)}})
    with pytest.raises(UserError, match=r"loaded over 1: give load\(config.model, config.parallel"):
        train.plan(LM, None, configs.build({"parallel": {"model": 2}}), print)
    alone = configs.build({"parallel": {"model": 8, "axes": ("F",)}}).parallel
    with pytest.raises(
        UserError, match=r"'embed/embedding' is 264 \(V\) x 24 \(E\): give 1, or add V, D to con"
    ):
        make_layout(matrices(SPEC), param_shapes(SPEC), alone, 8)
    # The devices and every matrix allow what is offered.
    for model, devices, fits in ((16, 16, "1, 2, 4, 8"), (5, 12, "1, 2, 3, 4, 6, 12"), (7, 7, "1")):
        settings = {"model": model, "axes": KEYS["axes"].default}
        with pytest.raises(UserError, match=rf"model is {model}, and .*: give {fits}$"):
            make_layout(matrices(SPEC), param_shapes(SPEC), settings, devices)
    with pytest.raises(UserError, match=r"parallel.model is 2: expected 1, because .* 'pmap'"):
        configs.build({"parallel": {"model": 2, "name": "pmap"}})
    assert configs.build({}, ["--config.parallel=pmap"]).parallel.name == "pmap"


class Chip(SimpleNamespace):
    """A device of a TPU slice, as far as a mesh asks."""

    __hash__ = object.__hash__


def chips_of(*shape, number=0):
    same = {"platform": "tpu", "device_kind": "TPU v6 lite", "core_on_chip": 0}
    same |= {"process_index": number, "slice_index": number}
    places = enumerate(np.ndindex(*shape), 16 * number)
    return [Chip(id=each, coords=(*map(int, place), 0), **same) for each, place in places]


def test_a_model_axis_may_be_a_part_of_an_axis_of_a_slice():
    chips = chips_of(4, 4)
    for shards in (1, 2, 4, 8, 16):
        mesh = make_mesh(chips, shards)
        assert mesh.devices.shape == (16 // shards, shards)
        assert {chip.id for chip in mesh.devices.flat} == {*range(16)}


def test_a_model_axis_lies_within_one_of_several_slices():
    chips = [*chips_of(2, 2), *chips_of(2, 2, number=1)]
    for shards in (1, 2, 4):
        grid = make_mesh(chips, shards).devices
        assert grid.shape == (8 // shards, shards) and {*grid.flat} == {*chips}
        assert all(len({chip.slice_index for chip in row}) == 1 for row in grid)
    with pytest.raises(UserError, match=r"number of devices in a slice is 4: give 1, 2, 4$"):
        make_mesh(chips, 8)


@pytest.fixture
def moved(monkeypatch):
    """Tells how often each leaf of a tree was copied to a mesh. (On a CPU the copies are views.)"""
    copied, put = [], jax.device_put

    def noted(leaf, *to):
        if to and getattr(leaf, "sharding", None) != to[0]:
            copied.append(leaf)  # kept, so that no other has its id
        return put(leaf, *to)

    monkeypatch.setattr(jax, "device_put", noted)
    count = lambda leaf: sum(each is leaf for each in copied)  # noqa: E731
    return lambda tree: {*map(count, jax.tree.leaves(tree))}


@pytest.mark.parametrize(("method", "times"), [("soft_prompt", {1}), ("fine_tuning", {0})])
def test_a_validation_reads_the_weights_of_the_step(moved, home, method, times):
    words = [f"--config.method.name={method}"] * (method != "soft_prompt")
    tiny_runs.tune(*words)
    lm = tiny_runs.tiny(*words)[0]
    assert moved(lm.params) == times


def test_many_records_are_predicted_with_one_copy_of_the_weights(moved, monkeypatch, home):
    monkeypatch.setattr(api, "PREDICTED_AT_ONCE", 3)
    artifact = tiny_runs.artifact()
    _, task, config = tiny_runs.tiny()
    lm = load(config.model)
    assert len([*api.predict(lm, task, ["banks"] * 9, artifact)]) == 9
    assert moved(lm.params) == {1}


def test_a_run_goes_on_over_another_mesh(typed, monkeypatch):
    own = "method.name=fine_tuning", "optimizer.name=sgd", "learning_rate=0.01"
    own = *tiny_runs.FEW, *(f"--config.{word}" for word in own)
    words = tiny_runs.training("run", *own)
    due = train.due
    with monkeypatch.context() as patch:
        patch.setattr(train, "due", lambda *at: os.kill(os.getpid(), signal.SIGTERM) or due(*at))
        assert typed(*words, "--config.parallel.model=2").status == 75
    done = typed(*words, "--config.parallel.model=4")
    assert done.status == 0 and "going on after step" in done.out, done.err
    assert typed(*tiny_runs.training("whole", *own)).status == 0
    found, wanted = (load_artifact(f"{name}/artifact").tensors for name in ("run", "whole"))
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6, err_msg=name)
