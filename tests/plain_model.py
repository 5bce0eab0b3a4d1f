"""A model written out in float64 numpy for one sequence at a time: the oracle of the tests.

It takes a spec, so a further family is another spec and the branches that its options need. It
knows nothing of rows, segments, reads, scans or stacked weights.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tiny_models
from flax import traverse_util

from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.models import positions
from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.files.tokenizer import Facts, Tokenizer
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import NOTHING, Given, sites
from prompt_tuning_jax.models.spec import FAR, Rope, Spec, axis_sizes


class Plain(NamedTuple):
    """A spec, leaves by path outside the layers, and those of each layer; matrices [out, in]."""

    spec: Spec
    outside: dict[str, np.ndarray]
    layers: list[dict[str, np.ndarray]]


def make(spec: Spec = tiny_models.SPEC, **options) -> tuple[LanguageModel, Plain]:
    """Makes a small random model twice: the package's, with options of `Decoder`, and plain."""
    leaves = tiny_models.leaves(spec)
    params = traverse_util.unflatten_dict(leaves, sep="/")
    facts = Facts(bos=1, eos=2, pad=0, add_bos=True, chat_template=None)
    words = Tokenizer(tiny_models.tokenizer_json(), facts)
    module = Decoder(spec, **options)
    lm = LanguageModel({"path": "tiny"}, spec, module, params, words, "fingerprint")
    plain = Plain(spec, {}, [{} for _ in range(spec.layers)])
    for path, leaf in leaves.items():
        stack, _, name = path.partition("/")
        leaf = leaf.astype(np.float64)
        if stack not in ("layers", "last"):
            plain.outside[path] = leaf
        for layer, part in enumerate(leaf if stack == "layers" else ()):
            plain.layers[layer][name] = part
        if stack == "last":
            plain.layers[-1][name] = leaf
    return lm, plain


def frequencies(rope: Rope) -> list[float]:
    """Returns the angle by which each pair of a head turns from one position to the next.

    Llama 3.1's scaling is written down as its authors published it (`apply_scaling`); yarn and
    longrope are the package's, which the tests against transformers cover.
    """
    if rope.kind in ("yarn", "longrope"):
        return positions.frequencies(rope)[0].tolist()
    found = []
    for pair in range(rope.size // 2):
        frequency = rope.theta ** (-2 * pair / rope.size)
        if rope.kind == "linear":
            frequency /= rope.numbers[0]
        elif rope.kind == "llama3":
            factor, low, high, original = rope.numbers
            wavelength = 2 * np.pi / frequency
            if wavelength > original / low:
                frequency /= factor
            elif wavelength > original / high:
                smooth = (original / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / factor + smooth * frequency
        found.append(frequency)
    return found


def turn(vectors: np.ndarray, places: np.ndarray, rope: Rope | None) -> np.ndarray:
    """Turns the first r of [n, d] by the rotary embedding: entries i and i + r/2 are one complex
    number."""
    if rope is None:
        return vectors
    half = rope.size // 2
    numbers = vectors[:, :half] + 1j * vectors[:, half : rope.size]
    numbers = numbers * np.exp(1j * np.outer(places, frequencies(rope)))
    numbers = numbers * positions.frequencies(rope)[1]
    return np.concatenate([numbers.real, numbers.imag, vectors[:, rope.size :]], axis=1)


def linear(x: np.ndarray, leaves, name: str) -> np.ndarray:
    return x @ leaves[f"{name}/weight"].T + leaves.get(f"{name}/bias", 0.0)


def normalise(x: np.ndarray, leaves, name: str, spec: Spec) -> np.ndarray:
    """RMSNorm or LayerNorm; x itself if the model has no such norm."""
    if f"{name}/scale" not in leaves:
        return x
    if spec.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + spec.norm_epsilon)
    return x * (leaves[f"{name}/scale"] + spec.norm_offset) + leaves.get(f"{name}/bias", 0.0)


def activate(x: np.ndarray, name: str) -> np.ndarray:
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu":
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def cap(x: np.ndarray, most: float) -> np.ndarray:
    return most * np.tanh(x / most) if most else x


def attend(x, leaves, spec: Spec, number: int, prefix, begin=None) -> np.ndarray:
    """Causal attention [n, D] of one layer; every position also sees the prefix's keys and values
    [P, K, d], unless they are behind its window. Positions count from `begin`, which is P if it is
    not given."""
    front = 0 if prefix is None else len(prefix[0])
    places = (front if begin is None else begin) + np.arange(len(x))
    away = places[:, None] - np.concatenate([np.arange(front), places])
    window = spec.layer_windows[number] if spec.layer_windows else FAR
    hidden = (away < 0) | (away >= window)
    kind = spec.layer_ropes[number] if spec.layer_ropes else 0
    rope = spec.ropes[kind] if kind < len(spec.ropes) else None

    def project(name):
        y = linear(x, leaves, f"attention/{name}")
        y = normalise(y, leaves, f"attention/{name}_norm", spec) if spec.qk_norm == "row" else y
        y = y.reshape(len(x), -1, spec.head_size)
        return normalise(y, leaves, f"attention/{name}_norm", spec) if spec.qk_norm == "head" else y

    q, k, v = map(project, "qkv")
    seen = []
    for head in range(spec.heads):
        group = head // (spec.heads // spec.kv_heads)
        query, key = (turn(part, places, rope) for part in (q[:, head], k[:, group]))
        value = v[:, group]
        if prefix is not None:
            key = np.concatenate([prefix[0][:, group], key])
            value = np.concatenate([prefix[1][:, group], value])
        scores = query @ key.T * (spec.scale or spec.head_size**-0.5)
        scores = np.where(hidden, -np.inf, cap(scores, spec.attention_cap))
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        seen.append(weights / weights.sum(axis=1, keepdims=True) @ value)
    return linear(np.concatenate(seen, axis=1), leaves, "attention/o")


def feed_forward(x, leaves, spec: Spec) -> np.ndarray:
    up = linear(x, leaves, "feedforward/up")
    gate = linear(x, leaves, "feedforward/gate") if spec.gated else up
    inner = activate(gate, spec.activation) * (up if spec.gated else 1.0)
    return linear(inner, leaves, "feedforward/down")


def block(x, leaves, spec: Spec, number: int, prefix, begin) -> np.ndarray:
    """One layer: [n, D] to [n, D]."""

    def half(name, x, into, function):
        before = x if spec.placement == "after" else normalise(x, leaves, f"{name}_norm", spec)
        into = into + normalise(function(before), leaves, f"{name}_out_norm", spec)
        return normalise(into, leaves, f"{name}_norm", spec) if spec.placement == "after" else into

    middle = half("attention", x, x, lambda y: attend(y, leaves, spec, number, prefix, begin))
    given = x if spec.parallel else middle
    return half("feedforward", given, middle, lambda y: feed_forward(y, leaves, spec))


def with_adapters(leaves, given):
    """The leaves of a layer with LoRA's products and IA3's scales multiplied into its matrices."""
    made = dict(leaves)
    for path, array in given.items():
        name = "/".join([*path.split("/")[2:4], "weight"])
        if path.endswith("/a"):
            made[name] = made[name] + given[f"{path[:-1]}b"] @ array
    for path, array in given.items():
        name = f"{path.removeprefix('scale/decoder/')}/weight"
        if path == "scale/decoder/feedforward/down":
            made[name] = made[name] * array  # of what the layer reads
        elif path.startswith("scale/"):
            made[name] = made[name] * array[:, None]
            bias = name.replace("/weight", "/bias")
            made |= {bias: made[bias] * array} if bias in made else {}
    return made


def with_leaves(plain: Plain, given: Given) -> Plain:
    """The model with the leaves that are given in place of its own."""
    outside, layers = dict(plain.outside), [dict(leaves) for leaves in plain.layers]
    for path, leaf in given.params.items():
        stack, _, name = path.partition("/")
        leaf = np.asarray(leaf, np.float64)
        if stack == "layers":
            for leaves, part in zip(layers[:-1], leaf, strict=True):
                leaves[name] = part
        elif stack == "last":
            layers[-1][name] = leaf
        else:
            outside[path] = leaf
    return Plain(plain.spec, outside, layers)


def states(plain: Plain, ids: Sequence[int], given=NOTHING, begin=None) -> np.ndarray:
    """Hidden states float64[n, D] after the final norm; id -1 - j is vector j of the prompt."""
    spec, outside, layers = with_leaves(plain, given)
    arrays = {path: np.asarray(leaf, np.float64) for path, leaf in given.sites.items()}
    prompt, table = arrays.get("prompt/vectors"), outside["embed/embedding"]
    x = np.stack([prompt[-1 - i] if i < 0 else table[i] * spec.embedding_scale for i in ids])
    if spec.embedding_width:
        x = linear(x, outside, "project_in")
    if spec.learned_positions:
        path = "prefix/decoder/attention/k"
        front = (arrays[path].shape[1] if path in arrays else 0) if begin is None else begin
        x = x + outside["positions/embedding"][front + spec.position_offset :][: len(x)]
    for number, leaves in enumerate(layers):
        held = {path: leaf[number] for path, leaf in arrays.items() if path != "prompt/vectors"}
        leaves = with_adapters(leaves, held)
        prefix = [held.get(f"prefix/decoder/attention/{name}") for name in "kv"]
        x = block(x, leaves, spec, number, None if prefix[0] is None else prefix, begin)
    return normalise(x, outside, "final_norm", spec)


def log_probabilities(plain: Plain, ids: Sequence[int], given=NOTHING) -> np.ndarray:
    """float64[n, V] nats: of each token after each position."""
    head, outside = plain.spec.tied_head, with_leaves(plain, given).outside
    hidden = states(plain, ids, given)
    hidden = linear(hidden, outside, "project_out") if plain.spec.embedding_width else hidden
    logits = hidden @ outside["embed/embedding" if head else "head/weight"].T
    logits = cap(logits, plain.spec.final_cap)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def target_scores(plain: Plain, example: Example, answer: int, given=NOTHING) -> np.ndarray:
    """Log-probability float64[m] of each token of an answer."""
    tail = example.tails[answer]
    ids = [*example.trunk, *tail[:-1]]
    predictions = log_probabilities(plain, ids, given)[len(example.trunk) - 1 :]
    return predictions[np.arange(len(tail)), tail]


def answer_scores(plain: Plain, examples: Sequence[Example], given=NOTHING) -> np.ndarray:
    """Log-probability float64[N, C] of each answer of each example."""
    return np.array(
        [
            [target_scores(plain, example, c, given).sum() for c in range(len(example.tails))]
            for example in examples
        ]
    )


def loss(plain: Plain, examples: Sequence[Example], given=NOTHING) -> float:
    """Summed negative log-likelihood of the right answers, in nats."""
    right = (target_scores(plain, each, each.answer, given).sum() for each in examples)
    return -float(sum(right))


def slope(function, leaf: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of `function` of an array, by central differences; the array is not changed."""
    found = np.zeros(leaf.shape)
    for place in np.ndindex(leaf.shape):
        beside = np.array(leaf, np.float64)
        beside[place] += step
        above = function(beside)
        beside[place] -= 2 * step
        found[place] = (above - function(beside)) / (2 * step)
    return found


def random_examples(
    seed: int,
    count: int,
    front: Sequence[int] = (1, -1, -2, -3, 40),
    *,
    back: Sequence[int] = (),
    answers: int = 3,
    longest_tail: int = 3,
) -> list[Example]:
    """Examples with `front` before and `back` behind a random text; answers of unequal length."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        text = rng.integers(3, 260, rng.integers(1, 7))
        trunk = np.array([*front, *text, *back], np.int32)
        lengths = rng.integers(1, longest_tail + 1, answers)
        tails = tuple(rng.integers(3, 260, length).astype(np.int32) for length in lengths)
        found.append(Example(trunk, tails, int(rng.integers(answers)), len(front), 0))
    return found


def random_given(seed: int, spec: Spec, *names: str, size: int = 3) -> Given:
    """What a model is given: a 'prompt', a 'prefix', 'lora', 'scale', or several of them. `size` is
    the number of positions, or the rank."""
    rng, sizes = np.random.default_rng(seed), axis_sizes(spec)
    found = {}
    for path, letters in sites(spec).items():
        shape = [sizes.get(letter, size) for letter in letters.split()]
        if path.split("/")[0] in names and not path.endswith("/visible"):
            spread = 1 if path.startswith("prefix/") else 0.3
            found[path] = rng.normal(0, spread, shape).astype(np.float32)
            found[path] += path.startswith("scale/")
    return Given(found)
