"""What is listed is what there is, from a checkout and installed; a recipe is copied whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prompt_tuning_jax.cli import listing, main
from prompt_tuning_jax.config import load
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models.families import FAMILIES
from prompt_tuning_jax.models.files import packaged_models as embedded
from prompt_tuning_jax.models.files.gguf_spec import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def listed(capsys, *words):
    assert main.run(["list", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words):
    assert main.run(list(words)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err


def test_every_config_says_what_it_does_and_what_to_expect(capsys):
    entries = listed(capsys, "configs")
    assert [entry["name"] for entry in entries] == CONFIGS
    for entry in entries:
        assert load(entry["path"])["method"]["name"] in METHODS
        assert entry["what"].endswith(".") and len(entry["what"]) < 200
        for section in ("command", "hardware_and_time", "expected"):
            assert entry[section].strip(), (entry["name"], section)
        assert f"configs/{entry['name']}.py" in entry["command"]


def test_every_method_is_listed_with_the_first_lines_of_its_file(capsys):
    entries = listed(capsys, "methods")
    assert [entry["name"] for entry in entries] == list(METHODS)
    for entry in entries:
        assert len(entry["what"]) > 20 and os.path.isfile(entry["path"])


def test_every_kind_of_task_is_listed_with_its_keys(capsys):
    entries = listed(capsys, "tasks")
    assert [entry["name"] for entry in entries] == ["bbc_news", "files", "tfds"]
    for entry in entries:
        assert len(entry["what"]) > 20 and os.path.isfile(entry["path"])
        assert "The task kind" not in entry["what"]
    assert "task.files.delimiter" in entries[1]["keys"]
    assert entries[2]["keys"].split(", ") == ["task.columns", "task.data_dir"]


def test_models_say_size_licence_and_source(capsys, monkeypatch):
    [model] = listed(capsys, "models")
    assert model["name"] == load(None).model.path
    assert model["licence"] == "Apache-2.0" and model["source"].startswith("https://")
    if model["path"] is not None:
        assert os.path.getsize(model["path"]) == model["bytes"]
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    assert listed(capsys, "models")[0]["path"] is None
    assert main.run(["list", "models"]) == 0
    assert "not installed" in capsys.readouterr().out


def test_families_say_which_models_they_are_and_stand_behind_the_models(capsys):
    entries = listed(capsys, "families")
    assert [entry["name"] for entry in entries] == list(FAMILIES)
    for entry in entries:
        # The first word of a docstring names the models: 'Qwen 3' of 'qwen3'.
        first = entry["what"].split()[0].lower().replace("-", "")
        assert entry["name"].replace("_", "").startswith(first[:3]), entry
        assert entry["what"].endswith(".") and "\n" not in entry["what"]
    read = {entry["name"] for entry in entries if "GGUF" in entry["files"]}
    assert read == set(ARCHITECTURES.values())
    assert main.run(["list", "models"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("MODELS") < shown.index("FAMILIES") < shown.index("gemma3_text: Gemma 3")


def test_the_list_for_people_holds_all_that_the_other_does(capsys):
    assert main.run(["list"]) == 0
    shown = capsys.readouterr().out
    whole = listed(capsys)
    assert list(whole) == ["configs", "models", "families", "methods", "tasks"]
    for kind, entries in whole.items():
        assert f"{kind.upper()}\n" in shown and listing.NEXT[kind] in shown
        assert entries == listed(capsys, kind)
        for entry in entries:
            assert entry["name"] in shown and entry["what"] in shown


def test_sections_of_a_docstring_go_on_over_indented_lines(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        '"""What it\n  does.\n\nCommand: a b\nExpected value: c: d,\n  e\n  f\nnot a section\n"""\n'
    )
    assert listing.describe_file(path) == {
        "what": "What it does.",
        "command": "a b",
        "expected_value": "c: d, e f",
    }
    path.write_text("x = 1")
    assert listing.describe_file(path) == {"what": ""}


def test_a_copy_is_the_recipe_and_the_printed_command_fits_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in CONFIGS:
        assert main.run(["copy", name, f"my {name}.py"]) == 0
        copied = tmp_path / f"my {name}.py"
        assert copied.read_bytes() == (ROOT / "configs" / f"{name}.py").read_bytes()
        assert load(str(copied)) == load(str(ROOT / "configs" / f"{name}.py"))
        command = name.partition("_")[0] if name.startswith(("compare", "search")) else "train"
        printed = f"prompt-tuning {command} --config 'my {name}.py' --workdir 'runs/my {name}'\n"
        assert capsys.readouterr().out == f"next: {printed}"
    assert len(os.listdir()) == len(CONFIGS)


def test_a_file_that_is_there_is_replaced_only_when_asked(capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("weeks of work")
    assert "exists: give another name" in refused(capsys, "copy", "quickstart", str(path))
    assert path.read_text() == "weeks of work"
    assert main.run(["copy", "quickstart", str(path), "--force"]) == 0
    assert "get_config" in path.read_text() and os.listdir(tmp_path) == ["mine.py"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["list", "confgs"],
            ["configs, models, families, methods, tasks", "did you mean 'configs'?"],
        ),
        (["list", "configs", "models"], ["models"]),
        (["list", "--config.steps=3"], ["list takes no '--config.steps=3'"]),
        (["copy"], ["CONFIG"]),
        (["copy", "quickstart"], ["FILE"]),
        (["copy", "quikstart", "x.py"], ["did you mean 'quickstart'?"]),
        (["copy", "../quickstart", "x.py"], ["is not a config"]),
        (["copy", "quickstart", "."], ["'.' has to end in .py"]),
        (["copy", "quickstart", "no/such/x.py"], ["cannot write 'no/such/x.py': No such file"]),
        (["copy", "quickstart", "x.py", "--forc"], ["--force"]),
        (["copy", "quickstart", "x.py", "--config.steps=3"], ["copy takes no '--config.steps=3'"]),
        (["env", "--config.steps=3"], ["env takes no '--config.steps=3'"]),
        (["env", "jax"], ["jax"]),
        (["lst"], ["did you mean 'list'?"]),
        (["environment"], ["'environment' is not a command"]),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    capsys, tmp_path, monkeypatch, words, parts
):
    monkeypatch.chdir(tmp_path)
    sentence = refused(capsys, *words)
    assert all(part in sentence for part in parts), sentence
    assert os.listdir(tmp_path) == []


def test_installed_the_recipes_lie_beside_the_code(tmp_path):
    """What `pip install` puts into site-packages, without pip."""
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    # For this process the checkout is in front; a process of its own has what was built alone.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}

    def typed(*words):
        command = [sys.executable, "-m", "prompt_tuning_jax.cli.main", *words]
        shown = subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        return shown.stdout

    entries = json.loads(typed("list", "configs", "--json"))
    assert [entry["name"] for entry in entries] == CONFIGS
    for entry in entries:
        assert Path(entry["path"]).parent == tmp_path / "lib" / "prompt_tuning_jax" / "configs"
    typed("copy", "quickstart", "mine.py")
    assert load(str(tmp_path / "mine.py")) == load(str(ROOT / "configs" / "quickstart.py"))
