"""A model written out in float64 numpy for one sequence at a time: the oracle of the tests.

It takes a spec, so a further family is another spec and the branches that its options need. It
knows nothing of rows, segments, reads, scans or stacked weights.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tiny_models
from flax import traverse_util

from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.files.tokenizer import Facts, Tokenizer
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import NOTHING, Given, sites
from prompt_tuning_jax.models.spec import Spec
from prompt_tuning_jax.models.weight_names import axis_sizes, tensor_names


class Plain(NamedTuple):
    """A spec, leaves by path outside the layers, and those of each layer; matrices [out, in]."""

    spec: Spec
    outside: dict[str, np.ndarray]
    layers: list[dict[str, np.ndarray]]


def make(spec: Spec = tiny_models.SPEC, **options) -> tuple[LanguageModel, Plain]:
    """Makes a small random model twice: the package's, with options of `Decoder`, and plain."""
    arrays = tiny_models.tensors(spec)
    params = traverse_util.unflatten_dict(tiny_models.expected(spec, arrays), sep="/")
    facts = Facts(bos=1, eos=2, pad=0, add_bos=True, chat_template=None)
    words = Tokenizer(tiny_models.tokenizer_json(), facts)
    module = Decoder(spec, **options)
    lm = LanguageModel({"path": "tiny"}, spec, module, params, words, "fingerprint")
    plain = Plain(spec, {}, [{} for _ in range(spec.layers)])
    for name, leaf, layer in tensor_names(spec, "folder"):
        leaves = plain.outside if layer is None else plain.layers[layer]
        leaves[leaf.path] = arrays[name].astype(np.float64)
    return lm, plain


def frequencies(spec: Spec) -> list[float]:
    """Returns the angle by which each pair of a head turns from one position to the next.

    Llama 3.1's scaling is written down as its authors published it (`apply_scaling`).
    """
    found = []
    for pair in range(spec.head_size // 2):
        frequency = spec.rope_theta ** (-2 * pair / spec.head_size)
        if spec.rope_scaling is not None:
            scaling = spec.rope_scaling
            wavelength = 2 * np.pi / frequency
            longest = scaling.original_max_positions / scaling.low_freq_factor
            shortest = scaling.original_max_positions / scaling.high_freq_factor
            if wavelength > longest:
                frequency /= scaling.factor
            elif wavelength > shortest:
                smooth = scaling.original_max_positions / wavelength - scaling.low_freq_factor
                smooth /= scaling.high_freq_factor - scaling.low_freq_factor
                frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
        found.append(frequency)
    return found


def turn(vectors: np.ndarray, positions: np.ndarray, spec: Spec) -> np.ndarray:
    """Turns [n, d] by the rotary embedding: entries i and i + d/2 are one complex number."""
    half = spec.head_size // 2
    numbers = vectors[:, :half] + 1j * vectors[:, half:]
    numbers = numbers * np.exp(1j * np.outer(positions, frequencies(spec)))
    return np.concatenate([numbers.real, numbers.imag], axis=1)


def linear(x: np.ndarray, leaves, name: str) -> np.ndarray:
    return x @ leaves[f"{name}/weight"].T


def normalise(x: np.ndarray, leaves, name: str, spec: Spec) -> np.ndarray:
    mean_square = (x**2).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + spec.norm_epsilon) * leaves[f"{name}/scale"]


def activate(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def attend(x, leaves, spec: Spec, prefix, begin=None) -> np.ndarray:
    """Causal attention [n, D]; every position also sees the prefix's keys and values [P, K, d].
    Positions count from `begin`, which is P if it is not given."""
    front = 0 if prefix is None else len(prefix[0])
    positions = (front if begin is None else begin) + np.arange(len(x))
    hidden = np.triu(np.ones((len(x), front + len(x)), bool), front + 1)
    q, k, v = (
        linear(x, leaves, f"attention/{name}").reshape(len(x), -1, spec.head_size) for name in "qkv"
    )
    seen = []
    for head in range(spec.heads):
        group = head // (spec.heads // spec.kv_heads)
        query, key = (turn(part, positions, spec) for part in (q[:, head], k[:, group]))
        value = v[:, group]
        if prefix is not None:
            key = np.concatenate([prefix[0][:, group], key])
            value = np.concatenate([prefix[1][:, group], value])
        scores = np.where(hidden, -np.inf, query @ key.T / np.sqrt(spec.head_size))
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        seen.append(weights / weights.sum(axis=1, keepdims=True) @ value)
    return linear(np.concatenate(seen, axis=1), leaves, "attention/o")


def feed_forward(x, leaves) -> np.ndarray:
    gate, up = (linear(x, leaves, f"feedforward/{name}") for name in ("gate", "up"))
    return linear(activate(gate) * up, leaves, "feedforward/down")


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
    prompt = arrays.get("prompt/vectors")
    x = np.stack([prompt[-1 - i] if i < 0 else outside["embed/embedding"][i] for i in ids])
    for number, leaves in enumerate(layers):
        held = {path: leaf[number] for path, leaf in arrays.items() if path != "prompt/vectors"}
        leaves = with_adapters(leaves, held)
        prefix = [held.get(f"prefix/decoder/attention/{name}") for name in "kv"]
        prefix = None if prefix[0] is None else prefix
        x = x + attend(normalise(x, leaves, "attention_norm", spec), leaves, spec, prefix, begin)
        x = x + feed_forward(normalise(x, leaves, "feedforward_norm", spec), leaves)
    return normalise(x, outside, "final_norm", spec)


def log_probabilities(plain: Plain, ids: Sequence[int], given=NOTHING) -> np.ndarray:
    """float64[n, V] nats: of each token after each position."""
    head = "embed/embedding" if plain.spec.tied_head else "head/weight"
    logits = states(plain, ids, given) @ with_leaves(plain, given).outside[head].T
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
