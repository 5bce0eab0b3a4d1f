"""The card of an artifact, `README.md`: the facts of its manifest, for people."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from prompt_tuning_jax.config import flatten
from prompt_tuning_jax.data.template import parse
from prompt_tuning_jax.errors import plain
from prompt_tuning_jax.run.report import TIME, Row, cells, markdown, size

CARD = "README.md"
_TEXT = "a text of yours"  # for each field, in the command


def render_card(
    manifest: Mapping[str, Any],
    leaves: Mapping[str, tuple[str, Sequence[int]]],
    tensors_bytes: int,
    folder: str,
    rows: Sequence[Row] = (),
) -> str:
    """Returns the card's text; the same manifest gives the same text. `leaves` has the dtype and
    shape of each tensor by its name, `folder` is the name of the artifact's folder without parents,
    and `rows` are those of the run's report on the test split, if any."""
    task = manifest["config"].get("task", {})
    base = PurePath(manifest["model"]["name"]).name.partition("@")[0]  # of a commit
    commands = [predict_command(manifest["template"], "prompt-tuning", folder)]
    if "test" in task and task.get("name") != "files":  # whose paths begin at another folder
        words = ["prompt-tuning", "evaluate", "--artifact", folder, "--split", task["test"]]
        commands.append(shlex.join(words))
    parts = [
        f"# {manifest['method'].replace('_', ' ')} for {_line(base)}",
        _block(_facts(manifest, leaves, tensors_bytes, task)),
    ]
    if rows:  # a table without times
        listed = cells(rows)
        headings = [each for each in listed[0] if each != TIME and "second" not in each]
        lines = [[row[heading] for heading in headings] for row in listed]
        parts.append(markdown([f"on {task.get('test', 'test')}", *headings[1:]], lines))
    parts += ["In the folder that holds this one:", _block(commands)]
    return "\n\n".join(parts) + "\n"


def predict_command(template: str, program: str, folder: str) -> str:
    """Returns the command that predicts for one record: a text, or a JSON object of fields."""
    record = {field.name: _TEXT for field in parse(template).fields}
    line, form = (_TEXT, "") if len(record) == 1 else (json.dumps(record), " --jsonl")
    return f"echo {shlex.quote(line)} | {program} predict --artifact {shlex.quote(folder)}{form}"


def _facts(manifest, leaves, tensors_bytes, task) -> Iterable[str]:
    model, held = manifest["model"], manifest.get("calibration")
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
        "calibration": "by {by}, {examples} examples".format(**held) if held else "",
        "data": ", ".join([task["name"], *splits]) if "name" in task else "",
        "metrics": _pairs(manifest["metrics"]),
        "versions": _pairs(manifest["versions"]),
    }
    width = max(map(len, facts)) + 2
    return (f"{name:<{width}}{value}" for name, value in facts.items() if value)


def _pairs(values: Mapping[str, Any]) -> str:
    # Sorted: a manifest that is read has another order than a new one.
    return ", ".join(f"{name} {value}" for name, value in sorted(flatten(values).items()))


def _block(lines: Iterable[str]) -> str:
    """Returns lines as an indented block, which nothing inside a line can end."""
    return "\n".join(f"    {_line(line)}".rstrip() for line in lines)


def _line(text: str) -> str:
    return plain(" ".join(text.splitlines()))
