"""Artifacts for other programs and from them, without the other programs: see tests/reference."""

import json
import os

import family_models
import numpy as np
import plain_model
import pytest
import tiny_models
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_methods import TASK
from tiny_models import SPEC

from prompt_tuning_jax import config as configs
from prompt_tuning_jax import exchange, load
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.exchange.folder import merge, write_model
from prompt_tuning_jax.models.sites import PROMPT, Given, from_tensors, to_tensors
from prompt_tuning_jax.run.artifact import Artifact, load_artifact, make_manifest, save_artifact
from prompt_tuning_jax.score import score

KINDS = {"PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix", "LORA": "lora", "IA3": "scale"}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load(str(tiny_models.write_folder(tmp_path_factory.mktemp("tiny") / "model")))


def artifact(lm, given, task=TASK):
    return Artifact(to_tensors(given), make_manifest(lm, task, configs.build({}), {}))


def scores(lm, given):
    """Of some texts behind a slot for each virtual token."""
    slots = [-1 - slot for slot in range(len(given.sites.get(PROMPT, ())))]
    examples = [
        Example(np.array([1, *slots, *text], np.int32), (np.array([9]), np.array([8, 7])), 0, 1, 0)
        for text in ([40, 41], [50, 51, 52])
    ]
    return score(lm, examples, given)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_comes_back_as_it_was(lm, tmp_path, kind):
    given = plain_model.random_given(0, SPEC, KINDS[kind], size=4)
    task = TASK._replace(template="{soft}<|bos|>{text}")  # where PEFT has its virtual tokens
    assert exchange.export_adapter(lm, task, artifact(lm, given, task), tmp_path / "a") == kind
    again = exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / "a")
    assert again.manifest["config"]["method"]["name"]
    assert again.manifest["config"]["method"].get("rank", 4) == 4
    found = from_tensors(again.tensors)
    assert found.sites.keys() == given.sites.keys()
    for path, leaf in given.sites.items():
        np.testing.assert_array_equal(found.sites[path], leaf)
    if kind == "PROMPT_TUNING":
        assert again.manifest["template"] == task.template
        with pytest.raises(UserError, match="come before BOS, which a chat has itself: give"):
            exchange.import_adapter(lm, TASK._replace(chat=""), configs.build({}), tmp_path / "a")


@pytest.mark.parametrize("names", [("lora",), ("scale",), ("lora", "scale"), ()])
def test_merged_weights_are_a_folder_with_the_same_scores(lm, tmp_path, names):
    given = plain_model.random_given(1, SPEC, *names)
    if not names:
        leaves = {"last/attention/q/weight": lm.params["last"]["attention"]["q"]["weight"] + 0.1}
        given = Given(params=leaves)
    exchange.export_model(lm, artifact(lm, given), tmp_path / "merged")
    again = load(str(tmp_path / "merged"))
    np.testing.assert_allclose(scores(again, Given()), scores(lm, given), rtol=0, atol=1e-5)
    assert np.abs(scores(lm, given) - scores(lm, Given())).max() > 1e-3
    text = "the end <|eos|> 12"
    assert again.tokenizer.encode(text) == lm.tokenizer.encode(text)
    words = again.tokenizer, lm.tokenizer
    for name in ("bos_id", "eos_id", "pad_id", "add_bos", "end_ids", "specials"):
        assert getattr(words[0], name) == getattr(words[1], name), name


def test_merged_weights_all_have_the_dtype_of_the_model(tmp_path):
    folder = tiny_models.write_folder(tmp_path / "model")
    lm = load(str(folder), dtype="bfloat16")
    leaves = Given(params={"final_norm/scale": np.ones(SPEC.width, np.float32)})
    exchange.export_model(lm, artifact(lm, leaves), tmp_path / "merged")
    with safe_open(tmp_path / "merged" / "model.safetensors", "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}


def test_the_text_part_of_a_model_that_sees_images_has_the_fields_that_its_config_leaves_out(
    lm, tmp_path
):
    seeing = lm._replace(config={"text_config": {"num_hidden_layers": 34}})
    write_model(tmp_path, seeing, merge(lm.spec, lm.params, Given()))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["num_hidden_layers"] == 34
    assert written["num_attention_heads"] == 8 and written["vocab_size"] == 262208


def test_a_gguf_becomes_a_folder(tmp_path):
    lm = load(str(tiny_models.write_gguf(tmp_path / "model.gguf")))
    given = Given(params={"final_norm/scale": lm.params["final_norm"]["scale"] * 1.5})
    exchange.export_model(lm, artifact(lm, given), tmp_path / "folder")
    again = load(str(tmp_path / "folder"))
    np.testing.assert_allclose(scores(again, Given()), scores(lm, given), rtol=0, atol=1e-5)
    assert again.tokenizer.encode("in the end 12") == lm.tokenizer.encode("in the end 12")
    assert again.tokenizer.add_bos == lm.tokenizer.add_bos


def test_a_token_without_an_embedding_is_that_of_the_models_own_config(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(lm.tokenizer, "pad_id", lm.spec.vocabulary)
    own = lm._replace(config={**lm.config, "pad_token_id": 2})
    given = plain_model.random_given(1, SPEC, "lora")
    exchange.export_model(own, artifact(lm, given), tmp_path / "merged")
    names = "config.json", "generation_config.json"
    found = [json.loads((tmp_path / "merged" / name).read_text()) for name in names]
    assert [each.get("pad_token_id") for each in found] == [2, None]
    assert [each["bos_token_id"] for each in found] == [1, 1]


def test_the_front_is_written_as_the_model_reads_it(lm, tmp_path):
    given = plain_model.random_given(2, SPEC, "prompt", size=2)
    task = TASK._replace(template="ab{soft} the:{text}")
    ids = exchange.export_front(lm, task, artifact(lm, given, task), tmp_path / "front.npy")
    found = np.load(tmp_path / "front.npy")
    assert found.shape == (len(ids), SPEC.width) and found.dtype == np.float32
    table, vectors = lm.params["embed"]["embedding"], given.sites[PROMPT]
    wanted = [vectors[-1 - i] if i < 0 else table[i] for i in ids]
    np.testing.assert_array_equal(found, wanted)
    assert lm.tokenizer.decode([i for i in ids if i >= 0]) == "<|bos|>ab the:"


def test_bos_in_front_is_an_exports_and_not_a_prompt_that_peft_began_as_a_text(lm, tmp_path):
    given = plain_model.random_given(2, SPEC, "prompt", size=2)
    task, path = TASK._replace(template="{soft}{text}"), tmp_path / "a" / "adapter_config.json"
    exchange.export_adapter(lm, task, artifact(lm, given, task), tmp_path / "a")
    ours = exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / "a")
    assert len(ours.tensors["prompt/vectors"]) == 2
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompt_tuning_init": "TEXT"}))
    theirs = exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / "a")
    assert len(theirs.tensors["prompt/vectors"]) == 3
    assert theirs.manifest["template"].startswith("{soft}<|bos|>")
    begins = TASK._replace(template="<|bos|>{soft}{text}:")  # as a chat's markup does
    theirs = exchange.import_adapter(lm, begins, configs.build({}), tmp_path / "a")
    assert theirs.manifest["template"] == "{soft}<|bos|>{text}:"


def test_what_another_program_cannot_hold_is_refused(lm, tmp_path):
    prompt = plain_model.random_given(3, SPEC, "prompt", size=2)
    behind = TASK._replace(template="{text}{soft}")
    for write, made, message in (
        (exchange.export_model, artifact(lm, prompt), "'prompt/vectors', which cannot be merged"),
        (
            exchange.export_model,
            artifact(lm, plain_model.random_given(3, SPEC, "prefix")),
            "cannot be merged into weights: export it to peft",
        ),
    ):
        with pytest.raises(UserError, match=message):
            write(lm, made, tmp_path / "out")
    for name, advice in (("gpt2", "export it with --to hf"), ("phi3", "method.targets of atten")):
        other = family_models.make(name)[0]
        lora = artifact(other, plain_model.random_given(3, other.spec, "lora"))
        with pytest.raises(UserError, match=f"transposed or in one matrix with others: .*{advice}"):
            exchange.export_adapter(other, TASK, lora, tmp_path / "out")
    with pytest.raises(UserError, match="has a slot behind a field"):
        exchange.export_adapter(lm, behind, artifact(lm, prompt, behind), tmp_path / "out")
    both = plain_model.random_given(3, SPEC, "lora", "scale")
    with pytest.raises(UserError, match="lora, scale: PEFT's adapters are of one kind"):
        exchange.export_adapter(lm, TASK, artifact(lm, both), tmp_path / "out")
    leaves = Given(params={"final_norm/scale": lm.params["final_norm"]["scale"]})
    with pytest.raises(UserError, match="hf"):
        exchange.export_adapter(lm, TASK, artifact(lm, leaves), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists: give the name of a new folder"):
        exchange.export_adapter(lm, TASK, artifact(lm, prompt), tmp_path / "out")


BAD = {
    "another kind": ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA'; supported: PROMPT_TUNING"),
    "code": ({"peft_type": "os.system"}, "peft_type is 'os.system'"),
    "a list": ({"peft_type": ["LORA"]}, "peft_type is"),
    "DoRA": ({"use_dora": True}, "use_dora is True; supported: False"),
    "changed weights": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_"),
    "not always active": ({"alora_invocation_tokens": [3]}, r"alora_invocation_tokens is \[3\]"),
    "ranks by pattern": ({"rank_pattern": {"q": 2}}, "rank_pattern is"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    "no rank": ({"r": 0}, "r is 0, expected a whole number above 0"),
    "an endless alpha": ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
    "another rank": ({"r": 5}, r"r is 5, and the ranks are \[4\]"),
}


@pytest.mark.parametrize("what", BAD)
def test_adapters_that_cannot_be_held_are_refused_by_name(lm, tmp_path, what):
    given = plain_model.random_given(4, SPEC, "lora", size=4)
    exchange.export_adapter(lm, TASK, artifact(lm, given), tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    change, message = BAD[what]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / "a")


def test_an_adapter_of_other_layers_is_refused_by_their_names(lm, tmp_path):
    given = plain_model.random_given(4, SPEC, "lora", size=4)
    exchange.export_adapter(lm, TASK, artifact(lm, given), tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({f"{name}.other": leaf for name, leaf in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"holds .*down_proj.*, for which the model has no place"):
        exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / "a")


@pytest.mark.parametrize("raw", [b"", b"[]", b"[" * 90_000, b"\xff", b"{"])
def test_a_damaged_adapter_is_refused(lm, tmp_path, raw):
    given = plain_model.random_given(4, SPEC, "scale")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        exchange.export_adapter(lm, TASK, artifact(lm, given), tmp_path / name / "a")
        (tmp_path / name / "a" / name).write_bytes(raw)
        with pytest.raises(UserError, match=name):
            exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / name / "a")
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read"):
        exchange.import_adapter(lm, TASK, configs.build({}), tmp_path)


def test_an_adapter_of_an_older_peft_is_named(lm, tmp_path):
    given = plain_model.random_given(4, SPEC, "scale")
    exchange.export_adapter(lm, TASK, artifact(lm, given), tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(UserError, match=r"with safetensors, as a \.bin file can run code"):
        exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / "a")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (2,), (1, 2, 3, 4)])
def test_tensors_of_odd_shapes_are_refused(lm, tmp_path, kind, shape):
    given = plain_model.random_given(4, SPEC, KINDS[kind], size=4)
    task = TASK._replace(template="{soft}<|bos|>{text}")
    exchange.export_adapter(lm, task, artifact(lm, given, task), tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({name: np.ones(shape, np.float32) for name in load_file(path)}, path)
    with pytest.raises(UserError):
        exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / "a")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_in_an_adapter_is_not_waited_for(lm, tmp_path, name):
    given = plain_model.random_given(4, SPEC, "scale")
    exchange.export_adapter(lm, TASK, artifact(lm, given), tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    os.mkfifo(tmp_path / "a" / name)
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        exchange.import_adapter(lm, TASK, configs.build({}), tmp_path / "a")


def test_int8_weights_are_not_merged(tmp_path):
    lm = load(str(tiny_models.write_folder(tmp_path / "model")), quantize="int8")
    given = plain_model.random_given(1, SPEC, "lora")
    with pytest.raises(UserError, match="are int8: load it with quantize=''"):
        exchange.export_model(lm, artifact(lm, given), tmp_path / "merged")


def test_a_written_prompt_is_no_model(lm, tmp_path):
    kept = exchange.keep_prompt(lm, TASK, configs.build({}), "Say: {text} is")
    with pytest.raises(UserError, match="a written prompt, which no weights hold"):
        exchange.export_model(lm, kept, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_a_written_prompt_is_an_artifact(lm, tmp_path):
    rows = [{"text": "in", "label": "1"}, {"text": "{the} end", "label": "0"}]
    config = configs.build({"task": {"template": TASK.template}})
    kept = exchange.keep_prompt(lm, TASK, config, "Say: {text} is", rows)
    save_artifact(kept, tmp_path / "a")
    again = load_artifact(tmp_path / "a")
    assert again.tensors == {} and again.manifest["template"] == "Say: {text} is"
    assert again.manifest["demonstrations"] == rows
    assert again.manifest["config"]["task"]["template"] == "Say: {text} is"
