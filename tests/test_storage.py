import os

import pytest
from safetensors import SafetensorError

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.storage import cache_folder, new_folder


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PROMPT_TUNING_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_folder()) == "/home/somebody/.cache/prompt_tuning_jax"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    for name in ("PROMPT_TUNING_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # whom the system does not know
    with pytest.raises(UserError, match="PROMPT_TUNING_CACHE"):
        cache_folder()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("Full")])
def test_a_folder_that_cannot_be_filled_is_one_sentence_and_not_there(tmp_path, error):
    with pytest.raises(UserError, match=r"cannot be written \((No space left.*|Full)\): give"):
        with new_folder(tmp_path / "new") as folder:
            (folder / "first").touch()
            raise error
    assert not list(tmp_path.iterdir())
