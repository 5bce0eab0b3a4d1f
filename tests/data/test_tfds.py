"""Prepared datasets of TensorFlow Datasets, written by a builder that the reader does not know."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.encode import group_by_input
from prompt_tuning_jax.data.records import PLACE
from prompt_tuning_jax.data.task import make_task, select_records
from prompt_tuning_jax.data.tfds import INFO, find_folder
from prompt_tuning_jax.errors import UserError

TOPICS = ["sport", "arts"]


class Stories(tfds.core.GeneratorBasedBuilder):
    """Two splits of made-up sentences."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = {
            "sentence": tfds.features.Text(),
            "topic": tfds.features.ClassLabel(names=TOPICS),
            "number": tfds.features.Scalar(dtype=np.int32),
            "summaries": tfds.features.Sequence(tfds.features.Text()),
            "inside": {"title": tfds.features.Text()},
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "held-out": self._generate_examples(4)}

    def _generate_examples(self, count):
        for number in range(count):
            yield (
                number,
                {
                    "sentence": f"naïve {number}",
                    # A record without a label, which is not in the training split.
                    "topic": -1 if (count, number) == (4, 3) else number % 2,
                    "number": number,
                    "summaries": [f"one {number}", f"two {number}"][: 1 + number % 2],
                    "inside": {"title": "x"},
                },
            )


class Marked(Stories):
    """The same with configs to choose from."""

    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="de-en", version="0.9.0"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    Stories(data_dir=made, file_format="array_record").download_and_prepare()
    Marked(data_dir=made, file_format="array_record").download_and_prepare()
    return made


def settings(folder, *overrides):
    words = ["name=tfds:stories", f"data_dir={folder}", "template={soft}{text}:"]
    words += ["columns=('text=sentence','label=topic')", *overrides]
    return configs.load(None, [f"--config.task.{word}" for word in words]).task


def test_splits_and_features_have_the_names_of_the_dataset(folder):
    made = make_task(settings(folder))
    assert made.labels == (("arts", "arts"), ("sport", "sport"))
    assert [*made.load().splits] == ["train", "held-out"] and len(made.load().splits) == 2
    assert select_records(made, "train[1:2]") == [
        {
            "text": "naïve 1",
            "label": "arts",
            "number": "1",
            PLACE: "stories, split 'train', record 1",
        }
    ]
    # The order of columns is the same in every process.
    assert [*select_records(made, "train")[0]] == ["number", "text", "label", PLACE]
    with pytest.raises(UserError, match=r"record 3: the label is empty: .*config\.task\.test='v"):
        select_records(made, "held-out")
    with pytest.raises(UserError, match=r"split 'test' of task tfds:stories is unknown, .*held-"):
        select_records(made, "test")


def test_a_list_of_texts_is_a_record_for_each(folder):
    made = make_task(settings(folder, "columns=('text=sentence',)", "target={summaries}"))
    rows = select_records(made, "held-out")
    assert [row["summaries"] for row in rows] == "one 0,one 1,two 1,one 2,one 3,two 3".split(",")
    inputs, texts = group_by_input(made, rows)
    assert [row["text"] for row in inputs] == [f"naïve {n}" for n in range(4)]
    assert texts[1] == ["one 1", "two 1"] and texts[2] == ["one 2"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("stories", "stories/1.2.0"),
        ("stories:1.2.0", "stories/1.2.0"),
        ("marked/de-en", "marked/de-en/0.9.0"),
        ("marked/de-en:0.9.0", "marked/de-en/0.9.0"),
    ],
)
def test_a_dataset_has_its_name_in_tfds(folder, name, found):
    assert find_folder(folder, name) == folder / found


def test_the_newest_version_is_taken(tmp_path):
    for version in ("1.9.0", "1.10.0", "1.2.0", "incomplete.X_1.11.0"):
        (tmp_path / "d" / version).mkdir(parents=True)
        (tmp_path / "d" / version / INFO).touch()
    assert find_folder(tmp_path, "d").name == "1.10.0"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["name=tfds:storie"], r"no prepared dataset 'storie' in .*\(did you mean 'stories'\?\)"),
        (["name=tfds:stories:9.9.9"], "holds no prepared version of 'stories:9.9.9'"),
        (["name=tfds:marked"], "it has the configs de-en: write tfds:marked/de-en"),
        (["name=tfds:marked/de-n"], r"no prepared dataset 'marked/de-n'.*\(did you mean 'de-en'\?"),
        (["name=tfds:../etc"], "expected tfds:NAME"),
        (["name=tfds:stories:new"], "expected tfds:NAME"),
        (["name=tfds:"], "expected tfds:NAME"),
        (["name=tfds:stories,marked"], "expected tfds:NAME"),
        (["data_dir=no/where"], "set task.data_dir to the folder"),
        (["columns=('label=topic',)"], "no column 'text'; its columns are .*'sentence'"),
        (["columns=('text=inside','label=topic')"], "record 0: 'text' is dict, expected a text"),
        (["columns=('text=summaries','label=topic')"], "record 0: 'text' is list"),
    ],
)
def test_a_missing_dataset_or_column_is_named(folder, overrides, message):
    with pytest.raises(UserError, match=message):
        select_records(make_task(settings(folder, *overrides)), "train")


def test_another_file_format_and_a_damaged_folder_are_refused(folder, tmp_path):
    for name, edit in (
        ("dataset_info.json", lambda text: text.replace("array_record", "tfrecord")),
        ("features.json", lambda text: text[:50]),
        ("dataset_info.json", lambda text: "{"),
        ("features.json", lambda text: "[]"),
        ("stories-train.array_record-00000-of-00001", lambda text: text[: len(text) // 2]),
    ):
        target = tmp_path / str(len(list(tmp_path.iterdir()))) / "stories" / "1.2.0"
        target.mkdir(parents=True)
        for path in (folder / "stories" / "1.2.0").iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        (target / name).write_text(edit((target / name).read_text("latin-1")), "latin-1")
        with pytest.raises(UserError) as caught:
            select_records(
                make_task(settings(target.parents[1], "labels=('arts','sport')")), "train"
            )
        message = str(caught.value)
        assert str(target) in message and "\n" not in message
        assert ("stored as tfrecord, expected array_record" in message) == (
            "tfre" in edit("array_record")
        )


def test_another_process_reads_it_without_tensorflow(folder):
    script = (
        "import sys\n"
        "from prompt_tuning_jax import config\n"
        "from prompt_tuning_jax.data.task import make_task, select_records\n"
        "settings = config.load(None, sys.argv[1:]).task\n"
        "print(ascii(select_records(make_task(settings), 'train[:2]')))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    words = ["name=tfds:stories", f"data_dir={folder}", "template={text}"]
    words += ["columns=('text=sentence','label=topic')"]
    command = [sys.executable, "-c", script, *(f"--config.task.{word}" for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ascii(select_records(make_task(settings(folder)), "train[:2]"))
