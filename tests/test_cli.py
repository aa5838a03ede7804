import ast
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ddunet_keras
from ddunet_keras import cli
from ddunet_keras.data.splits import Split
from ddunet_keras.data.synthetic import synthetic_sky, write_synthetic
from ddunet_keras.files import read_gray, write_image
from ddunet_keras.presets import DEFAULT, preset_file
from ddunet_keras.sky.reading import read_image

HEAVY = ("astropy", "keras", "tensorflow", "jax", "torch", "matplotlib", "scipy", "tqdm")


def python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def ddunet(capsys, *arguments):
    """Exit code, stdout and stderr of a command."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse's way out
        code = error.code
    return code, *capsys.readouterr()


def assert_one_line_error(result, *words):
    code, _, err = result
    assert code == 2
    assert re.fullmatch(r"ddunet: error: .+\n", err), err
    for word in words:
        assert str(word) in err


@pytest.fixture(scope="module")
def skies(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data") / "skies", 36, (32, 48))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    ddunet_keras.DDUNet(image_shape=(32, 48, 3), base_channels=2).save(path)
    return path


@pytest.fixture
def int8_file(tmp_path):
    """A model that needs no Keras."""
    return shutil.copy(preset_file(DEFAULT, "tflite"), tmp_path / "int8.tflite")


@pytest.fixture
def run(tmp_path, int8_file, skies):
    """A folder as `ddunet train` leaves it, but for its model, which is a quick one."""
    (tmp_path / "run").mkdir()
    shutil.copy(int8_file, tmp_path / "run" / "best.tflite")
    dataset = ddunet_keras.open_dataset(skies)
    ddunet_keras.make_split(dataset, "date", seed=3).save(tmp_path / "run" / "split.json")
    return tmp_path / "run"


# --- the package and its entry points


def test_import_and_help_bring_no_framework():
    code = f"""
import sys, ddunet_keras, ddunet_keras.cli
ddunet_keras.open_dataset, ddunet_keras.Segmentation, ddunet_keras.synthetic_sky
try:
    ddunet_keras.cli.main(["predict", "--help"])
except SystemExit as error:
    assert error.code == 0
print("loaded:", *sorted(set(sys.modules) & set({HEAVY!r})))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


def test_editors_see_every_public_name():
    """What type checkers import is what is imported at first use, from the same modules."""
    tree = ast.parse(Path(ddunet_keras.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {name.name: line.module for line in block.body for name in line.names}
    assert {*seen, "__version__"} == set(ddunet_keras.__all__)
    for name, module in seen.items():
        assert getattr(importlib.import_module(module), name) is getattr(ddunet_keras, name)
    assert (Path(ddunet_keras.__file__).parent / "py.typed").exists()


def test_every_public_name_is_there():
    assert set(ddunet_keras.__all__) <= set(dir(ddunet_keras))
    for name in ddunet_keras.__all__:
        assert getattr(ddunet_keras, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ddunet_keras.nothing  # noqa: B018


def test_what_the_train_extra_brings_is_named_where_it_is_missing(skies, tmp_path):
    code = "import sys; sys.modules['keras'] = None\n"
    done = python(code + "import ddunet_keras; ddunet_keras.DDUNet")
    assert "needs keras: in the clone, pip install '.[train]'" in done.stderr.splitlines()[-1]
    code += "from ddunet_keras.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, "train", skies, "--out", tmp_path / "run")
    assert_one_line_error((done.returncode, done.stdout, done.stderr), "keras", "pip install")


@pytest.mark.usefixtures("eagerly")
def test_training_into_a_file_says_a_line_an_epoch(capsys, tmp_path, skies):
    small = ["--variant", "baseline", "--base-channels", 2, "--image-size", 32, "--epochs", 2]
    code, out, err = ddunet(capsys, "train", skies, "--out", tmp_path / "run", *small)
    assert code == 0, err
    assert "\r" not in out and "\b" not in out  # no bar, drawn anew at each step
    assert len(re.findall(r"loss: \S+ .* val_loss: ", out)) == 2


def test_version_and_module(capsys):
    assert ddunet(capsys, "--version")[:2] == (0, f"ddunet {ddunet_keras.__version__}\n")
    done = subprocess.run([sys.executable, "-m", "ddunet_keras"], capture_output=True, text=True)
    assert_one_line_error((done.returncode, done.stdout, done.stderr), "COMMAND", "--help")


# --- wrong arguments


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "fly",
        "train",
        "train DATA",
        "train DATA --out RUN --epochs 0",
        "train DATA --out RUN --epochs many",
        "train DATA --out RUN --batch-size -1",
        "train DATA --out RUN --seed -1",
        "train DATA --out RUN --image-size 90",
        "train DATA --out RUN --image-size 96,100",
        "train DATA --out RUN --image-size 0",
        "train DATA --out RUN --protocol random",
        "train DATA --out RUN --recipe best",
        "train DATA --out RUN --variant half",
        "train DATA --out RUN --num-classes 1",
        "evaluate MODEL DATA --threshold 0",
        "evaluate MODEL DATA --threshold nan",
        "evaluate MODEL DATA --part most",
        "evaluate MODEL DATA --layout tar",
        "predict a.jpg --model MODEL --threshold 1.5",
        "benchmark",
        "ablate DATA",
        "ablate DATA --out DIR --variants half",
        "convert MODEL --size 96 --calibration DATA --also OTHER",
        "synthetic OUT --count 1.5",
        "synthetic OUT --size 8",
        "split DATA",
    ],
)
def test_a_wrong_argument_is_one_line(capsys, arguments):
    assert_one_line_error(ddunet(capsys, *arguments.split()))


@pytest.mark.parametrize("command", ["train", "evaluate", "split", "check"])
@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_a_wrong_data_folder_is_named(capsys, tmp_path, int8_file, command, kind):
    data = tmp_path / "data"
    if kind == "empty":
        data.mkdir()
    elif kind == "file":
        data.write_text("")
    before = [int8_file] if command == "evaluate" else []
    after = ["--out", tmp_path / "out"] if command in ("train", "split") else []
    assert_one_line_error(ddunet(capsys, command, *before, data, *after), data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "random", "truncated", "picture", "folder"])
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_wrong_model_is_named(capsys, tmp_path, skies, model_file, command, kind):
    path = tmp_path / "wrong.keras"
    if kind == "empty":
        path.touch()
    elif kind == "random":
        path.write_bytes(os.urandom(5000))
    elif kind == "truncated":
        path.write_bytes(model_file.read_bytes()[:-5000])
    elif kind == "picture":
        shutil.copy(skies / "images" / "0000.jpg", path)
    elif kind == "folder":
        path.mkdir()
    out = tmp_path / "out"
    arguments = ["predict", skies / "images", "--model", path, "--out", out]
    if command == "evaluate":
        arguments = ["evaluate", path, skies, "--out", out]
    assert_one_line_error(ddunet(capsys, *arguments), path)
    assert not out.exists()


@pytest.mark.slow
def test_tensorflow_adds_no_line_of_its_own(tmp_path, skies):
    (tmp_path / "wrong.keras").write_bytes(b"wrong")
    command = [sys.executable, "-m", "ddunet_keras", "predict", str(skies / "images")]
    command += ["--model", str(tmp_path / "wrong.keras")]
    env = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert_one_line_error((done.returncode, done.stdout, done.stderr), "wrong.keras")


# --- interruption


def test_ctrl_c_is_one_line(tmp_path):
    out = tmp_path / "skies"
    # a job in the background, as a test run may be, ignores Ctrl-C and hands that down
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from ddunet_keras.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "synthetic", str(out), "--count", "100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while not (out / "images" / "0001.jpg").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "ddunet: error: interrupted\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_process_that_is_told_to_end_writes_what_it_has(tmp_path, name):
    write_synthetic(tmp_path / "skies", 1, (32, 48))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2000):
        os.link(tmp_path / "skies" / "images" / "0000.jpg", photos / f"{number}.jpg")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ddunet_keras", "predict", str(photos), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        process.send_signal(getattr(signal, name))
        printed, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + getattr(signal, name)
    assert err == f"ddunet: error: terminated by {name}\n"
    records = json.loads((out / "predictions.json").read_text())
    assert 1 <= len(records) < 2000 and len(records) - len(printed.splitlines()) in (0, 1, 2)
    assert not list(out.glob(".partial-*"))


def test_a_signal_that_is_ignored_stays_ignored():
    code = "import signal; from ddunet_keras.cli.console import terminated_as_exception\n"
    code += "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    code += "with terminated_as_exception(): signal.raise_signal(signal.SIGHUP)\n"
    code += "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN\n"
    code += "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"
    assert python(code).returncode == 0


def test_a_reader_that_leaves_is_no_error():
    code = "import sys; from ddunet_keras import cli\n"
    code += "cli.data.run_check = lambda arguments: print('x' * 10**6, flush=True)\n"
    code += "sys.exit(cli.main(['check', 'data']))"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), err) == (0, "")


# --- commands


def test_synthetic_check_and_split(capsys, tmp_path):
    data = tmp_path / "skies"
    code, out, _ = ddunet(capsys, "synthetic", data, "--count", 18, "--size", "32,48")
    assert code == 0 and str(data) in out
    assert read_image(data / "images" / "0000.jpg").shape == (32, 48, 3)
    assert_one_line_error(ddunet(capsys, "synthetic", data), data)
    assert ddunet(capsys, "check", data)[0] == 0
    path = tmp_path / "split.json"
    assert ddunet(capsys, "split", data, "--out", path, "--seed", 5)[0] == 0
    split = Split.load(path)
    assert (split.protocol, split.seed) == ("date", 5)
    assert len(split.train + split.val + split.test) == 18
    (data / "masks" / "0007.png").write_bytes(b"")
    assert_one_line_error(ddunet(capsys, "check", data), "0007.png")


def predict(capsys, model_file, out, *inputs):
    return ddunet(capsys, "predict", *inputs, "--model", model_file, "--out", out)


def age(path):
    """Makes a file an hour old: a fresh one that cannot be read may be in the making."""
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))


def test_predict_writes_mask_overlay_and_json(capsys, tmp_path, model_file, skies):
    out = tmp_path / "out"
    photos = [skies / "images" / "0000.jpg", tmp_path / "0000.png"]
    write_image(photos[1], synthetic_sky(0, (70, 50))[0])
    code, printed, err = predict(capsys, model_file, out, *photos)
    assert (code, err) == (0, "")
    assert str(photos[0]) in printed and "okta" in printed
    first, second = json.loads((out / "predictions.json").read_text())
    assert first["mask"] != second["mask"]
    assert read_gray(out / first["mask"]).shape == (32, 48)
    assert read_gray(out / second["mask"]).shape == (70, 50)
    assert read_image(out / second["overlay"]).shape == (70, 50, 3)
    assert second["image"] == str(photos[1]) and second["model"] == str(model_file)
    share = (read_gray(out / second["mask"]) == 255).mean()
    assert second["cloud_cover"]["percent"] == pytest.approx(100 * share)
    assert 0 <= second["cloud_cover"]["okta"] <= 8
    assert second["cloud_cover"]["valid_fraction"] == 1


def test_predict_without_a_model_takes_the_package_s_own(tmp_path, skies):
    code = "import sys; from ddunet_keras.cli import main; code = main(sys.argv[1:])\n"
    code += f"print('loaded:', *sorted(set(sys.modules) & set({HEAVY!r}))); sys.exit(code)"
    done = python(code, "predict", skies / "images", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {Path(record["model"]).name for record in found} == {"ddunet_c8_256.tflite"}
    assert len(found) == 36


@pytest.mark.usefixtures("eagerly")
def test_a_preset_is_named_in_place_of_a_file(capsys, tmp_path, skies):
    few = write_synthetic(tmp_path / "few", 2, (32, 48))
    code, printed, _ = ddunet(capsys, "evaluate", "ddunet_c4", few, "--part", "all")
    assert code == 0
    assert "ddunet_c4.keras" in printed
    result = ddunet(capsys, "evaluate", "ddunet_c9", skies, "--part", "all")
    assert_one_line_error(result, "ddunet_c9", "no such file")
    assert_one_line_error(ddunet(capsys, "benchmark", skies / "nowhere"), "nowhere")


def test_predict_prints_json_and_heeds_the_horizon(capsys, tmp_path, int8_file, skies):
    options = ["--json", "--no-overlay", "--horizon", "circle:24,16,10", "--threshold", "0.4"]
    out = tmp_path / "out"
    code, printed, _ = predict(capsys, int8_file, out, skies / "images", *options)
    assert code == 0
    records = [json.loads(line) for line in printed.splitlines()]
    assert records == json.loads((out / "predictions.json").read_text())
    assert len(records) == 36
    valid = read_gray(out / records[0]["mask"]) != 128
    assert valid[16, 24] and not valid[0, 0]
    assert records[0]["cloud_cover"]["valid_fraction"] == pytest.approx(valid.mean())
    assert records[0]["threshold"] == 0.4 and not list(out.glob("*overlay*"))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_of_any_kind_are_printed_in_one_line(tmp_path, skies, encoding):
    names = [b"\xff", b"a\nb", b"\x1b[31m", "ü".encode()]
    (tmp_path / "in").mkdir()
    for name in names:
        path = os.fsencode(tmp_path / "in") + b"/" + name
        shutil.copy(skies / "images" / "0000.jpg", path + b"1.jpg")
        Path(os.fsdecode(path + b"2.jpg")).touch()
        age(path + b"2.jpg")
    command = [sys.executable, "-m", "ddunet_keras", "predict", tmp_path / "in"]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [*command, "--out", tmp_path / "out"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 2
    *found, wrote = done.stdout.splitlines()
    assert len(found) == len(names) and wrote.startswith("wrote")
    assert all("okta" in line and line.isprintable() for line in found)
    errors = done.stderr.splitlines()
    assert len(errors) == len(names)
    assert all("the file is empty" in line and line.isprintable() for line in errors)


def test_predict_goes_on_after_a_broken_photo(capsys, tmp_path, int8_file, skies):
    photos = shutil.copytree(skies / "images", tmp_path / "photos")
    (photos / "0001.jpg").write_bytes(b"no photo")
    age(photos / "0001.jpg")
    result = predict(capsys, int8_file, tmp_path / "out", photos, tmp_path / "nowhere.jpg")
    assert result[0] == 2
    errors = result[2].splitlines()
    assert len(errors) == 2 and all(line.startswith("ddunet: error: ") for line in errors)
    assert "0001.jpg" in errors[0] and "nowhere.jpg" in errors[1]
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 35


def test_evaluate_takes_the_split_of_the_run(capsys, tmp_path, run, skies):
    out = tmp_path / "out"
    code, printed, err = ddunet(capsys, "evaluate", run / "best.tflite", skies, "--out", out)
    assert (code, err) == (0, "")
    assert "| Set |" in printed and (out / "sheet.png").exists()
    result = json.loads((out / "evaluation.json").read_text())
    about = result["about"]
    assert (about["protocol"], about["seed"], about["part"]) == ("date", 3, "test")
    assert about["trained_on"] == 0
    names = {image["name"] for image in result["images"]} | set(result["left_out"])
    assert names == set(Split.load(run / "split.json").test)


@pytest.mark.parametrize("how", ["protocol", "split", "all"])
def test_evaluate_warns_of_images_that_were_trained_on(capsys, tmp_path, run, skies, how):
    trained = Split.load(run / "split.json")
    other = Split("custom", 0, trained.test, (), trained.train)
    other.save(tmp_path / "other.json")
    options, protocol = {
        "protocol": (["--protocol", "paper", "--seed", 2], "paper"),
        "split": (["--split", tmp_path / "other.json"], "custom"),
        "all": (["--part", "all"], "none"),
    }[how]
    code, printed, err = ddunet(capsys, "evaluate", run / "best.tflite", skies, *options)
    assert code == 0
    count = int(re.search(r"trained_on (\d+)", printed)[1])
    assert count > 0 and f"protocol {protocol}" in printed
    assert err.startswith(f"ddunet: warning: the model was trained on {count} of")
    assert err.count("\n") == 1


def test_evaluate_without_a_run_says_that_it_does_not_know(capsys, int8_file, skies):
    code, printed, err = ddunet(capsys, "evaluate", int8_file, skies)
    assert (code, err) == (0, "")
    assert "protocol date" in printed and "trained_on unknown" in printed


def test_evaluate_has_no_empty_part(capsys, int8_file, skies):
    arguments = ["evaluate", int8_file, skies, "--protocol", "paper", "--part", "val"]
    assert_one_line_error(ddunet(capsys, *arguments), "val", "paper")


@pytest.mark.slow
def test_demo_goes_all_the_way_and_may_be_run_again(capsys, monkeypatch, tmp_path):
    out = tmp_path / "demo"
    arguments = ["demo", "--out", out, "--count", 18, "--size", 32, "--epochs", 1]
    code, printed, _ = ddunet(capsys, *arguments)
    assert code == 0
    named = [Path(line.strip()) for line in printed.split("Look at:")[1].splitlines()[1:]]
    assert named and all(list(path.parent.glob(path.name)) for path in named)
    assert json.loads((out / "run" / "run.json").read_text())

    for name in ("data.run_synthetic", "train.run_train"):
        monkeypatch.setattr(f"ddunet_keras.cli.{name}", lambda arguments: None)
    for name in ("evaluate.run_evaluate", "predict.run_predict"):
        monkeypatch.setattr(f"ddunet_keras.cli.{name}", lambda arguments: None)
    assert ddunet(capsys, *arguments)[0] == 0
    assert not (out / "run").exists()


def test_demo_replaces_no_folder_of_others(capsys, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    assert_one_line_error(ddunet(capsys, "demo", "--out", tmp_path), tmp_path)
    assert os.listdir(tmp_path) == ["letter.txt"]
