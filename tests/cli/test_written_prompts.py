"""Candidate prompts: reading a file of them, and ranking them."""

import json
import os

import pytest

from prompt_tuning_jax.cli import written_prompts as written
from prompt_tuning_jax.cli.written_prompts import Candidate
from prompt_tuning_jax.errors import UserError


def write(folder, content, name="prompts.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_line_is_a_candidate_as_it_stands(tmp_path):
    path = write(
        tmp_path,
        b"\xef\xbb\xbf{text} is \r\n\r\n  \t\n# {text}: a comment\n[INST] {text}\\n\n"
        b" # no comment\n{text} is \n\xc3\xa9: {text}",
    )
    found, counted = written.read_candidates(path)
    assert found == [
        Candidate("{text} is ", f"{path}, line 1"),
        Candidate("[INST] {text}\\n", f"{path}, line 5"),
        Candidate(" # no comment", f"{path}, line 6"),
        Candidate("é: {text}", f"{path}, line 8"),
    ]
    assert counted == f"4 candidates in {path} (left out: 2 blank, 1 comments, 1 repeated)"


def test_a_json_list_holds_what_a_line_cannot(tmp_path):
    texts = ["# {text}\n\nis", "{text} \t", "# {text}\n\nis"]
    path = write(tmp_path, json.dumps(texts, indent=1), "prompts.json")
    found, counted = written.read_candidates(path)
    assert [candidate.text for candidate in found] == texts[:2]
    assert found[1].place == f"{path}, item 2"
    assert counted == f"2 candidates in {path} (left out: 1 repeated)"


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("p.txt", "", "holds no prompt: write one template on each line"),
        ("p.txt", "\n# a\n \n", "holds no prompt"),
        ("p.txt", b"a\nb\xff\n", "p.txt, line 2: not UTF-8 at byte 2: save the file as UTF-8"),
        ("p.json", "[]", "holds no prompt"),
        ("p.json", '["a",\n b]', "p.json, line 2: not valid JSON: write a list of texts"),
        ("p.json", "", "p.json, line 1: not valid JSON"),
        ("p.json", "[" * 99999, "p.json: not valid JSON"),
        ("p.json", '{"a": "b"}', "p.json holds dict, expected a JSON list of texts"),
        ("p.json", '["a", ""]', "p.json, item 2 is '': expected a text, not empty"),
        ("p.json", '["a", 3]', "p.json, item 2 is 3: expected a text"),
    ],
)
def test_a_file_without_valid_prompts_is_refused_with_its_place(tmp_path, name, content, part):
    with pytest.raises(UserError) as caught:
        written.read_candidates(write(tmp_path, content, name))
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_only_a_regular_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in {"no.txt": "does not exist", "pipe": "is not a regular file"}.items():
        with pytest.raises(UserError, match=f"prompts file '.*{name}' {message}"):
            written.read_candidates(str(tmp_path / name))


def scored(scores):
    candidates = [Candidate(text, f"line {number}") for number, text in enumerate(scores, 1)]
    return written.rank_candidates(candidates, scores.__getitem__)


def test_the_best_comes_first_and_equal_ones_keep_their_order():
    ranking = scored(
        {
            "a": {"loss": 1.0, "accuracy": 0.5},
            "b": {"loss": 3.0, "accuracy": 0.75},
            "c": {"loss": 2.0, "accuracy": 0.75},
            "d": {"loss": 0.5, "accuracy": 0.5},
        }
    )
    assert [row["prompt"] for row in ranking] == ["b", "c", "a", "d"]
    assert ranking[0] == {"prompt": "b", "loss": 3.0, "accuracy": 0.75}
    by_loss = scored({"a": {"loss": 2.0}, "b": {"loss": 1.0}, "c": {"loss": 1.0}})
    assert [row["prompt"] for row in by_loss] == ["b", "c", "a"]


def test_a_candidate_that_cannot_be_scored_is_named():
    def fail(text):
        raise UserError("record 0: too long")

    with pytest.raises(UserError, match=r"^line 7: record 0: too long$"):
        written.rank_candidates([Candidate("a", "line 7")], fail)
