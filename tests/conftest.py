"""Sets up the tests before jax is imported: eight CPU devices, and caches that the session owns."""

import atexit
import gc
import io
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from hypothesis import settings

# Worker processes inherit the first process's folder, so that all share what one has prepared.
if "PROMPT_TUNING_TEST_FOLDER" not in os.environ:
    folder = tempfile.mkdtemp(prefix="prompt-tuning-tests-")
    os.environ["PROMPT_TUNING_TEST_FOLDER"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

_FOLDER = os.environ["PROMPT_TUNING_TEST_FOLDER"]
os.environ["PROMPT_TUNING_CACHE"] = os.path.join(_FOLDER, "cache")
os.environ["HF_HOME"] = os.path.join(_FOLDER, "huggingface")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_FOLDER, "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# The tests spend most of their time compiling. Code that is not optimized compiles three times as
# fast and rounds differently; XLA_FLAGS="" brings back the optimized code.
_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
# jaxlib 0.12 has no other way to fuse, and ends at a flag that it does not know.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# XLA's thread pool is as large as this says: with fewer threads than devices a collective can wait
# for a device that never gets one.
os.environ["NPROC"] = "16"

# Python would look through millions of objects of compiled programs, for 5 % of the time.
gc.set_threshold(50_000, 20, 50)

settings.register_profile("tests", derandomize=True, deadline=None, database=None, max_examples=50)
# `make test-slow` runs the property tests again with `--hypothesis-profile=slow`.
settings.register_profile("slow", settings.get_profile("tests"), max_examples=1000)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def kept_programs():
    """Divided weights end the reading of compiled programs for a process; here only for a test."""
    yield
    from jax import config
    from jax.experimental.compilation_cache import compilation_cache

    if not config.jax_enable_compilation_cache:
        config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


@pytest.fixture
def home(monkeypatch, tmp_path):
    """An empty current folder, at home with the tiny model and data."""
    import tiny_runs

    monkeypatch.chdir(tmp_path)
    with tiny_runs.at_home(monkeypatch):
        yield tmp_path


@pytest.fixture(scope="session")
def plain():
    """What a run of few steps on the tiny model gives."""
    import tiny_runs

    with pytest.MonkeyPatch.context() as patch, tiny_runs.at_home(patch):
        return tiny_runs.tune()[0]


@pytest.fixture
def typed(monkeypatch, capsys, home):
    """Types a command in `home`: exit status, stdout, stderr."""
    from prompt_tuning_jax.cli import main

    def type_(*arguments, stdin=""):
        given = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", given)
        capsys.readouterr()  # of what was before
        status = main.run([str(word) for word in arguments])
        shown = capsys.readouterr()
        return SimpleNamespace(status=status, out=shown.out, err=shown.err)

    return type_
