"""The data sets of ../shared, for tests that need them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items):
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=f"{SHARED} is not here"))


@pytest.fixture
def shared():
    """The folder of data sets; for tests marked `shared`."""
    return SHARED
