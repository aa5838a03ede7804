"""Settings are checked in Python and on the command line by the same rules."""

# ruff: noqa: RUF009  `setting` makes a field of a dataclass

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ddunet_keras.cli.options import Parser, command, config_options, config_values
from ddunet_keras.settings import (
    FLAG,
    PATH,
    POSITIVE,
    Choice,
    Each,
    ImageSize,
    Number,
    Text,
    check_settings,
    document_settings,
    setting,
)


@document_settings
@dataclasses.dataclass(frozen=True)
class Walk:
    """How to walk."""

    where: Path = setting(PATH, help="a place", metavar="PLACE", positional=True)
    shoes: Path = setting(PATH, help="what to wear")
    miles: float = setting(Number(float, 0, 30, "0 to 30 miles"), 3.0, help="how far")
    rests: int | None = setting(POSITIVE, None, help="how many")
    pace: str = setting(Choice(("slow", "fast")), "slow", help="how fast")
    sizes: tuple[int, ...] = setting(Each(POSITIVE), (1, 2), help="of the group")
    map_size: tuple[int, int] = setting(ImageSize(16), (32, 48), help="of the map")
    limit: float | None = setting(POSITIVE, 5, optional=True, help="of something")
    dog: bool = setting(FLAG, False, help="with the dog")
    lunch: bool = setting(FLAG, True, help="go without lunch")

    def __post_init__(self):
        check_settings(self)


def parse(*words, skip=()):
    parser = Parser()
    option = command(parser.add_subparsers(), "walk", None, "walk somewhere")
    config_options(option, Walk, skip)
    return Walk(**config_values(parser.parse_args(["walk", *words]), Walk))


def test_values_are_kept_in_one_form():
    walk = Walk("park", "boots", miles=2, sizes=[np.int64(3)], map_size=64, limit=None)
    assert walk.where == Path("park") and walk.shoes == Path("boots")
    assert (walk.miles, walk.sizes, walk.map_size, walk.limit) == (2.0, (3,), (64, 64), None)
    assert isinstance(walk.miles, float) and type(walk.sizes[0]) is int


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"miles": 31}, "`miles` must be 0 to 30 miles. Received: miles=31"),
        ({"miles": float("nan")}, "Received: miles=nan"),
        ({"miles": "far"}, "Received: miles='far'"),
        ({"rests": 0}, "`rests` must be a positive integer. Received: rests=0"),
        ({"rests": 1.5}, "Received: rests=1.5"),
        ({"rests": True}, "Received: rests=True"),
        ({"pace": "quick"}, "`pace` must be one of .*slow.* Received: pace='quick'"),
        ({"pace": None}, "Received: pace=None"),
        ({"sizes": ()}, r"Received: sizes=\(\)"),
        ({"sizes": 3}, "Received: sizes=3"),
        ({"sizes": (1, -1)}, "Received: sizes=-1"),
        ({"map_size": (32, 40)}, r"multiples of 16. Received: map_size=\(32, 40\)"),
        ({"map_size": (32, 32, 3)}, "Received: map_size="),
        ({"map_size": (True, 32)}, "Received: map_size="),
        ({"dog": 1}, "`dog` must be True or False. Received: dog=1"),
        ({"shoes": 7}, "Received: shoes=7"),
    ],
)
def test_a_value_out_of_range_is_told_back(settings, message):
    with pytest.raises(ValueError, match=message):
        Walk(**{"where": "park", "shoes": "boots", **settings})


def test_options_are_made_of_the_fields():
    assert parse("park", "--shoes", "boots") == Walk("park", "boots")
    words = "park --shoes b --miles 2.5 --rests 1 --pace fast --sizes 4 5 --map-size 32,64 --dog"
    expected = Walk("park", "b", 2.5, 1, "fast", (4, 5), (32, 64), dog=True, lunch=False)
    assert parse(*words.split(), "--no-lunch") == expected


@pytest.mark.parametrize(
    "words, message",
    [
        ("--miles 31", "must be 0 to 30 miles; received '31'"),
        ("--miles nan", "received 'nan'"),
        ("--rests 1.5", "must be a positive integer; received '1.5'"),
        ("--pace quick", "invalid choice: 'quick'"),
        ("--sizes 1 x", "must be a positive integer; received 'x'"),
        ("--map-size 40", "multiples of 16; received '40'"),
        ("--map-size 32,32,32", "received '32,32,32'"),
    ],
)
def test_a_word_out_of_range_is_told_back(words, message, capsys):
    with pytest.raises(SystemExit):
        parse("park", "--shoes", "boots", *words.split())
    assert message in capsys.readouterr().err


def test_help_is_written_once(capsys):
    with pytest.raises(SystemExit):
        parse("--help", skip=("lunch",))
    text = " ".join(capsys.readouterr().out.split())
    assert "PLACE a place" in text and "how far (default: 3.0)" in text
    assert "(default: 1 2)" in text and "(default: 32,48)" in text
    assert "how many" in text and "how many (default" not in text
    assert "lunch" not in text
    assert "        miles: how far.\n" in Walk.__doc__


@pytest.mark.parametrize("value", ["", "  ", "two\nlines", "\x1b[2J", "10 km", 3, None, b"home"])
def test_a_text_is_one_line_and_matches_its_pattern(value):
    rule = Text("one word", "[a-z]+")
    assert rule.check("place", "home") == "home"
    with pytest.raises(ValueError, match=r"`place` must be one word\. Received: place="):
        rule.check("place", value)
