"""The application of `tflite/micro`, compiled against a stand-in for TensorFlow Lite Micro (TFLM).

The stand-in's network gives the mean of a pixel's channels (see `data/tflm_stub.h`). Where the
environment variable TFLM names TFLM's own sources, with its library built, those are used as well.
"""

import math
import os
import re
import shutil

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from c_sources import MICRO, SANITIZE, STRICT, TFLITE, needs_gcc, run, said, stand_in
from PIL import Image
from tiny_tflite import gray_photo, tiny_tflite

from ddunet_keras.deploy.export import write_c_array
from ddunet_keras.litert.model import operator_name, read_tflite
from ddunet_keras.sky import cloud_cover
from ddunet_keras.sky.horizon_array import write_horizon_array

pytestmark = needs_gcc

SIZE = (16, 32)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A network's C sources, and TFLM's headers."""
    folder = tmp_path_factory.mktemp("project")
    write_c_array(tiny_tflite(SIZE), folder, arena_bytes=4 * math.prod(SIZE))
    return stand_in(folder)


@pytest.fixture(scope="module")
def objects(project, tmp_path_factory):
    """What is C of the application on a computer, compiled."""
    folder = tmp_path_factory.mktemp("objects")
    for source in (project / "ddunet_model.c", MICRO / "sky.c", MICRO / "board_host.c"):
        flags = ["-std=c11", *STRICT, *SANITIZE, "-I", project, "-I", MICRO]
        run("gcc", *flags, "-c", source, "-o", folder / f"{source.stem}.o")
    return list(folder.iterdir())


def build(project, objects, folder, *options):
    """The application on a computer, warnings being errors."""
    sources = [MICRO / "main.cc", MICRO / "sky_app.cc"]
    flags = ["-std=c++17", "-fno-exceptions", *STRICT, *SANITIZE, "-I", project, "-I", MICRO]
    program = folder / "sky"
    run("g++", *flags, *options, *sources, *objects, "-o", program)
    return program


STATIC = "-DTF_LITE_STATIC_MEMORY"


@pytest.fixture(scope="module")
def program(project, objects, tmp_path_factory):
    return build(project, objects, tmp_path_factory.mktemp("program"), STATIC)


def ppm(*images):
    return b"".join(
        f"P6\n{image.shape[1]} {image.shape[0]}\n255\n".encode() + image.tobytes()
        for image in images
    )


def pgm(data, shape):
    """The masks of PGM files, one after another."""
    header = f"P5\n{shape[1]} {shape[0]}\n255\n".encode()
    parts = data.split(header)
    assert parts[0] == b""
    return [np.frombuffer(part, np.uint8).reshape(shape) for part in parts[1:]]


READY = f"sky: 32 x 16 pixels, {4 * 512} of {4 * 512} bytes of the arena in use, no horizon"


@pytest.mark.parametrize("namespace", ["tflite", "tflite::micro"])
def test_frames_become_masks(project, objects, tmp_path, namespace):
    program = build(project, objects, tmp_path, STATIC, f"-DSTUB_NAMESPACE={namespace}")
    frames = [gray_photo(SIZE, seed) for seed in range(2)]
    roof = np.zeros((*SIZE, 3), np.uint8)
    done = run(program, input=ppm(frames[0], roof, frames[1]))
    clouds = [frame[..., 0] >= 128 for frame in frames]
    for mask, cloud in zip(pgm(done.stdout, SIZE), clouds, strict=True):
        np.testing.assert_array_equal(mask, cloud * 255)
    covers = [cloud_cover(cloud) for cloud in clouds]
    expected = [READY, said(covers[0]), "cannot tell: black", said(covers[1])]
    assert done.stderr.decode().splitlines() == expected


def test_a_frame_of_another_size_is_averaged(program):
    photo = gray_photo(SIZE)
    large = np.repeat(np.repeat(photo, 5, axis=0), 3, axis=1)
    done = run(program, input=ppm(large))
    (mask,) = pgm(done.stdout, SIZE)
    np.testing.assert_array_equal(mask, (photo[..., 0] >= 128) * 255)


def test_a_horizon_is_used_if_it_is_there(project, objects, tmp_path):
    valid = np.zeros(SIZE, bool)
    valid[3:, 5:30] = True
    folder = tmp_path / "with"
    shutil.copytree(project, folder)
    write_horizon_array(folder / "ddunet_horizon.h", valid, SIZE)
    photo = gray_photo(SIZE)
    done = run(build(folder, objects, tmp_path, STATIC), input=ppm(photo))
    (mask,) = pgm(done.stdout, SIZE)
    cloud = photo[..., 0] >= 128
    np.testing.assert_array_equal(mask, np.where(valid, cloud * 255, 128))
    ready, cover = done.stderr.decode().splitlines()
    assert ready.endswith("with a horizon")
    assert cover == said(cloud_cover(np.where(valid, cloud, 255)))


def test_a_horizon_of_another_size_does_not_compile(project, objects, tmp_path):
    folder = tmp_path / "with"
    shutil.copytree(project, folder)
    write_horizon_array(folder / "ddunet_horizon.h", np.ones((8, 8), bool), (8, 8))
    with pytest.raises(AssertionError, match="for another size"):
        build(folder, objects, tmp_path, STATIC)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((STATIC, "-DSKY_ARENA_BYTES=2047"), "arena is too small"),
        # the sanitizer of undefined behaviour would be the first to see it
        (("-fno-sanitize=enum,bool",), "is TF_LITE_STATIC_MEMORY defined?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(project, objects, tmp_path, options, message):
    program = build(project, objects, tmp_path, *options)
    with pytest.raises(AssertionError) as error:
        run(program, input=b"")
    (line,) = str(error.value).splitlines()[:1]
    assert line.startswith("sky: ") and message in line


def test_the_arena_goes_where_the_board_wants_it(project, objects, tmp_path):
    section = '-DSKY_ARENA_ATTRIBUTE=__attribute__((section(".psram")))'
    program = build(project, objects, tmp_path, STATIC, section, "-DSKY_ARENA_BYTES=5000")
    assert b".psram" in run("objdump", "-h", program).stdout
    done = run(program, input=ppm(gray_photo(SIZE)))
    assert b"2048 of 5000 bytes" in done.stderr


def test_it_goes_on_after_a_run_that_failed(project, objects, tmp_path):
    program = build(project, objects, tmp_path, STATIC, "-DSTUB_FAILS=1")
    lines = run(program, input=ppm(*[gray_photo(SIZE)] * 3)).stderr.decode().splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [lines[1], *["cannot tell"] * 2]
    assert lines[-1] == "cannot tell: the network failed"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P5\n2 2\n255\n1234", "no PPM"),
        (b"garbage", "no PPM"),
        (b"P6\n2 2\n65535\n12345678", "no PPM"),
        (b"P6\n0 2\n255\n", "refused"),
        (b"P6\n40000 2\n255\n", "refused"),
        (b"P6\n2 2\n255\n12345678901", "ends too early"),
    ],
)
def test_the_host_says_what_is_wrong_with_a_frame(program, data, message):
    with pytest.raises(AssertionError) as error:
        run(program, input=data)
    assert message in str(error.value)


def readme_lines():
    """The commands that tflite/README.md names for a computer."""
    text = (TFLITE / "README.md").read_text()
    (block,) = re.findall(r"```bash\n(gcc .+?)```", text, re.DOTALL)
    return block


def expected_mask(file, photo, library):
    """What the stand-in makes of a gray photo of the file's size; or LiteRT's reference kernels."""
    if library == "stand-in":
        return photo[..., 0] >= 128
    interpreter = Interpreter(
        model_path=str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(given["index"], (photo[None].astype(int) - 128).astype(np.int8))
    interpreter.invoke()
    return interpreter.get_tensor(result["index"])[0, :, :, 0] >= 0


@pytest.mark.parametrize("library", ["stand-in", "TFLM"])
def test_the_line_of_the_readme_builds_a_shipped_file(project, tmp_path, library):
    """As a user runs it, in the repository, with the file's sources in firmware/."""
    environment = dict(os.environ)
    if library == "stand-in":
        empty = tmp_path / "libtflm.a"
        run("ar", "rc", empty)
        environment |= {"TFLM": str(project), "TFLM_LIBRARY": str(empty)}
    elif "TFLM" not in os.environ:
        pytest.skip("the variable TFLM names no sources of TensorFlow Lite Micro")
    file = TFLITE / "models" / "ddunet_c4_96.tflite"
    write_c_array(file, tmp_path / "firmware")
    (tmp_path / "tflite").symlink_to(TFLITE)
    build_line, ffmpeg_line = readme_lines().split("ffmpeg")
    run("bash", "-euc", build_line, cwd=tmp_path, env=environment)

    photo = gray_photo((96, 96))
    frame = np.kron(photo, np.ones((3, 2, 1), np.uint8))
    (mask,) = pgm(run(tmp_path / "sky", input=ppm(frame)).stdout, (96, 96))
    np.testing.assert_array_equal(mask, expected_mask(file, photo, library) * 255)
    if shutil.which("ffmpeg"):
        Image.fromarray(frame).save(tmp_path / "sky.jpg")
        run("bash", "-euc", "ffmpeg" + ffmpeg_line, cwd=tmp_path)
        assert Image.open(tmp_path / "mask.pgm").size == (96, 96)


def test_the_readme_names_the_newest_operator_versions():
    text = (TFLITE / "README.md").read_text()
    (named,) = re.findall(r"need (.+?) in version 3, all other operators in\s+version 2", text)
    versions = {}
    for file in (TFLITE / "models").glob("*.tflite"):
        model = read_tflite(file)
        for operator in model.subgraphs[0].operators:
            version = model.operatorCodes[operator.opcodeIndex].version
            name = operator_name(model, operator)
            versions[name] = max(version, versions.get(name, 1))
    assert {name for name, version in versions.items() if version > 2} == set(
        re.split(", | and ", named)
    )
    assert max(versions.values()) == 3 and "FULLY_CONNECTED" not in versions


def test_the_arduino_sketch_compiles(project, tmp_path):
    """Against the few names of Arduino's that it uses."""
    (tmp_path / "Arduino.h").write_text(
        "struct Port { void begin(long) {} };\nstatic Port Serial;\nstatic void delay(long) {}\n"
        "void setup(); void loop();\n"
    )
    (tmp_path / "board.c").write_text(
        '#include "board.h"\n'
        "int board_capture(sky_input *input) { return input->width == 0; }\n"
        "void board_show(const uint8_t *m, uint32_t w, uint32_t h, const sky_cover *c)\n"
        "{ (void)m, (void)w, (void)h, (void)c; }\n"
        "static int count = 0;\n"
        "void board_cannot_tell(const char *r) { count += r[0] == 'n'; }\n"
        "int board_count(void) { return count; }\n"
    )
    (tmp_path / "main.cc").write_text(
        'void setup(); void loop(); extern "C" int board_count();\n'
        "int main() { setup(); loop(); loop(); return board_count() - 2; }\n"
    )
    flags = ["-I", tmp_path, "-I", project, "-I", MICRO, STATIC]
    sketch = ["-include", "Arduino.h", "-x", "c++", MICRO / "sky.ino", "-x", "none"]
    c = [tmp_path / "board.c", project / "ddunet_model.c", MICRO / "sky.c"]
    objects = []
    for source in c:
        objects.append(tmp_path / f"{source.stem}.o")
        run("gcc", "-std=c11", *STRICT, *flags, "-c", source, "-o", objects[-1])
    cc = [tmp_path / "main.cc", MICRO / "sky_app.cc"]
    run("g++", "-std=c++17", *flags, *sketch, *cc, *objects, "-o", tmp_path / "sketch")
    run(tmp_path / "sketch")  # two missed frames do not stop it
