"""Fifty steps of every method, as they were when `make_golden.py` last wrote them down."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_methods import EVERY_ROW, ROWS

TOLERANCE = 1e-5  # relative, where another stack or processor rounds otherwise
TESTS = Path(__file__).parents[1]
KEPT = json.loads((TESTS / "fixtures" / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The same, trained in a process that optimizes what it compiles."""
    file = tmp_path_factory.mktemp("golden") / "golden.json"
    subprocess.run([sys.executable, str(TESTS / "make_golden.py"), str(file)], check=True)
    return json.loads(file.read_text(encoding="utf-8"))


@EVERY_ROW
def test_it_trains_as_before(row, found):
    tolerance = 0.0 if KEPT["stack"] == found["stack"] else TOLERANCE
    assert found["rows"][row].keys() == KEPT["rows"][row].keys()
    for name, values in KEPT["rows"][row].items():
        ours = found["rows"][row][name]
        np.testing.assert_allclose(ours, values, rtol=tolerance, err_msg=name)


def test_the_file_has_every_row_and_says_something():
    assert KEPT["rows"].keys() == ROWS.keys()
    for row in KEPT["rows"].values():
        assert row["loss"][-1] < row["loss"][0] and min(row["gradient_norm"]) > 0
