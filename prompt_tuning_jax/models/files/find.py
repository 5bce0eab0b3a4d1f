"""Finds the files of a model by its path or name, and reads the JSON among them."""

import os
import re
from pathlib import Path
from typing import Any

from prompt_tuning_jax.config.read import parse_json
from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.models.files.gguf import is_gguf
from prompt_tuning_jax.models.files.packaged_models import PACKAGED, find_packaged

FOLDER = "a folder with config.json and safetensors"
# A name on the hub, USER/NAME, and a revision behind @ if any; no part begins with a dot.
HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?<!\.gguf)(?:@(\w[\w.-]*(?:/\w[\w.-]*)*))?", re.ASCII)


def find_model(path: str, weights: bool = True) -> Path:
    """Returns the GGUF file or the folder of a model; raises a UserError for anything else. A name
    on the hub, which is not a path here, is downloaded into the cache, maybe without `weights`."""
    if path in PACKAGED:
        if packaged := find_packaged(path):
            return packaged
        install = PACKAGED[path]["install"]
        raise UserError(f"the packaged model '{path}' is not installed; {install}.")
    found, expected = Path(os.path.expanduser(path)), f"a GGUF file, {FOLDER}"
    try:
        if (named := HUB.fullmatch(path)) and not found.exists():
            from prompt_tuning_jax.models.files.hub import fetch  # takes a while

            found = fetch(named[1], named[2] or "main", weights)
        if found.is_dir():
            problem = "" if (found / "config.json").is_file() else "is a folder without config.json"
        elif found.exists():
            problem = "" if found.is_file() and is_gguf(found) else "is not a GGUF file"
        else:
            from prompt_tuning_jax.models.files.hub import nearest_model

            problem = f"does not exist{nearest_model(path)}"
            expected = f"{expected}, {', '.join(PACKAGED)} or a name on the hub, USER/NAME"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    if problem:
        raise UserError(f"the model {short(path, 200)} {problem}; expected {expected}.")
    return found


def pin(path: str) -> str:
    """Returns a name on the hub with the commit of its files, and any other path as it is."""
    named, found = HUB.fullmatch(path), find_model(path)
    return f"{named[1]}@{found.name}" if named and found != Path(path) else path


def hub_name(pinned: str) -> str:
    """Returns the name on the hub in what `pin` returned, or "" for another path."""
    return pinned[:-41] if re.fullmatch(r".+/.+@[0-9a-f]{40}", pinned) else ""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file; raises a UserError for anything else."""
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
