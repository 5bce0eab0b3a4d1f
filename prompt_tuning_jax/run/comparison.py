"""The report of a comparison: a table as text, JSON and CSV, and three pictures."""

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning_jax.errors import plain
from prompt_tuning_jax.run.log import read_metrics
from prompt_tuning_jax.run.report import duration, markdown, new_figure, save_figure, size
from prompt_tuning_jax.storage import atomic_write

# From the palette of Okabe and Ito, and markers for those who do not see colours.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "os^Dv*PX"
_LINES = "--", "-.", ":", "-", (0, (1, 4))  # of rows that train nothing

WIDE = 0.02  # the part of an axis that a digit of a number below it takes
_UNITS = (1, 3, "nats"), (100, 1, "%")  # factor, digits and unit; the second is of accuracy

_Row = Mapping[str, Any]


def _metric(row: _Row) -> str:
    scale, digits, unit = _UNITS[row["metric"] == "accuracy"]
    spread = "" if row["deviation"] is None else f" ± {scale * row['deviation']:.{digits}f}"
    return f"{scale * row['mean']:.{digits}f}{spread} {unit}"


def _difference(row: _Row) -> str:
    scale, digits, _ = _UNITS[row["metric"] == "accuracy"]
    values = (f"{scale * row[name]:+.{digits}f}" for name in ("difference", "low", "high"))
    return "{} [{}, {}]".format(*values)


# The columns: a heading, the value that has to be there, and how it is written for people.
COLUMNS: dict[str, tuple[str, Callable[[_Row], str]]] = {
    "test": ("mean", _metric),
    "difference [95 %]": ("difference", _difference),
    "trained": ("parameters", lambda row: f"{row['parameters']:,}"),
    "of the model": ("share", lambda row: f"{row['share']:.3%}"),
    "a task": ("bytes", lambda row: size(row["bytes"])),
    "100 tasks": ("bytes_of_100_tasks", lambda row: size(row["bytes_of_100_tasks"])),
    "a step": ("step_seconds", lambda row: f"{row['step_seconds']:.2f} s"),
    "memory": ("memory", lambda row: size(row["memory"])),
    "examples": ("examples", lambda row: f"{row['examples']:,}"),
    "to 95 %": ("near_best_seconds", lambda row: duration(row["near_best_seconds"])),
    "forgetting": ("forgetting", lambda row: f"{row['forgetting']:+.3f}"),
}
_NOTES = """\
- test: accuracy, or the log-probability of a text; mean ± standard deviation over seeds.
- difference: from the first trained row{reference}, with all its examples; the middle 95 % of
  resamples of the test examples, paired by example.
- a task: bytes to store; 100 tasks: bytes of 100 of them, with the weights that they share once.
- a step: seconds; memory: of the compiled step.
- examples: read to train, validate and calibrate; a row with few has the rate of the row with all.
- to 95 %: time to 95 % of the row's own best validation accuracy.
- forgetting: change of the cross-entropy on unrelated text, in nats a token; measured by compare
  alone.
- validation loss: nats an example; with a teacher, the cross-entropy to the teacher's answers.
- rates that were tried: with the first seed, until the last validation in the first half of the
  steps, if there is one. Each shows its best validation; the best rate by best_by goes on.
- commands: each, typed where the comparison ran, gives the number after its # for the first seed
  (for texts as a positive loss).
"""


def cells(rows: Sequence[_Row]) -> list[dict[str, str]]:
    """Returns the rows as texts by their headings, without columns that no row has."""
    found = [
        (heading, [write(row) if row.get(name) is not None else "" for row in rows])
        for heading, (name, write) in COLUMNS.items()
    ]
    columns = {"row": map(_name, rows)} | {heading: texts for heading, texts in found if any(texts)}
    return [dict(zip(columns, texts, strict=True)) for texts in zip(*columns.values(), strict=True)]


def _name(row: _Row) -> str:
    count = row["examples_per_class"]
    return f"{row['name']}, {count} a class" if count else row["name"]


def write_comparison(
    folder: Path, rows: Sequence[_Row], facts: Mapping[str, str], methods: Sequence[str]
) -> list[Path]:
    """Writes report.md, .json and .csv and the pictures, and returns their paths. The rows are from
    `cli.compare.summarize`, `facts` stand at the top of the page, and the places of all `methods`
    give their colours and markers."""
    listed = cells(rows)
    reference = next((f", {row['name']}" for row in rows if row["parameters"]), "")
    first = ({**row, "mean": row["first_seed"], "deviation": None} for row in rows)
    commands = (f"{row['command']}  # {_name(row)}: {_metric(row)}" for row in first)
    lines = [
        "# Comparison",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        markdown([*listed[0]], [[*row.values()] for row in listed]),
        _NOTES.format(reference=reference).strip(),
    ]
    if tried := [*_tried(rows)]:
        headings = ["row", "rate", "validation loss", "validation accuracy"]
        lines += ["## Learning rates that were tried", markdown(headings, tried)]
    lines += [
        "## Commands",
        # An indented block: nothing inside of a line can end it. A template reads \n as a new line.
        "\n".join(f"    {each}".replace("\n", "\\n") for each in commands),
    ]
    pictures = draw_pictures(folder, rows, methods)
    lines += [f"![{path.stem.replace('_', ' ')}]({path.name})" for path in pictures]
    table = io.StringIO()
    flat = [{k: v for k, v in row.items() if not isinstance(v, list | dict)} for row in rows]
    writer = csv.DictWriter(table, list(dict.fromkeys(name for row in flat for name in row)))
    writer.writeheader()
    writer.writerows(flat)
    contents = {
        "report.md": plain("\n\n".join(lines)) + "\n",
        "report.json": json.dumps({"facts": facts, "rows": rows}, indent=1, allow_nan=False) + "\n",
        "report.csv": table.getvalue(),
    }
    for name, text in contents.items():
        atomic_write(folder / name, text.encode())
    return [*(folder / name for name in contents), *pictures]


def _tried(rows: Sequence[_Row]):
    for row in rows:
        for each in row.get("tried", ()):
            accuracy = f"{each['accuracy']:.1%}" if "accuracy" in each else ""
            loss = f"{each['loss']:.4f}" if "loss" in each else "failed"
            yield [row["name"], f"{each['rate']:g}", loss, accuracy]


def draw_pictures(folder: Path, rows: Sequence[_Row], methods: Sequence[str]) -> list[Path]:
    """Draws the metric against trained parameters, against examples, and the validation losses."""
    whole = [row for row in rows if not row["examples_per_class"]]
    trained = [row for row in whole if row["parameters"]]
    styles = _styles(trained, methods)
    few = {row["name"] for row in rows if row["examples_per_class"]}
    curve = [row for row in rows if row["name"] in few]
    made = [
        (folder / "metric_by_parameters.png", _by_parameters, whole),
        (folder / "losses.png", _losses, trained),
        (folder / "metric_by_examples.png", _by_examples, curve),
    ]
    for path, draw, shown in made:
        if shown:
            names = {row["name"] for row in shown}
            figure, axes = new_figure(8, max(4.5, 0.23 * len(names)))  # a line of the legend each
            draw(axes, shown, styles)
            figure.legend(loc="outside right center", frameon=False)
            save_figure(figure, path)
        else:
            path.unlink(missing_ok=True)  # of other rows
    return [path for path, _, shown in made if shown]


def _styles(rows: Sequence[_Row], methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns the looks of trained rows by name: those of a method are the same in all reports."""
    own, more = {name: n for n, name in enumerate(methods, 1)}, itertools.count(1 + len(methods))
    styles = {}
    for row in rows:
        number = own.pop(row["method"], 0) or next(more)
        color, marker = _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]
        styles[row["name"]] = {"color": color, "marker": marker, "label": _plain(row["name"])}
    return styles


def _plain(name: str) -> str:
    """Returns a name as a label: no `$` in it begins a formula, and no `_` in front hides it."""
    return re.sub("^_", " _", name.replace("$", r"\$"))


def _scaled(row: _Row) -> tuple[float, float]:
    scale = _UNITS[row["metric"] == "accuracy"][0]
    return scale * row["mean"], scale * (row["deviation"] or 0)


def _labelled(axes, rows: Sequence[_Row], label: str) -> None:
    axes.set_ylabel("test accuracy (%)" if rows[0]["metric"] == "accuracy" else "log-probability")
    axes.set_xlabel(label)


def _by_parameters(axes, rows: Sequence[_Row], styles: Mapping[str, Any]) -> None:
    lines, line = itertools.cycle(_LINES), None
    for row in rows:
        mean, deviation = _scaled(row)
        if row["parameters"]:
            style = styles[row["name"]] | {"linestyle": "none", "capsize": 3}
            axes.errorbar([row["parameters"]], [mean], [deviation], markersize=8, **style)
        else:
            # A calibrated row is that of the row in front of it in grey.
            is_calibrated = row["name"].endswith(", calibrated")
            color, line = ("0.6", line) if is_calibrated else ("black", next(lines))
            axes.axhline(mean, color=color, linestyle=line, label=_plain(row["name"]))
    axes.set_xscale("log")
    _labelled(axes, rows, "trained parameters (lines: none; bars: deviation over seeds)")


def _by_examples(axes, rows: Sequence[_Row], styles: Mapping[str, Any]) -> None:
    for name in dict.fromkeys(row["name"] for row in rows):
        dots = sorted((row["train_examples"], *_scaled(row)) for row in rows if row["name"] == name)
        counts, means, deviations = np.array(dots).T
        axes.plot(counts, means, **styles[name])
        band = {"color": styles[name]["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(counts, means - deviations, means + deviations, **band)
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks, every = list[int](), sorted({row["train_examples"] for row in rows})
    for count in every:
        room = WIDE * len(str(count)) * np.log(every[-1] / every[0])
        if not ticks or np.log(count / ticks[-1]) >= room:
            ticks.append(count)
    axes.set_xticks(ticks, map(str, ticks))
    _labelled(axes, rows, "training examples (bands: standard deviation over seeds)")


def _losses(axes, rows: Sequence[_Row], styles: Mapping[str, Any]) -> None:
    for row in rows:
        lines = [line for line in read_metrics(row["metrics"]) if "validation/loss" in line]
        steps = [line["step"] for line in lines]
        axes.plot(steps, [line["validation/loss"] for line in lines], **styles[row["name"]])
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("step (first seed, best rate)")
    axes.set_ylabel("validation loss (nats an example)")
