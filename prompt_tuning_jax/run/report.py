"""What a run shows at its end: the table, `report.json` and the picture of its curves."""

import io
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prompt_tuning_jax.run.log import read_metrics
from prompt_tuning_jax.storage import atomic_write

# Okabe and Ito's palette, told apart with any colour vision; dashes and markers say it once more.
TRAIN_COLOR, VALIDATION_COLOR = "#0072B2", "#D55E00"


class Row(NamedTuple):
    """A way of using the model, and what it gave.

    Attributes:
      name: of the way.
      accuracy: share of examples answered rightly, 0 to 1; None for a task without labels.
      trainable_parameters: how many numbers were trained.
      bytes: to store what was trained or written.
      seconds: to get there: training, or scoring the candidates.
      loss: nats an example, shown where there is no accuracy.
    """

    name: str
    accuracy: float | None
    trainable_parameters: int
    bytes: int
    seconds: float
    loss: float | None = None


def cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Returns the values of the rows as texts by their headings, for tables. A value that no row
    has is left out."""
    shown = [name for name in FORMATS if any(getattr(row, name) is not None for row in rows)]
    return [
        {name.replace("_", " "): _format(row, name) for name in ("name", *shown)} for row in rows
    ]


def _format(row: Row, name: str) -> str:
    value = getattr(row, name)
    return "" if value is None else FORMATS.get(name, str)(value)


def size(count: int) -> str:
    """Bytes for people: '512 B', '36.9 kB', '4.2 MB'."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= 0.99995 * scale:  # what would be shown as 1000.0 of the smaller unit
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """Time for people: '0.4 s', '12 s', '3 min 05 s', '2 h 10 min'."""
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
}


def write_report(
    path: str | os.PathLike, rows: Sequence[Row], more: Mapping[str, Any] | None = None
) -> None:
    """Writes `{"rows": [...], **more}` as JSON, the rows as `Row` names their values; what
    a row does not have is left out."""
    values = (row._asdict() for row in rows)
    kept = [{name: value for name, value in row.items() if value is not None} for row in values]
    content = {"rows": kept, **(more or {})}
    atomic_write(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def curves(metrics: str | os.PathLike, picture: str | os.PathLike) -> None:
    """Draws loss and accuracy over steps.

    Args:
      metrics: lines as `workdir.Metrics` writes them; read are `train/loss`, `validation/loss`,
        `train/accuracy` and `validation/accuracy`, as far as they are there.
      picture: the PNG to write.
    """
    # It warns of a home that cannot be written, and finds another place.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    lines = read_metrics(metrics)
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    for axes, (name, label, scale) in zip(
        figure.subplots(1, 2),
        (("loss", "loss (nats)", 1), ("accuracy", "accuracy (%)", 100)),
        strict=True,
    ):
        _plot(axes, lines, name, scale)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(label)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    atomic_write(picture, data.getvalue())


def _plot(axes: Any, lines: Sequence[Mapping[str, Any]], name: str, scale: float) -> None:
    styles = (
        ("train", {"color": TRAIN_COLOR, "linewidth": 1.2, "marker": "."}),
        (
            "validation",
            {
                "color": VALIDATION_COLOR,
                "linewidth": 1.8,
                "linestyle": "--",
                "marker": "o",
                "markersize": 5,
            },
        ),
    )
    for split, style in styles:
        key = f"{split}/{name}"
        points = [(line["step"], line[key] * scale) for line in lines if _drawn(line.get(key))]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=split, **style)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)


def _drawn(value: Any) -> bool:
    return value is not None and math.isfinite(value)
