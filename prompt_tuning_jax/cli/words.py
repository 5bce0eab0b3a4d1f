"""The words of a command line: what overrides a config, and what was meant by a wrong word."""

import difflib
import os
import re
from collections.abc import Collection
from pathlib import Path

import click

from prompt_tuning_jax.config.schema import EPOCHS, known_as
from prompt_tuning_jax.errors import UserError, nearest, quote, short

# The commands that take keys of the config, and the section that they take.
_SECTIONS = {"train": "", "search": "", "compare": "", "evaluate": "", "predict": "generation."}


def split_overrides(arguments: list[str], commands: Collection[str]) -> tuple[list[str], list[str]]:
    """Splits words into overrides and the words that click knows, without --debug."""
    for word in arguments:
        if word.encode(errors="replace").decode() != word:
            raise UserError(f"{short(word, 200)} is not UTF-8: type it in a UTF-8 terminal")
    overrides = [word for word in arguments if word.startswith("--config.")]
    words = [word for word in arguments if word not in (*overrides, "--debug")]
    # A shell leaves the ~ of --workdir=~/run as it is.
    words = [re.sub("^(--[a-z]+=)~(?=/)", rf"\1{os.path.expanduser('~')}", word) for word in words]
    if words and words[0].startswith("--") and words[0] not in ("--help", "--version"):
        # Options in front of the command go behind it.
        place = next((place for place, word in enumerate(words) if word in commands), 0)
        words.insert(0, words.pop(place))
    command = words[0] if words else ""
    if command and not command.startswith("-") and command not in commands:
        hint = nearest(command, commands)
        known = ", ".join(commands)
        raise UserError(f"{command!r} is not a command{hint}: expected one of {known}")
    for word in overrides:
        if command in ("list", "copy", "env"):
            raise UserError(f"{command} takes no {word!r}: it reads no config")
        if "=" not in word:
            whole = quote(_with_value(arguments, arguments.index(word)))
            raise UserError(f"{word!r} has no value: write {whole} as one word")
    return overrides, words


def check_new(folder: str | None) -> None:
    """Raises a UserError if a folder to write exists, or cannot be made."""
    if not folder:
        return
    if os.path.exists(folder):
        raise UserError(f"{folder!r} exists: give the name of a new folder")
    above = next(filter(os.path.exists, map(str, Path(folder).absolute().parents)))
    if not (os.path.isdir(above) and os.access(above, os.W_OK)):
        raise UserError(f"{folder!r} cannot be made: {above!r} is no folder that can be written")


def at_most_one(given: dict[str, str | None]) -> None:
    """Raises a UserError if several options have a value. The names are what to type."""
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise UserError(f"evaluate takes {' or '.join(chosen)}, not both")


def key_named(error: click.ClickException, words: list[str]) -> str:
    """Returns what to type if a word that click refused names a key of the config, or ""."""
    sections = [_SECTIONS[word] for word in words if word in _SECTIONS]
    option = error.option_name if isinstance(error, click.NoSuchOption) else ""
    near = getattr(error, "possibilities", None) or ()
    if not sections or difflib.get_close_matches(option, near, cutoff=0.8):
        return ""  # an option of the command, mistyped
    for place, word in enumerate(words):
        if word.startswith(option) if option else "=" in word and word in error.format_message():
            name, _, value = _with_value(words, place).lstrip("-").partition("=")
            if "epoch" in name:
                return f"{word!r} counts epochs: {EPOCHS}"
            from prompt_tuning_jax.config.schema import all_keys  # takes a second

            keys = known_as(name.removeprefix("config."), all_keys())
            keys = [key if "=" in key else f"{key}={value}" for key in keys]
            typed = [quote(f"--config.{key}") for key in keys if key.startswith(sections[0])]
            return f"{word!r} names a key of the config: type {' or '.join(typed)}" if typed else ""
    return ""


def _with_value(words: list[str], place: int) -> str:
    """Returns a word together with the value behind it, as one word."""
    word, value = [*words, "--"][place : place + 2]
    return word if "=" in word else f"{word}={'VALUE' if value.startswith('--') else value}"
