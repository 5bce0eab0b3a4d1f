"""The folder of a run: one writer, one config."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run import folder as workdir
from prompt_tuning_jax.run.folder import claim, tie_to_config

_HOLDS = """
import sys, time
from prompt_tuning_jax.run.folder import claim

with claim(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_within_two_seconds_and_told_whose_it_is(tmp_path, holder):
    (tmp_path / "run" / ".config.json.123.partial").touch()
    before = os.listdir(tmp_path / "run")
    began = time.monotonic()
    with pytest.raises(UserError) as caught, claim(tmp_path / "run"):
        pass
    assert time.monotonic() - began < 2
    assert f"process {holder.pid} on {socket.gethostname()}" in str(caught.value)
    assert holder.poll() is None and os.listdir(tmp_path / "run") == before


def test_a_killed_run_gives_its_folder_back_without_what_it_left_unfinished(tmp_path, holder):
    left = (".config.json.123.partial", ".artifact.partial/tensors", "lora/seed-0/.a.partial")
    for name in (*left, "notes.partial", "mine/.notes.partial"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "run" / name).touch()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claim(tmp_path / "run") as folder:
        assert folder == tmp_path / "run"
        assert {*os.listdir(folder)} == {".lock", "notes.partial", "lora", "mine"}
        assert not os.listdir(folder / "lora" / "seed-0")
        assert os.listdir(folder / "mine") == [".notes.partial"]


def test_a_folder_is_claimed_once_in_a_process_and_given_back(tmp_path):
    with claim(tmp_path / "a b ü" / "run"):
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            with claim(tmp_path / "a b ü" / "run"):
                pass
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "a b ü" / "run"):
        raise ZeroDivisionError
    with claim(tmp_path / "a b ü" / "run"):
        pass


def test_a_folder_of_another_command_is_refused(tmp_path):
    owners = {workdir.METRICS: "train", workdir.SEARCH: "search", "report.csv": "compare"}
    for name, owner in owners.items():
        (folder := tmp_path / owner).mkdir()
        (folder / name).touch()
        for command in owners.values():
            refused = pytest.raises(UserError, match=f"holds what '{owner}' wrote")
            with refused if command != owner else contextlib.nullcontext():
                with claim(folder, command):
                    pass


def test_a_lock_whose_file_was_just_removed_is_not_taken(tmp_path, monkeypatch):
    opened = os.open

    def remove(path, *rest):
        descriptor = opened(path, *rest)
        os.unlink(path)
        return descriptor

    monkeypatch.setattr(os, "open", remove)
    with pytest.raises(UserError, match="a run is in progress"), claim(tmp_path):
        pass


def test_a_folder_in_which_nothing_was_begun_is_as_it_was(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "new/one"):
        with pytest.raises(UserError, match="the model is missing"), claim(tmp_path / place):
            raise UserError("the model is missing")
    assert [*map(str, tmp_path.rglob("*"))] == [str(tmp_path / "empty")]
    with claim(tmp_path / "new" / "one") as folder:
        (folder / workdir.METRICS).touch()
    assert os.listdir(tmp_path / "new" / "one") == [workdir.METRICS]


def test_a_folder_that_is_removed_meanwhile_hides_no_error_and_can_be_claimed_again(tmp_path):
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "run") as folder:
        shutil.rmtree(folder)
        raise ZeroDivisionError
    with claim(tmp_path / "run"):
        pass


@pytest.mark.parametrize("place", ("file", "file/below", "/proc/run"))
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("here before")
    with pytest.raises(UserError, match=r"cannot be written.*another --workdir"):
        with claim(tmp_path / place):
            pass
    assert (tmp_path / "file").read_text() == "here before"


def test_a_remote_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="remote"), claim("gs://bucket/run"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_changed_config_is_refused_with_the_difference_until_fresh(tmp_path):
    config, tmp_path = configs.load(None), tmp_path / "new" / "run"
    tie_to_config(tmp_path, config)
    tie_to_config(tmp_path, config)
    for name in (workdir.CHECKPOINTS, workdir.ARTIFACT, workdir.TENSORBOARD, workdir.PROFILE):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in (workdir.METRICS, workdir.REPORT, workdir.CURVES, workdir.RUN, "notes.txt"):
        (tmp_path / name).touch()
    before = sorted(os.listdir(tmp_path))

    tie_to_config(tmp_path, configs.load(None, ["--config.parallel.model=4"]))  # other devices
    changed = configs.load(None, ["--config.steps=7", "--config.method.num_virtual_tokens=3"])
    with pytest.raises(UserError) as caught:
        tie_to_config(tmp_path, changed)
    for part in ("config.steps", "7", "config.method.num_virtual_tokens", "3", "--fresh"):
        assert part in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before
    tie_to_config(tmp_path, config)

    tie_to_config(tmp_path, changed, fresh=True)
    assert sorted(os.listdir(tmp_path)) == [workdir.CONFIG, "notes.txt"]
    tie_to_config(tmp_path, changed)
    again = configs.load(str(tmp_path / workdir.CONFIG))
    assert configs.to_json(again) == configs.to_json(changed)


@pytest.mark.parametrize("damage", ['{"steps": 3', "\0", "[" * 100_000, None])
def test_a_damaged_config_is_named_by_its_path(tmp_path, damage):
    path = tmp_path / workdir.CONFIG
    path.mkdir() if damage is None else path.write_text(damage)
    with pytest.raises(UserError, match=r"is damaged.*--fresh") as caught:
        tie_to_config(tmp_path, configs.load(None))
    assert f"'{path}'" in str(caught.value) and str(caught.value).isprintable()
    tie_to_config(tmp_path, configs.load(None), fresh=True)


def test_fresh_removes_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    run = tmp_path / "run"
    run.mkdir()
    for name in (workdir.CHECKPOINTS, workdir.ARTIFACT):
        (run / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (run / workdir.REPORT).symlink_to(tmp_path / "nowhere")
    (run / workdir.CONFIG).touch()
    tie_to_config(run, configs.load(None), fresh=True)
    assert os.listdir(run) == [workdir.CONFIG]
    assert (tmp_path / "elsewhere" / "file").exists()


def test_if_fresh_cannot_remove_a_folder_the_config_stays(tmp_path, monkeypatch):
    tie_to_config(tmp_path, configs.load(None))
    (tmp_path / workdir.CHECKPOINTS).mkdir()

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        tie_to_config(tmp_path, configs.load(None), fresh=True)
    assert (tmp_path / workdir.CONFIG).exists()


OTHERS = ["checkpoints/a.pt", "artifact/a", "tensorboard/a", "metrics.jsonl", "curves.png"]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("text", ['{"model_type": "llama"}', "[]"])
@pytest.mark.parametrize("name", ["config.json", *OTHERS])
def test_what_no_run_wrote_is_never_deleted(tmp_path, name, text, fresh):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="was not written by a run: give another --workdir"):
        tie_to_config(tmp_path, configs.load(None), fresh)
    assert (tmp_path / name).read_text() == text
