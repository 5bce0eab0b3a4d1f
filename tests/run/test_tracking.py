"""What services for metrics are sent, and a trace that cannot be whole."""

import sys
import types

import jax
import pytest

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.run import tracking
from prompt_tuning_jax.run.log import RunLog


@pytest.fixture(params=["wandb", "trackio"])
def service(request, monkeypatch):
    """A stand-in for a service's package, that keeps what it was told."""
    made = types.ModuleType(request.param)
    made.told = []
    made.init = lambda **given: made.told.append(("init", given))
    made.log = lambda values, step: made.told.append((step, values))
    made.finish = lambda: made.told.append("finish")
    monkeypatch.setitem(sys.modules, request.param, made)
    return made


def test_a_run_is_sent_with_its_config_and_a_resumed_run_is_sent_whole(service, tmp_path):
    config = configs.build({"tracker": service.__name__, "seed": 3})
    tracking.check_tracker(config.tracker)
    run = tmp_path / "my run"
    run.mkdir()
    lines = ['{"step": 10, "train/loss": 2.0}', '{"step": 20, "train/loss": null, "train/a": 8.0}']
    (run / workdir.METRICS).write_text("\n".join([*lines, ""]))
    with (
        tracking.tracker(config, run) as track,
        RunLog(config, run, print, 20, track=track) as run_log,
    ):
        run_log.add_validation(30, {"loss": 1.5, "accuracy": 0.5}, 0.0)
    (first, given), *sent, last = service.told
    assert (first, last) == ("init", "finish")
    assert given["name"] == "my run" and given["config"] == config.to_dict()
    assert sent == [
        (10, {"train/loss": 2.0}),
        (20, {"train/a": 8.0}),
        (30, {"validation/loss": 1.5, "validation/accuracy": 0.5}),
    ]


def test_a_folder_of_runs_is_no_tracker(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="pip install wandb"):
        tracking.check_tracker("wandb")


def test_a_run_that_fails_is_finished_there_too(service):
    config = configs.build({"tracker": service.__name__})
    with pytest.raises(ZeroDivisionError), tracking.tracker(config, None):
        raise ZeroDivisionError
    assert service.told[0][1]["name"] is None and service.told[-1] == "finish"


def test_the_first_process_alone_is_watched(service, monkeypatch):
    monkeypatch.setattr(tracking.jax, "process_index", lambda: 1)
    config = configs.build({"tracker": service.__name__})
    with tracking.tracker(config, None), tracking.profiler(3, None, print) as before:
        before(None)
    assert service.told == []


def test_a_service_that_is_not_installed_is_refused_with_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"'wandb', but the package is not installed: type pip"):
        tracking.check_tracker("wandb")
    tracking.check_tracker("")


def test_a_trace_ends_with_its_run_and_on_a_full_disk_it_is_a_warning(tmp_path, monkeypatch):
    called, log, place = [], [], tmp_path / workdir.PROFILE
    monkeypatch.setattr(jax.profiler, "start_trace", called.append)

    def trace(stop):
        monkeypatch.setattr(jax.profiler, "stop_trace", stop)
        with tracking.profiler(99, tmp_path, log.append) as before:
            for _ in range(5):
                before(None)

    def refused():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: x.pb; No space left on device")

    trace(lambda: called.append("stop"))
    trace(refused)
    assert called == [place, "stop", place]
    assert log[0].startswith(f"trace of 2 steps: {place} ")
    assert log[1].startswith(f"warning: the trace in {place} is not complete (RESOURCE_EXHAUSTED")
