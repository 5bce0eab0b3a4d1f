"""The layout of the package: no import runs upwards, and every file is short enough to read."""

import ast

import tiny_runs

PACKAGE = tiny_runs.ROOT / "prompt_tuning_jax"
# From the bottom up. `config` collects keys from all others, and imports them when it is called.
ROOMS = (
    *(
        "errors",
        "memory",
        "safetensors_file",
        "storage",
        "config",
        "metrics",
        "calibration",
        "sharding",
        "quantization",
        "models",
        "data",
        "run",
    ),
    *("optimizers", "methods", "step", "score", "generate", "teacher", "prepare", "train", "api"),
    *("exchange", "inspection", "forgetting", "search", "compare_rows", "compare", "cli"),
)
STRANGERS = {("data", "models"), ("run", "models"), ("methods", "data"), ("methods", "run")}


def imports(path):
    """The rooms that a file imports when it is imported itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == PACKAGE.name:
            below = node.module.split(".")[1:]
            yield from {(below or [name.name])[0] for name in node.names} - {"__version__"}


def test_no_import_runs_upwards():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for other in imports(path):
            assert room == other or ROOMS.index(other) < ROOMS.index(room), (path, other)
            assert (room, other) not in STRANGERS, (path, other)


def test_no_file_is_longer_than_450_lines():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, path
