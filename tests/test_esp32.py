"""`tflite/esp32`, compiled and run against stand-ins for ESP-IDF and TFLM (see `data/`)."""

import json
import math
import os
import re
import shlex
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from c_sources import MICRO, SANITIZE, TFLITE, needs_gcc, run, said, stand_in
from tiny_tflite import gray_photo, tiny_tflite

from ddunet_keras.deploy.export import write_c_array
from ddunet_keras.sky import cloud_cover

pytestmark = needs_gcc

SIZE = (16, 32)
MAIN = TFLITE / "esp32" / "main"
STUBS = Path(__file__).parent / "data" / "esp_idf"
SETTLING = 20  # frames that are thrown away after the start


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A network's C sources, and the headers of TFLM and ESP-IDF."""
    folder = tmp_path_factory.mktemp("project")
    write_c_array(tiny_tflite(SIZE), folder, arena_bytes=4 * math.prod(SIZE))
    stand_in(folder)
    own = {path.name for path in [*MAIN.iterdir(), *MICRO.iterdir()]} | {"ddunet_model.h"}
    for source in MAIN.glob("*.[ch]*"):
        for header in re.findall(r'#include "(.+)"', source.read_text()):
            if header not in own:
                (folder / header).parent.mkdir(exist_ok=True)
                (folder / header).write_text(f'#include "{STUBS / "stub.h"}"\n')
    (folder / "esp_attr.h").write_text(f'#include "{STUBS / "stub.h"}"\n')
    return folder


def cmake_words(call):
    """The words of a call in main/CMakeLists.txt."""
    text = (MAIN / "CMakeLists.txt").read_text().replace("${micro}", str(MICRO))
    return shlex.split(re.search(rf"^{call}\((.+?)\)$", text, re.DOTALL | re.MULTILINE)[1])


def build(project, folder, camera="S3_EYE", **settings):
    """The program as main/CMakeLists.txt builds it, with settings of menuconfig."""
    values = {f"CAMERA_{camera}": 1, "SECONDS": 60} | settings
    (folder / "sdkconfig.h").write_text(
        "".join(f"#define CONFIG_SKY_{name} {value}\n" for name, value in values.items())
    )
    words = cmake_words("idf_component_register")
    sources = words[words.index("SRCS") + 1 : words.index("INCLUDE_DIRS")]
    definitions = cmake_words("target_compile_definitions")[2:]
    includes = [word for path in (folder, project, MAIN, MICRO) for word in ("-I", path)]
    flags = ["-Wall", "-Wextra", "-Werror", *SANITIZE, *includes]
    flags += [f"-D{name}" for name in definitions]
    special, _, _, options = cmake_words("set_source_files_properties")
    objects = [folder / "page.html.o"]
    run("ld", "-r", "-b", "binary", words[words.index("EMBED_FILES") + 1], "-o", *objects, cwd=MAIN)
    for name in [*sources, STUBS / "stub.c"]:
        source = project / name if (project / name).exists() else MAIN / name
        standard = ["g++", "-std=gnu++17"] if source.suffix == ".cc" else ["gcc", "-std=gnu17"]
        objects.append(folder / f"{source.name}.o")
        more = options.split(";") if str(source) == special else []
        run(*standard, *flags, *more, "-c", source, "-o", objects[-1])
    program = folder / "sky"
    run("g++", *SANITIZE, *objects, "-z", "noexecstack", "-o", program)
    return program


@pytest.fixture(scope="module")
def with_page(project, tmp_path_factory):
    return build(project, tmp_path_factory.mktemp("page"), WEB_PAGE=1)


def sent(image):
    """A frame as the camera gives it, RGB565 with the high byte first; None: one that failed."""
    if image is None:
        return struct.pack("=3I", 0, 0, 0)
    red, green, blue = np.moveaxis(image.astype(np.uint16), -1, 0)
    data = (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).astype(">u2").tobytes()
    return struct.pack("=3I", image.shape[1], image.shape[0], len(data)) + data


def start_and(*frames):
    """What the camera gives: frames to settle, then each frame after one that is too old."""
    black = np.zeros((4, 4, 3), np.uint8)
    stream = [black] * (SETTLING - 1)
    for frame in frames:
        stream += [black, frame]
    return b"".join(sent(frame) for frame in stream)


def answers(stdout):
    """The pages of each pause: dicts of bytes by uri."""
    pauses = []
    while stdout:
        line, stdout = stdout.split(b"\n", 1)
        uri, length = line.decode().split()
        if uri == "/":
            pauses.append({})
        pauses[-1][uri], stdout = stdout[: int(length)], stdout[int(length) :]
    return pauses


def large(photo):
    """The photo at ten times its size, as a camera sees it."""
    return np.kron(photo, np.ones((10, 10, 1), np.uint8))


def coarse(photo):
    """What RGB565 leaves of grays: 5 bits decide most of the mean."""
    return photo[..., 0] >= 128


def test_frames_become_a_page(with_page):
    photo = gray_photo(SIZE)
    roof = np.zeros((8, 8, 3), np.uint8)
    done = run(with_page, input=start_and(large(photo), None, roof, large(photo)))
    cover = cloud_cover(coarse(photo))
    log = done.stderr.decode().splitlines()
    assert log[0].startswith("sky: 32 x 16 pixels")
    cannot = "W sky: cannot tell: "
    assert log[1:] == [
        f"I sky: {said(cover)}",
        f"{cannot}no frame",
        f"{cannot}black",
        f"I sky: {said(cover)}",
    ]
    pauses = answers(done.stdout)
    states = [json.loads(pause["/state.json"]) for pause in pauses]
    assert states[0]["percent"] == float(said(cover).split()[2])
    assert (states[0]["okta"], states[0]["width"], states[0]["height"]) == (cover.okta, 32, 16)
    assert states[1:3] == [{"reason": "no frame"}, {"reason": "black"}]
    assert states[3] == states[0]
    assert pauses[0]["/mask"] == np.packbits(coarse(photo)).tobytes()
    assert pauses[0]["/"] == (MAIN / "page.html").read_bytes()


def test_without_wifi_it_goes_on(with_page):
    environment = os.environ | {"NO_WIFI": "1"}
    done = run(with_page, input=start_and(large(gray_photo(SIZE))), env=environment)
    log = done.stderr.decode().splitlines()
    assert log[1] == "E sky: no page: ESP_FAIL" and "cloud cover" in log[2]
    assert not done.stdout


def test_deep_sleep_after_each_frame(project, tmp_path):
    program = build(project, tmp_path, DEEP_SLEEP=1, camera="XIAO_S3", SECONDS=300)
    done = run(program, input=start_and(large(gray_photo(SIZE)), None))
    log = done.stderr.decode().splitlines()
    assert "cloud cover" in log[1] and log[2:] == ["sleep 300 s"]


def test_without_camera_it_starts_anew_later(with_page):
    done = run(with_page, input=b"", env=os.environ | {"NO_CAMERA": "1"})
    log = done.stderr.decode().splitlines()
    assert log[0] == "E sky: no camera: ESP_FAIL; is the right board chosen in menuconfig?"
    assert log[1:] == ["E sky: next try in 60 s", "restart"]


def test_the_page_is_javascript_that_parses(tmp_path):
    if not shutil.which("node"):
        pytest.skip("Node.js is not here")
    (script,) = re.findall(r"<script>(.+?)</script>", (MAIN / "page.html").read_text(), re.DOTALL)
    (tmp_path / "page.js").write_text(script)
    run("node", "--check", tmp_path / "page.js")
