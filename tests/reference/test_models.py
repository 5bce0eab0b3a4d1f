"""Live against transformers on torch: weights, logits, prompt gradients and token ids."""

import copy

import make_fixtures
import numpy as np
import parity
import pytest
import reference_lines
import tiny_models
import torch
from make_fixtures import CASES, SMOLLM2
from transformers import AutoModelForCausalLM, AutoTokenizer

from prompt_tuning_jax.models.files.find import find_model
from prompt_tuning_jax.models.files.tokenizer import read_tokenizer
from prompt_tuning_jax.models.files.weights import read_weights
from prompt_tuning_jax.models.positions import frequencies


@pytest.fixture(scope="module")
def smollm2():
    """The model that transformers reads from the same GGUF."""
    return make_fixtures.load_smollm2()


@pytest.mark.parametrize("name", CASES)
def test_fixtures_are_what_transformers_computes(name):
    seed = list(CASES).index(name)
    model = make_fixtures.make_model(CASES[name], seed)
    with np.load(make_fixtures.FIXTURES / name / "reference.npz") as kept:
        for key, wanted in make_fixtures.compute(model, seed)._asdict().items():
            # Another processor sums in another order: float32 noise on logits of about 5.
            np.testing.assert_allclose(kept[key], wanted, atol=3e-5, err_msg=key)


@pytest.mark.parametrize("name", ["grouped", "one_key_head_llama3"])
def test_logits_far_from_the_beginning(tmp_path, name):
    """There a last bit of a frequency is an angle of 1e-4."""
    rope = CASES[name].get("rope_parameters", {"rope_type": "default"})
    rope = rope | {"rope_theta": 500_000.0}
    if "factor" in rope:
        rope |= {"original_max_position_embeddings": 512}
    more = {"head_dim": 64, "max_position_embeddings": 2048, "rope_parameters": rope}
    model = make_fixtures.make_model(CASES[name] | more, 3)
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 61, (1, 1500))
    theirs = make_fixtures.run(model, tokens, np.ones_like(tokens))
    (ours,) = read_weights(str(tmp_path), "float32").spec.ropes
    # The same rounding up to a last bit here and there, or the scale's.
    kept = model.model.rotary_emb.inv_freq.numpy()
    found, _ = frequencies(ours)
    np.testing.assert_allclose(found, kept, rtol=3e-7)
    assert "factor" in rope or (found == kept).mean() > 0.9
    found = parity.compute_logits(parity.read_model(tmp_path), *parity.right_padded(tokens))
    np.testing.assert_allclose(found, theirs, atol=parity.TOLERANCE)


@pytest.mark.parametrize("tied", [True, False])
def test_a_random_llama_from_a_gguf_that_transformers_reads(tmp_path, tied):
    tiny_models.write_gguf(tmp_path / "model.gguf", tiny_models.changed(tied_head=tied))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    kept = make_fixtures.compute(theirs.eval(), 7)._asdict()
    ours = parity.read_model(tmp_path / "model.gguf")
    parity.check_right_padding(ours, kept)
    parity.check_prompt(ours, kept, shared_slots=0)


def test_smollm2_weights_are_bit_for_bit_those_of_transformers(smollm2):
    spec, params, *_ = read_weights(SMOLLM2, "float32")
    arrays = {name: tensor.numpy() for name, tensor in smollm2.state_dict().items()}
    tiny_models.assert_tree(params, tiny_models.expected(spec, arrays))


def test_smollm2_logits_of_the_whole_vocabulary(smollm2):
    """They are as close to float64 as those of transformers in float32.

    On logits of 25 both are up to 1e-4 off, so a few in a million differ by more.
    """
    words = read_tokenizer(SMOLLM2)
    lines = [line for line in reference_lines.real() if 150 < len(line) < 200][:4]
    tokens, positions, segments = parity.right_padded([words.encode(line)[0] for line in lines])
    real = segments > 0
    theirs = make_fixtures.run(smollm2, tokens, real)[real]
    exact = make_fixtures.run(copy.deepcopy(smollm2).double(), tokens, real)[real]
    found = parity.compute_logits(parity.read_model(SMOLLM2), tokens, positions, segments)
    found = np.asarray(found)[real]
    ours_off, theirs_off = np.abs(found - exact), np.abs(theirs - exact)
    assert ours_off.max() < 2 * theirs_off.max() < 4 * parity.TOLERANCE
    assert ours_off.mean() < 2 * theirs_off.mean()
    assert (np.abs(found - theirs) > parity.TOLERANCE).mean() < 1e-5


def test_smollm2_token_ids_on_every_line_of_the_data():
    words, ours = make_fixtures.load_words(single_digits=False), read_tokenizer(SMOLLM2)
    lines = reference_lines.real()
    assert len(lines) > 5000
    theirs = words.encode_batch(lines, add_special_tokens=False)
    assert [ours.encode(line)[0] for line in lines] == [encoding.ids for encoding in theirs]


def test_smollm2_token_ids_of_nasty_lines():
    words, ours = make_fixtures.load_words(single_digits=True), read_tokenizer(SMOLLM2)
    for line in reference_lines.NASTY:
        assert ours.encode(line)[0] == make_fixtures.encode(words, line), line


def test_the_special_tokens_and_the_chat_template_of_smollm2():
    path, ours = find_model(SMOLLM2), read_tokenizer(SMOLLM2)
    words = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = (words.bos_token_id, words.eos_token_id, words.pad_token_id)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == ids
    assert ours.chat_template == words.chat_template


@pytest.mark.parametrize("setting", [None, True, False])
@pytest.mark.parametrize("processed", [True, False])
def test_folders_as_transformers_reads_them(tmp_path, processed, setting):
    """Ids, and whether BOS is put in front of a text."""
    folder = tiny_models.write_folder(tmp_path)
    named = folder / "tokenizer_config.json"
    tiny_models.rewrite(named, tokenizer_class="LlamaTokenizer", add_bos_token=setting)
    if not processed:
        tiny_models.rewrite(folder / "tokenizer.json", post_processor=None)
    words = AutoTokenizer.from_pretrained(folder)
    ours = read_tokenizer(str(folder))
    for line in [*reference_lines.NASTY[1:], *reference_lines.real()[:500]]:
        if not any(markup in line for markup in tiny_models.SPECIALS):
            front = [ours.bos_id] if ours.add_bos else []
            assert front + ours.encode(line)[0] == words(line)["input_ids"], line
    assert ours.add_bos is processed
