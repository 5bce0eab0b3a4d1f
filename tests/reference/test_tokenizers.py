"""Live against transformers: the ids of every line of the data, for each kind of tokenizer."""

import unicodedata

import pytest
import reference_lines
import tokenizer_kinds
from transformers import AutoTokenizer

from prompt_tuning_jax.models.files.tokenizer import read_tokenizer


@pytest.fixture(scope="module", params=tokenizer_kinds.KINDS)
def kind(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("kind") / "model"
    lines = reference_lines.real()[::60]
    return request.param, tokenizer_kinds.write_folder(path, request.param, lines)


def read_lines():
    lines = [*reference_lines.NASTY, *reference_lines.real()]
    assert len(lines) > 5000
    return lines


def test_folders_on_every_line_of_the_data(kind):
    ours, theirs = read_tokenizer(str(kind[1])), AutoTokenizer.from_pretrained(kind[1])
    front, lines = [ours.bos_id] if ours.add_bos else [], read_lines()
    found = [[*front, *ours.encode(line)[0], *ours.behind] for line in lines]
    assert found == theirs(lines, split_special_tokens=True)["input_ids"]


def test_gguf_on_every_line_of_the_data(kind, tmp_path):
    name, folder = kind
    if name not in ("gpt-2", "qwen2", "llama-bpe", "llama 2"):
        return  # transformers reads no others
    path = tokenizer_kinds.write_gguf(tmp_path / "model.gguf", folder, name)
    ours = read_tokenizer(str(path))
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    lines = read_lines()
    if name == "llama 2":  # ours has one more space in front of such a text, like llama.cpp
        lines = [line for line in lines if not line.startswith(" ")]
    elif name == "qwen2":  # ours normalises like the folder
        lines = [line for line in lines if unicodedata.is_normalized("NFC", line)]
    wanted = theirs(lines, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert [ours.encode(line)[0] for line in lines] == wanted
