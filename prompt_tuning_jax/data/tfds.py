"""Any dataset that TensorFlow Datasets prepared as array_record, read without TensorFlow."""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format

from prompt_tuning_jax.data.records import Record, Source, Wanted, records, sources, wanted
from prompt_tuning_jax.data.settings import TFDS
from prompt_tuning_jax.errors import UserError, nearest

FORMAT = "array_record"
# What the library and its parsers raise for files that are not what they should be.
_FAULTS = (
    json_format.Error,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
INFO = "dataset_info.json"


class Splits(Mapping[str, list[Record]]):
    """The splits of a prepared dataset by its own names; each is read when it is asked for."""

    def __init__(self, builder: Any, want: Wanted, name: str):
        """Takes a builder, what is wanted of the data, and the dataset's name for errors."""
        self._builder, self._want, self._name = builder, want, name
        self._read: dict[str, list[Record]] = {}

    def __getitem__(self, split: str) -> list[Record]:
        if split not in self._builder.info.splits:
            raise KeyError(split)
        if split not in self._read:
            place = f"{self._name}, split {split!r}"
            try:
                self._read[split] = list(_records(self._builder, split, self._want, place))
            except _FAULTS as error:
                raise _damaged(self._builder.data_dir, error) from error
        return self._read[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._builder.info.splits)

    def __len__(self) -> int:
        return len(self._builder.info.splits)


def source(config: Any) -> Source:
    """Finds the dataset that the section `task` of a config names, as `tfds:NAME`.

    NAME is what TFDS calls it: `ag_news`, `glue/sst2`, `glue/sst2:2.0.0`; of several versions the
    newest is taken. Its folder is below `task.data_dir`.

    Raises:
        UserError: it is not there, not whole, or not in array_record files.
    """
    name = config.name.removeprefix(TFDS)
    root = pathlib.Path(os.path.expanduser(config.data_dir or tfds.core.constants.DATA_DIR))
    folder = find(root, name)
    try:
        builder = tfds.builder_from_directory(folder)
    except _FAULTS as error:
        raise _damaged(folder, error) from error
    kind = builder.info.file_format
    kind = getattr(kind, "value", kind)
    if kind != FORMAT:
        raise UserError(
            f"the dataset in {str(folder)!r} is stored as {kind}, expected {FORMAT}: prepare it"
            f" with tfds.builder({name.partition(':')[0]!r}, file_format={FORMAT!r})"
            ".download_and_prepare()"
        )
    return Source(Splits(builder, wanted(config), name))


def find(root: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the folder of a dataset's version below `root`.

    Raises:
        UserError: no such folder, or several configs to choose from.
    """
    base, _, version = name.partition(":")
    parts = base.split("/")
    if not all(part.isidentifier() or part.replace(".", "").isalnum() for part in parts) or (
        version and not _version(version)
    ):
        raise UserError(
            f"task.name is {TFDS + name!r}: expected tfds:NAME, tfds:NAME/CONFIG or"
            " tfds:NAME/CONFIG:VERSION"
        )
    place = root.joinpath(*parts)
    if not place.is_dir():
        beside = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
        raise UserError(
            f"there is no prepared dataset {base!r} in {str(root)!r}{nearest(place.name, beside)}:"
            " set task.data_dir to the folder that TensorFlow Datasets wrote to"
        )
    if version:
        place = place / version
    found = sorted(place.glob(f"*/{INFO}"), key=lambda path: _version(path.parent.name))
    if (place / INFO).is_file():
        return place
    if found and _version(found[-1].parent.name):
        return found[-1].parent
    configs = sorted({path.parent.parent.name for path in place.glob(f"*/*/{INFO}")})
    inside = f": it has the configs {', '.join(configs)}" if configs else ""
    written = f"write {TFDS}{base}/{configs[0]}" if configs else "prepare it again, or name another"
    raise UserError(f"{str(place)!r} holds no prepared version of {name!r}{inside}: {written}")


def _damaged(folder: Any, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:100]
    return UserError(
        f"the dataset in {str(folder)!r} cannot be read ({type(error).__name__}: {reason}): prepare"
        " it again"
    )


def _version(name: str) -> tuple[int, ...]:
    parts = name.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def _records(builder: Any, split: str, want: Wanted, place: str) -> Iterator[Record]:
    features = builder.info.features
    columns = sorted(features)  # their own order differs between processes
    fields = sources(columns, want, place)
    for number, row in enumerate(builder.as_data_source(split)):
        where = f"{place}, record {number}"
        values = {name: _value(row[name], features[name], where) for name in columns}
        yield from records(values, fields, want, where)


def _value(value: Any, feature: Any, place: str) -> Any:
    """A feature's value as `records` takes it: a text, a number, a list of texts, or no text."""
    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value)) if value >= 0 else ""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: a text that is not UTF-8: prepare the data again") from error
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | list) and np.ndim(value) == 1:
        return [_value(item, None, place) for item in value]
    return value
