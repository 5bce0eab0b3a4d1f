"""What a run shows at its end."""

import json

import numpy as np
import pytest
from matplotlib import image
from matplotlib.axes import Axes

from prompt_tuning_jax.run import report
from prompt_tuning_jax.run.report import Row

ROWS = (
    Row("no prompt", 0.558, 0, 0, 0.0),
    Row("written prompt [bold]", 0.612, 0, 120, 12.34),
    Row("soft prompt", 0.84449, 9216, 38122, 243.2),
)


def test_the_cells_of_a_table_are_for_people():
    first, *_, last = report.cells(ROWS)
    assert [*first] == ["name", "accuracy", "trainable parameters", "bytes", "time to tune"]
    assert [*first.values()] == ["no prompt", "55.8 %", "0", "0 B", "0.0 s"]
    assert [*last.values()] == ["soft prompt", "84.4 %", "9,216", "38.1 kB", "4 min 03 s"]


def test_without_labels_the_table_shows_the_loss():
    [cells] = report.cells([Row("soft prompt", None, 9, 38, 2.0, 12.3456)])
    assert [*cells][:2] == ["name", "loss"] and cells["loss"] == "12.346"


@pytest.mark.parametrize(
    ("count", "text"),
    (
        (0, "0 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (7 * 10**9, "7.0 GB"),
        (12 * 10**12, "12000.0 GB"),
    ),
)
def test_sizes(count, text):
    assert report.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    (
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7980, "2 h 13 min"),
    ),
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


def test_the_report_has_exactly_these_keys(tmp_path):
    report.write_report(tmp_path / "report.json", ROWS)
    content = json.loads((tmp_path / "report.json").read_text())
    assert list(content) == ["rows"]
    names = ["name", "accuracy", "trainable_parameters", "bytes", "seconds"]
    assert [list(row) for row in content["rows"]] == [names] * 3
    assert content["rows"][2] == {
        "name": "soft prompt",
        "accuracy": 0.84449,
        "trainable_parameters": 9216,
        "bytes": 38122,
        "seconds": 243.2,
    }


def drawn(folder, lines):
    rows = ({"step": step, **values} for step, values in lines)
    (folder / "m").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    report.draw_curves(folder / "m", folder / "curves.png")
    pixels = image.imread(folder / "curves.png")[..., :3]

    def share(color):
        """How many pixels of the left and of the right half have the colour."""
        wanted = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        found = (np.abs(pixels - wanted) < 0.05).all(-1)
        left, right = np.array_split(found, 2, axis=1)
        return left.sum(), right.sum()

    return pixels.shape, share(report.TRAIN_COLOR), share(report.VALIDATION_COLOR)


def test_the_picture_shows_each_curve_in_its_place(tmp_path):
    train = [(step, {"train/loss": 2 / step, "train/accuracy": 0.5}) for step in range(1, 40)]
    train.insert(20, (20, {"train/loss": None, "train/accuracy": 0.1}))
    validation = [(20, {"validation/loss": 0.4}), (40, {"validation/loss": 0.3})]
    shape, *curves = drawn(tmp_path, train + validation)
    assert min(shape[:2]) >= 400
    assert curves[0][0] > 200 and curves[0][1] > 200
    assert curves[1][0] > 200 and curves[1][1] == 0


def test_the_curve_of_training_is_a_running_mean_and_that_of_validation_is_not(
    tmp_path, monkeypatch
):
    plots = []
    plot = Axes.plot

    def note(axes, steps, values, *style, **named):
        plots.append((named.get("label"), list(values)))
        return plot(axes, steps, values, *style, **named)

    monkeypatch.setattr(Axes, "plot", note)
    saw = [(step, {"train/loss": float(step % 2)}) for step in range(16)]
    drawn(tmp_path, [*saw, *((step, {"validation/loss": step}) for step in (4, 8))])
    (_, dots), (name, line), _, (other, exact) = plots
    assert dots == [0, 1] * 8 and (other, exact) == ("validation", [4, 8])
    assert name == "train, mean of 5 points"
    ends = [1 / 3, 1 / 2, 2 / 5], [3 / 5, 1 / 2, 2 / 3]
    assert (line[:3], line[-3:]) == (pytest.approx(ends[0]), pytest.approx(ends[1]))
    assert line[2:-2] == pytest.approx([2 / 5, 3 / 5] * 6)


def test_the_axes_of_the_picture_are_named(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda axes, label: labels.append(label))
    drawn(tmp_path, [(1, {"train/loss": 1.0, "validation/loss": 1.0})])
    assert labels == ["loss (nats)", "accuracy (%)"]


@pytest.mark.parametrize("lines", ((), ((1, {"train/loss": 1.0}),), ((1, {"train/loss": None}),)))
def test_a_picture_of_little_is_still_a_picture(tmp_path, lines):
    shape, train, validation = drawn(tmp_path, lines)
    assert len(shape) == 3 and validation == (0, 0) and train[1] == 0
