"""The notebooks, from top to bottom, on a tiny model; and that none of their outputs is stored."""

import json
from pathlib import Path

import jax
import nbformat
import pytest
import tiny_runs
from nbclient import NotebookClient

from prompt_tuning_jax import config as configs

COLABS = Path(__file__).resolve().parents[1] / "colabs"
NOTEBOOKS = sorted(COLABS.glob("*.ipynb"))
# What stands in the cell of settings, by notebook.
SETTINGS = {
    "compare_methods": """
repository, steps = {repository!r}, 4
overrides = ["--config.batch_size=4", "--config.model.path=" + {model!r}]
methods = {{
    "soft prompt": {{"name": "soft_prompt", "num_virtual_tokens": 4, "learning_rate": 0.1}},
    "LoRA": {{"name": "lora", "rank": 2, "learning_rate": 0.01}},
    "fine-tuning": {{"name": "fine_tuning", "learning_rate": 0.001}},
}}
own_file = "own.csv"
text_column, label_column = "review", "stars"
""",
    "quickstart": """
config_file = {config!r}
overrides = ["--config.steps=6", "--config.evaluate_every=3"]
texts = ["banks and funds", "phone games"]
own_file = ""
""",
    "your_own_method": """
config_file = {config!r}
overrides = ["--config.steps=6", "--config.evaluate_every=3"]
""",
}
OWN = """
repository = {repository!r}
overrides = ["--config.model.path=" + {model!r}]
own_file = "own.csv"
text_column, label_column = "review", "stars"
"""
WORDS = {"good": "the thin", "bad": "in the tin"}


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    [cell] = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def test_every_notebook_is_run():
    assert [path.stem for path in NOTEBOOKS] == sorted(SETTINGS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_stored(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert notebook.metadata["language_info"] == {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cell.metadata = {name: cell.metadata[name] for name in ("tags",) if name in cell.metadata}
    clean = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    stored = json.loads(path.read_text(encoding="utf-8"))
    for cell in stored["cells"]:
        cell["source"] = "".join(cell["source"])
    stored = json.dumps(stored, indent=1, ensure_ascii=False, sort_keys=True)
    command = f"jupyter nbconvert --clear-output --inplace colabs/{path.name}"
    assert stored == clean, f"it was saved with outputs: type {command}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_installing_leaves_what_is_there(path):
    lines = tagged(read(path), "install").source.splitlines()
    installs = [line for line in lines if line.startswith("%pip")]
    assert installs == [
        "%pip install --quiet {repository}",
        "%pip install --quiet --no-deps --require-hashes -r {repository}/requirements/demo.txt",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_the_settings_are_those_of_the_machine(path, backend, monkeypatch):
    [cell] = [cell for cell in read(path).cells if cell.id == "machine"]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    names = {"overrides": []}
    exec(cell.source, names)  # noqa: S102
    words = [] if backend == "cpu" else ["--config.model.matmul_precision=default"]
    assert names["overrides"] == words
    assert configs.load(str(tiny_runs.world().config), names["overrides"])


def run(name, settings, folder, until=""):
    """Executes a notebook in a folder, maybe only up to a cell; returns the cells by their id."""
    notebook = read(COLABS / f"{name}.ipynb")
    if until:
        last = [cell.id for cell in notebook.cells].index(until)
        del notebook.cells[last + 1 :]
    notebook.cells.remove(tagged(notebook, "install"))
    tagged(notebook, "parameters").source = settings
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=tiny_runs.environment(IPYTHONDIR=str(folder / "ipython")))
    errors = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    told = [output["text"] for output in errors if output.get("name") == "stderr"]
    assert not tiny_runs.said("".join(told))
    kept = [] if until else ["README.md", "adaptation.safetensors", "manifest.json"]
    assert sorted(path.name for path in (folder / "artifact").glob("*")) == kept
    return {cell.id: cell for cell in notebook.cells}


def text(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def has_picture(cell):
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_the_quickstart_runs_from_top_to_bottom(tmp_path):
    settings = SETTINGS["quickstart"].format(config=str(tiny_runs.world().config))
    cells = run("quickstart", settings, tmp_path)
    assert has_picture(cells["curves"])
    assert [line.split("  ")[0] for line in text(cells["after"]).splitlines()[:3]] == [
        "no prompt",
        "written prompt",
        "soft prompt",
    ]
    assert "96 numbers trained" in text(cells["after"])
    assert [line.split(":")[0] for line in text(cells["predict"]).splitlines()] == [
        "banks and funds",
        "phone games",
    ]
    assert (tmp_path / "artifact.zip").exists()


def write_csv(folder):
    rows = [f"{words} {n},{label}" for n in range(20) for label, words in WORDS.items()]
    (folder / "own.csv").write_text("\n".join(["review,stars", *rows]))


def test_methods_are_compared_on_a_csv_of_ones_own(tmp_path):
    write_csv(tmp_path)
    world = tiny_runs.world()
    settings = SETTINGS["compare_methods"].format(
        repository=str(COLABS.parent), model=str(world.model)
    )
    cells = run("compare_methods", settings, tmp_path)
    assert has_picture(cells["picture"])
    names = [line.split("  ")[0] for line in text(cells["table"]).splitlines()[1:]]
    assert names == ["no prompt", "soft prompt", "LoRA", "fine-tuning"]


def test_the_quickstart_reads_a_csv_of_ones_own(tmp_path):
    """The cells behind these are the same for any task."""
    write_csv(tmp_path)
    world = tiny_runs.world()
    settings = OWN.format(repository=str(COLABS.parent), model=str(world.model))
    cells = run("quickstart", settings, tmp_path, until="load")
    [records] = [each["data"]["text/plain"] for each in cells["load"].outputs if "data" in each]
    assert any(
        f"'{words} " in records and f"'{label}'" in records for label, words in WORDS.items()
    )


def test_a_method_of_ones_own_runs_from_top_to_bottom(tmp_path):
    settings = SETTINGS["your_own_method"].format(config=str(tiny_runs.world().config))
    own = tagged(read(COLABS / "your_own_method.ipynb"), "parameters").source.splitlines()
    settings += "\n".join(line for line in own if line.startswith(("plain", "mixed")))
    cells = run("your_own_method", settings, tmp_path)
    assert has_picture(cells["curves"])
    names = [line.split("  ")[0] for line in text(cells["compare"]).splitlines()[1:]]
    assert names == ["soft_prompt", "mixed_vocabulary"]
