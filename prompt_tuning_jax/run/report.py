"""The result of a run: the rows of its report, `report.json`, and a picture of the curves."""

import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.run.log import read_metrics
from prompt_tuning_jax.storage import atomic_write

# From the palette of Okabe and Ito, which people with any colour vision can tell apart.
TRAIN_COLOR, VALIDATION_COLOR = "#0072B2", "#D55E00"
_STYLES = {
    "train": {"color": TRAIN_COLOR},
    "validation": {"color": VALIDATION_COLOR, "linestyle": "--", "marker": "o"},
}
# The two halves of the picture: which numbers, the label of their axis, and their scale.
_AXES = (("loss", "loss (nats)", 1), ("accuracy", "accuracy (%)", 100))
TIME = "time to tune"  # the heading of the seconds


class Row(NamedTuple):
    """A way of using the model, and what it gave."""

    name: str
    accuracy: float | None  # 0 to 1; None for a task without labels
    trainable_parameters: int
    bytes: int  # the size of what was trained or written
    seconds: float  # to find it: training, or ranking the written prompts
    loss: float | None = None  # in nats an example, if there is no accuracy
    seconds_an_example: float | None = None  # to score it, if there is a teacher


def cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Returns the rows as texts by their headings, without columns that no row has."""
    shown = [name for name in FORMATS if any(getattr(row, name) is not None for row in rows)]
    return [{"name": row.name} | dict(_cell(row, name) for name in shown) for row in rows]


def _cell(row: Row, name: str) -> tuple[str, str]:
    value, heading = getattr(row, name), {"seconds": TIME}.get(name, name.replace("_", " "))
    return heading, "" if value is None else FORMATS[name](value)


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    escaped = [[cell.replace("|", "\\|").replace("\n", "\\n") for cell in line] for line in lines]
    whole = [headings, ["---"] * len(headings), *escaped]
    return "\n".join(f"| {' | '.join(line)} |" for line in whole)


def size(count: int) -> str:
    """Returns bytes for people: '512 B', '36.9 kB', '4.2 MB'."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= 0.99995 * scale:  # else it would be 1000.0 of the smaller unit
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """Returns a time for people: '0.4 s', '12 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


# How the values of a table are written for people, in the order of its columns.
FORMATS: dict[str, Callable[[Any], str]] = {
    "accuracy": lambda share: f"{100 * share:.1f} %",
    "loss": "{:.3f}".format,
    "trainable_parameters": "{:,}".format,
    "bytes": size,
    "seconds": duration,
    "seconds_an_example": "{:.4f}".format,
}


def write_report(path: str | os.PathLike, rows: Sequence[Row]) -> None:
    """Writes `{"rows": [...]}` as JSON, without the values that a row does not have."""
    values = (row._asdict() for row in rows)
    kept = [{name: value for name, value in row.items() if value is not None} for row in values]
    atomic_write(path, (json.dumps({"rows": kept}, indent=1, allow_nan=False) + "\n").encode())


def draw_curves(metrics: str | os.PathLike, picture: str | os.PathLike) -> None:
    """Draws loss and accuracy over steps. Those of training are of single batches, so they are
    dots, and a line shows their running mean."""
    lines = read_metrics(metrics)
    figure, both = new_figure(9, 3.6, 2)
    for axes, (name, label, scale) in zip(both, _AXES, strict=True):
        for split, style in _STYLES.items():
            found = [line for line in lines if line.get(f"{split}/{name}") is not None]
            if found:
                steps = [line["step"] for line in found]
                values = [line[f"{split}/{name}"] * scale for line in found]
                axes.plot(steps, values, ".", color=style["color"], alpha=0.3)
                side = int(len(values) ** 0.5 / 2) if split == "train" else 0
                window, ones = np.ones(2 * side + 1), np.ones(len(values))
                means = np.convolve(values, window, "same") / np.convolve(ones, window, "same")
                shown = f"train, mean of {len(window)} points" if side else split
                axes.plot(steps, means, label=shown, markersize=5, linewidth=1.8, **style)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.lines:
            axes.legend(frameon=False)
    save_figure(figure, Path(picture))


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """Returns a figure of so many inches, and its axes side by side."""
    # It warns of a home folder that cannot be written, and uses another one.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    every = figure.subplots(1, columns, squeeze=False)[0]
    for axes in every:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, every if columns > 1 else every[0]


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG that depends on nothing else."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    atomic_write(path, data.getvalue())
