"""What to type instead of words that no command takes, such as --steps 10 for --config.steps=10."""

import difflib

import click

from prompt_tuning_jax.config.other_names import is_epochs, known_as
from prompt_tuning_jax.config.schema import EPOCHS
from prompt_tuning_jax.errors import quote


def explain(error: click.ClickException, words: list[str]) -> str:
    """Returns what is wrong with a command line, and what to type if it names a key of a config.

    Args:
      error: of click.
      words: what was typed, the command first, without overrides.
    """
    said = error.format_message()
    found = _find_key(error, said, words) if isinstance(error, click.UsageError) else None
    if not found or words[0] not in ("train", "evaluate", "predict"):
        return said
    word, name, value = found
    if is_epochs(name):
        return f"{word!r} counts epochs: {EPOCHS}"
    from prompt_tuning_jax.config.schema import all_keys

    keys = [key for key in known_as(name, all_keys()) if _takes(words[0], key)]
    typed = " or ".join(
        quote(f"--config.{key}" if "=" in key else f"--config.{key}={value}") for key in keys
    )
    return f"{word!r} names a key of the config: type {typed}" if keys else said


def _find_key(error, said, words) -> tuple[str, str, str] | None:
    """Returns the word that click did not know, and the name and the value in it, if any."""
    if isinstance(error, click.NoSuchOption):
        if difflib.get_close_matches(error.option_name, error.possibilities or (), cutoff=0.8):
            return None  # an option of the command, mistyped
        place = next(n for n, word in enumerate(words) if word.startswith(error.option_name))
        word, *behind = words[place:]
        name, equals, value = word.partition("=")
        if not equals:
            value = behind[0] if behind and not behind[0].startswith("--") else "VALUE"
    else:
        word = next((word for word in words if "=" in word and word in said), "")
        name, _, value = word.partition("=")
    return (word, name.strip("-").removeprefix("config."), value) if name else None


def _takes(command: str, key: str) -> bool:
    return command != "predict" or key.startswith("generation.")
