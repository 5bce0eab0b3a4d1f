"""Facts and tables for people."""

from prompt_tuning_jax.cli.evaluate import print_result
from prompt_tuning_jax.cli.show import facts, print_table, say


def test_facts_are_lines_and_nested_ones_have_the_names_above_in_front():
    assert facts({"a": 0.5, "b": {"c": None, "d": {}}}) == ["a: 0.5", "b c: none", "b d: none"]


def test_a_terminal_obeys_no_text(capsys):
    say("\x1b[2Jnaïve 日本\n\ta\x9b")
    assert capsys.readouterr().out == "\\x1b[2Jnaïve 日本\n\ta\\x9b\n"
    print_table([{"n": "a\x1b[31mb"}], [])
    assert "a\\x1b[31mb" in capsys.readouterr().out


def test_a_table_shows_text_as_it_is(capsys):
    print_table([{"n": "1,234", "prompt": "a [b] {text}"}, {"n": "5", "prompt": "c"}], ["prompt"])
    assert capsys.readouterr().out.splitlines() == [
        "    n  prompt      ",
        "1,234  a [b] {text}",
        "    5  c           ",
    ]


def test_ranked_prompts_are_a_table_above_the_best_one(capsys):
    candidates = [{"prompt": text, "accuracy": 0.5, "loss": 1.25} for text in ("b[i]", "a\nc")]
    print_result({"prompt": "b[i]", "accuracy": 0.25, "candidates": candidates})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["accuracy", "loss", "prompt"],
        ["50.0", "%", "1.250", "b[i]"],
        ["50.0", "%", "1.250", "a\\nc"],
        [],
        ["prompt:", "b[i]"],
        ["accuracy:", "0.25"],
    ]
