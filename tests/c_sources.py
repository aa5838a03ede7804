"""Compiles and runs the C and C++ sources of `tflite/`."""

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TFLITE = Path(__file__).parents[1] / "tflite"
MICRO = TFLITE / "micro"
STUB = Path(__file__).parent / "data" / "tflm_stub.h"
STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"]
SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
needs_gcc = pytest.mark.skipif(not shutil.which("g++"), reason="no C and C++ compiler is here")


def run(*command, **settings):
    done = subprocess.run([str(word) for word in command], capture_output=True, **settings)
    assert done.returncode == 0, done.stderr.decode()
    return done


def stand_in(folder):
    """A folder of headers by TFLM's names, which include the stand-in."""
    for header in re.findall(r'#include "(tensorflow/.+)"', (MICRO / "sky_app.cc").read_text()):
        (folder / header).parent.mkdir(parents=True, exist_ok=True)
        (folder / header).write_text(f'#include "{STUB}"\n')
    return folder


def said(cover):
    """What the programs say of a cloud cover."""
    tenths = math.floor(1000 * cover.fraction + 0.5) / 10
    return f"cloud cover {tenths} %, {cover.okta} okta"
