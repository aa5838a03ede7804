"""Sets up .venv beside this file, then runs the demo or the tests in it.

    python3 run.py demo      train a small DDUNet on synthetic skies, evaluate it, segment photos
    python3 run.py test      the test suite, without the slow tests; with them: test -m ""

Needs Python 3.10 to 3.13, since it installs TensorFlow, and nothing else. (The runtime alone,
`pip install .`, runs on Python 3.14, too.) Further arguments go to `ddunet demo` and to pytest.
The first run installs the dependencies (about 3 GB); later ones start at once.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "ddunet-installed"
OLDEST = (3, 10)
NEWEST = (3, 13)  # TensorFlow has no wheels for 3.14
COMMANDS = {"demo": ["-m", "ddunet_keras", "demo"], "test": ["-m", "pytest"]}
PARTS_OF_AN_ENVIRONMENT = {"pyvenv.cfg", "bin", "lib", "lib64", "Lib", "Scripts", "share"}


def works():
    """Whether the environment's Python starts, has pip and is of a supported version."""
    check = f"import sys, pip; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})"
    try:
        done = subprocess.run([PYTHON, "-c", check], stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return done.returncode == 0


def fingerprint():
    """What the environment depends on, as one word: the dependencies, and where it lies."""
    content = (ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()
    return hashlib.sha256(content).hexdigest()


def make_environment():
    """Makes .venv anew, unless a folder of that name holds something else."""
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError:
        sys.exit("run.py: this Python has no venv; on Debian: sudo apt install python3-venv")
    found = set(os.listdir(VENV)) if VENV.exists() else set()
    # an interrupted removal may have left any part of an environment
    if found and not found & PARTS_OF_AN_ENVIRONMENT:
        sys.exit(f"run.py: {VENV} is not a Python environment: move it away")
    print("run.py: making", VENV, flush=True)
    venv.EnvBuilder(clear=True, symlinks=os.name != "nt", with_pip=True).create(VENV)


def set_up():
    """Makes and fills the environment, unless it is there and complete."""
    wanted = fingerprint()
    usable = works()
    if usable and STAMP.is_file() and STAMP.read_text() == wanted:
        return
    if not usable:
        make_environment()
    print("run.py: installing the dependencies, some minutes", flush=True)
    install = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check"]
    extras = "train,mcu,fits,mqtt,report,archive,dask,test"
    subprocess.run([*install, "--editable", f".[{extras}]"], cwd=ROOT, check=True)
    STAMP.write_text(wanted)  # last: where it is found, all of the environment is there


def main():
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.exit(
            f"run.py: needs Python 3.10 to 3.13, this is {sys.version.split()[0]}; "
            "to run models alone: pip install ."
        )
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    try:
        set_up()
        command = [PYTHON, *COMMANDS[sys.argv[1]], *sys.argv[2:]]
        return subprocess.run(command, cwd=ROOT).returncode
    except subprocess.CalledProcessError as error:
        sys.exit(f"run.py: set-up failed ({' '.join(map(str, error.cmd))}); run it again")
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
