"""Sets up the comparison with torch: the scripts of the benchmarks, and one thread of torch."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Several threads of torch wait for each other in a loop: minutes beside other work."""
    import peft_side

    peft_side.use_threads(1)
