"""An artifact from a stranger, given to the program: one sentence, and nothing else happens."""

import test_artifact
import tiny_runs
import watched

from prompt_tuning_jax.run.artifact import MANIFEST, TENSORS

AWAY = {"path": "https://example.org/model.gguf"}
# Manifests that can be read; what they ask for is refused.
CONFIGS = {
    "a model that is a URL": {"model": AWAY},
    "a model of a hub": {"model": {"path": "HuggingFaceTB/SmolLM2-135M"}},
    "a model of a hub's scheme": {"model": {"path": "hf://HuggingFaceTB/SmolLM2-135M"}},
    "a model in a bucket": {"model": {"path": "gs://bucket/model"}},
    "a model far upwards": {"model": {"path": "../" * 60 + "none/model"}},
    "a model with a zero in its name": {"model": {"path": "a\0b"}},
    "a model that writes to the terminal": {"model": {"path": "a\n\x1b[2Jerror: fine\n"}},
    "a model of 100,000 characters": {"model": {"path": "x" * 100_000}},
    "a method that is code": {"method": {"name": "os.system"}},
    "an optimizer that is code": {"optimizer": {"name": "builtins.eval"}},
    "a tracker that is code": {"tracker": "os"},
    "a task that is code": {"task": {"name": "os:system"}},
    "a task that is a path": {"task": {"name": "tfds:../../evil"}, "model": AWAY},
    "data that are a URL": {
        "task": {"name": "files", "files": {"train": "https://example.org/a.csv"}},
        "model": AWAY,
    },
    "vectors that are a pickle": {
        "method": {"init": "file", "init_file": "/tmp/evil.pickle"},
        "model": AWAY,
    },
    "a template that is code": {"task": {"template": "{soft}{text.__class__}"}},
    "a target of 100,000 characters": {"task": {"target": "x" * 100_000, "name": "files"}},
    "a field of 100,000 characters": {"task": {"template": "{" + "x" * 100_000 + "}"}},
    "columns of 100,000 characters": {"task": {"columns": ["text=" + "x" * 100_000]}},
    "a metric of 100,000 characters": {"task": {"metrics": ["x" * 100_000]}},
    "a task of 100,000 characters": {"task": {"name": "x" * 100_000}},
    "a model that has no end": {"model": {"path": "/dev/zero"}},
    "a number that is code": {"steps": "__import__('os').system('id')"},
    "a text of 100,000 characters": {"method": {"init": "x" * 100_000}},
    "a seed of 2^70": {"seed": 2**70},
    "a learning rate of 10^300": {"learning_rate": -1e300},
    "a list of lists": {"prompts": [["a"]]},
    "a section that is a list": {"method": [1]},
    "a section twice": {"method.name": "prefix", "method": {"name": "os.system"}, "model": AWAY},
}
# What an entry of the manifest may do beside its config.
TEMPLATES = {
    "a template that is code": {"template": "{soft}{text.__class__}"},
    "a template of 100,000 braces": {"template": "{" * 100_000},
    "a template that is long": {"template": "x" * 100_000 + "{a.b}"},
    "a template of 100,000 fields": {"template": "{soft}" + "{text}" * 100_000},
}


def hostile(folder):
    """Folders of artifacts, and which file of each is to be named, None where it may be any."""
    made = {}
    for what, change in test_artifact.MANIFESTS.items():
        made[f"manifest, {what}"] = MANIFEST, change, None, None
    for what, raw in test_artifact.RAW.items():
        made[f"no manifest, {what}"] = MANIFEST, None, None, raw
    for what, header in test_artifact.HEADERS.items():
        tensors = test_artifact.safetensors(header, b"\0" * 4)
        made[f"tensors, {what}"] = TENSORS, None, tensors, None
    for what, config in CONFIGS.items():
        made[f"config, {what}"] = None, {"config": config}, None, None
    for what, change in TEMPLATES.items():
        made[f"template, {what}"] = None, {"config": {"model": AWAY}, **change}, None, None
    for number, (what, (named, change, tensors, raw)) in enumerate(made.items()):
        path = test_artifact.plant(folder / str(number), change, tensors)
        if raw is not None:
            (path / MANIFEST).write_bytes(raw)
        yield what, path, named and path / named


def test_an_artifact_from_a_stranger_is_answered_in_one_sentence(tmp_path):
    """Nothing is run, connected to, changed, or opened but its own two files."""
    given = list(hostile(tmp_path))
    assert len(given) >= 30
    # One that gets as far as any: whatever is imported late is imported then.
    first = next(each for each in given if each[0].startswith("config"))
    lines = [["predict", "--artifact", str(path)] for _, path, _ in (first, *given)]
    answers = watched.run(lines, tiny_runs.environment())
    for (what, path, named), answer in zip(given, answers, strict=True):
        assert answer["status"] == 2 and answer["out"] == "", (what, answer)
        message = answer["err"].removesuffix("\n")
        assert message.startswith("error: ") and message.isprintable(), (what, message)
        assert len(message) < 1000, (what, len(message))
        assert named is None or str(named) in message, (what, message)
        allowed = [[repr(str(path / name)), "'rb'"] for name in (MANIFEST, TENSORS)]
        allowed += [[repr(str(path / name)), "'r'"] for name in (MANIFEST, TENSORS)]
        for event, arguments in answer["events"]:
            assert event == "open" and arguments[:2] in allowed, (what, event, arguments)
        assert answer["seconds"] < 1, (what, answer["seconds"])
