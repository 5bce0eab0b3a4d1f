"""Sets up the tests before jax is imported: eight CPU devices, and caches that the session owns."""

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

# Worker processes inherit the first process's folder, so that all share what one has prepared.
if "PROMPT_TUNING_TEST_FOLDER" not in os.environ:
    folder = tempfile.mkdtemp(prefix="prompt-tuning-tests-")
    os.environ["PROMPT_TUNING_TEST_FOLDER"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

_FOLDER = os.environ["PROMPT_TUNING_TEST_FOLDER"]
os.environ["PROMPT_TUNING_CACHE"] = os.path.join(_FOLDER, "cache")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_FOLDER, "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# XLA's thread pool is as large as this says: with fewer threads than devices a collective can wait
# for a device that never gets one.
os.environ["NPROC"] = "16"

settings.register_profile("tests", derandomize=True, deadline=None, database=None)
# `make test-slow` runs the property tests again with `--hypothesis-profile=slow`.
settings.register_profile("slow", settings.get_profile("tests"), max_examples=1000)
settings.load_profile("tests")
