"""Fixtures of the tests of models."""

import pytest
import tiny_models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder for this test alone."""
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder of the small model."""
    return tiny_models.write_folder(tmp_path / "model")


@pytest.fixture
def gguf_path(tmp_path):
    """A GGUF file of the small model."""
    return tiny_models.write_gguf(tmp_path / "model.gguf")
