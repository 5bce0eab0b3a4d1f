"""Tokenizers of each kind of folder and GGUF: ids, beginning and end are those of transformers."""

import json
import logging

import pytest
import reference_lines
import tiny_models
import tokenizer_kinds
import tokenizers
from tiny_models import rewrite
from tokenizer_kinds import KINDS

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files import tokenizer
from prompt_tuning_jax.models.files.tokenizer import read_tokenizer

LINES = reference_lines.few()[:130]


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """A kind's name, and a folder with such a tokenizer."""
    path = tmp_path_factory.mktemp("kind") / "model"
    lines = reference_lines.real()[::150]
    return request.param, tokenizer_kinds.write_folder(path, request.param, lines)


def read_theirs(folder):
    """Returns what transformers makes of the folder."""
    from transformers import AutoTokenizer

    logging.disable(logging.WARNING)
    made = AutoTokenizer.from_pretrained(folder)
    logging.disable(logging.NOTSET)
    return made


def check_ids(ours, theirs, lines):
    front = [ours.bos_id] if ours.add_bos else []
    for line in lines:
        wanted = theirs(line, split_special_tokens=True)["input_ids"]
        assert [*front, *ours.encode(line)[0], *ours.behind] == wanted, line


def test_ids_beginning_and_end_of_each_kind(kind):
    name, folder = kind
    ours = read_tokenizer(str(folder))
    check_ids(ours, read_theirs(folder), LINES)
    assert (ours.add_bos, ours.behind) == (bool(KINDS[name][1]), [2] if KINDS[name][2] else [])
    if name == "unigram":  # whose pieces have no kinds
        with pytest.raises(
            UserError, match="a text has '</s>', which the model reads as a special"
        ):
            ours.encode("a</s>")
    else:
        assert not {1, 2} & {*ours.encode("<s> </s>")[0]}


def test_a_gguf_has_the_ids_of_its_folder(kind, tmp_path):
    name, folder = kind
    if name in ("unigram", "wordpiece"):
        return
    path = tokenizer_kinds.write_gguf(tmp_path / "model.gguf", folder, name)
    ours, other = read_tokenizer(str(path)), read_tokenizer(str(folder))
    assert (ours.bos_id, ours.eos_id, ours.add_bos) == (1, 2, other.add_bos)
    for line in LINES:
        ids = ours.encode(line)[0]
        # Like llama.cpp, one more space in front of a text that begins with one.
        assert ids == other.encode(line)[0] or (name == "llama 2" and line.startswith(" "))
        assert ours.decode(ids) == line or name == "qwen2"
    if name == "llama 2":
        assert ours.decode(ours.encode("  a")[0]) == "  a" and ours.encode("<s>")[0][0] > 3


def read_pieces(folder, monkeypatch, changes):
    """Reads a GGUF with a few pieces of SentencePiece, of which the first is special."""
    file = tiny_models.write_gguf(folder / "model.gguf")
    read = tokenizer.read_gguf(file)
    pieces = [("<s>", 3, 0.0), ("<", 1, -3.0), ("s", 1, -3.0), (">", 1, -3.0), ("s>", 1, -1.0)]
    whole = dict(zip(("tokens", "token_type", "scores"), zip(*pieces, strict=True), strict=True))
    whole = {key: list(value) for key, value in whole.items()} | changes
    whole |= {"model": "llama", "add_space_prefix": False}
    fields = read.fields | {f"tokenizer.ggml.{key}": value for key, value in whole.items()}
    monkeypatch.setattr(tokenizer, "read_gguf", lambda _: read._replace(fields=fields))
    return read_tokenizer(str(file))


def test_pieces_are_joined_to_no_special_token(tmp_path, monkeypatch):
    assert read_pieces(tmp_path, monkeypatch, {}).encode("<s>")[0] == [1, 4]
    assert read_pieces(tmp_path, monkeypatch, {"token_type": [1] * 5}).encode("<s>")[0] == [0]


@pytest.mark.parametrize("changes", [{"scores": []}, {"token_type": [1] * 2}])
def test_damaged_sentencepiece_fields_are_refused(tmp_path, monkeypatch, changes):
    with pytest.raises(UserError, match=r"of 5 tokens, . types and . scores: use the"):
        read_pieces(tmp_path, monkeypatch, changes)


@pytest.mark.parametrize("name", ["gpt-2", "wordpiece"])
def test_lists_of_words_are_read_without_a_tokenizer_json(tmp_path, name):
    folder = tokenizer_kinds.write_folder(tmp_path / "model", name, reference_lines.NASTY)
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in content["vocab"]))
    merges = "\n".join(map(" ".join, content.get("merges", ())))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    check_ids(read_tokenizer(str(folder)), read_theirs(folder), LINES[1:])


def test_a_byte_level_file_keeps_its_own_steps(tmp_path):
    """transformers 5 takes those of the class that the folder names, here GPT-2's."""
    lines = ["a  1", "b   2"] * 9
    folder = tokenizer_kinds.write_folder(tmp_path / "model", "smollm", lines)
    ours = read_tokenizer(str(folder))
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert (
        ours.encode("a  1")[0] == whole.encode("a  1").ids != read_theirs(folder)("a  1").input_ids
    )


def test_code_of_a_folder_is_refused_and_what_it_names_is_not_opened(tmp_path, monkeypatch):
    folder = tiny_models.write_folder(tmp_path / "model")
    first = read_tokenizer(str(folder)).fingerprint
    rewrite(folder / "config.json", auto_map={"AutoConfig": "code.Config"}, name_or_path="a/b")
    paths = {"vocab": "/dev/zero", "vocab_file": "x", "init_inputs": ["x"], "tokenizer_file": "x"}
    rewrite(folder / "tokenizer_config.json", tokenizer_class="AutoModel", **paths)
    rewrite(folder / "special_tokens_map.json", bos_token="<|bos|>", **paths)
    assert read_tokenizer(str(folder)).fingerprint == first
    for name, maps in (("config", {"AutoTokenizer": ["a.B", None]}), ("tokenizer_config", ["a.B"])):
        rewrite(folder / f"{name}.json", auto_map=maps)
        with pytest.raises(UserError, match=r"names code for its tokenizer \(auto_map\), which"):
            read_tokenizer(str(folder))
        rewrite(folder / f"{name}.json", auto_map=None)
    monkeypatch.setattr(tokenizer, "MOST_BYTES", 400)
    with pytest.raises(UserError, match=r"tokenizer\.json is larger than 400 bytes"):
        read_tokenizer(str(folder))
    monkeypatch.undo()
    model = tiny_models.tokenizer_json()["model"]
    rewrite(folder / "tokenizer.json", model={**model, "vocab": {**model["vocab"], "q": 2**31}})
    with pytest.raises(UserError, match="it has an id above 4194304"):
        read_tokenizer(str(folder))
