"""An artifact from a stranger, given to the program: one sentence, and nothing else happens."""

import json
import os

import tiny_runs
import watched
from test_artifact import entry, plant, safetensors, seal

from prompt_tuning_jax.run.artifact import MANIFEST, TENSORS

DEEP = "x"
for _ in range(200):
    DEEP = [DEEP]

MANIFESTS = {
    "a key that is not known": {"tokenizer_kwargs": {"auto_map": "evil.Code"}},
    "a mistyped key": {"templates": "{text}"},
    "a method that is code": {"method": "os.system"},
    "a method that is a path": {"method": "../../evil"},
    "a method that is a URL": {"method": "https://example.org/evil"},
    "a method that is an object": {"method": {"$import": "os"}},
    "a config that is a list": {"config": ["seed"]},
    "a config nested deeply": {"config": {"seed": DEEP}},
    "metrics nested deeply": {"metrics": {"loss": DEEP}},
    "labels nested deeply": {"labels": DEEP},
    "labels that are not pairs": {"labels": [["sport"]]},
    "labels of numbers": {"labels": [[1, 2]]},
    "a label twice": {"labels": [["sport", "sports"], ["sport", "tech"]]},
    "a label's word twice": {"labels": [["sport", "one"], ["tech", "one"]]},
    "a model without a fingerprint": {"model": {"name": "m", "spec": {}}},
    "a model with a loader": {
        "model": {"name": "m", "fingerprint": "f", "spec": {}, "loader": "evil"}
    },
    "a model that is a URL": {"model": "https://example.org/model"},
    "a template that is a number": {"template": 7},
    "a length below 0": {"max_length": -1},
    "a length that is 2^4000": {"max_length": -(2**4000)},
    "a switch that is a number": {"add_bos": 1},
    "a later format": {"format": 2},
    "a format that is a text": {"format": "1"},
    "versions that are a list": {"versions": []},
    "a checksum that is a list": {"tensors_sha256": ["0"]},
    "another tensors file": {"tensors": "../other.safetensors"},
    "a calibration of texts": {
        "calibration": {"by": "os", "examples": 1, "scale": ["x"], "bias": []}
    },
    "demonstrations that are no records": {"demonstrations": [[1]]},
}

RAW = {
    "10 MB": b'{"format": "' + b"x" * 10_000_000 + b'"}',
    "nested 500,000 deep": b"[" * 500_000,
    "objects nested 100,000 deep": b'{"a":' * 100_000,
    "an empty file": b"",
    "a number": b"1",
    "a list": b"[]",
    "NaN": b'{"format": NaN}',
    "a number of 5,000 digits": b'{"format": ' + b"9" * 5000 + b"}",
    "not UTF-8": b"\xff\xfe{}",
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "a lone surrogate": seal({"format": 1, "template": "x"}).replace(b'"x"', b'"\\ud800"'),
}

HEADERS = {
    "a shape of 2^62": {"prompt/vectors": entry((2**62,), 0, 2**64)},
    "a shape of 2^62 and no bytes": {"prompt/vectors": entry((2**62, 0), 0, 0)},
    "a shape of 10,000 axes": {"prompt/vectors": entry((1,) * 10_000)},
    "an end beyond the file": {"prompt/vectors": entry((10**9,), 0, 4 * 10**9)},
    "a type that is not known": {"prompt/vectors": entry(dtype="PICKLE")},
    "integers": {"prompt/vectors": entry(dtype="I32")},
    "a path upwards": {"../../evil": entry()},
    "an absolute path": {"/etc/passwd": entry()},
    "a name of 20,000 parts": {"a/" * 20_000 + "b": entry()},
    "a leaf that is a branch": {"a/b": entry((1,), 0, 4), "a/b/c": entry((0,), 4, 4)},
    "no collection": {"vectors": entry()},
    "no tensor": {},
    "nested deeply": b"[" * 60_000,
    "duplicate keys": b'{"a/b": %b, "a/b": %b}'
    % (json.dumps(entry((1,), 0, 4)).encode(), json.dumps(entry((0,), 4, 4)).encode()),
    "100 KB": {"prompt/" + "x" * 100_000: entry()},
}

AWAY = {"path": "https://example.org/model.gguf"}
# Manifests that can be read; their configs are refused.
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
# Hostile entries beside the config.
TEMPLATES = {
    "a template that is code": {"template": "{soft}{text.__class__}"},
    "a template of 100,000 braces": {"template": "{" * 100_000},
    "a template that is long": {"template": "x" * 100_000 + "{a.b}"},
    "a template of 100,000 fields": {"template": "{soft}" + "{text}" * 100_000},
}


def hostile(folder):
    """Yields folders of artifacts, and the file of each that the error names; None is any."""
    made = {}
    for what, change in MANIFESTS.items():
        made[f"manifest, {what}"] = MANIFEST, change, None, None
    for what, raw in RAW.items():
        made[f"no manifest, {what}"] = MANIFEST, None, None, raw
    for what, header in HEADERS.items():
        tensors = safetensors(header, b"\0" * 4)
        made[f"tensors, {what}"] = TENSORS, None, tensors, None
    for what, config in CONFIGS.items():
        made[f"config, {what}"] = None, {"config": config}, None, None
    # As an unknown method's, its section would be left out.
    unknown = {"method": "mine", "config": {"method.name": "mine", "model": AWAY}}
    made["config, an unknown method outside of its section"] = None, unknown, None, None
    for what, change in TEMPLATES.items():
        made[f"template, {what}"] = None, {"config": {"model": AWAY}, **change}, None, None
    for number, (what, (named, change, tensors, raw)) in enumerate(made.items()):
        path = plant(folder / str(number), change, tensors)
        if raw is not None:
            (path / MANIFEST).write_bytes(raw)
        yield what, path, named and path / named


def test_an_artifact_from_a_stranger_is_answered_in_one_sentence(tmp_path):
    """Nothing is run, connected to, changed, or opened but its own two files, and the user's token
    for a hub."""
    given = list(hostile(tmp_path))
    assert len(given) >= 30
    # First one that gets far, so that all late imports are done.
    first = next(each for each in given if each[0].startswith("config"))
    lines = [["predict", "--artifact", str(path)] for _, path, _ in (first, *given)]
    answers = watched.run(lines, tiny_runs.environment())
    for (what, path, named), answer in zip(given, answers, strict=True):
        assert answer["status"] == 2 and answer["out"] == "", (what, answer)
        message = answer["err"].removesuffix("\n")
        assert message.startswith("error: ") and message.isprintable(), (what, message)
        assert len(message) < 1000, (what, len(message))
        assert named is None or str(named) in message, (what, message)
        assert what.startswith("no manifest") or "checksum" not in message, (what, message)
        allowed = [[repr(str(path / name)), "'rb'"] for name in (MANIFEST, TENSORS)]
        allowed += [[repr(str(path / name)), "'r'"] for name in (MANIFEST, TENSORS)]
        if what.endswith("a model of a hub"):
            allowed.append([repr(os.path.join(os.environ["HF_HOME"], "token")), "'r'"])
        for event, arguments in answer["events"]:
            assert event == "open" and arguments[:2] in allowed, (what, event, arguments)
        assert answer["seconds"] < 1, (what, answer["seconds"])
