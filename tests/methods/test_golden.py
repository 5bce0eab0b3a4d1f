"""Fifty steps of every method, as they were when `make_golden.py` last wrote them down."""

import json

import numpy as np
from make_golden import GOLDEN, stack, trajectory
from test_methods import EVERY_ROW, ROWS

TOLERANCE = 1e-5  # relative, where another stack or processor rounds otherwise
KEPT = json.loads(GOLDEN.read_text(encoding="utf-8"))


@EVERY_ROW
def test_it_trains_as_before(row):
    tolerance, found = 0.0 if KEPT["stack"] == stack() else TOLERANCE, trajectory(row)
    assert found.keys() == KEPT["rows"][row].keys()
    for name, values in KEPT["rows"][row].items():
        np.testing.assert_allclose(found[name], values, rtol=tolerance, err_msg=name)


def test_the_file_has_every_row_and_says_something():
    assert KEPT["rows"].keys() == ROWS.keys()
    for row in KEPT["rows"].values():
        assert row["loss"][-1] < row["loss"][0] and min(row["gradient_norm"]) > 0
