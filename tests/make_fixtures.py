"""Writes tests/fixtures: reference numbers from transformers on torch.

    python tests/make_fixtures.py

It needs `pip install -e .[test,bench]` and the two demo packages, and takes about a minute. Every
number comes from transformers in float32. `tests/models` compares ours with the files, as `make
test` has no torch; `tests/reference` computes them again and compares with that.
"""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import reference_lines
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prompt_tuning_jax.models.files.find import find_model

FIXTURES = Path(__file__).parent / "fixtures"
SMOLLM2 = "smollm2-135m-instruct"
SENTENCES = (
    "Headline: Ink helps drive democracy in Asia\nTopic:",
    "The capital of France is Paris, and the capital of Italy is",
)
TOP = 24  # ids with their logits in the fixture, at each position of SmolLM2
SLOTS = 4  # vectors in front of the text
LENGTHS = (12, 5, 9)  # real tokens of each example of a batch

LLAMA = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}
# Wavelengths are so short that each of llama3's three ranges holds some of them.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, dict[str, Any]] = {
    "grouped": LLAMA,
    "plain_tied": LLAMA | {"num_key_value_heads": 4, "head_dim": 6, "tie_word_embeddings": True},
    "one_key_head_llama3": LLAMA
    | {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
    | {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
}


class Reference(NamedTuple):
    """Inputs and the numbers of transformers on torch for them; B examples, P vectors.

    Attributes:
      tokens: int32[B, T], padding on the right.
      lengths: int32[B], real tokens of each.
      prompt: float32[P, D], put in front of every example.
      right, left: float32[B, T, V], logits padded on the right and on the left, without the prompt;
        those of padding are 0.
      prompted: float32[B, T, V], logits of the tokens behind the prompt.
      loss: float32[], mean negative log-likelihood of every real token behind the prompt.
      gradient: float32[P, D] of the loss.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    prompt: np.ndarray
    right: np.ndarray
    left: np.ndarray
    prompted: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray


def make_model(case: dict[str, Any], seed: int) -> Any:
    """Makes a random model whose weights float16 can hold, so that the files are half as big."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**case)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter += 0.3 * torch.randn_like(parameter)
            parameter.copy_(parameter.to(torch.float16).to(torch.float32))
    return model


def compute(model: Any, seed: int) -> Reference:
    """Computes the reference for random inputs."""
    rng = np.random.default_rng(seed)
    size, longest = model.config.vocab_size, max(LENGTHS)
    tokens = rng.integers(0, size, (len(LENGTHS), longest)).astype(np.int32)
    lengths = np.array(LENGTHS, np.int32)
    mask = np.arange(longest) < lengths[:, None]
    tokens *= mask
    width = model.get_input_embeddings().embedding_dim
    prompt = rng.normal(0, 0.3, (SLOTS, width)).astype(np.float32)

    right = run(model, tokens, mask)
    turned = [np.roll(row, longest - n) for row, n in zip(tokens, lengths, strict=True)]
    left = run(model, np.stack(turned), mask[:, ::-1].copy())
    vectors = torch.tensor(prompt, requires_grad=True)
    prompted = run_prompted(model, tokens, mask, vectors)
    scores = torch.log_softmax(prompted[:, SLOTS - 1 : -1], dim=-1)
    chosen = scores.gather(-1, torch.tensor(tokens).long()[..., None])[..., 0]
    loss = -chosen[torch.tensor(mask)].mean()
    loss.backward()
    assert vectors.grad is not None
    return Reference(
        tokens,
        lengths,
        prompt,
        right,
        left,
        prompted[:, SLOTS:].detach().numpy() * mask[..., None],
        np.asarray(loss.item(), np.float32),
        vectors.grad.numpy(),
    )


def run(model, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits float32[B, T, V] where `mask` is true, else 0; positions count the real tokens."""
    positions = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            position_ids=positions,
        ).logits
    return logits.numpy() * mask[..., None]


def run_prompted(model, tokens, mask, vectors) -> torch.Tensor:
    """Logits float32[B, P + T, V] of each example behind the vectors."""
    embedded = model.get_input_embeddings()(torch.tensor(tokens).long())
    front = vectors[None].expand(len(tokens), -1, -1)
    seen = torch.cat([torch.ones(len(tokens), len(vectors)), torch.tensor(mask)], 1).long()
    return model(inputs_embeds=torch.cat([front, embedded], 1), attention_mask=seen).logits


def load_smollm2() -> Any:
    """Reads SmolLM2 from the packaged GGUF with transformers, in float32."""
    path = find_model(SMOLLM2)
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


def load_words(*, single_digits: bool) -> Tokenizer:
    """Reads SmolLM2's tokenizer from the packaged GGUF with transformers.

    transformers does not cut off single digits first, as the published tokenizer and llama.cpp do;
    `single_digits` adds that. On real text the ids are the same (`tests/reference`).
    """
    path = find_model(SMOLLM2)
    words = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    words.encode_special_tokens = True
    if single_digits:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        words.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    return words


def encode(words: Tokenizer, text: str) -> list[int]:
    return words.encode(text, add_special_tokens=False).ids


def compute_smollm2(model: Any, words: Tokenizer) -> dict[str, np.ndarray]:
    """Computes for each sentence its ids, and the `TOP` best ids with logits at every position."""
    found = {}
    for number, sentence in enumerate(SENTENCES):
        ids = encode(words, sentence)
        with torch.no_grad():
            top = model(input_ids=torch.tensor([ids])).logits[0].topk(TOP)
        found[f"tokens{number}"] = np.array(ids, np.int32)
        found[f"ids{number}"] = top.indices.numpy().astype(np.int32)
        found[f"logits{number}"] = top.values.numpy()
    return found


def main() -> int:
    FIXTURES.mkdir(exist_ok=True)
    for seed, (name, case) in enumerate(CASES.items()):
        model = make_model(case, seed)
        reference = compute(model, seed)
        model.to(torch.float16).save_pretrained(FIXTURES / name)
        (FIXTURES / name / "generation_config.json").unlink()
        np.savez_compressed(FIXTURES / name / "reference.npz", **reference._asdict())
    words = load_words(single_digits=True)
    np.savez_compressed(FIXTURES / "smollm2_logits.npz", **compute_smollm2(load_smollm2(), words))
    ids = [encode(words, line) for line in reference_lines.few()]
    np.savez_compressed(
        reference_lines.FIXTURE,
        ids=np.array([number for row in ids for number in row], np.uint16),
        lengths=np.array([len(row) for row in ids], np.uint16),
    )
    size = sum(file.stat().st_size for file in FIXTURES.rglob("*") if file.is_file())
    print(f"{size / 1000:.0f} kB in {FIXTURES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
