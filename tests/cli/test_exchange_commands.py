"""Artifacts for other programs, from them, and of written prompts, as they are typed."""

import json

import numpy as np
import pytest
import tiny_runs

from prompt_tuning_jax import api
from prompt_tuning_jax.run import artifact as artifacts


def loss(typed, *words):
    shown = typed("evaluate", *words, "--split", "test[:30]", "--json")
    assert shown.status == 0, shown.err
    return json.loads(shown.out)["loss"]


def test_a_written_prompt_is_kept_evaluated_and_used(typed, home):
    tiny = ["--config", str(tiny_runs.world().config)]
    words = ["--prompt", r"One of b, e, p, s, t.\nHeadline: {text}\nTopic:"]
    wanted = loss(typed, *tiny, *words, "--out", "kept")
    assert loss(typed, "--artifact", "kept") == wanted
    answer = json.loads(typed("predict", "--artifact", "kept", "votes are counted").out)
    assert answer["label"] in ("business", "entertainment", "politics", "sport", "tech")
    # As many demonstrations as fit, from a file of prompts: the best one is kept.
    (home / "prompts.txt").write_text("It: {text}, so\nSay: {text}")
    some = ["--prompts", "prompts.txt", "--demonstrations", "9", "--out", "some"]
    wanted = loss(typed, *tiny, *some)
    assert loss(typed, "--artifact", "some") == wanted
    assert 0 < len(artifacts.load_artifact("some").manifest["demonstrations"]) < 9


def test_a_soft_prompt_goes_to_peft_and_back(typed, home):
    kept, tiny = str(tiny_runs.artifact()), ["--config", str(tiny_runs.world().config)]
    shown = typed("export", "--artifact", kept, "--to", "peft", "adapter")
    assert shown.status == 0 and "PROMPT_TUNING" in shown.out, shown.err
    shown = typed("import", "--from", "peft", "adapter", *tiny, "--out", "back")
    assert shown.status == 0, shown.err
    # The BOS in front of the slots, which PEFT has among its vectors, is the text's own again.
    assert loss(typed, "--artifact", "back") == pytest.approx(loss(typed, "--artifact", kept))
    words = ["import", "--from", "peft", "adapter", *tiny, "--out"]
    # A model that rounds knows the text's own embeddings too.
    for name, word in (("half", "dtype=bfloat16"), ("bytes", "quantize=int8")):
        assert typed(*words, name, f"--config.model.{word}").status == 0
        assert artifacts.load_artifact(name).tensors["prompt/vectors"].shape == (4, 24)
    refused = typed(*words, "c", "--config.task.template={soft:2}a{soft}{text}")
    assert refused.status == 2 and "several slots: give it one" in refused.err
    assert typed(*words, "plain", "--config.task.template=It: {text}").status == 0
    manifests = [artifacts.load_artifact(folder).manifest for folder in ("back", kept)]
    assert manifests[0]["template"] == manifests[1]["template"]
    shown = typed("export", "--artifact", kept, "--to", "npy", "front.npy")
    assert shown.status == 0 and "vectors, of the virtual tokens and of the text" in shown.out
    assert np.load(home / "front.npy").shape[1] == 24
    shown = typed("evaluate", "--artifact", kept, "--calibrate", "labels", "--out", "calibrated")
    assert "the records that calibrate chose the artifact too" in shown.err
    shown = typed("export", "--artifact", "calibrated", "--to", "npy", "again.npy")
    assert shown.status == 0 and "the calibration of the artifact is not exported" in shown.out
    shown = typed("export", "--artifact", kept, "--to", "npy", "new.npy", "--config.steps=7")
    assert shown.status == 2 and "export takes no '--config.steps=7'" in shown.err
    shown = typed("export", "--artifact", kept, "--to", "hf", "folder")
    assert shown.status == 2 and "cannot be merged into weights" in shown.err


def test_merged_lora_is_a_model_with_the_same_scores(typed, home):
    result, _ = tiny_runs.tune("--config.method.name=lora", "--config.method.rank=2")
    api.save(result.artifact, "tuned")
    shown = typed("export", "--artifact", "tuned", "--to", "hf", "merged")
    assert shown.status == 0, shown.err
    tiny = ["--config", str(tiny_runs.world().bare)]
    alone = loss(typed, *tiny, "--config.model.path=merged")
    assert abs(alone - loss(typed, "--artifact", "tuned")) < 1e-4
    assert abs(alone - loss(typed, *tiny)) > 1e-2


def test_mistakes_are_one_sentence_and_write_nothing(typed, home):
    kept, tiny = str(tiny_runs.artifact()), ["--config", str(tiny_runs.world().config)]
    before = tiny_runs.listing(home)
    for words, said in (
        (["export", "--artifact", kept], "export needs --artifact DIR, --to hf|peft|npy"),
        (["export", "--artifact", kept, "--to", "pefft", "a"], "did you mean 'peft'"),
        (["export", "--artifact", "none", "--to", "peft", "a"], "'none' does not exist"),
        (["export", "--artifact", kept, "--to", "peft", "."], "exists: give the name of a new"),
        (["export", "--artifact", kept, "--to", "hub:a/b", "--config.model.dtype=auto"], "leave"),
        (["export", "--artifact", kept, "--to", "hub:a/b", "out"], "or --to hub:USER/NAME"),
        (["import", "--from", "peft", "none", *tiny, "--out", "a"], "cannot be read"),
        (["import", "--from", "hf", "none", *tiny, "--out", "a"], "--from takes 'peft', not 'hf'"),
        (["import", "--from", "peft", "a"], "import needs --from peft FOLDER, --config FILE"),
        (["evaluate", *tiny, "--out", "a"], "--out keeps a prompt or calibration: give --prompt"),
        (["evaluate", *tiny, "--prompt", "a", "--out", "."], "'.' exists: give the name of a new"),
        (["evaluate", *tiny, "--prompt", "a", "--out", f"{tiny[1]}/a"], "is no folder that can be"),
        (["evaluate", *tiny, "--prompt", "{titel}:", "--out", "a"], "unknown field {titel}"),
    ):
        shown = typed(*words)
        assert shown.status == 2 and said in shown.err, (words, shown.err)
        assert shown.err.count("error:") == 1
    assert tiny_runs.listing(home) == before
    assert artifacts.load_artifact(kept).tensors
