"""What every test and docstring example gets: quiet Keras on the CPU, and seeded randomness."""

import os
import random
import sys

import numpy as np
import pytest

import ddunet_keras

# before anything imports Keras; a user's own choice stands
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(autouse=True)
def seed():
    """Seeds Python, NumPy and, where it is loaded, Keras with its backend."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  for code under test that draws from it
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def names_in_docstrings(request, doctest_namespace):
    """The names that every docstring example may use: `np`, `dd` and `tmp`, an empty folder."""
    if isinstance(request.node, pytest.DoctestItem):
        tmp = request.getfixturevalue("tmp_path")
        doctest_namespace.update(np=np, dd=ddunet_keras, tmp=tmp)
