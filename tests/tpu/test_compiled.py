"""The step, scoring and decoding compiled for TPU slices, by libtpu alone: `make test-tpu`."""

import collections
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest
import test_methods
import tiny_methods
from jax.sharding import NamedSharding, PartitionSpec
from tiny_models import changed

from prompt_tuning_jax import config as configs
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.cli import topology
from prompt_tuning_jax.models.cached import decode, prefill
from prompt_tuning_jax.models.sites import NOTHING, bind
from prompt_tuning_jax.models.spec import matrices
from prompt_tuning_jax.quantization import quantize
from prompt_tuning_jax.sharding import make_mesh
from prompt_tuning_jax.step import compile_step, init_state, row_specs

SPEC = changed(layers=4, width=128, heads=8, kv_heads=8, head_size=16, feedforward=256)
LM = plain_model.make(SPEC)[0]
EVERY_SLICE = pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("v5e:2x2", 1),
        ("v5e:2x4", 1),
        ("v5e:2x2", 4),
        ("v5e:2x4", 4),
        ("v4:2x2x1", 1),
        ("v4:2x2x1", 4),
        ("v5p:2x2x1", 4),
        ("v6e:2x2", 4),
    ],
)
HALF = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), LM.params)

INT8 = jax.eval_shape(
    lambda: quantize(
        jax.tree.map(lambda leaf: np.array(leaf, jnp.bfloat16), LM.params), matrices(SPEC)
    )
)


@functools.cache
def devices_of(name):
    devices, compiler = topology._devices(name)
    assert devices, compiler
    return devices


def on(mesh, tree, specs=None):
    specs = specs or jax.tree.map(lambda _: PartitionSpec(), tree)
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(
            np.shape(leaf), leaf.dtype, sharding=NamedSharding(mesh, spec)
        ),
        tree,
        specs,
    )


def collectives(compiled):
    return collections.Counter(
        match[1] for match in topology.COLLECTIVE.finditer(compiled.as_text())
    )


@pytest.mark.parametrize("is_int8", [False, True])
@EVERY_SLICE
def test_a_step_compiles_with_one_sum_and_with_the_gathers_of_its_layers(name, shards, is_int8):
    given, layout = test_methods.tried("lora"), tiny_methods.layout(SPEC, shards)
    params = INT8 if is_int8 else HALF
    made = tiny_methods.make(name="lora", rank=2)
    parts = given.parts._replace(module=LM.module, method=made)
    state = jax.eval_shape(
        lambda: init_state(parts, made.init(jax.random.key(0), LM, tiny_methods.TASK)[0])
    )
    mesh = make_mesh(devices_of(name), shards)
    frozen = given.frozen._replace(params=on(mesh, params, layout.specs(params)), fixed={})
    batch = on(mesh, given.batch(given.examples), row_specs())
    step = compile_step(parts, "jit", devices_of(name), layout).step
    compiled = step.lower(on(mesh, state), frozen, batch).compile()
    found = collectives(compiled)
    assert found["all-reduce"] == 1 and set(found) <= {"all-reduce", "all-gather"}
    assert bool(found["all-gather"]) == (shards > 1)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    trained = sum(leaf.size * 4 for leaf in jax.tree.leaves(state))
    held = compiled.memory_analysis().argument_size_in_bytes - trained
    # A TPU pads small arrays.
    assert held <= 1.2 * weights / shards + 200_000


@EVERY_SLICE
def test_scoring_and_decoding_compile(name, shards):
    layout, mesh = tiny_methods.layout(SPEC, shards), make_mesh(devices_of(name), shards)
    params = on(mesh, HALF, layout.specs(HALF))
    given = test_methods.tried("lora")
    batch = given.batch(given.examples)._replace(shared=np.zeros(0, np.int32))
    scores = scoring._compile(LM.module, mesh, layout)
    found = collectives(scores.lower(params, NOTHING, on(mesh, batch, row_specs())).compile())
    assert set(found) <= {"all-gather"} and bool(found) == (shards > 1)

    @jax.jit
    def write(params, tokens):
        variables = bind(SPEC, params, NOTHING)
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        logits, cache = prefill(LM.module, variables, tokens, places, places * 0 + 1, 16)
        layers = [
            jax.tree.map(lambda leaf, n=n: leaf[n], {"params": params["layers"]}) for n in range(3)
        ]
        seen = jnp.ones((len(tokens), 16), bool)
        best = logits.argmax(-1)
        layers = [*layers, {"params": params["last"]}]
        return decode(LM.module, variables, layers, cache, best, best * 0 + 8, seen, jnp.array(8))[
            0
        ]

    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    write.lower(params, tokens).compile()


def test_divided_fine_tuning_adds_up_microbatches(tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 8, "vocab_size": 256, "max_position_embeddings": 512}
    llama = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(llama | sizes))
    wanted = {"model": {"path": str(tmp_path)}, "method": {"name": "fine_tuning"}}
    wanted |= {"parallel": {"model": 4}, "microbatches": 2, "task": {"labels": ("a", "b")}}
    found = topology.rehearse_on(configs.build(wanted), "v5e:2x4")
    assert found["fits"] and found["collectives"]["reduce-scatter"]
    # The step does not read the frozen copy of weights that are trained.
    planned = found["bytes"]["trained"] + found["bytes"]["optimizer"]
    assert planned <= found["arguments"] <= 1.1 * planned
