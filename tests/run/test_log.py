"""What a run says of itself, step by step."""

from types import SimpleNamespace

import numpy as np
import pytest

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.run.folder import METRICS
from prompt_tuning_jax.run.log import Journal

BATCH = SimpleNamespace(shared=np.zeros(3), segments=np.ones((2, 4)))


def warnings(losses, start=0, **settings):
    """What is logged of losses that follow each other from step `start` on."""
    log = []
    config = configs.build({"steps": 500, **settings})
    with Journal(start, 0.0, config, None, log.append) as journal:
        for number, loss in enumerate(losses, start + 1):
            journal.add(number, {"loss": np.float32(loss), "refused_in_a_row": 0.0}, BATCH)
        journal.settle()
    return [line for line in log if "warning" in line]


def test_a_loss_that_has_not_moved_fifty_steps_after_the_warm_up_is_said_once():
    # The fallen loss of step 65 is among the last twenty and not enough.
    still = [*[2.0] * 64, 1.9, *[2.0] * 200]
    settings = {"schedule": {"warmup_steps": 20}}
    assert warnings(still[:69], **settings) == []
    [line] = warnings(still, **settings)
    assert line.startswith("warning: after 70 steps the loss has not moved, from 2.000 to 1.995: ")
    [line] = warnings(still, schedule={"warmup_steps": 0})
    assert "after 50 steps" in line


def test_a_loss_that_moved_is_not_said():
    assert warnings(np.linspace(2.0, 1.9, 200)) == []


def test_a_run_that_goes_on_has_no_first_losses_to_compare_with():
    assert warnings([2.0] * 200, start=1) == []


@pytest.mark.parametrize("kinds", [["a", "a"], ["a", "b"]])
def test_a_warning_is_given_once_of_each_kind(kinds):
    log = []
    with Journal(0, 0.0, configs.build({}), None, log.append) as journal:
        journal.warn("a", "")
        for kind in kinds:
            journal.warn(kind, "look")
    assert log == ["warning: look"] * len(set(kinds))


@pytest.mark.parametrize(("start", "lines", "said"), [(10, 0, 1), (10, 1, 0), (9, 0, 0), (0, 0, 0)])
def test_lost_metrics_are_said_where_a_run_goes_on(tmp_path, start, lines, said):
    (tmp_path / METRICS).write_text('{"step": 5}\n' * lines)
    log = []
    with Journal(start, 0.0, configs.build({"log_every": 10}), tmp_path, log.append):
        pass
    assert [line for line in log if "up to step 10 are missing" in line] == log
    assert len(log) == said
