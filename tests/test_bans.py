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
    *("transformers", "jinja2", "wandb", "trackio", "sentry_sdk", "ctypes"),
}
# The files that may all the same: run code that is named at run time (a config file, the table of
# tasks, a tracker, the commit in the environment's report, the process of a chat template), and ask
# transformers for a tokenizer or a chat, or a hub for a model.
PLACES = {
    "runpy": {"config/read.py"},
    "import_module": {"__init__.py", "data/task.py", "run/tracking.py"},
    "subprocess": {"run/environment.py", "data/chat.py"},
    "socket": {"run/folder.py", "run/processes.py"},
    "transformers": {"models/files/tokenizer.py", "data/render_chat.py"},
    "from_pretrained": {"models/files/tokenizer.py"},
    "trust_remote_code": {"models/files/tokenizer.py"},
    "huggingface_hub": {"models/files/hub.py", "exchange/hub.py"},
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
            found |= {
                f"{setting} that is not False"  # which is permitted nowhere
                for setting in ("allow_pickle", "trust_remote_code")
                if setting in given and ast.unparse(given[setting]) != "False"
            }
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
        "import torch\ntorch.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "eval(text)",
        "yaml.unsafe_load(file)",
        "AutoModel(path, trust_remote_code=True)",
        "import urllib.request",
        "from huggingface_hub import HfApi",
        "runpy.run_path(path)\nimport runpy",
        "importlib.import_module(name)",
    ],
)
def test_what_is_banned_is_found(source):
    assert list(faults(source, "models/other.py"))


def test_transformers_reads_tokenizers_without_code_and_without_the_network():
    name = "models/files/tokenizer.py"
    source = (PACKAGE / name).read_text(encoding="utf-8")
    call = "local_files_only=True, trust_remote_code=False"
    assert source.count(call) == source.count("from_pretrained(") == 1
    assert source.count("import tokenization_auto as auto") == source.count("transformers.") == 1
    for other in (
        source.replace("code=False", "code=True"),
        source.replace("code=False", "code=x"),
    ):
        assert [what for _, what in faults(other, name)] == ["trust_remote_code that is not False"]
    assert [what for _, what in faults(source, "models/other.py")] == [
        *("transformers", "from_pretrained", "trust_remote_code")
    ]


def test_a_socket_is_asked_for_a_name_only():
    """The lock's owner is named with its host; nothing is connected."""
    source = (PACKAGE / "run" / "folder.py").read_text(encoding="utf-8")
    assert set(re.findall(r"socket\.\w+", source)) == {"socket.gethostname"}
