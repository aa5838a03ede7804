"""What every test gets: quiet Keras on the CPU, seeded randomness, the data sets of ../shared."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

# before anything imports Keras; a user's own choice stands
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")

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


@pytest.fixture(autouse=True)
def seed():
    """Seeds Python, NumPy and, where it is loaded, Keras with its backend."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  for code under test that draws from it
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)
