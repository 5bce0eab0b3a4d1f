"""The task kind `tfds`: a dataset that TensorFlow Datasets prepared as array_record.

It is read without TensorFlow.
"""

import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf import json_format

from prompt_tuning_jax.config.key import plain_scalar, string
from prompt_tuning_jax.data import records
from prompt_tuning_jax.data.records import Fields, Record, Source
from prompt_tuning_jax.data.rows import DAMAGED, Row
from prompt_tuning_jax.errors import UserError, nearest, reason_of

TFDS = "tfds:"
FORMAT = "array_record"
INFO = "dataset_info.json"
_FAULTS = (*DAMAGED, json_format.Error)
KEYS = {
    "columns": records.COLUMNS,
    # Where TensorFlow Datasets keeps what it prepared; '' is its own default.
    "data_dir": string(""),
}


def read_source(config: Any) -> Source:
    """Finds the dataset that the section `task` of a config names, below `task.data_dir`: `tfds:`
    and a name in TFDS, such as `glue/sst2`, or `glue/sst2:2.0.0` for a version that is not the
    newest."""
    import tensorflow_datasets as tfds  # which takes a second

    name = config.name.removeprefix(TFDS)
    root = pathlib.Path(os.path.expanduser(config.data_dir or tfds.core.constants.DATA_DIR))
    folder = find_folder(root, name)
    try:
        builder = tfds.builder_from_directory(folder)
    except _FAULTS as error:
        raise _damaged(folder, error) from error
    kind = getattr(builder.info.file_format, "value", builder.info.file_format)
    if kind != FORMAT:
        raise UserError(
            f"the dataset in {str(folder)!r} is stored as {kind}, expected {FORMAT}: prepare it"
            f" with tfds.builder({name.partition(':')[0]!r}, file_format={FORMAT!r})"
            ".download_and_prepare()"
        )
    read = functools.partial(_read_split, builder, records.task_fields(config), name)
    splits = builder.info.splits
    return Source({split: functools.cache(functools.partial(read, split)) for split in splits})


def _read_split(builder: Any, fields: Fields, name: str, split: str) -> list[Record]:
    rows = _read_rows(builder, split, f"{name}, split {split!r}")
    try:
        return list(records.make_records(rows, fields, hint=records.COLUMNS_HINT))
    except _FAULTS as error:
        raise _damaged(builder.data_dir, error) from error


def find_folder(root: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the folder of a dataset's version below `root`."""
    from tensorflow_datasets.core import Version

    base, _, version = name.partition(":")
    parts = base.split("/")
    plain = all(re.fullmatch(r"\w[\w.-]*", part) for part in parts)
    if not plain or (version and not Version.is_valid(version)):
        raise UserError(f"task.name is {TFDS + name!r}: expected tfds:NAME[/CONFIG][:VERSION]")
    place = root.joinpath(*parts)
    if not place.is_dir():
        beside = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
        raise UserError(
            f"there is no prepared dataset {base!r} in {str(root)!r}{nearest(place.name, beside)}:"
            " set task.data_dir to the folder that TensorFlow Datasets wrote to"
        )
    held = {path.parent.name for path in place.glob(f"{version or '*'}/{INFO}")}
    if versions := [*filter(Version.is_valid, held)]:
        return place / max(versions, key=Version)
    configs = sorted({path.parent.parent.name for path in place.glob(f"*/*/{INFO}")})
    inside = f": it has the configs {', '.join(configs)}" if configs else ""
    advice = f"write {TFDS}{base}/{configs[0]}" if configs else "prepare it again, or name another"
    raise UserError(f"{str(place)!r} holds no prepared version of {name!r}{inside}: {advice}")


def _damaged(folder: Any, error: Exception) -> UserError:
    wrong = f"the dataset in {str(folder)!r} cannot be read ({reason_of(error)})"
    return UserError(f"{wrong}: prepare it again")


def _read_rows(builder: Any, split: str, place: str) -> Iterator[Row]:
    features = builder.info.features
    columns = sorted(features)  # their own order differs between processes
    for number, row in enumerate(builder.as_data_source(split)):
        where = f"{place}, record {number}"
        yield Row(where, {name: _value(row[name], features[name], where) for name in columns})


def _value(value: Any, feature: Any, place: str) -> Any:
    """Returns a feature's value as a text, a number, a list of them, or unchanged."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value)) if value >= 0 else ""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: a text that is not UTF-8: prepare the data again") from error
    if isinstance(value, np.ndarray | list) and np.ndim(value) == 1:
        return [_value(item, None, place) for item in value]
    return plain_scalar(value)
