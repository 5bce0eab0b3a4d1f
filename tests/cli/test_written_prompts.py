"""Written prompts: reading a file of them, and ranking them."""

import json
import os

import pytest

from prompt_tuning_jax.cli.evaluate import rank_prompts, read_prompts
from prompt_tuning_jax.errors import UserError


def write(folder, content, name="prompts.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_line_is_a_prompt_as_it_stands(tmp_path):
    path = write(
        tmp_path,
        b"\xef\xbb\xbf{text} is \r\n\r\n  \t\n# {text}: a comment\n[INST] {text}\\n\n"
        b" # no comment\n{text} is \n\xc3\xa9: {text}",
    )
    prompts, counted = read_prompts(path)
    lines = {"{text} is ": 1, "[INST] {text}\\n": 5, " # no comment": 6, "é: {text}": 8}
    assert [*prompts.items()] == [(text, f"{path}, line {line}") for text, line in lines.items()]
    assert counted == f"4 prompts in {path}; blank, comments or repeated: 4"


def test_a_json_list_holds_what_a_line_cannot(tmp_path):
    texts = ["# {text}\n\nis", "{text} \t", "# {text}\n\nis"]
    path = write(tmp_path, json.dumps(texts, indent=1), "prompts.json")
    prompts, counted = read_prompts(path)
    assert [*prompts] == texts[:2] and prompts[texts[1]] == f"{path}, item 2"
    assert counted == f"2 prompts in {path}; blank, comments or repeated: 1"


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("p.txt", "", "holds no prompt: write one template on each line"),
        ("p.txt", "\n# a\n \n", "holds no prompt"),
        ("p.txt", b"a\nb\xff\n", "p.txt, line 2: not UTF-8 at byte 2: save the file as UTF-8"),
        ("p.json", "[]", "holds no prompt"),
        ("p.json", '["a",\n b]', "p.json, line 2: Expecting value; it is not valid JSON"),
        ("p.json", "", "p.json, line 1: Expecting value; it is not valid JSON"),
        ("p.json", "[" * 99999, "p.json is nested too deeply"),
        ("p.json", '{"a": "b"}', "p.json holds no JSON list"),
        ("p.json", '["a", ""]', "p.json, item 2 is '': expected a text, not empty"),
        ("p.json", '["a", 3]', "p.json, item 2 is 3: expected a text"),
    ],
)
def test_a_file_without_valid_prompts_is_refused_with_its_place(tmp_path, name, content, part):
    with pytest.raises(UserError) as caught:
        read_prompts(write(tmp_path, content, name))
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_only_a_regular_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in {"no.txt": "does not exist", "pipe": "is not a regular file"}.items():
        with pytest.raises(UserError, match=f"prompts file '.*{name}' {message}"):
            read_prompts(str(tmp_path / name))


def scored(scores):
    prompts = {text: f"line {number}" for number, text in enumerate(scores, 1)}
    return rank_prompts(prompts, lambda prompt: scores[prompt], print)


def test_the_best_comes_first_and_the_loss_tells_equal_ones_apart():
    ranking = scored(
        {
            "a": {"loss": 1.0, "accuracy": 0.5},
            "b": {"loss": 3.0, "accuracy": 0.75},
            "c": {"loss": 2.0, "accuracy": 0.75},
            "d": {"loss": 0.5, "accuracy": 0.5},
        }
    )
    assert [row["prompt"] for row in ranking] == ["c", "b", "d", "a"]
    assert ranking[0] == {"prompt": "c", "loss": 2.0, "accuracy": 0.75}
    by_loss = scored({"a": {"loss": 2.0}, "b": {"loss": 1.0}, "c": {"loss": 1.0}})
    assert [row["prompt"] for row in by_loss] == ["b", "c", "a"]


def test_a_prompt_that_cannot_be_scored_is_named():
    def fail(prompt):
        raise UserError("record 0: too long")

    with pytest.raises(UserError, match=r"^line 7: record 0: too long$"):
        rank_prompts({"a": "line 7"}, fail, print)
