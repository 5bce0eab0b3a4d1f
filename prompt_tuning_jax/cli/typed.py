"""What to type instead of words that no command takes, such as --steps 10 for --config.steps=10."""

import difflib
from collections.abc import Sequence

import click

from prompt_tuning_jax.config.other_names import EPOCHS, known_as
from prompt_tuning_jax.errors import quote


def explain(error: click.ClickException, words: Sequence[str]) -> str:
    """Returns what click found wrong with a command line; for the name of a key of the config,
    what to type."""
    said, option = error.format_message(), None
    if isinstance(error, click.NoSuchOption):
        option = error.option_name
        if difflib.get_close_matches(option, error.possibilities or (), cutoff=0.8):
            return said  # an option of the command, mistyped
    for place, word in enumerate(words):
        if word.startswith(option) if option else "=" in word and word in said:
            name, _, value = with_value(words, place).lstrip("-").partition("=")
            command = getattr(getattr(error, "ctx", None), "info_name", "")
            return _keys(name.removeprefix("config."), value, word, command) or said
    return said


def with_value(words: Sequence[str], place: int) -> str:
    """Returns a word together with the value behind it, as one word."""
    word, value = [*words, "--"][place : place + 2]
    return word if "=" in word else f"{word}={'VALUE' if value.startswith('--') else value}"


def _keys(name: str, value: str, word: str, command: str) -> str:
    sections = {"train": "", "evaluate": "", "predict": "generation."}
    if command not in sections:
        return ""
    if "epoch" in name:
        return f"{word!r} counts epochs: {EPOCHS}"
    from prompt_tuning_jax.config.schema import all_keys  # takes a second

    keys = [key for key in known_as(name, all_keys()) if key.startswith(sections[command])]
    typed = [quote(f"--config.{key}" if "=" in key else f"--config.{key}={value}") for key in keys]
    return f"{word!r} names a key of the config: type {' or '.join(typed)}" if keys else ""
