"""The settings of `ddunet watch`: their defaults, and a TOML file with a comment for each."""

# ruff: noqa: RUF009  `setting` makes a field of a dataclass

from __future__ import annotations

import dataclasses
import json
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddunet_keras.camera.alpaca import AlpacaConfig
from ddunet_keras.camera.mqtt import MqttConfig
from ddunet_keras.camera.records import TIME_SOURCES
from ddunet_keras.camera.safety import SafetyConfig
from ddunet_keras.camera.sources import is_url, shown_url
from ddunet_keras.files import DataError, StrPath, read_text, write_text
from ddunet_keras.presets import DEFAULT
from ddunet_keras.settings import (
    COUNT,
    FLAG,
    PATH,
    POSITIVE,
    Choice,
    Each,
    Number,
    Text,
    check_settings,
    document_settings,
    setting,
)
from ddunet_keras.sky.bayer import NO_MOSAIC, PATTERNS
from ddunet_keras.sky.reading import CHANNEL_ORDERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class SourceText(Text):
    """A folder, a file or an address; a path is taken as its text."""

    def check(self, name, value):
        if isinstance(value, str) and is_url(value):
            shown_url(value)  # its error does not have the password
            return value
        return super().check(name, os.fspath(value) if isinstance(value, Path) else value)


@document_settings
@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """What `ddunet watch` watches, and how.

    Raises:
        ValueError: a setting is out of its range.

    Example:

    >>> WatchConfig("frames", interval=0)
    Traceback (most recent call last):
    ValueError: `interval` must be 0.5 to 3600 seconds. Received: interval=0
    """

    source: str = setting(
        SourceText("a folder, a file or an http(s) address"),
        help="where the frames come from: a folder, a file that is replaced, or an http(s) address",
        metavar="SOURCE",
        example="/home/pi/allsky/images",
    )
    out: Path = setting(
        PATH, Path("watch"), help="folder for the log, state.json and pictures", metavar="DIR"
    )
    model: str = setting(
        Text(), DEFAULT, help="a .tflite or .keras file, or a preset, int8", metavar="MODEL"
    )
    threads: int | None = setting(
        POSITIVE,
        None,
        help="threads that run a .tflite file; else one for each core",
        metavar="N",
        example=2,
    )
    delegate: str | None = setting(
        Text(),
        None,
        help="edgetpu, or the library of another LiteRT delegate",
        metavar="NAME",
        example="edgetpu",
    )
    threshold: float = setting(
        Number(float, 1e-6, 1 - 1e-6, "a number between 0 and 1"),
        0.5,
        help="probability from which a pixel counts as cloud",
        metavar="P",
    )
    horizon: str | None = setting(
        Text(),
        None,
        help="where frames show sky: a mask picture (white is sky), circle:x,y,r in pixels, or "
        "auto, which finds the disc of a fisheye",
        metavar="MASK|circle:x,y,r|auto",
        example="/home/pi/horizon.png",
    )
    zone: tuple[str, ...] | None = setting(
        Each(Text()),
        None,
        help="parts of the sky whose cover is told, too: zenith:DEGREES, circle:x,y,r, or a mask",
        metavar="ZONE",
        example=("zenith:30",),
    )
    bayer: str | None = setting(
        Choice((*PATTERNS, NO_MOSAIC)),
        None,
        help="gray files hold the mosaic of a colour sensor with this pattern; NONE: they do not",
        example="RGGB",
    )
    channel_order: str = setting(
        Choice(CHANNEL_ORDERS), "rgb", help="bgr: files were written with red and blue exchanged"
    )
    interval: float = setting(
        Number(float, 0.5, 3600, "0.5 to 3600 seconds"),
        5.0,
        help="seconds between two looks for new frames",
        metavar="SECONDS",
    )
    max_age: float = setting(
        Number(float, 1, 86_400, "1 to 86400 seconds"),
        600.0,
        help="seconds after which a frame is old, and after which a camera without a new one is "
        "recorded as missing",
        metavar="SECONDS",
    )
    time_from: str = setting(
        Choice(("auto", *TIME_SOURCES)),
        "auto",
        help="what tells when a frame was taken: its Exif or FITS header, the date in its name, "
        "the time of its file, this computer's clock; auto: the first of these that is there",
    )
    backlog: bool = setting(
        FLAG,
        False,
        help="measure frames that are old as well: those that are there when it first starts, and "
        "those that came while it did not run",
    )
    thumbnail_days: int = setting(
        COUNT, 30, help="days of which small overlays are kept; 0: none are made", metavar="N"
    )

    def __post_init__(self) -> None:
        check_settings(self)


SECTIONS: dict[str, type] = {
    "watch": WatchConfig,
    "safety": SafetyConfig,
    "alpaca": AlpacaConfig,
    "mqtt": MqttConfig,
}
"""The sections of the file, and the configuration of each."""

WIDTH = 100
"""Longest line of a comment in the file."""

Values = dict[str, dict[str, Any]]
"""Section -> setting -> value."""


def read_config(path: StrPath) -> Values:
    """Reads a TOML file; what it does not have is left to the defaults.

    A path may begin with ~/, the user's home.

    Raises:
        DataError: it is no TOML, or has an unknown section or setting, or a value out of range.

    Example:

    >>> _ = (tmp / "watch.toml").write_text('[watch]\\ninterval = 5')
    >>> read_config(tmp / "watch.toml")
    {'watch': {'interval': 5}}
    """
    try:
        content = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: is not valid TOML: {error}") from None
    for section, values in content.items():
        if not isinstance(values, dict):
            raise DataError(f"{path}: {section} stands in no section, such as [watch]")
        if section not in SECTIONS:
            raise DataError(f"{path}: [{section}] is none of {', '.join(SECTIONS)}")
        fields = {field.name: field for field in dataclasses.fields(SECTIONS[section])}
        for name, value in values.items():
            if name not in fields:
                raise DataError(f"{path}: [{section}] has no setting {name}")
            rule = fields[name].metadata["rule"]
            if isinstance(rule, Each) and isinstance(value, str):
                value = [value]  # one of several may stand alone
            values[name] = _with_home(value)
            try:
                rule.check(name, values[name])
            except ValueError as error:
                raise DataError(f"{path}: [{section}]: {error}") from None
    return content


def _with_home(value: Any) -> Any:
    """A value in which ~/ at the start is the user's home, as the shell has it."""
    if isinstance(value, list):
        return [_with_home(entry) for entry in value]
    is_in_home = isinstance(value, str) and value.startswith("~/")
    return os.path.expanduser(value) if is_in_home else value


def make_config(section: str, values: Values) -> Any:
    """The configuration of a section.

    Raises:
        ValueError: a setting is missing or out of its range.

    Example:

    >>> make_config("watch", {"watch": {"source": "frames"}}).interval
    5.0
    """
    config_class = SECTIONS[section]
    given = values.get(section, {})
    for field in dataclasses.fields(config_class):
        if field.default is dataclasses.MISSING and field.name not in given:
            raise DataError(f"{field.name} is missing: {field.metadata['help']}")
    return config_class(**given)


def write_config(path: StrPath, values: Values) -> None:
    """Writes a TOML file with all settings: those given, defaults for the others, each explained.

    Only its owner may read it, as an address may hold a password.

    Raises:
        DataError: there is such a file already.
        WriteError: it cannot be written.
    """
    if os.path.lexists(path):
        raise DataError(f"{path}: is there already; give another name, or remove it")
    write_text(path, config_text(values))
    os.chmod(path, 0o600)


def config_text(values: Values) -> str:
    """What `write_config` writes.

    Example:

    >>> lines = config_text({"watch": {"source": "frames"}}).splitlines()
    >>> lines[2], lines[5]
    ('[watch]', 'source = "frames"')
    """
    lines = ["# Settings of `ddunet watch`. A line that starts with # is not read."]
    for section, config_class in SECTIONS.items():
        lines += ["", f"[{section}]"]
        for field in dataclasses.fields(config_class):
            lines += ["", *_setting_lines(field, values.get(section, {}))]
    return "\n".join(lines) + "\n"


def _setting_lines(field: dataclasses.Field, values: Mapping[str, Any]) -> list[str]:
    """The comment on a setting, and its value; of one without any, an example of it."""
    rule = field.metadata["rule"]
    comment = field.metadata["help"]
    if isinstance(rule, Choice):
        comment += f" ({', '.join(rule.values)})"
    elif isinstance(rule, Number):
        comment += f" ({rule.words})"
    has_default = field.default not in (dataclasses.MISSING, None)
    if has_default:
        comment += f"; default {_toml(field.default)}"
    lines = textwrap.wrap(comment, WIDTH, initial_indent="# ", subsequent_indent="# ")
    value = values.get(field.name, field.default if has_default else None)
    if value is None:
        return [*lines, f"# {field.name} = {_toml(field.metadata['example'])}"]
    return [*lines, f"{field.name} = {_toml(value)}"]


def _toml(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    if isinstance(value, (str, Path)):
        # a basic string of TOML has the escapes of JSON
        return json.dumps(str(value), ensure_ascii=False)
    return str(value)
