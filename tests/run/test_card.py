"""The card says what the manifest says, and what it tells to type works."""

import json
import shlex

import pytest
import tiny_runs

from prompt_tuning_jax import api
from prompt_tuning_jax.run import artifact, card
from prompt_tuning_jax.run.report import Row

ROWS = [Row("no prompt", 0.25, 0, 0, 0.0), Row("soft prompt", 0.875, 96, 512, 3.0)]
TEXT = card._TEXT


@pytest.fixture(scope="module")
def made():
    return artifact.load_artifact(tiny_runs.artifact())


@pytest.fixture
def folder(made, tmp_path):
    """An artifact in a folder whose name needs quotes."""
    path = tmp_path / "it's an artifact ü"
    api.save(made, path)
    artifact.write_card(made, path, ROWS)
    return path


def blocks(text):
    """The indented blocks, without their indentation."""
    found = [[]]
    for line in text.splitlines():
        if line.startswith("    "):
            found[-1].append(line[4:])
        elif line or not found[-1]:
            found.append([])
    return ["\n".join(block) for block in found if block]


def render(manifest, rows=()):
    return card.render_card(manifest, {"prompt/vectors": ("float32", (4, 24))}, 512, "a", rows)


def test_it_holds_the_facts_of_the_manifest(made):
    manifest = made.manifest
    facts = blocks(render(manifest))[0]
    spec = manifest["model"]
    for fact in (
        "prompt/vectors float32[4, 24]",
        "512 B",
        f"{spec['name']}, fingerprint {spec['fingerprint'][:12]}",
        json.dumps(manifest["template"]),
        "business=b, entertainment=e, politics=p, sport=s, tech=t",
        "bbc_news, train train[:160], validation validation[:40], test test[:40]",
        f"step {manifest['metrics']['step']}",
        f"validation_loss {manifest['metrics']['validation_loss']}",
        f"prompt-tuning-jax {manifest['versions']['prompt-tuning-jax']}",
    ):
        assert fact in facts, fact


def test_it_has_no_blanks_and_no_times(made):
    text = render(made.manifest, ROWS)
    for blank in ("TODO", "TBD", "[More Information", "None", "nan", "YOUR", "<", "..."):
        assert blank not in text.replace(made.manifest["model"]["name"], ""), blank
    assert "| soft prompt | 87.5 % | 96 | 512 B |" in text and "3.0" not in text
    assert "|" not in render(made.manifest).replace(" | prompt-tuning", "")


def test_no_value_can_end_its_block(made):
    labels = [["a\n# b", "`c`"], ["d", "```\n|"]]
    model = {**made.manifest["model"], "name": "a/b\n# c"}
    template = "{text}\n\n# Title\n```\n{soft}"
    hostile = {"labels": labels, "template": template, "model": model}
    text = render({**made.manifest, **hostile})
    headings = [line for line in text.splitlines() if line.startswith(("#", "`", "|"))]
    assert headings == [text.splitlines()[0]]


def test_a_short_manifest_gives_a_short_card(made):
    text = render({**made.manifest, "config": {}, "labels": [], "metrics": {}})
    facts = blocks(text)[0]
    assert "labels" not in facts and "data" not in facts and "evaluate" not in text


def test_its_commands_run(folder, typed):
    text = (folder / card.CARD).read_text(encoding="utf-8")
    [_, asked, _, _, *predict], [_, *evaluate] = map(shlex.split, blocks(text)[1].splitlines())
    assert "label" in json.loads(typed(*predict, stdin=asked).out)
    assert "examples: 40" in typed(*evaluate).out


def test_the_predict_command_has_a_text_or_an_object_of_fields():
    shown = card.predict_command("{soft}{text}:", "pt", "a b")
    assert shown == f"echo '{TEXT}' | pt predict --artifact 'a b'"
    assert card.predict_command("{soft}{a}{b}", "pt", "made") == (
        f"""echo '{{"a": "{TEXT}", "b": "{TEXT}"}}' | pt predict --artifact made --jsonl"""
    )
