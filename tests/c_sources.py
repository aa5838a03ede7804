"""Compiles and runs the C and C++ sources of `tflite/`."""

import shutil
import subprocess
from pathlib import Path

import pytest

TFLITE = Path(__file__).parents[1] / "tflite"
MICRO = TFLITE / "micro"
STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"]
SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
needs_gcc = pytest.mark.skipif(not shutil.which("g++"), reason="no C and C++ compiler is here")


def run(*command, **settings):
    done = subprocess.run([str(word) for word in command], capture_output=True, **settings)
    assert done.returncode == 0, done.stderr.decode()
    return done
