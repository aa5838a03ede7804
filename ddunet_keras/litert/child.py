"""Calls a function in a process of its own: LiteRT, TensorFlow Lite Micro and Vela end the whole
process on files that they do not expect, hang, take all memory, or print to the process's stderr.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class NotInstalledError(RuntimeError):
    """A program that a check needs is not installed; the message says how to get it."""


class ChildError(RuntimeError):
    """A child process died or raised; the message is one line with its reason."""


MAX_TEXT = 2**20
"""Most bytes of what a child prints that are kept."""

MAX_REASONS = 2
"""Most lines of what a child printed that an error repeats."""

# lines that say nothing of an error
_NOISE = ("INFO:", "WARNING: All log messages", "I0000", "W0000", "[Recording", "Traceback")

_CHILD = """
import pickle, sys
memory = int(sys.argv[2])
if memory:
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except ImportError:  # Windows has no such limit
        pass
with open(sys.argv[1], "rb") as file:
    function, arguments = pickle.load(file)
try:
    answer = True, function(*arguments)
except Exception as error:
    answer = False, str(error) or type(error).__name__
with open(sys.argv[1], "wb") as file:
    pickle.dump(answer, file)
"""


def in_child(
    function: Callable, *arguments: Any, timeout: float = 900, memory: int = 0
) -> tuple[Any, str]:
    """Calls a module's function in a process of its own, which may die without harm to this one.

    Args:
        function: a function of a module, or a `functools.partial` of one.
        *arguments: what can be pickled.
        timeout: seconds after which the process is stopped.
        memory: bytes of address space that the process may have; 0 for no limit. Windows has none.

    Returns:
        (value, text): what the function returned, and the first MiB of what the process printed.

    Raises:
        ChildError: it raised, died or took over `timeout` seconds.

    Example:

    >>> in_child(int, "7")
    (7, '')
    """
    with tempfile.TemporaryDirectory() as folder:
        box, printed = Path(folder) / "call.pickle", Path(folder) / "printed.txt"
        box.write_bytes(pickle.dumps((function, arguments)))
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            with printed.open("wb") as file:
                code = subprocess.run(
                    [sys.executable, "-c", _CHILD, str(box), str(memory)],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONPATH": paths},
                    timeout=timeout,
                ).returncode
        except subprocess.TimeoutExpired:
            raise ChildError(f"stopped after {timeout:g} seconds") from None
        with printed.open("rb") as file:
            text = file.read(MAX_TEXT).decode(errors="replace")
        if code:
            names = {entry.value: entry.name for entry in signal.Signals}
            ended = f"the process ended with {names.get(-code, f'code {code}')}"
            raise ChildError("; ".join([*_reasons(text), ended]))
        done, value = pickle.loads(box.read_bytes())
    if not done:
        raise ChildError("; ".join([*_reasons(text), *value.splitlines()[:1]]))
    return value, text


def _reasons(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(_NOISE)][:MAX_REASONS]
