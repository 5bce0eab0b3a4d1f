"""The commands `list` and `copy`: configs, models, families of models, methods, kinds of tasks.

Configs, methods and tasks are described by the docstrings of their files, which are not executed.
"""

import ast
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompt_tuning_jax.cli.show import facts
from prompt_tuning_jax.errors import UserError, nearest
from prompt_tuning_jax.models.files.packaged_models import PACKAGED, find_packaged

_PACKAGE = Path(__file__).parents[1]
# Installed, the configs lie inside the package; in a checkout, beside it.
_CONFIGS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_SECTION = re.compile(r"^(?P<name>[A-Z][a-z ]*): (?P<text>.*(\n[ \t]+.*)*)", re.MULTILINE)


def config_files() -> dict[str, Path]:
    """Returns the config files that come with the code, by name without the ending."""
    folder = next((folder for folder in _CONFIGS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.py"))} if folder else {}


def find_config(name: str) -> str:
    """Returns the path of a config of `list configs`; raises a UserError for another name."""
    known = config_files()
    if name not in known:
        raise UserError(f"{name!r} is not a config{nearest(name, known)}: give {', '.join(known)}")
    return str(known[name])


# What to do with one of each kind.
NEXT = {
    "configs": "--config takes a name; `prompt-tuning copy CONFIG FILE` copies one, to be edited.",
    "models": "--config.model.path takes one of these, a GGUF file, a folder or a name of the hub.",
    "families": "--config.model.path takes a model of these: its files or its name on the hub.",
    "methods": "--config.method.name takes one of these.",
    "tasks": "--config.task.name takes one of these, as tfds:NAME for a dataset.",
}


def collect(kind: str | None) -> dict[str, list[dict[str, Any]]]:
    """Returns the lists by their kind: one, or all if `kind` is None. Families follow models."""
    if kind is not None and kind not in NEXT:
        raise UserError(f"list takes one of {', '.join(NEXT)}, not {kind!r}{nearest(kind, NEXT)}")
    wanted = ("models", "families") if kind == "models" else (kind,) if kind else NEXT
    return {each: _entries(each) for each in wanted}


def _entries(kind: str) -> list[dict[str, Any]]:
    """Returns name, path, what it does and more, by these names, of each thing of a kind."""
    if kind == "models":
        return [
            {"name": name, **about, "path": (path := find_packaged(name)) and str(path)}
            for name, about in PACKAGED.items()
        ]
    if kind == "families":
        from prompt_tuning_jax.models.families import FAMILIES
        from prompt_tuning_jax.models.files.gguf_spec import ARCHITECTURES

        both, gguf = "a folder or a name on the hub, with safetensors", set(ARCHITECTURES.values())
        return [
            {
                "name": name,
                "what": inspect.getdoc(family.spec),
                "files": f"{both}, or GGUF" if name in gguf else both,
            }
            for name, family in FAMILIES.items()
        ]
    if kind == "configs":
        return [_entry(*config) | describe_file(config[1]) for config in config_files().items()]
    if kind == "methods":
        from prompt_tuning_jax.methods import METHODS

        return [_entry(name, Path(str(method.__file__))) for name, method in METHODS.items()]
    from prompt_tuning_jax.data.task import KINDS

    return [
        _entry(name, _PACKAGE / "data" / f"{name}.py")
        | {"keys": ", ".join(f"task.{key}" for key in kind.keys) or "none of its own"}
        for name, kind in KINDS.items()
    ]


def _entry(name: str, path: Path) -> dict[str, Any]:
    what = describe_file(path)["what"].removeprefix(f"The task kind `{name}`: ")
    return {"name": name, "what": what, "path": str(path)}


def print_lists(found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Prints what `collect` found, for people."""
    for kind, entries in found.items():
        if len(found) > 1:
            print(f"{kind.upper()}\n")
        for entry in entries:
            values = {name.replace("_", " "): _readable(value) for name, value in entry.items()}
            heading = f"{values.pop('name')}: {values.pop('what')}"
            print("\n  ".join([heading, *facts(values)]) + "\n")
        print(f"{NEXT[kind]}\n")


def copy_config(name: str, target: str, force: bool) -> tuple[Path, str]:
    """Copies a config to a file, to be edited; replaces an existing one only with `force`. Returns
    the file, and the command that the config is for."""
    source, path = Path(find_config(name)), Path(target)
    if path.suffix != ".py":
        raise UserError(f"{target!r} has to end in .py, as a config file does")
    if path.exists() and not force:
        raise UserError(f"{target!r} exists: give another name, or --force to replace it")
    # Imported here because it takes a while.
    from prompt_tuning_jax.storage import atomic_write

    try:
        atomic_write(path, source.read_bytes())
    except OSError as error:
        raise UserError(f"cannot write {target!r}: {error.strerror}") from error
    return path, describe_file(source)["command"].split()[1]


def describe_file(path: Path) -> dict[str, str]:
    """Returns a docstring's first paragraph, as `what`, and its sections `Name: text` by name."""
    docstring = ast.get_docstring(ast.parse(path.read_bytes(), str(path))) or ""
    what, _, rest = docstring.partition("\n\n")
    sections = {
        match["name"].lower().replace(" ", "_"): " ".join(match["text"].split())
        for match in _SECTION.finditer(rest)
    }
    return {"what": " ".join(what.split()), **sections}


def _readable(value: Any) -> str:
    if value is None:
        return "not installed"
    return f"{value:,}" if isinstance(value, int) else str(value)
