"""`tflite/openmv/sky.py` with stand-ins of OpenMV's modules (see `data/openmv`), in CPython and in
MicroPython: the program, or else the package of npm, whichever is here."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from c_sources import TFLITE

from ddunet_keras.sky import cloud_cover
from ddunet_keras.sky.quality import find_flaw

SCRIPT = TFLITE / "openmv" / "sky.py"
STAND_INS = Path(__file__).parent / "data" / "openmv"
FRAME = (24, 32)
MODEL = (12, 16)
PACKAGE = "@micropython/micropython-webassembly-pyscript@1.27.0"
IN_NODE = """\
import { readFileSync, writeFileSync } from "node:fs";
import { loadMicroPython } from "PACKAGE/micropython.mjs";
const print = (line) => process.stdout.write(line + "\\n");
const python = await loadMicroPython({ stdout: print, linebuffer: true });
for (const name of ["csi.py", "image.py", "ml.py", "frames"]) {
  python.FS.writeFile(name, readFileSync(name));
}
try {
  python.runPython(readFileSync("sky.py", "utf8"));
} catch (error) {
  if (!String(error).includes("SystemExit")) {
    // Node.js itself would print the package's source, and end before all of it is written
    console.error(String(error));
    process.exitCode = 1;
  }
}
if (python.FS.analyzePath("shown").exists) writeFileSync("shown", python.FS.readFile("shown"));
""".replace("PACKAGE", PACKAGE.rpartition("@")[0])
"""JavaScript that runs the script; a file of its own system of files is all that Python sees."""


@pytest.fixture(scope="module")
def npm_micropython(tmp_path_factory):
    """A folder with npm's package; skips the test if it cannot be had."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("neither micropython nor npm (Node.js) is installed")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--silent", "--ignore-scripts", PACKAGE]
    if subprocess.run(command, cwd=folder, capture_output=True).returncode:
        pytest.skip("npm cannot install MicroPython: no network")
    (folder / "run.mjs").write_text(IN_NODE)
    return folder


@pytest.fixture(params=["cpython", "micropython"])
def run_script(request, tmp_path):
    """Runs the script on frames; returns the lines that it says and the frames that it shows."""
    command = [sys.executable, "sky.py"]
    folder = tmp_path
    if request.param == "micropython":
        command = ["micropython", "sky.py"]
        if shutil.which("micropython") is None:
            folder = request.getfixturevalue("npm_micropython")
            command = ["node", "run.mjs"]

    def run(frames, model="ddunet_c4_96.tflite"):
        for module in STAND_INS.glob("*.py"):
            shutil.copy(module, folder)
        text = SCRIPT.read_text().replace("SECONDS = 10", "SECONDS = 0")
        text = text.replace("ddunet_c4_96.tflite", model)
        (folder / "sky.py").write_text(text)
        (folder / "frames").write_bytes(b"".join(frame.tobytes() for frame in frames))
        (folder / "shown").unlink(missing_ok=True)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shown = np.frombuffer((folder / "shown").read_bytes(), np.uint8)
        return done.stdout.splitlines(), shown.reshape(-1, *FRAME, 3)

    return run


def frame_of(grays):
    """A frame of twice the network's size, whose averages are those of gray pixels."""
    noise = np.array([[-3, 3], [2, -2]])
    large = np.kron(grays, np.ones((2, 2), int)) + np.tile(noise, MODEL)
    return np.repeat(large[..., None], 3, axis=-1).astype(np.uint8)


def test_the_cloud_cover_of_frames(run_script):
    rng = np.random.default_rng(0)
    clouds = [rng.random(MODEL) < share for share in (0.4, 0.001, 0.999, 0.9)]
    clouds[1][3, 4] = True  # one cloud
    clouds[2][5, 6] = False  # one gap
    grays = [np.where(cloud, 200, 60) for cloud in clouds]
    lines, shown = run_script([frame_of(gray) for gray in grays])
    covers = [cloud_cover(cloud) for cloud in clouds]
    tenths = [math.floor(1000 * cover.fraction + 0.5) / 10 for cover in covers]
    assert lines == [
        f"cloud cover {t} %, {cover.okta} okta" for t, cover in zip(tenths, covers, strict=True)
    ]
    for cloud, gray, picture in zip(clouds, grays, shown, strict=True):
        mask = np.kron(cloud, np.full((2, 2), 255))[..., None]
        blended = (96 * mask + 159 * frame_of(gray).astype(int)) / 255
        np.testing.assert_allclose(picture, blended, atol=0.51)


def test_frames_that_say_nothing(run_script):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2, (*FRAME, 3))
    dark = np.zeros((*FRAME, 3), int)
    sky = frame_of(np.where(rng.random(MODEL) < 0.5, 200, 60))
    frames = [dark, dark + 255 - noise, dark + 77 + noise, dark + (10, 90, 200), sky]
    frames = [frame.astype(np.uint8) for frame in frames]
    lines, shown = run_script(frames)
    small = [frame.reshape(*MODEL[:1], 2, MODEL[1], 2, 3).mean(axis=(1, 3)) for frame in frames]
    expected = [
        find_flaw(np.floor(pixels + 0.5).astype(np.uint8).reshape(-1, 3)) for pixels in small
    ]
    assert expected == ["black", "saturated", "flat colour", "flat colour", None]
    assert lines[:4] == [f"cannot tell: {reason}" for reason in expected[:4]]
    np.testing.assert_array_equal(shown[:4], frames[:4])  # nothing is drawn on them
    assert lines[4].startswith("cloud cover")


def test_a_file_of_another_kind_is_refused(run_script):
    with pytest.raises(AssertionError, match="two_channels: not a file of two classes"):
        run_script([], "two_channels")
