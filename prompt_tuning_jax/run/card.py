"""The model card of an artifact: `README.md`, made of its manifest and of nothing else.

It is for people and is not read back: what it says is derived, and neither trusted nor needed.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from prompt_tuning_jax.config import flatten
from prompt_tuning_jax.data.template import parse
from prompt_tuning_jax.run.report import Row, cells, size

CARD = "README.md"
# What stands for each field in the examples of use.
_TEXT = "a text of yours"
_PYTHON = """\
from prompt_tuning_jax import config, load, predict
from prompt_tuning_jax.data.task import make_task
from prompt_tuning_jax.run import artifact

made = artifact.load({folder!r})
settings = config.of_artifact(made.manifest)
lm = load(
    settings.model.path,
    dtype=settings.model.dtype,
    matmul_precision=settings.model.matmul_precision,
)
task = make_task(settings.task, made.manifest["labels"])
for answer in predict(lm, task, [{record!r}], made):
    print(answer)"""


def render(
    manifest: Mapping[str, Any],
    leaves: Mapping[str, tuple[str, Sequence[int]]],
    tensors_bytes: int,
    folder: str,
    rows: Iterable[Row] = (),
) -> str:
    """The card's text: the same manifest gives the same.

    Args:
      manifest: of the artifact, as `artifact.describe` makes it.
      leaves: dtype and shape of each tensor by its name, such as 'prompt/vectors'.
      tensors_bytes: size of the tensors' file.
      folder: the name of the artifact's folder, without what is above it.
      rows: of the run's report on the test split, if there is one.

    Raises:
      UserError: the manifest's template is none.
    """
    task = manifest["config"].get("task", {})
    base = PurePath(manifest["model"]["name"]).name
    method = manifest["method"].replace("_", " ")
    parts = [
        f"# {method} for {_line(base)}",
        "Tailors the frozen language model to a task. It holds what the method hands to the model,"
        " and none of the model's own weights.",
        _block(_facts(manifest, leaves, tensors_bytes, task)),
        *_results(list(rows), task),
        "## Use",
        "With prompt_tuning_jax installed, from the folder that holds this one:",
        _block(_commands(manifest, folder, task)),
        "The same from Python:",
        _block(_PYTHON.format(folder=folder, record=_record(manifest["template"])).splitlines()),
        "Paths in its config that are relative, of the model or of data files, begin at the folder"
        " where it was trained: give them anew, or type the commands there.",
        "The whole config is in `manifest.json`. It and the tensors are under SHA-256; this page is"
        " derived from them and is not.",
    ]
    return "\n\n".join(parts) + "\n"


def asking(template: str, program: str, folder: str) -> str:
    """The command that asks for the answer to a line: a text, or where the template has several
    fields, a JSON object of them."""
    record = _record(template)
    line, form = (_TEXT, "") if len(record) == 1 else (json.dumps(record), " --jsonl")
    return f"echo {shlex.quote(line)} | {program} predict --artifact {shlex.quote(folder)}{form}"


def _facts(manifest, leaves, tensors_bytes, task) -> Iterable[str]:
    model = manifest["model"]
    shapes = [f"{name} {kind}{list(shape)}" for name, (kind, shape) in leaves.items()]
    splits = [f"{name} {task[name]}" for name in ("train", "validation", "test") if name in task]
    words = [value if value == word else f"{value}={word}" for value, word in manifest["labels"]]
    facts = {
        "method": manifest["method"],
        "tensors": ", ".join(shapes),
        "size": size(tensors_bytes),
        "model": f"{model['name']}, fingerprint {model['fingerprint'][:12]}",
        "template": json.dumps(manifest["template"], ensure_ascii=False),
        "labels": ", ".join(words),
        "data": ", ".join([task["name"], *splits]) if "name" in task else "",
        "metrics": _pairs(manifest["metrics"]),
        "versions": _pairs(manifest["versions"]),
    }
    width = max(map(len, facts)) + 2
    return (f"{name:<{width}}{value}" for name, value in facts.items() if value)


def _results(rows: Sequence[Row], task: Mapping[str, Any]) -> list[str]:
    """Returns the report as a table, without times."""
    if not rows:
        return []
    listed = cells(rows)
    headings = [heading for heading in listed[0] if heading != "seconds"]
    lines = [[f"on {task.get('test', 'test')}", *headings[1:]], ["---"] * len(headings)]
    lines += [[row[heading] for heading in headings] for row in listed]
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _commands(manifest, folder, task) -> list[str]:
    commands = [asking(manifest["template"], "prompt-tuning", folder)]
    if "test" in task:
        split = shlex.quote(task["test"])
        commands.append(f"prompt-tuning evaluate --artifact {shlex.quote(folder)} --split {split}")
    return commands


def _record(template: str) -> dict[str, str]:
    return {field.name: _TEXT for field in parse(template).fields}


def _pairs(values: Mapping[str, Any]) -> str:
    # In one order, whether the manifest was just made or read.
    return ", ".join(f"{name} {value}" for name, value in sorted(flatten(values).items()))


def _block(lines: Iterable[str]) -> str:
    """Lines as they are: an indented block, which nothing inside a line can end."""
    return "\n".join(f"    {_line(line)}".rstrip() for line in lines)


def _line(text: str) -> str:
    return " ".join(text.splitlines())
