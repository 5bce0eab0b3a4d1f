"""What long work says, with a clock of the test's own."""

import pytest

from prompt_tuning_jax.run import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as the test adds to them."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def lines(clock, sizes, each, first=0.0, total=None):
    """What is said of parts of some sizes that take so many seconds each, the first one longer."""
    said = []
    for number, _ in enumerate(progress.with_progress(sizes, "texts", said.append, total, int)):
        clock[0] += each + (0.0 if number else first)
    return said


def test_the_number_done_and_the_time_left_are_logged(clock):
    # The first part waited a minute for the compiler: the rate is that of the others.
    said = lines(clock, [4] * 100, each=2.0, first=60.0, total=400)
    assert said[0] == "16 of 400 texts  2.0/s  3:12 left"
    assert said[1] == "28 of 400 texts  2.0/s  3:06 left"
    assert said[-1] == "388 of 400 texts  2.0/s  0:06 left"


def test_parts_of_a_larger_work_are_counted_together(clock):
    said = []
    whole = progress.Progress("texts", said.append, 300)
    for _ in range(3):
        for _ in progress.with_progress([10] * 10, "parts", whole, 100, int):
            clock[0] += 1.0
    whole("warning: as it is")
    assert said[:2] == ["60 of 300 texts  10.0/s  0:24 left", "110 of 300 texts  10.0/s  0:19 left"]
    assert said[-2:] == ["260 of 300 texts  10.0/s  0:04 left", "warning: as it is"]


def test_work_of_unknown_size_is_counted(clock):
    said = lines(clock, [1] * 3000, each=0.25)
    assert said[:2] == ["21 texts  4.0/s", "41 texts  4.0/s"]
    assert said[-1] == "2,981 texts  4.0/s"


def test_short_work_logs_nothing(clock):
    assert lines(clock, [1] * 10, each=0.4, total=10) == []


def test_each_part_is_passed_on_as_it_comes():
    came = []
    parts = (came.append(number) or number for number in range(3))
    parts = progress.with_progress(parts, "parts", print)
    assert next(parts) == 0 and came == [0]
    assert list(parts) == [1, 2]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00 left"), (59.7, "1:00 left"), (750, "12:30 left"), (11_040, "3:04:00 left")],
)
def test_the_time_left_is_for_people(seconds, text):
    assert progress.time_left(seconds) == text
