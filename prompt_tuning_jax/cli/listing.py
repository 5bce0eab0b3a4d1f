"""What there is to choose from: recipes, models, methods. Reads docstrings and executes nothing."""

import ast
import re
from pathlib import Path
from typing import Any

from prompt_tuning_jax.errors import UserError, nearest
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models.files import packaged_models as embedded

_PACKAGE = Path(__file__).parents[1]
# Beside the code: in the package where it is installed, in front of it in a checkout.
_CONFIGS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_SECTION = re.compile(r"(?P<name>[A-Z][a-z ]*): (?P<text>.*)")


def recipes() -> dict[str, Path]:
    """The config files that come with the code, by their names without the ending."""
    folder = next((folder for folder in _CONFIGS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.py"))} if folder else {}


def configs() -> list[dict[str, Any]]:
    """Each recipe: name, path, what it does, and the sections of its docstring by name, such as
    command, hardware_and_time, expected."""
    return [
        {"name": name, "path": str(path), **_described(path)} for name, path in recipes().items()
    ]


def models() -> list[dict[str, Any]]:
    """Each embedded model: name, what it is, parameters, bytes, licence, source, and its path, None
    where its package is not installed."""
    listed = []
    for name, model in embedded.EMBEDDED.items():
        facts = {key: getattr(model, key) for key in ("what", "parameters", "bytes", "licence")}
        path = embedded.find(name)
        where = {"source": model.source, "path": None if path is None else str(path)}
        listed.append({"name": name, **facts, **where, "install": model.install})
    return listed


def methods() -> list[dict[str, Any]]:
    """Each method: name, what it does, and the file to read or to copy."""
    folder = _PACKAGE / "methods"
    paths = {name: folder / f"{name}.py" for name in METHODS}
    return [
        {"name": name, "what": _described(path)["what"], "path": str(path)}
        for name, path in paths.items()
    ]


LISTED = {"configs": configs, "models": models, "methods": methods}
# What to do with one of each kind.
NEXT = {
    "configs": "`prompt-tuning copy CONFIG FILE` makes one your own.",
    "models": "--config.model.path takes one of these, a GGUF file, or a Hugging Face folder.",
    "methods": "--config.method.name takes one of these; a config that uses it says how.",
}


def text(kind: str) -> str:
    """What `LISTED[kind]` gives, for people."""
    blocks = []
    for entry in LISTED[kind]():
        shown = {name: value for name, value in entry.items() if name not in ("name", "what")}
        width = max(map(len, shown))
        facts = (f"  {name.replace('_', ' '):<{width}}  {_shown(shown[name])}" for name in shown)
        blocks.append("\n".join([f"{entry['name']}: {entry['what']}", *facts]))
    return "\n\n".join(blocks)


def copy(name: str, target: str, force: bool) -> Path:
    """Writes a recipe as a file of one's own.

    Args:
      name: of a recipe, as `recipes` names it.
      target: the file to write, which ends in .py.
      force: replace a file that is there.

    Returns:
      the file.

    Raises:
      UserError: an unknown recipe, a target that is there or cannot be written.
    """
    known = recipes()
    if name not in known:
        hint = nearest(name, known)
        raise UserError(f"{name!r} is not a config{hint}: there are {', '.join(known)}")
    path = Path(target)
    if path.is_dir():
        raise UserError(f"{target!r} is a folder: name a file, as {str(path / name) + '.py'!r}")
    if path.suffix != ".py":
        raise UserError(f"{target!r} has to end in .py, as a config file does")
    if path.exists() and not force:
        raise UserError(f"{target!r} is there already: give another name, or --force to replace it")
    # The lock and the config library that come with it take a while to import.
    from prompt_tuning_jax.run.folder import atomic_write

    try:
        atomic_write(path, known[name].read_bytes())
    except OSError as error:
        raise UserError(f"cannot write {target!r}: {error.strerror}") from error
    return path


def _described(path: Path) -> dict[str, str]:
    """The docstring of a file: what, its first paragraph, and its sections `Name: text`."""
    try:
        docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    except SyntaxError as error:
        raise UserError(f"{str(path)!r}, line {error.lineno}: {error.msg}: correct it") from error
    what, *rest = re.split(r"\n\s*\n", docstring, maxsplit=1)
    sections: dict[str, str] = {}
    name = ""
    for line in "\n".join(rest).splitlines():
        if match := _SECTION.fullmatch(line):
            name = match["name"].lower().replace(" ", "_")
            sections[name] = match["text"]
        elif line[:1].isspace() and name:
            sections[name] += f" {line.strip()}"
        else:
            name = ""
    return {"what": " ".join(what.split()), **sections}


def _shown(value: Any) -> str:
    if value is None:
        return "not installed"
    return f"{value:,}" if isinstance(value, int) else str(value)
