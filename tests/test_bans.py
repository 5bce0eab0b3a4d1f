"""What the package must never do, looked up in its source: run what a file holds, or call home."""

import ast
import re

import pytest
import tiny_runs

PACKAGE = tiny_runs.ROOT / "prompt_tuning_jax"
NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
ATTRIBUTES = {
    *("unsafe_load", "full_load", "from_pretrained", "hf_hub_download", "snapshot_download"),
    *("urlopen", "urlretrieve", "system", "popen", "torch.load", "jit.load", "yaml.load"),
    *("find_class", "load_extension"),
}
KEYWORDS = {"trust_remote_code", "shell", "auto_map"}
MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch", "yaml"),
    *("urllib", "http", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "asyncio", "ssl"),
    *("huggingface_hub", "transformers", "jinja2", "wandb", "trackio", "sentry_sdk", "ctypes"),
}
# What runs code that is named at run time, and the files that may: for a config file, the table of
# tasks, a tracker, the commit in the environment's report.
PLACES = {
    "runpy": {"config/read.py"},
    "import_module": {"__init__.py", "data/task.py", "run/tracking.py"},
    "subprocess": {"run/environment.py"},
    "socket": {"run/folder.py"},
}


def faults(source, name):
    """Each use in a source of what is banned, as (line, what)."""
    for node in ast.walk(ast.parse(source)):
        found = set()
        if isinstance(node, ast.Import):
            found = {alias.name.partition(".")[0] for alias in node.names} & {*MODULES, *PLACES}
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").partition(".")[0]
            found = {base, *(alias.name for alias in node.names)} & {*MODULES, *PLACES}
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                found = {called.id} & {*NAMES, *PLACES}
            elif isinstance(called, ast.Attribute):
                path = ast.unparse(called).split(".")
                found = {path[-1], ".".join(path[-2:])} & {*ATTRIBUTES, *PLACES}
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            found |= given.keys() & KEYWORDS
            pickles = given.get("allow_pickle")
            if pickles is not None and ast.unparse(pickles) != "False":
                found.add("allow_pickle")
        for what in sorted(found):
            if name not in PLACES.get(what, ()):
                yield node.lineno, what


def test_the_package_does_nothing_of_what_is_banned():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 40
    found = [
        (str(path), *fault)
        for path in files
        for fault in faults(path.read_text(encoding="utf-8"), str(path.relative_to(PACKAGE)))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "eval(text)",
        "exec(text)",
        "yaml.unsafe_load(file)",
        "AutoModel(path, trust_remote_code=True)",
        "AutoModel(path, trust_remote_code=False)",
        "AutoTokenizer.from_pretrained(path)",
        "import urllib.request",
        "from http import client",
        "import socket",
        "runpy.run_path(path)\nimport runpy",
        "importlib.import_module(name)",
        "os.system(command)",
    ],
)
def test_what_is_banned_is_found(source):
    assert list(faults(source, "models/other.py"))


def test_a_socket_is_asked_for_a_name_only():
    """The lock's owner is named with its host; nothing is connected."""
    source = (PACKAGE / "run" / "folder.py").read_text(encoding="utf-8")
    assert set(re.findall(r"socket\.\w+", source)) == {"socket.gethostname"}
