"""Facts of the machine, and the record of a run's starts."""

import json
import subprocess
import sys

import jax
import pytest
import tiny_runs
from made_up_secrets import NAMES, RECORDED, SECRET, URL, VARIABLES

from prompt_tuning_jax import __version__, errors
from prompt_tuning_jax.cli import main, show
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.run import environment
from prompt_tuning_jax.run import folder as workdir


def test_env_names_versions_devices_and_the_cache(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path))
    assert main.run(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["prompt-tuning-jax"] == __version__
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert facts["devices"] == f"{jax.device_count()} x cpu" and facts["backend"] == "cpu"
    assert facts["variables"]["PROMPT_TUNING_CACHE"] == str(tmp_path)
    assert not {"HOME", "PATH"} & facts["variables"].keys()
    assert facts["cache"] == str(tmp_path)
    assert main.run(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"versions jax: {jax.__version__}" in lines and f"cache: {tmp_path}" in lines
    assert len(lines) == len(show.facts(facts))


def test_env_answers_where_no_device_is_found(capsys, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(jax, "devices", fail)
    assert main.run(["env"]) == 0
    shown = capsys.readouterr().out
    assert "devices: none: RuntimeError: Unable to initialize backend 'tpu'" in shown


def test_the_commit_is_that_of_the_files(tmp_path):
    def git(*words):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *author, *words], check=True, capture_output=True
        )
        return done.stdout.decode().strip()

    assert environment.commit(tmp_path) is None
    git("init", "--quiet")
    (tmp_path / "__init__.py").write_text("")
    assert environment.commit(tmp_path) is None, "git does not know the file"
    git("add", ".")
    git("commit", "--quiet", "--message", "a")
    git("tag", "-a", "v1", "-m", "a")
    head = git("rev-parse", "HEAD")
    assert environment.commit(tmp_path) == head and len(head) == 40
    (tmp_path / "__init__.py").write_text("changed")
    assert environment.commit(tmp_path) == f"{head}-dirty"


def test_every_start_is_recorded_with_its_outcome(tmp_path):
    with environment.record_start(tmp_path, ["prompt-tuning", "train", "a b"], print) as entry:
        entry["outcome"] = "stopped"
    with pytest.raises(RunError), environment.record_start(tmp_path, ["b"], print):
        raise RunError("five in a row")
    with environment.record_start(tmp_path, ["c"], print) as entry:
        entry |= {"outcome": "finished", "seconds": {"soft prompt": 1.5}}
    with pytest.raises(KeyboardInterrupt), environment.record_start(tmp_path, ["d"], print):
        raise KeyboardInterrupt
    starts = json.loads((tmp_path / workdir.RUN).read_text())["starts"]
    assert [start["outcome"] for start in starts] == ["stopped", "failed", "finished", "stopped"]
    assert starts[0]["command"] == "prompt-tuning train 'a b'"
    assert starts[2]["seconds"] == {"soft prompt": 1.5}
    for start in starts:
        assert start["began"] <= start["ended"] and start["took"] >= 0
        assert start["environment"]["versions"]["jax"] == jax.__version__


def test_a_start_that_is_refused_leaves_nothing(tmp_path):
    with pytest.raises(UserError), environment.record_start(tmp_path, ["a"], print):
        raise UserError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_replaced(tmp_path):
    for damaged in ("", "[]", '{"start": 1}', '{"starts": 1', '{"starts": 1}', "[" * 10**5):
        (tmp_path / workdir.RUN).write_text(damaged)
        with environment.record_start(tmp_path, ["a"], print):
            pass
        assert len(json.loads((tmp_path / workdir.RUN).read_text())["starts"]) == 1


def test_a_record_that_cannot_be_written_is_a_warning_and_hides_no_failure(tmp_path, capsys):
    with pytest.raises(RunError), environment.record_start(tmp_path / "gone", ["a"], print):
        raise RunError("five in a row")
    with environment.record_start(tmp_path / "gone", ["a"], print):
        pass
    assert "warning: " in (said := capsys.readouterr().out) and "could not be added to" in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://user:pa/ssw0rd@host/x: no", "at https://***@host/x: no"),
        ("https://user:p@ss@host/x", "https://***@host/x"),
        ("'s3:/user:a/b@host/x'", "'s3:/***@host/x'"),
        ("'https://host/x?token=SECRET&page=2'", "'https://host/x?token=***&page=2'"),
        ("https://h?page=2&X-Amz-Signature=0f1e", "https://h?page=2&X-Amz-Signature=***"),
        ("https://h/x#access_token=a.b", "https://h/x#access_token=***"),
        ("https://host:8080/a/b?page=2, a@b", "https://host:8080/a/b?page=2, a@b"),
        ("HF_HUB_DISABLE_TELEMETRY, key=value", "HF_HUB_DISABLE_TELEMETRY, key=value"),
    ],
)
def test_credentials_of_urls_are_hidden_and_nothing_else(text, shown):
    assert errors.hide(text) == shown


def test_no_secret_is_recorded(tmp_path, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    with environment.record_start(tmp_path, ["a"], print):
        pass
    [start] = json.loads((tmp_path / workdir.RUN).read_text())["starts"]
    variables = start["environment"]["variables"]
    assert {variables[name] for name in [*RECORDED, "JAX_NOTE"]} == {"***"}
    assert variables["TPU_PROXY"] == "https://***@example.org/model.gguf"
    assert not {*NAMES} & {*variables}


@pytest.mark.parametrize("secret", [URL, SECRET])
def test_no_secret_is_in_a_refusal_or_its_traceback(secret, tmp_path, monkeypatch, capfd):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    with tiny_runs.at_home(monkeypatch):
        for key in ("tracker", "model.path", "task.name", "steps"):
            words = tiny_runs.training(tmp_path / "run", f"--config.{key}={secret}", "--debug")
            assert main.run(words) == 2
        assert main.run(["evaluate", "--artifact", secret, "--debug"]) == 2
    shown = capfd.readouterr()
    assert SECRET[3:] not in shown.out + shown.err
    assert shown.err.count("Traceback") >= 5 and shown.err.count("***") >= 5
    # But for the lock's file, which is empty.
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0
