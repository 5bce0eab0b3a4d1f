"""Every notebook runs from top to bottom, on a tiny model and made-up headlines."""

import nbformat
import pytest
import tiny_runs
from nbclient import NotebookClient

NOTEBOOKS = sorted((tiny_runs.ROOT / "colabs").glob("*.ipynb"))


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["quickstart.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_runs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info.name == "python"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "clear the outputs"
    [parameters] = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    settings = "config_file = {!r}\noverrides = ['--config.steps=4', '--config.evaluate_every=2']"
    changed = settings.format(str(tiny_runs.world().config))
    kept = [
        line for line in parameters.source.splitlines() if not line.startswith(("conf", "over"))
    ]
    parameters.source = "\n".join([changed, *kept])
    for name, value in tiny_runs.environment().items():
        monkeypatch.setenv(name, value)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(out.get("text", "") for cell in cells for out in cell.outputs)
    assert "'accuracy'" in printed
    assert "['adaptation.safetensors', 'manifest.json']" in printed
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs)
