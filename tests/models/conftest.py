"""Fixtures of the tests of models."""

import pytest
import tiny_models


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder of the small model."""
    return tiny_models.write_folder(tmp_path / "model")


@pytest.fixture
def gguf_path(tmp_path):
    """A GGUF file of the small model."""
    return tiny_models.write_gguf(tmp_path / "model.gguf")
