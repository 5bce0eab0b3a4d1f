"""What holds for the model of every family, against the plain one and by its files."""

import dataclasses
import functools
import json

import family_cases
import family_models
import jax
import numpy as np
import plain_model
import pytest
import tiny_models
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from prompt_tuning_jax.data.batch import Batch
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.exchange.folder import merge, write_model
from prompt_tuning_jax.generate import Settings, generate
from prompt_tuning_jax.models.decoder import Decoder, param_shapes
from prompt_tuning_jax.models.families import FAMILIES, spec_from_config
from prompt_tuning_jax.models.files.weights import read_weights
from prompt_tuning_jax.models.sites import NOTHING, PROMPT, Given, bind
from prompt_tuning_jax.models.spec import FAR

VOCABULARY = len(tiny_models.VOCABULARY)
FRONT = (1, -1, -2)
# The examples of each row: the padding in front, the text, and two continuations of it.
ROWS = (((0, 9, (2, 3)), (1, 4, ())), ((2, 13, (1, 2)),))
LENGTH = 20
# Their parts are in other cases, but for names and tables of positions: these write no texts.
LIKE_OTHERS = {
    *("llama, linear", "mistral", "qwen2", "qwen2, window", "qwen2, yarn", "phi3", "phi3, part"),
    *("smollm3, window", "gemma", "gemma3, linear", "gpt_neox, serial"),
}


class Made:
    """A random model of one case: the package's, the plain one, and what it is given."""

    def __init__(self, name):
        self.lm, self.plain = family_models.make(name)
        self.spec = self.lm.spec
        self.lm_leaves = tiny_models.flatten(self.lm.params)
        self.given = plain_model.random_given(0, self.spec, "prompt", "lora", "scale", size=2)
        self.rows = _rows()


def _rows():
    """Rows of packed examples with branches, and for each piece where it is and its whole text."""
    rng = np.random.default_rng(0)
    tokens, positions, segments, branches = np.zeros((4, len(ROWS), LENGTH), np.int32)
    pieces = []
    for row, examples in enumerate(ROWS):
        end = 0
        for segment, (padding, length, tails) in enumerate(examples, 1):
            end += padding
            trunk = list(FRONT)
            for branch, size in enumerate((length, *tails)):
                here, before = (row, slice(end, end + size)), trunk if branch else list(FRONT)
                tokens[here] = rng.integers(3, VOCABULARY, size)
                segments[here], branches[here] = segment, branch
                positions[here] = len(before) + np.arange(size)
                whole = [*before, *tokens[here].tolist()]
                trunk = trunk if branch else whole
                pieces.append((here, whole))
                end += size
    return (tokens, positions, segments, branches), pieces


@pytest.fixture(scope="module", params=family_cases.CASES)
def made(request):
    return Made(request.param)


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, given, batch):
    """Logits float32[R, Q, V] where `batch` reads."""
    variables = bind(module.spec, params, given)
    return module.apply(variables, module.apply(variables, *batch[:6]), method="logits")


def log_probabilities(made, given, front):
    """Those of ours at all positions of the rows, read in another order."""
    arrays, _ = made.rows
    reads = np.tile(np.arange(LENGTH)[::-1], (len(ROWS), 1))
    batch = Batch(np.array(front, np.int32), *arrays, reads, *[reads] * 4)
    found = run(made.lm.module, made.lm.params, given, batch)
    return np.asarray(jax.nn.log_softmax(found))[:, ::-1]


def test_packed_padded_branched_and_shared_is_one_text_at_a_time(made):
    found = log_probabilities(made, made.given, FRONT)
    for here, whole in made.rows[1]:
        size = here[1].stop - here[1].start
        wanted = plain_model.log_probabilities(made.plain, whole, made.given)[-size:]
        np.testing.assert_allclose(found[here], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in family_cases.CASES if name not in LIKE_OTHERS])
def test_cached_decoding_is_the_plain_loop_token_for_token(name):
    """Behind the shared positions, which are keys and values of a prefix."""
    made, rng = Made(name), np.random.default_rng(1)
    examples, wanted = [], []
    for length in (4, 9):
        trunk = [*FRONT, *rng.integers(3, VOCABULARY, length).tolist()]
        examples.append(Example(np.array(trunk, np.int32), (), 0, len(FRONT), 0))
        while len(trunk) < len(FRONT) + length + 7 and trunk[-1] != 2:
            scores = plain_model.log_probabilities(made.plain, trunk, made.given)[-1]
            trunk.append(int(scores.argmax()))
        wanted.append(trunk[len(FRONT) + length :])
    found = generate(made.lm, examples, made.given, Settings(max_new_tokens=7), 0)
    assert [each.ids for each in found] == wanted


def test_merged_and_written_and_read_again_it_is_the_same_model(made, tmp_path):
    given = Given({path: leaf for path, leaf in made.given.sites.items() if "prompt" not in path})
    leaves = merge(made.spec, made.lm.params, given)
    write_model(tmp_path, made.lm, leaves)
    found = read_weights(str(tmp_path), "float32")
    assert found.spec == made.spec
    tiny_models.assert_tree(found.params, leaves)
    merged, ids = Given(params=leaves), [1, 70, 71, 72, 73, 74, 75, 76]
    np.testing.assert_allclose(
        plain_model.log_probabilities(made.plain, ids, merged),
        plain_model.log_probabilities(made.plain, ids, given),
        atol=1e-5,
    )
    before = plain_model.log_probabilities(made.plain, ids, NOTHING)
    assert np.abs(plain_model.log_probabilities(made.plain, ids, given) - before).max() > 0.1


def test_embeddings_as_a_prompt_are_the_text(made):
    """What inits start from: scaled as the model reads them."""
    text = [1, 70, 71, 72]
    prompt = Given({PROMPT: made.lm.embed(np.array(text))})
    slots = [-1 - number for number in range(len(text))]
    np.testing.assert_allclose(
        plain_model.log_probabilities(made.plain, [*slots, 80, 81], prompt)[-2:],
        plain_model.log_probabilities(made.plain, [*text, 80, 81])[-2:],
        atol=1e-5,
    )


def lowered(spec, length):
    """The program of a model on one row, before it is compiled."""
    row = jax.ShapeDtypeStruct((1, length), np.int32)
    shapes = {path: jax.ShapeDtypeStruct(s, np.float32) for path, s in param_shapes(spec).items()}
    params = traverse_util.unflatten_dict(shapes, sep="/")
    run = jax.jit(
        lambda params, ids: Decoder(spec).apply({"params": params}, ids[0, :2], *[ids] * 5)
    )
    return run.lower(params, row).as_text()


def test_the_program_does_not_grow_with_depth_and_a_window_that_hides_nothing_is_left_out():
    deep = spec_from_config(family_models.config("gemma3", num_hidden_layers=12), "it")
    layers = {name: getattr(deep, name)[:6] for name in ("layer_ropes", "layer_windows")}
    shallow = dataclasses.replace(deep, layers=6, **layers)
    assert len(set(deep.layer_windows)) == len(set(deep.layer_ropes)) == 2
    lines = [lowered(spec, 20).count("\n") for spec in (shallow, deep)]
    assert lines[0] == lines[1] > 500
    open_ = dataclasses.replace(deep, layer_windows=())
    # Two shared positions and a row of 3 are the window of 5.
    assert lowered(deep, 3) == lowered(open_, 3)
    assert lowered(deep, 4) != lowered(open_, 4)


def test_names_of_the_hub_and_tensors_that_are_no_weights_are_read_over(tmp_path):
    """A file whose names lack their beginning, and the text part of a larger model."""
    for name, old, new, extra, wrap in (
        ("gpt2", "transformer.", "", "h.0.attn.bias", None),
        ("gpt_neox", "gpt_neox.", "gpt_neox.", "gpt_neox.layers.0.attention.masked_bias", None),
        ("gemma3", "model.", "language_model.model.", "vision_tower.x.weight", "gemma3"),
        ("gemma3", "model.", "model.language_model.", "model.multi_modal_projector.x", "gemma3"),
    ):
        made, folder = Made(name), tmp_path / f"{name} {old} {new}"
        folder.mkdir()
        write_model(folder, made.lm, made.lm_leaves)
        arrays = load_file(folder / "model.safetensors")
        arrays = {
            new + path.removeprefix(old) if path.startswith(old) else path: array
            for path, array in arrays.items()
        }
        if name == "gpt_neox":
            arrays["lm_head.weight"] = arrays.pop("embed_out.weight")
        arrays[extra] = np.zeros((1, 2), np.int64)
        save_file(arrays, folder / "model.safetensors")
        if wrap:
            config = json.loads((folder / "config.json").read_text())
            whole = {"model_type": wrap, "text_config": config}
            (folder / "config.json").write_text(json.dumps(whole))
        found = read_weights(str(folder), "float32")
        assert found.spec == made.spec
        tiny_models.assert_tree(found.params, made.lm_leaves)


@pytest.mark.parametrize("window", [5, None])
def test_smollm3_has_its_window_in_the_layers_where_transformers_has_it(window):
    whole = family_models.config("smollm3, window", sliding_window=window)
    left_out = {key: each for key, each in whole.items() if key != "layer_types"}
    spec = spec_from_config(left_out, "config.json")
    kinds = [
        "full_attention" if each == FAR else "sliding_attention" for each in spec.layer_windows
    ]
    assert (kinds or ["full_attention"] * 4) == whole["layer_types"]


def test_every_family_has_a_case():
    assert {family for family, _ in family_cases.CASES.values()} == FAMILIES.keys() - {"gemma3"}
