"""Configurations: each setting is written once, for Python, the command line and `run.json`.

A configuration is a frozen dataclass whose fields come from `setting`: a rule that says which
values are admitted, a default, and a line of help. `check_settings` applies the rules,
`document_settings` adds the lines to the docstring, and `ddunet_keras.cli.options.config_options`
makes options of them. Nothing here imports Keras, so that `ddunet --help` need not wait for it.

>>> @document_settings
... @dataclasses.dataclass(frozen=True)
... class Walk:
...     '''How to walk.'''
...
...     miles: float = setting(Number(float, 0, 30, "0 to 30 miles"), 3.0, help="how far")
...
...     def __post_init__(self):
...         check_settings(self)
>>> Walk().miles
3.0
>>> Walk(miles=99)
Traceback (most recent call last):
ValueError: `miles` must be 0 to 30 miles. Received: miles=99
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np


class Rule:
    """Which values a setting admits.

    A rule has `words`, which say in an error what was expected; `parse`, which turns a word of the
    command line into a value; and `check`, which admits a value, wherever it comes from.
    """

    words = "any value"

    def check(self, name: str, value: Any) -> Any:
        """The value as the configuration keeps it.

        Raises:
            ValueError: the rule does not admit it; the message has its `name`.
        """
        return value

    def parse(self, text: str) -> Any:
        """The value that a word of the command line stands for, to be checked.

        Raises:
            ValueError: it stands for none.
        """
        return text

    def _refuse(self, name: str, value: Any) -> NoReturn:
        raise ValueError(f"`{name}` must be {self.words}. Received: {name}={value!r}")


@dataclasses.dataclass(frozen=True)
class Number(Rule):
    """A number of type `kind` from `low` to `high`."""

    kind: type
    low: float
    high: float
    words: str

    def check(self, name, value):
        admitted = (int, np.integer) if self.kind is int else (int, float, np.number)
        if isinstance(value, bool) or not isinstance(value, admitted):
            self._refuse(name, value)
        if not self.low <= value <= self.high:  # not a number is refused as well
            self._refuse(name, value)
        return self.kind(value)

    def parse(self, text):
        return self.kind(text)


@dataclasses.dataclass(frozen=True)
class Choice(Rule):
    """One of a few words."""

    values: tuple[str, ...]

    @property
    def words(self):
        return f"one of {self.values}"

    def check(self, name, value):
        if not isinstance(value, str) or value not in self.values:
            self._refuse(name, value)
        return value


@dataclasses.dataclass(frozen=True)
class Flag(Rule):
    """True or False; an option without a value."""

    words = "True or False"

    def check(self, name, value):
        if not isinstance(value, (bool, np.bool_)):
            self._refuse(name, value)
        return bool(value)


@dataclasses.dataclass(frozen=True)
class ImageSize(Rule):
    """(height, width), both multiples of `multiple` and 16 or more; an int means a square."""

    multiple: int = 16

    @property
    def words(self):
        what = f"multiples of {self.multiple}" if self.multiple > 1 else "16 or more"
        return f"SIDE or HEIGHT,WIDTH, {what}"

    def check(self, name, value):
        sides = (value, value) if isinstance(value, (int, np.integer)) else value
        if not isinstance(sides, (tuple, list)) or len(sides) != 2:
            self._refuse(name, value)
        for side in sides:
            if isinstance(side, bool) or not isinstance(side, (int, np.integer)):
                self._refuse(name, value)
            if side < 16 or side % self.multiple:
                self._refuse(name, value)
        return (int(sides[0]), int(sides[1]))

    def parse(self, text):
        sides = [int(side) for side in re.split("[,x]", text)]
        return sides[0] if len(sides) == 1 else tuple(sides)


@dataclasses.dataclass(frozen=True)
class Text(Rule):
    """A text in one line that is not empty, and matches `pattern` as a whole."""

    words: str = "a text in one line"
    pattern: str = ".*"

    def check(self, name, value):
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            self._refuse(name, value)
        if not re.fullmatch(self.pattern, value):
            self._refuse(name, value)
        return value


@dataclasses.dataclass(frozen=True)
class FilePath(Rule):
    """A file or a folder, which need not exist."""

    words = "a path"

    def check(self, name, value):
        if not isinstance(value, (str, Path)):
            self._refuse(name, value)
        return Path(value)


@dataclasses.dataclass(frozen=True)
class Each(Rule):
    """One value or more, each by the same rule, as a tuple."""

    rule: Rule

    @property
    def words(self):
        return f"one or more, each {self.rule.words}"

    def check(self, name, value):
        if not isinstance(value, (tuple, list)) or not value:
            self._refuse(name, value)
        return tuple(self.rule.check(name, entry) for entry in value)


POSITIVE = Number(int, 1, 10**9, "a positive integer")
COUNT = Number(int, 0, 10**9, "0 or a positive integer")
SEED = Number(int, 0, 2**32 - 1, "an integer from 0 to 2**32 - 1")
CLASSES = Number(int, 2, 255, "an integer from 2 to 255")  # label 255 is a pixel to ignore
FLAG = Flag()
PATH = FilePath()


def setting(
    rule: Rule,
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    optional: bool = False,
    metavar: str | None = None,
    example: Any = None,
    option: str | None = None,
    positional: bool = False,
) -> Any:
    """A field of a configuration.

    Args:
        rule: which values it admits.
        default: without one the setting has to be given.
        help: what it is, in a line; it stands in the docstring and in `--help`.
        optional: admit None, too, as is done anyway where it is the default.
        metavar: the value's name in `--help`.
        example: what a value may look like, for a file of settings that shows those without one.
        option: the option's name where it is not made from the field's, such as "--qat".
        positional: on the command line a positional argument in place of an option.
    """
    about = {
        "rule": rule,
        "help": help,
        "optional": optional or default is None,
        "metavar": metavar,
        "example": example,
        "option": option,
        "positional": positional,
    }
    return dataclasses.field(default=default, metadata=about)


def check_settings(config: Any) -> None:
    """Applies the rules to all fields; for `__post_init__` of a configuration.

    Values are kept in one form: a path as `Path`, a size as a pair, several values as a tuple.

    Raises:
        ValueError: a rule does not admit a value.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None and field.metadata["optional"]:
            continue
        value = field.metadata["rule"].check(field.name, value)
        object.__setattr__(config, field.name, value)  # it is frozen from here on


def document_settings(config_class: type) -> type:
    """Adds the fields' help to the docstring of a configuration."""
    lines = [
        f"        {field.name}: {field.metadata['help']}."
        for field in dataclasses.fields(config_class)
    ]
    summary = (config_class.__doc__ or "").rstrip()
    config_class.__doc__ = "\n".join([summary, "", "    Args:", *lines, "    "])
    return config_class
