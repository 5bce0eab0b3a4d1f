"""The notebooks, from top to bottom, on a tiny model; and that none of their outputs is stored."""

import json
from pathlib import Path

import nbformat
import pytest
import tiny_runs
from nbclient import NotebookClient

COLABS = Path(__file__).resolve().parents[1] / "colabs"
NOTEBOOKS = sorted(COLABS.glob("*.ipynb"))
# What stands in the cell of settings, by notebook.
SETTINGS = {
    "quickstart": """
config_file = {config!r}
overrides = ["--config.steps=6", "--config.evaluate_every=3"]
headlines = ["banks and funds", "phone games"]
""",
}


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
def test_it_runs_from_top_to_bottom(path, tmp_path):
    notebook = read(path)
    notebook.cells.remove(tagged(notebook, "install"))
    world = tiny_runs.world()
    tagged(notebook, "parameters").source = SETTINGS[path.stem].format(config=str(world.config))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=tiny_runs.environment(IPYTHONDIR=str(tmp_path / "ipython")))
    cells = {cell.id: cell for cell in notebook.cells}

    def text(name):
        return "".join(output.get("text", "") for output in cells[name].outputs)

    assert any("image/png" in output.get("data", {}) for output in cells["curves"].outputs)
    assert [line.split("  ")[0] for line in text("after").splitlines()[:3]] == [
        "no prompt",
        "written prompt",
        "soft prompt",
    ]
    assert "96 numbers trained" in text("after")
    assert [line.split(":")[0] for line in text("predict").splitlines()] == [
        "banks and funds",
        "phone games",
    ]
    assert sorted(path.name for path in (tmp_path / "artifact").iterdir()) == [
        "README.md",
        "adaptation.safetensors",
        "manifest.json",
    ]
    errors = [output for cell in cells.values() for output in cell.get("outputs", [])]
    assert not [output for output in errors if output.get("name") == "stderr"]
