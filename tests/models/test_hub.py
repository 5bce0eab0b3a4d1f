"""Models by their names on a hub: what is downloaded, kept and refused; artifacts pushed there."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from types import SimpleNamespace

import hub_server
import pytest
import tiny_models
import tiny_runs
from hub_server import COMMIT, OLDER
from huggingface_hub import constants, snapshot_download

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files import hub as hubs
from prompt_tuning_jax.models.files.find import find_model, pin
from prompt_tuning_jax.models.language_model import load
from prompt_tuning_jax.run.artifact import load_artifact

FILE = "tiny/model.safetensors"  # the end of the path of its content
PLAIN = {"config.json": b"{}", "tokenizer.json": b"{} ", "model.safetensors": bytes(range(256)) * 4}
OTHERS = {"pytorch_model.bin": b"code", "modeling.py": b"code", "onnx/model.onnx": b"x"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one model, and an empty cache."""
    served = hub_server.Hub()
    served.repos["user/tiny"] = PLAIN | OTHERS
    for name, value in {
        "ENDPOINT": served.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": served.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "DOWNLOAD_CHUNK_SIZE": 64,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    hubs.fetch.cache_clear()
    yield served
    hubs.fetch.cache_clear()
    served.shutdown()
    served.server_close()


def found(name="user/tiny"):
    """What is in the folder of a model, found as in a new process."""
    hubs.fetch.cache_clear()
    return {path.name: path.read_bytes() for path in find_model(name).iterdir()}


def refusal(name="user/tiny"):
    with pytest.raises(UserError) as error:
        found(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def ranges(hub, end):
    return [wanted for _, path, wanted in hub.asked if path.endswith(end)]


def test_what_is_needed_is_downloaded_once_into_the_cache_of_all(hub, caplog):
    assert found() == PLAIN
    folder = find_model("user/tiny")
    assert folder.name == COMMIT and os.path.islink(folder / "config.json")
    assert snapshot_download("user/tiny", local_files_only=True) == str(folder)
    hub.asked.clear()
    assert found() == PLAIN
    assert [path for _, path, _ in hub.asked] == ["/api/models/user/tiny/revision/main"]
    assert caplog.text == ""
    hub.shutdown()
    hub.server_close()
    assert found() == PLAIN
    assert "no download from" in caplog.text and "ConnectError" in caplog.text


def test_a_path_that_exists_wins_and_a_revision_is_a_part_of_the_name(hub, tmp_path):
    assert find_model("user/tiny@old").name == OLDER
    assert pin("user/tiny@old") == f"user/tiny@{OLDER}"
    (tmp_path / "user" / "tiny").mkdir(parents=True)
    (tmp_path / "user" / "tiny" / "config.json").write_text("{}")
    assert str(find_model("user/tiny")) == pin("user/tiny") == "user/tiny"


def test_a_plan_downloads_no_weights(hub):
    folder = find_model("user/tiny", weights=False)
    assert {path.name for path in folder.iterdir()} == PLAIN.keys() - {"model.safetensors"}
    hub.faults["revision/main"] = [500] * 8
    hubs.fetch.cache_clear()
    assert find_model("user/tiny", weights=False) == folder  # planned once, it can be again
    assert "is not whole in" in refusal() and found() == PLAIN


def test_shards_are_those_of_the_index(hub):
    shards = {f"model-0000{number}-of-2.safetensors": bytes([number]) * 9 for number in (1, 2)}
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    files = {"config.json": b"{}", "vocab.json": b"{}", "model.safetensors.index.json": index}
    hub.repos["user/tiny"] = files | shards | {"other.safetensors": b"x"}
    assert found() == files | shards
    hub.repos["user/less"] = files
    assert "model-00001-of-2.safetensors" in refusal("user/less")


@pytest.mark.parametrize("end", ["revision/main", FILE, "/config.json"])
@pytest.mark.parametrize("status", [429, 500])
def test_a_busy_hub_is_asked_again_and_not_for_ever(hub, end, status):
    hub.faults[end] = [status]
    assert found() == PLAIN
    hub.faults[end] = [status] * 99
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert str(status) in refusal()
    assert 3 < len(ranges(hub, end)) < 60


def test_a_file_that_is_cut_goes_on_where_it_was(hub):
    hub.faults[FILE] = ["cut", "cut"]
    assert found() == PLAIN
    assert ranges(hub, FILE) == [None, "bytes=512-", "bytes=768-"]


def test_ctrl_c_leaves_what_has_come(hub):
    hub.faults[FILE] = ["stall"]
    program = (
        "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 64\n"
        "from prompt_tuning_jax.models.files.find import find_model; find_model('user/tiny')"
    )
    own = {"HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_ENDPOINT": hub.address}
    own |= {"HF_HUB_OFFLINE": "0", "TQDM_POSITION": "-1"}  # a bar without a terminal
    child = tiny_runs.start([sys.executable, "-c", program], env=tiny_runs.environment(**own))
    assert hub.stalled.wait(60)
    threading.Event().wait(0.5)
    child.send_signal(signal.SIGINT)
    shown = child.communicate(timeout=60)[0]
    assert "KeyboardInterrupt" in shown and "model.safetensors:  50%" in shown
    assert found() == PLAIN
    assert ranges(hub, FILE) == [None, "bytes=512-"]
    assert not [path for _, path, _ in hub.asked if "agent" in path]  # no telemetry


@pytest.mark.parametrize("end", [FILE, "/config.json"])
@pytest.mark.parametrize("data", [b"\1\1", b"\1" * 1024, b"long" * 999])
def test_other_bytes_are_not_kept(hub, end, data):
    hub.faults[end] = [data]
    assert f"{end.split('/')[1]} arrived with another hash" in refusal()
    assert found() == PLAIN


def test_each_refusal_is_a_sentence(hub, monkeypatch):
    hub.repos |= {
        "user/bin": {"config.json": b"{}", "pytorch_model.bin": b"code"},
        "user/bare": {"model.safetensors": b""},
        "user/gated": PLAIN,
        "user/big": PLAIN,
    }
    hub.faults[f"gated/resolve/{COMMIT}/config.json"] = [403]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1024))
    found()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1023))
    for name, part in (
        ("user/tinny", "(did you mean 'user/tiny'?)"),
        ("smollm2-135m-instrct", "(did you mean 'smollm2-135m-instruct'?)"),
        ("user/gated", f"is gated: ask for access at {hub.address}/user/gated"),
        ("user/tiny@olld", "has no revision 'olld'"),
        ("user/bin", "no config.json or no model.safetensors, and other weights are not read"),
        ("user/bare", "no config.json or no model.safetensors, and other weights are not read"),
        ("user/..tiny", "does not exist"),
        ("user/tiny@../x", "does not exist"),
        ("user/tiny.gguf", "'user/tiny.gguf' does not exist"),
        ("user/big", "takes 1,024 bytes more"),
    ):
        assert part in refusal(name), refusal(name)


def test_offline_is_the_cache_alone(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert found() == PLAIN
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert found() == found(f"user/tiny@{COMMIT}") == PLAIN and not hub.asked
    (find_model("user/tiny") / "model.safetensors").unlink()
    assert "whole" in refusal()


def test_an_artifact_names_the_commit_and_goes_to_the_hub(hub, typed, monkeypatch, tmp_path):
    local = tiny_models.write_folder(tmp_path / "local")
    hub.repos["user/tiny"] = {path.name: path.read_bytes() for path in local.iterdir()}
    config = ["--config", str(tiny_runs.world().config), "--config.model.path=user/tiny"]
    words, split = ["--prompt", "It: {text}, so", "--out", "kept"], ["--split", "test[:9]"]
    assert typed("evaluate", *config, *words, *split).status == 0
    manifest = load_artifact("kept").manifest
    assert manifest["model"]["name"] == manifest["config"]["model"]["path"] == f"user/tiny@{COMMIT}"
    assert manifest["model"]["fingerprint"] == load(local).fingerprint
    hubs.fetch.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert typed("evaluate", "--artifact", "kept", *split).status == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    push = ["export", "--artifact", "kept", "--to", "hub:user/kept"]
    assert "log in with `hf auth login` or set HF_TOKEN" in typed(*push).err
    monkeypatch.setenv("HF_TOKEN", "hf_may_not")
    shown = typed(*push)
    assert shown.status == 2 and "does not take 'user/kept' (HfHubHTTPError: 403" in shown.err
    assert shown.err.count("\n") == 1 and not hub.pushed
    monkeypatch.setenv("HF_TOKEN", "hf_may_write")
    shown = typed(*push)
    assert shown.status == 0 and f"{hub.address}/user/kept" in shown.out, shown.err
    assert hub.pushed.keys() == {"README.md", "manifest.json", "adaptation.safetensors"}
    assert b'base_model: "user/tiny"\n' in (card := hub.pushed["README.md"])
    os.remove("kept/README.md")
    assert typed(*push).status == 0 and hub.pushed["README.md"] == card
