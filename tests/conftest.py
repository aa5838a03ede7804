"""The data sets of ../shared, for tests that need them."""

import os
import warnings
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


@pytest.fixture
def eagerly():
    """Without graphs: tracing one takes longer than the few steps of a test."""
    tensorflow = pytest.importorskip("tensorflow")
    tensorflow.config.run_functions_eagerly(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Even though the `tf.config", UserWarning)
        yield
    tensorflow.config.run_functions_eagerly(False)


NO_REGULAR_FILES = ("missing", "folder", "dangling", "loop", "fifo", "device")


@pytest.fixture(params=NO_REGULAR_FILES)
def put_no_file(request):
    """Puts what is no regular file at a path: a folder, a pipe, a link to nothing..."""

    def put(path):
        kind = request.param
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "dangling":
            path.symlink_to("nowhere")
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        return kind

    return put
