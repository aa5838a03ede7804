"""The package declares what it imports, and ships what it says it ships."""

import ast
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
PACKAGE_DATA = SETTINGS["tool"]["setuptools"]["package-data"]["ddunet_keras"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "ethosu": "ethos-u-vela",
    "paho": "paho-mqtt",
    "tf_keras": "tf-keras",
}
"""Name in an import -> name on PyPI, where it is not the same with hyphens."""

KERAS_BACKENDS = {"jax", "torch"}
"""Installed by those who choose them."""


def names(requirements):
    return {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in requirements}


def imported(path):
    """Names of the distributions that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    third_party = found - set(sys.stdlib_module_names) - {"ddunet_keras"}
    return {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in third_party}


BASE = names(PROJECT["dependencies"])
DECLARED = BASE.union(*(names(extra) for extra in PROJECT["optional-dependencies"].values()))


def test_every_import_is_declared():
    used = set().union(*(imported(path) for path in (ROOT / "ddunet_keras").rglob("*.py")))
    assert used, "nothing was read"
    assert used - KERAS_BACKENDS <= DECLARED


def test_the_runtime_is_in_the_base_install():
    optional = {"matplotlib", "tflite-micro", "ethos-u-vela"}  # imported where they are asked for
    for path in (ROOT / "ddunet_keras" / "litert").rglob("*.py"):
        assert imported(path) - optional <= BASE, path.name


@pytest.mark.parametrize("package", ["tensorflow", "ai-edge-litert", "flatbuffers"])
def test_private_interfaces_have_an_upper_bound(package):
    requirements = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["train"]
    (found,) = [text for text in requirements if names([text]) == {package}]
    assert "<" in found


def test_python_has_no_upper_bound():
    assert PROJECT["requires-python"] == ">=3.10"


def test_both_licences_are_named_and_shipped():
    assert PROJECT["license"] == "Apache-2.0 AND CC-BY-NC-4.0"
    assert "ddunet_keras/weights/LICENSE" in PROJECT["license-files"]
    for name in PROJECT["license-files"]:
        assert (ROOT / name).stat().st_size > 10_000  # the whole text
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "Apache-2.0" in citation and "CC-BY-NC-4.0" in citation


def test_the_data_that_the_package_ships_exists():
    for pattern in PACKAGE_DATA:
        assert list((ROOT / "ddunet_keras").glob(pattern)), pattern
