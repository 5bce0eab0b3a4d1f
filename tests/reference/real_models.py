"""Gemma 3 270M with its real weights against transformers, which reads the same GGUF file.

`make test-models` runs this: it is 240 MB of downloads, and under terms that restrict its use.
"""

import os
from pathlib import Path

import join_gemma
import numpy as np
import parity
import pytest
import reference_lines
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prompt_tuning_jax.models.files.tokenizer import read_tokenizer
from prompt_tuning_jax.storage import sha256

PATH = Path(os.environ["GEMMA"])
LENGTH, KEPT = 600, 128  # tokens; the window of most layers is 512


@pytest.fixture(scope="module")
def words():
    return read_tokenizer(str(PATH))


def test_the_file_is_the_one_that_was_published():
    assert sha256(PATH) == join_gemma.SHA256


def test_token_ids_are_those_of_transformers(words):
    theirs = AutoTokenizer.from_pretrained(PATH.parent, gguf_file=PATH.name)
    lines = reference_lines.real()
    lines = lines[:: len(lines) // 500][:500]
    assert len(lines) == 500
    wanted = theirs(lines)["input_ids"]
    assert words.add_bos
    assert [[words.bos_id, *words.encode(line)[0]] for line in lines] == wanted


def test_logits_are_those_of_transformers_beyond_the_window(words):
    text = "\n".join(reference_lines.real()[:40])
    ids = np.array([[words.bos_id, *words.encode(text)[0]][:LENGTH]], np.int32)
    assert ids.shape == (1, LENGTH)
    reads = np.arange(LENGTH - KEPT, LENGTH)[None]
    model = parity.read_model(PATH)
    found = parity.compute_logits(model, *parity.right_padded(ids), reads=reads)
    theirs = AutoModelForCausalLM.from_pretrained(
        PATH.parent, gguf_file=PATH.name, dtype=torch.float32
    )
    with torch.no_grad():
        wanted = theirs.eval()(torch.tensor(ids).long(), logits_to_keep=KEPT).logits.numpy()
    parity.assert_close(found, wanted, np.ones((1, KEPT)))
    losses = [
        torch.nn.functional.cross_entropy(
            torch.tensor(np.asarray(logits))[0, :-1], torch.tensor(ids[0, 1 - KEPT :]).long()
        ).item()
        for logits in (found, wanted)
    ]
    assert 1 < losses[1] < 4
    assert abs(losses[0] - losses[1]) < parity.TOLERANCE
