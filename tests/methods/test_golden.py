"""Fifty steps of every method, as they were when `make_golden.py` last wrote them down."""

import functools
import json

import make_golden
import numpy as np
from test_methods import EVERY_ROW, ROWS

TOLERANCE = 1e-5  # relative, where another stack or processor rounds otherwise


@functools.cache
def golden():
    return json.loads(make_golden.GOLDEN.read_text(encoding="utf-8"))


@EVERY_ROW
def test_it_trains_as_before(row):
    kept, found = golden(), make_golden.trajectory(row)
    exact = kept["stack"] == make_golden.stack()
    assert found.keys() == kept["rows"][row].keys()
    for name, values in kept["rows"][row].items():
        tolerance = 0.0 if exact else TOLERANCE
        np.testing.assert_allclose(found[name], values, rtol=tolerance, err_msg=name)


def test_the_file_has_every_row_and_says_something():
    assert golden()["rows"].keys() == ROWS.keys()
    for row in golden()["rows"].values():
        assert row["loss"][-1] < row["loss"][0] and min(row["gradient_norm"]) > 0
