"""The arithmetic and the inputs of the benchmarks, at tiny sizes and without torch."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.models.sites import NOTHING
from prompt_tuning_jax.models.spec import Spec

FOLDER = Path(__file__).parent.parent / "benchmarks"
# Scripts that import each other by name, not a package.
sys.path.insert(0, str(FOLDER))
accuracy, attention_time, flops, headlines, inputs, measure = map(
    importlib.import_module,
    ("accuracy", "attention_time", "flops", "headlines", "inputs", "measure"),
)
our_side, products, step_time = map(importlib.import_module, ("our_side", "products", "step_time"))

SHAPE = inputs.Shape(3, width=24, heads=4, kv_heads=2, feedforward=36, vocabulary=50)
SLOTS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = inputs.random_model(str(tmp_path_factory.mktemp("llama")), inputs.llama_config(SHAPE))
    return our_side.load(folder, "float32", "named")


def training(model, updates, method="soft_prompt"):
    return our_side.prepare(model, updates, our_side.first(model, method, SLOTS), 1e-2)


def test_operations_of_a_scan_are_those_of_all_its_turns():
    def function(stack, x):
        def layer(x, matrix):
            return jax.checkpoint(lambda x: jnp.tanh(x @ matrix))(x), None

        return jax.jit(lambda x: jax.lax.scan(layer, x, stack)[0])(x)

    stack, x = jnp.ones((5, 4, 6)) @ jnp.ones((6, 4)), jnp.ones((7, 4))
    once = 5 * 2 * 7 * 4 * 4
    assert flops.of_function(function, stack, x) == once
    # Forward, forward again for tanh's derivative (the checkpoint keeps nothing), and backward.
    assert flops.of_function(jax.grad(lambda x: function(stack, x).sum()), x) == 3 * once


@pytest.mark.parametrize("shape", [(3, 0, 2, 4), (3, 2, 1, 4), (0, 2, 2, 4)])
def test_our_attention_has_the_gradients_of_jax_nn(shape):
    *seconds, apart = attention_time.compare(shape, updates=1)
    assert all(seconds)
    assert apart < 3e-6


def least_by_counting(spec, shared, lengths, targets, prefix):
    """Counts the fewest operations, one position, matrix and pair after another."""
    width, inner, keys = spec.width, spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    kept = 2 * [width * keys]
    rest = 2 * [width * inner] + 3 * [width * spec.feedforward]
    total = 0
    for layer in range(spec.layers):
        last = layer == spec.layers - 1
        for example, length in [(None, shared), *enumerate(lengths)]:
            for place in range(length):
                before = prefix + (place if example is None else shared + place)
                read = example is not None and place >= length - targets[example]
                total += sum(4 * matrix for matrix in kept)
                if last and not read:
                    continue
                total += sum(4 * matrix for matrix in rest)
                # Scores and weighted values, each once forward and twice backward.
                total += (before + 1) * spec.heads * 6 * 2 * spec.head_size
    return total + sum(targets) * 2 * 2 * spec.width * spec.vocabulary


@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(0, 3),
)
@settings(max_examples=50)
def test_the_least_is_what_counting_one_by_one_gives(shared, sizes, layers, prefix):
    spec = Spec("llama", layers, 24, 4, 2, 6, 36, 50, 64, 1e-5, True)
    lengths = [max(size) for size in sizes]
    targets = [min(size) for size in sizes]
    counted = least_by_counting(spec, shared, lengths, targets, prefix)
    assert flops.least(spec, shared, lengths, targets, prefix) == counted


def test_bare_products_are_the_least_without_attention(model):
    positions, reads = 37, 5

    def run(params, x, cotangent):
        logits, pull = jax.vjp(lambda x: products.forward(params, model.spec, x, reads, reads), x)
        return logits, pull(cotangent)

    arrays = jnp.ones((positions, SHAPE.width)), jnp.ones((reads, SHAPE.vocabulary))
    counted = flops.of_function(run, model.params, *arrays)
    spec, shared = model.spec, positions - reads
    attention = flops.least(spec, shared, [1] * reads, [1] * reads) - counted
    inner = spec.heads * spec.head_size
    pairs = 2 * (shared * (shared + 1) // 2) + 3 * reads * (shared + 1)
    assert attention == 12 * inner * pairs


def test_every_bare_product_is_run(model):
    """XLA drops what does not reach the result: no product may be dropped."""

    def run(x):
        return products.forward(model.params, model.spec, x, 5, 5)

    compiled = jax.jit(run).lower(jnp.ones((37, SHAPE.width))).compile()
    # Seven in the scan's body, seven in the last layer, and the head.
    assert len(re.findall(r" dot\(|custom-call\(.*matmul", compiled.as_text())) == 15


def test_keys_and_values_of_the_last_layer_are_products_everywhere(model):
    last = {**model.params, "layers": jax.tree.map(lambda leaf: leaf[:0], model.params["layers"])}
    x = jax.random.normal(jax.random.key(0), (37, SHAPE.width))
    gradient = jax.grad(lambda x: (products.forward(last, model.spec, x, 5, 5) ** 2).sum())(x)
    assert (jnp.abs(gradient).max(axis=1) > 0).all()


@pytest.mark.parametrize("method", ["soft_prompt", "prefix"])
def test_the_step_does_little_more_than_the_least(model, method):
    made = training(model, inputs.random_updates(4, 12, 1, SHAPE.vocabulary), method)
    work = our_side.work(made, [0, 0])
    assert work.flops - work.recomputed >= work.least > 0.8 * work.flops
    assert work.recomputed < work.flops / 4
    once = our_side.work(made, [0])
    assert work == tuple(2 * part for part in once)


def test_sides_take_turns():
    calls = []
    sides = {name: lambda number, name=name: calls.append((name, number)) for name in "ab"}
    times = measure.interleave(sides, [1, 2], warmup=[0])
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2}


def test_a_case_is_the_example_without_its_slots():
    trunk, tails = np.array([-1, -2, 7, 8, 9]), (np.array([3]), np.array([4, 5]))
    example = Example(trunk, tails, 1, 4, 0)
    found = inputs.case(example)
    assert found == inputs.Case([7, 8, 9, 4, 5], 2, 2)
    assert inputs.case(example, answered=False) == inputs.Case([7, 8, 9], 0, 2)
    again = our_side.example(found, 2)
    assert np.array_equal(again.trunk, trunk)
    assert np.array_equal(again.tails[0], tails[1])
    assert again.constant == 4


def test_slots_that_peft_cannot_place_are_refused():
    example = Example(np.array([7, -1, -2]), (np.array([3]),), 0, 3, 0)
    with pytest.raises(ValueError, match="virtual tokens stand before everything"):
        inputs.case(example)


def test_padding_is_on_the_right_and_never_a_target():
    arrays = inputs.padded([inputs.Case([5, 6, 7], 2), inputs.Case([8], 1)], pad_id=9)
    assert arrays["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert arrays["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


def commands():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return re.findall(r"python benchmarks/(\w+)\.py([^`\n|]*)", text)


def test_every_command_of_the_readme_is_understood():
    assert len(commands()) >= 6
    for script, arguments in commands():
        importlib.import_module(script).parse(shlex.split(arguments))


@pytest.mark.parametrize(("method", "shared"), [("soft_prompt", SLOTS), ("fine_tuning", 0)])
def test_the_script_prints_our_side_alone(model, capsys, monkeypatch, method, shared):
    monkeypatch.setattr(measure, "use_cores", lambda threads: None)
    sizes = [f"--{name}={value}" for name, value in SHAPE._asdict().items()]
    small = "--num_virtual_tokens 4 --batch_size 2 --length 9 --rounds 1 --matrix_size 32".split()
    flags = ["--skip_peft", "--skip_memory", "--json", "--method", method]
    monkeypatch.setattr(sys, "argv", ["step_time.py", *sizes, *small, *flags])
    assert step_time.main() == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["method"], result["shared_positions"]) == (method, shared)
    assert {"ours_seconds", "step_over_products", "flops_ratio", "least_flops"} <= result.keys()
    # Random weights know nothing: every token is about as likely.
    assert result["ours_first_loss"] == pytest.approx(np.log(SHAPE.vocabulary), abs=0.3)
    assert "ratio" not in result


@pytest.mark.parametrize(
    ("script", "words", "found"),
    [
        ("evaluate_time", "--skip_peft --rounds 1", "ours_accuracy"),
        ("generate_time", "--skip_transformers --rounds 1 --prompts 3 --tokens 2", "ours_best"),
    ],
)
def test_the_scripts_for_scoring_and_writing_run(script, words, found, monkeypatch):
    module = importlib.import_module(script)
    options = module.parse(["--config", str(tiny_runs.world().config), *words.split()])
    with tiny_runs.at_home(monkeypatch):
        assert module.compare(options)[found] > 0


def test_the_script_for_searching_runs(monkeypatch, capsys):
    words = ["search.start=One of b, e", "search.examples=4", "search.template={soft}: {text}"]
    words += [f"model.path={tiny_runs.world().model}"]
    load, module = configs.load, importlib.import_module("search_time")
    changed = [f"--config.{word}" for word in words]
    monkeypatch.setattr(configs, "load", lambda path, given: load(path, [*given, *changed]))
    with tiny_runs.at_home(monkeypatch):
        module.main(module.parse([]))
    assert "in a second of one core: the prompt once" in capsys.readouterr().out


def test_both_sides_read_the_records_that_a_run_reads(monkeypatch):
    words = ["task.examples_per_class=3", "task.validation_per_class=1"]
    with tiny_runs.at_home(monkeypatch):
        config = headlines.settings(str(tiny_runs.world().config), words)
        lm = headlines.model(config)
        counts = [
            len(headlines.examples(config, lm, NOTHING, split))
            for split in ("train", "validation", "test")
        ]
        assert counts == [15, 5, 40]
        with pytest.raises(SystemExit, match="cannot start from demonstrations"):
            config.method.init = "demonstrations"
            headlines.examples(config, lm, NOTHING, "train")


@pytest.mark.parametrize(("difference", "status"), [(9e-4, 0), (2e-3, 1)])
def test_the_script_fails_if_the_losses_differ(difference, status, monkeypatch):
    monkeypatch.setattr(measure, "use_cores", lambda threads: None)
    monkeypatch.setattr(step_time, "prepare", lambda options, folder: None)
    monkeypatch.setattr(step_time, "compare", lambda options: {"loss_difference": difference})
    monkeypatch.setattr(sys, "argv", ["step_time.py", "--dtype", "float32"])
    assert step_time.main() == status


def lines(path, seeds, side, shares, count=400):
    """Writes what a run prints with --json; right answers are drawn with the shares."""
    rng, rows = np.random.default_rng(len(side)), []
    for seed, share in zip(seeds, shares, strict=True):
        right = rng.random(count) < share
        row = {"side": side, "seed": seed, "test_right": "".join(map(str, right.astype(int)))}
        names = ("validation_accuracy", "test_accuracy", "seconds")
        rows.append(row | dict.fromkeys(names, right.mean()))
    path.write_text("\n".join(map(json.dumps, [*rows, {"side": side, "test_accuracy": 0}])))
    return np.array([[int(each) for each in row["test_right"]] for row in rows])


def test_two_sides_are_compared_example_by_example_on_the_seeds_of_both(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(measure, "use_cores", lambda threads: None)
    ours = lines(tmp_path / "ours", (0, 1, 2), "ours", (0.9, 0.9, 0.9))
    theirs = lines(tmp_path / "theirs", (3, 2, 0), "peft", (0.1, 0.8, 0.8))

    def run(one, other):
        flags = ["--side=ours", f"--read={tmp_path / one}", f"--against={tmp_path / other}"]
        monkeypatch.setattr(sys, "argv", ["accuracy.py", *flags, "--json"])
        assert accuracy.main() == 0
        return json.loads(capsys.readouterr().out)

    found = run("ours", "theirs")
    assert found["seeds"] == [0, 2]
    difference = (ours[0] - theirs[2] + ours[2] - theirs[1]) / 2
    assert found["difference"] == pytest.approx(difference.mean())
    # The normal interval, which a bootstrap of so many examples comes close to.
    half = 1.96 * difference.std() / np.sqrt(len(difference))
    wanted = difference.mean() - half, difference.mean() + half
    np.testing.assert_allclose((found["low"], found["high"]), wanted, atol=0.1 * half)
    alike = run("ours", "ours")
    assert (alike["low"], alike["difference"], alike["high"]) == (0, 0, 0)
    lines(tmp_path / "short", (0,), "peft", (0.8,), count=399)
    lines(tmp_path / "apart", (7,), "peft", (0.8,))
    for other in ("short", "apart"):
        with pytest.raises(SystemExit, match="no seed in common, or other test examples"):
            run("ours", other)
