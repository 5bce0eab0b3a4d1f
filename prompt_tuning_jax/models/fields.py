"""The fields of a model's `config.json`, checked."""

from collections.abc import Mapping
from typing import Any

from prompt_tuning_jax.errors import UserError, short

MOST = 2**24  # of whole numbers: tables are made of some before tensors are compared with them


class Fields:
    """The fields of a model by the names of `config.json`, with the file for messages. A field that
    is null counts as missing. `names` gives the file's own name of a key where it differs."""

    def __init__(self, values: Mapping[str, Any], source: str, names: Mapping[str, str] = {}):
        self.values, self.source, self.names = values, source, names

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def over(self, values: Mapping[str, Any]) -> "Fields":
        """The same with other values for some keys."""
        return Fields({**self.values, **values}, self.source, self.names)

    def under(self, **values: Any) -> "Fields":
        """The same with values for keys that have none."""
        return self.over({key: self.get(key, value) for key, value in values.items()})

    def by_default(self, **values: Any) -> "Fields":
        """The same with values for keys that are missing; one that is null stays so."""
        return self.over({**values, **self.values})

    def renamed(self, **names: str) -> "Fields":
        """The same with our names for keys that this family calls otherwise."""
        values = {names.get(key, key): value for key, value in self.values.items()}
        shown = {ours: self.names.get(theirs, theirs) for theirs, ours in names.items()}
        return Fields(values, self.source, {**self.names, **shown})

    def refuse(self, key: str, expected: str, how: str = ", expected") -> UserError:
        name = self.names.get(key, key)
        return UserError(f"{self.source}: {name} is {short(self.get(key))}{how} {expected}.")

    def check(self, key: str, *supported: Any) -> Any:
        """Returns a value, or refuses one that the decoder does not compute."""
        value = self.get(key)
        same = (value is each or (value == each and type(each) is not bool) for each in supported)
        if not any(same):
            raise self.refuse(key, ", ".join(map(repr, supported)), "; supported:")
        return value

    def number(self, key: str, kind: type = int, default: Any = None) -> Any:
        """Returns the finite number above 0 under a key, or a default if it is missing."""
        value = self.get(key, default)
        if value is None:
            raise UserError(f"{self.source} does not say {self.names.get(key, key)}.")
        number = isinstance(value, int if kind is int else (int, float))
        most = MOST if kind is int else 2**53
        if not number or isinstance(value, bool) or not 0 < value < most:
            below = f" and below {most:,}" * (number and value > 0)
            raise self.refuse(key, f"a {'whole ' * (kind is int)}number above 0{below}")
        return kind(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def entry(self, key: str) -> Mapping[str, Any]:
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.refuse(key, "an object or null")
        return value
