"""Generation against the plain model, which reads everything again for each token."""

import copy
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_models import SPEC

from prompt_tuning_jax import generate as generation
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.generate import Rule, Settings, generate
from prompt_tuning_jax.models import cached
from prompt_tuning_jax.models.sites import NOTHING, Given, bind

MODEL, PLAIN = plain_model.make(precision="highest")
FRONT = (1, -1, -2, 40)
EXAMPLES = plain_model.random_examples(5, 6, FRONT, back=(-1, 50))
GIVEN = plain_model.random_given(1, SPEC, "prompt", "prefix", size=2)
GREEDY = Settings(max_new_tokens=12)
SAMPLED = GREEDY._replace(temperature=1.0, top_k=20, top_p=0.9)


def write(examples=EXAMPLES, given=GIVEN, settings=GREEDY, seed=0, lm=MODEL):
    return list(generate(lm, examples, given, settings, seed))


def ids(*given, **named):
    return [each.ids for each in write(*given, **named)]


def plainly(example, given, most):
    """The likeliest token again and again, without a cache."""
    trunk = example.trunk.tolist()
    while len(trunk) < len(example.trunk) + most and trunk[-1] != MODEL.tokenizer.eos_id:
        trunk.append(int(plain_model.log_probabilities(PLAIN, trunk, given)[-1].argmax()))
    return trunk[len(example.trunk) :]


def with_eos(token):
    """The model with another end-of-text token."""
    words = copy.copy(MODEL.tokenizer)
    words.end_ids = [] if token is None else [token]
    return MODEL._replace(tokenizer=words)


@pytest.mark.parametrize("names", [("prompt",), ("prompt", "prefix")])
def test_the_likeliest_tokens_are_those_of_the_plain_loop(names):
    given = plain_model.random_given(1, SPEC, *names, size=2)
    assert len({len(example.trunk) for example in EXAMPLES}) > 3
    found = write(given=given)
    assert [each.ids for each in found] == [plainly(each, given, 12) for each in EXAMPLES]
    assert not any(each.finished for each in found)


def test_nothing_shared_and_nothing_trained():
    examples = plain_model.random_examples(3, 3, ())
    assert ids(examples, NOTHING) == [plainly(each, NOTHING, 12) for each in examples]


def test_logits_of_every_step_are_those_of_the_whole_read_at_once():
    front = generation.prepare_front(MODEL, np.array(FRONT), GIVEN)
    rows = generation.pack_rows(MODEL, EXAMPLES, front, GREEDY, 0)
    length, behind = rows.tokens.shape[1], rows.segments.sum(axis=1)
    variables = bind(SPEC, MODEL.params, front.given)
    logits, cache = jax.jit(cached.prefill, static_argnums=(0, 5))(
        MODEL.module, variables, *rows[:3], length + 5
    )
    step = jax.jit(cached.decode, static_argnums=0)
    found, fed = [logits], np.random.default_rng(0).integers(3, 260, (len(behind), 5))
    for n in range(5):
        visible = np.pad(rows.segments > 0, ((0, 0), (0, 5)))
        visible[:, length : length + n + 1] = True
        logits, cache = step(
            *(MODEL.module, variables, front.layers, cache, fed[:, n], behind + n, visible),
            length + n,
        )
        found.append(logits)
    found = jax.nn.log_softmax(jnp.stack(found, axis=1))
    for example, row, tokens in zip(EXAMPLES, found, fed, strict=False):
        whole = [*example.trunk, *tokens]
        wanted = plain_model.log_probabilities(PLAIN, whole, GIVEN)[-6:]
        np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_an_adaptation_changes_the_text_cached_or_not(name):
    turned = {
        path: leaf[..., ::-1] if path.startswith(name) else leaf
        for path, leaf in GIVEN.sites.items()
    }
    given = Given(turned)
    pairs = list(zip(ids(), ids(given=given), strict=True))
    assert all(one != other for one, other in pairs)
    assert plainly(EXAMPLES[0], given, 12) == pairs[0][1]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED])
def test_a_batch_is_one_by_one(settings):
    together = write(settings=settings, seed=3)
    assert together == write(settings=settings._replace(batch_size=1), seed=3)
    assert together == write(settings=settings._replace(batch_size=4), seed=3)


def test_draws_depend_on_the_seed_and_the_number_alone():
    assert ids(settings=SAMPLED, seed=3) == ids(settings=SAMPLED, seed=3)
    assert ids(settings=SAMPLED, seed=3) != ids(settings=SAMPLED, seed=2**32 - 1)
    same = ids([EXAMPLES[0]] * 4, settings=SAMPLED)
    assert len(set(map(tuple, same))) == 4


@pytest.mark.parametrize(
    "changes", [{"temperature": 1e-4}, {"temperature": 5.0, "top_k": 1}, {"top_p": 1e-6}]
)
def test_some_settings_leave_only_the_likeliest(changes):
    assert ids(settings=GREEDY._replace(**{"temperature": 1.0, **changes})) == ids()


def test_a_row_ends_at_the_end_of_text_and_leaves_the_others_alone():
    plain = ids()
    token = plain[2][4]
    found = write(lm=with_eos(token))
    for one, other in zip(found, plain, strict=True):
        cut = other.index(token) + 1 if token in other else 12
        assert one.ids == other[:cut] and one.finished == (token in other)
    assert {each.finished for each in found} == {True, False}


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, GREEDY._replace(stop=("zz",))])
@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_a_model_whose_scores_are_not_numbers_writes_nothing(settings, name):
    alone = plain_model.random_given(1, SPEC, name, size=2)
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), alone)
    with pytest.raises(RunError, match="scores are not finite, with weights in float32"):
        write(given=broken, settings=settings, lm=with_eos(None))


def test_a_model_without_an_end_of_text_goes_on():
    assert ids(lm=with_eos(None)) == ids()


def test_any_of_several_ends_of_text_ends_it():
    texts = ids()
    last = {text[3] for text in texts}
    words = copy.copy(MODEL.tokenizer)
    words.end_ids = sorted(last)
    for found, text in zip(write(lm=MODEL._replace(tokenizer=words)), texts, strict=True):
        cut = next(place for place, token in enumerate(text) if token in last)
        assert (found.ids, found.finished) == (text[: cut + 1], True)


def test_a_special_token_as_stop_string_ends_the_text():
    texts = ids()
    words = copy.copy(MODEL.tokenizer)
    words.specials = {**words.specials, "<|turn|>": texts[0][3]}
    named = GREEDY._replace(stop=("<|turn|>", "no such text"))
    found = write(lm=MODEL._replace(tokenizer=words), settings=named)[0]
    assert (found.ids, found.finished) == (texts[0][: texts[0].index(texts[0][3]) + 1], True)
    assert "<|turn|>" not in found.text
    with pytest.raises(UserError, match=r"'a<\|turn\|>'.*'<\|turn\|>' is a special token"):
        write(lm=MODEL._replace(tokenizer=words), settings=named._replace(stop=("a<|turn|>",)))


def test_stop_strings_end_the_text_wherever_the_tokens_begin():
    words = MODEL.tokenizer
    text = " in the end, the 日本 stop"
    written = words.encode(text)[0]

    def cut(*stop):
        return generation.read_generation(MODEL, written, stop, MODEL.tokenizer.end_ids)

    assert cut() == (text[1:], written, False)
    assert cut("e e")[::2] == ("in th", True)
    assert cut("d, t", "e e")[::2] == ("in th", True)
    assert cut("e e", "d, t")[::2] == ("in th", True)
    assert cut("日本")[::2] == ("in the end, the ", True)
    assert cut("本 s")[::2] == ("in the end, the 日", True)
    # The space that joins the text to the prompt is not part of the text.
    assert cut(" ")[::2] == ("in", True)
    # No token after the one that the stop string ends in.
    assert words.decode(cut("d, t").ids) == " in the end, the"


def test_stop_strings_are_looked_for_while_rows_are_written(monkeypatch):
    whole = write(settings=GREEDY._replace(max_new_tokens=24))
    texts = [each.text for each in whole]
    # Some text of several tokens from the middle of one of them.
    letters = [
        (text, text[place : place + 2])
        for text in texts
        for place in range(1, len(text) - 2)
        if text[place : place + 2].isprintable() and "\ufffd" not in text[place : place + 2]
    ]
    stop = (letters[len(letters) // 2][1],)
    found = write(settings=GREEDY._replace(max_new_tokens=24, stop=stop))
    assert any(each.finished for each in found)
    for each, text in zip(found, texts, strict=True):
        assert each.text == text.partition(stop[0])[0] and each.finished == (stop[0] in text)
    steps = itertools.count()
    go_on = generation._go_on
    monkeypatch.setattr(generation, "_go_on", lambda *given: (next(steps), go_on(*given))[1])
    # All rows have ended at the first look.
    write(settings=GREEDY._replace(max_new_tokens=24, stop=tuple("".join(texts))))
    assert next(steps) <= 1


def test_a_character_is_whole_or_left_out():
    written = MODEL.tokenizer.encode("a日")[0]
    assert len(written) == 4
    texts = [generation.read_generation(MODEL, written[:n], (), ()).text for n in range(1, 5)]
    assert texts == ["a", "a", "a", "a日"]


def test_special_tokens_are_left_out_of_the_text(monkeypatch):
    words = MODEL.tokenizer
    written = [words.bos_id, *words.encode(" the")[0], words.pad_id, words.eos_id]
    assert generation.read_generation(MODEL, written, (), words.end_ids) == ("the", written, True)
    # An end that the model's file does not mark as special.
    monkeypatch.setattr(words, "end_ids", ends := words.encode("s")[0])
    written = [*words.encode(" the")[0], *ends]
    assert generation.read_generation(MODEL, written, (), ends) == ("the", written, True)


def test_no_text_goes_beyond_the_last_position():
    def example(size):
        return Example(np.array([1, *[40] * (size - 1)], np.int32), (), -1, 0, 0)

    # A prefix takes 2, and the last token that is written takes none.
    room = SPEC.max_positions - 2
    found = ids([example(size) for size in (room, room - 1, room - 5, 3)])
    assert list(map(len, found)) == [1, 2, 6, 12]
    with pytest.raises(UserError, match=f"takes {room + 3} positions .* {SPEC.max_positions}"):
        write([example(room + 1)])


def test_few_shapes_are_compiled_and_settings_are_not():
    def counts():
        return generation._begin._cache_size(), generation._go_on._cache_size()

    write()
    before = counts()
    rng = np.random.default_rng(0)
    for number in range(8):
        examples = [
            Example(np.array([*FRONT, *rng.integers(3, 260, size)], np.int32), (), -1, 4, 0)
            for size in rng.integers(1, 16, rng.integers(5, 16))
        ]
        settings = SAMPLED._replace(temperature=number / 3, top_k=number, top_p=1 - number / 9)
        assert len(write(examples, settings=settings, seed=number)) == len(examples)
    assert counts() == before


kept = jax.jit(generation.keep_likely)
distributions = arrays.arrays(
    np.float32, (3, 11), elements=st.floats(0, 1, width=32), unique=True
).map(lambda weights: weights / weights.sum(axis=1, keepdims=True))


@drawn(distributions, st.integers(0, 12), st.floats(0.01, 1))
def test_the_tokens_that_stay_are_those_that_sorting_keeps(probabilities, top_k, top_p):
    found = np.asarray(kept(probabilities, top_k, top_p))
    for row, left_over in zip(probabilities, found, strict=True):
        order = np.argsort(-row, kind="stable")[: top_k or None]
        left = np.cumsum(row[order]) / row[order].sum(dtype=np.float64)
        # Where the share is reached but for rounding, both are right.
        if np.abs(left - top_p).min() > 1e-5:
            order = order[: np.searchsorted(left, top_p) + 1]
            wanted = np.zeros_like(row)
            wanted[order] = row[order]
            np.testing.assert_array_equal(left_over, wanted)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = jnp.log(jnp.array([0.05, 0.4, 0.3, 0.05, 0.2])) * 2
    count = 20000
    rule = Rule(np.uint32(7), 2.0, 4, 0.89, np.array([], np.int32))
    found = generation.choose(jnp.tile(logits, (count, 1)), jnp.arange(count), 3, rule)
    wanted = np.array([0, 0.4, 0.3, 0, 0.2]) / 0.9
    np.testing.assert_allclose(np.bincount(found, minlength=5) / count, wanted, atol=0.015)
