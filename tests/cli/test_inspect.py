"""What is read from virtual tokens: exactly the tokens that they were made of."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from prompt_tuning_jax import api
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.cli import inspect
from prompt_tuning_jax.data.task import select_records
from prompt_tuning_jax.inspection import prefix_attention, replace_slots
from prompt_tuning_jax.models.attention import MASKED, attend, front_share
from prompt_tuning_jax.models.sites import PROMPT

IDS = [1, 30, 31, 70]  # the first is BOS


@pytest.fixture(scope="module")
def given():
    """A model, its task, and an artifact."""
    with pytest.MonkeyPatch.context() as patch, tiny_runs.at_home(patch):
        artifact = api.load_artifact(tiny_runs.artifact())
        yield *tiny_runs.tiny()[:2], artifact


def test_a_prompt_of_embeddings_is_named_token_by_token(given, typed, home):
    lm, _, artifact = given
    made = artifact._replace(tensors={PROMPT: np.asarray(lm.embed(np.array(IDS)))})
    api.save(made, "made")
    shown = typed("inspect", "--artifact", "made", "--json", "--out", "seen", "--split", "test[:9]")
    assert shown.status == 0 and "9 of 9 records of test[:9]" in shown.err, shown.err
    found = json.loads(shown.out)
    assert json.loads((home / "seen" / "inspection.json").read_text()) == found
    assert (home / "seen" / "inspection.png").read_bytes().startswith(b"\x89PNG")
    assert [each["cosine"][0]["id"] for each in found["tokens"]] == IDS
    for each in found["tokens"]:
        nearest = each["cosine"][0]
        assert nearest["cosine"] == pytest.approx(1, abs=1e-6) and nearest["distance"] == 0
        assert nearest["token"] == lm.tokenizer.decode([nearest["id"]])
        products = [near["product"] for near in each["product"]]
        assert products == sorted(products, reverse=True) and len(products) == 3
    own = {name: found[name] for name in ("loss", "accuracy", "examples")}
    assert found["all_replaced"] == own == found["tokens"][1]["replaced"]
    assert found["tokens"][1]["without"] != own
    words = ["inspect", "--artifact", "made", "--json", "--split", "test[:9]"]
    divided = json.loads(typed(*words, "--config.parallel.model=2").out)
    assert divided["loss"] == pytest.approx(found["loss"], abs=1e-5)
    assert "inspect takes no '--config.seed=2'" in typed(*words, "--config.seed=2").err
    said = typed("inspect", "--artifact", "made").out
    assert "such readings mislead" in said
    part, whole = {"token": "�", "id": 7}, {"token": "é", "id": 8}
    assert inspect._name(part) == "'�' 7" and inspect._name(whole) == "'é'"


def test_a_token_is_left_out_or_replaced_as_in_another_prompt(given):
    lm, task, artifact = given
    rows = select_records(task, "test[:9]")
    examples, own = api.encode(lm, task, rows, artifact)
    vectors = artifact.tensors[PROMPT]
    for slot in (0, 2):
        shorter = artifact._replace(tensors={PROMPT: np.delete(vectors, slot, axis=0)})
        wanted = api.label_scores(lm, task, shorter, split=rows).scores
        found = scoring.score(lm, replace_slots(examples, {slot: None}), own)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        swapped = np.array(vectors)
        swapped[slot] = lm.embed(np.array([77]))[0]
        other = artifact._replace(tensors={PROMPT: swapped})
        wanted = api.label_scores(lm, task, other, split=rows).scores
        replaced = scoring.score(lm, replace_slots(examples, {slot: 77}), own)
        np.testing.assert_allclose(replaced, wanted, atol=1e-5)
        assert abs(found - scoring.score(lm, examples, own)).max() > 1e-4


def test_the_attention_to_a_prefix_is_what_values_of_ones_and_zeros_give():
    draw = np.random.default_rng(0)
    query = jnp.asarray(draw.normal(size=(6, 2, 2, 4)), jnp.float32)
    front, own = (
        jnp.asarray(draw.normal(size=size), jnp.float32) for size in ((3, 2, 4), (2, 3, 2, 4))
    )
    mask = jnp.where(jnp.tril(jnp.ones((2, 3, 3), bool)), 0.0, MASKED)
    hidden = jnp.zeros((6, 3)).at[4, 1].set(MASKED)
    # The value of position p of the front is 1 at place p.
    values = jnp.broadcast_to(jnp.eye(3, 4)[:, None], front.shape)
    seen = attend(query, (front, values), (own, 0 * own), mask, hidden, 0, 5.0, "highest")
    wanted = seen.mean(axis=(1, 2)).reshape(2, 3, 4)[..., :3]
    found = front_share(query, (front, values), (own, own), mask, hidden, 5.0, "highest")
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found[1, 1, 1] == 0


def test_a_prefix_has_the_attention_of_each_position_and_others_are_refused(given, typed, home):
    api.save(tiny_runs.tune("--config.method.name=prefix", "--config.steps=1")[0].artifact, "made")
    shown = typed("inspect", "--artifact", "made", "--json", "--out", "seen")
    found = json.loads(shown.out)
    shares = np.array(found["attention"])
    assert (shares > 0).all() and 0 < shares.sum() < 1 and len(shares) == 16
    assert (home / "seen" / "inspection.png").exists()
    lm, task, _ = given
    rows = select_records(task, "test[:3]")
    examples, own = api.encode(lm, task, rows, api.load_artifact("made"))
    alone = [prefix_attention(lm, own, [example]) for example in examples]
    together = prefix_attention(lm, own, examples)
    np.testing.assert_allclose(np.mean(alone, axis=0), together, atol=1e-6)
    lora = typed("inspect", "--artifact", tiny_runs.artifact(), "--config.seed=1")
    assert lora.status == 2 and "brings its own config" in lora.err
    words = [
        "evaluate",
        "--config",
        tiny_runs.world().config,
        "--prompt",
        "It: ",
        "--out",
        "written",
    ]
    assert typed(*words).status == 0
    shown = typed("inspect", "--artifact", "written")
    assert shown.status == 2 and "'written_prompt': only a soft prompt or a prefix has" in shown.err
