import json
import shutil

import keras
import numpy as np
import pytest

import ddunet_keras as dd
from ddunet_keras import adaptation, cli
from ddunet_keras.adaptation import MODEL_FILE, adaptation_markdown
from ddunet_keras.files import IGNORE, write_image

SIDE = 32
FAST = {"image_size": (SIDE, SIDE), "batch_size": 8, "skies": 32, "learning_rate": 2e-3}


def strange_camera(image):
    """Red and blue exchanged, and little green: a violet sky."""
    return (image[..., ::-1] * [1.0, 0.5, 0.9]).astype(np.uint8)


def write_frames(root, count, first_seed=500):
    """Frames of the strange camera with masks; returns their covers in percent by name."""
    covers = {}
    seed = first_seed
    while len(covers) < count:
        image, labels = dd.synthetic_sky(seed, (48, 48), "day", "patch")
        seed += 1
        is_mono = np.ptp(image.astype(int), axis=-1).max() < 20
        if is_mono or not 0.1 < (labels == 1).mean() < 0.9:
            continue
        name = f"frame{len(covers):02d}"
        write_image(root / "images" / f"{name}.png", strange_camera(image))
        values = np.where(labels == IGNORE, 128, labels * np.uint8(255))
        write_image(root / "masks" / f"{name}.png", values.astype(np.uint8))
        covers[name] = 100 * labels[labels != IGNORE].mean()
    return covers


def write_covers(root, covers):
    lines = [f"{name},{cover:.0f}" for name, cover in covers.items()]
    (root / "frames.csv").write_text("\n".join(["name,sky", *lines]) + "\n")


@pytest.fixture(scope="module")
def untrained_file(tmp_path_factory):
    keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("model") / "small.keras"
    dd.DDUNet((SIDE, SIDE, 3), base_channels=4, variant="baseline").save(path)
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A small model that knows the day of an ordinary camera."""
    keras.utils.set_random_seed(1)
    skies = [dd.synthetic_sky(seed, (SIDE, SIDE), "day", "patch") for seed in range(96)]
    images, labels = (np.stack(part) for part in zip(*skies, strict=True))
    model = dd.DDUNet((SIDE, SIDE, 3), base_channels=4, variant="baseline")
    model.compile(**dd.RECIPES["plain"].compile_arguments(model, 12, epochs=12))
    model.fit(images / 127.5 - 1, labels, batch_size=8, epochs=12, verbose=0)
    path = tmp_path_factory.mktemp("model") / "small.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("camera")
    return root, write_frames(root, 24)


@pytest.fixture(scope="module")
def adapted(untrained_file, frames, tmp_path_factory):
    """A run of two steps on frames with masks, and the lines that it said."""
    tensorflow = pytest.importorskip("tensorflow")
    lines = []
    out = tmp_path_factory.mktemp("runs") / "masks"
    options = {**FAST, "skies": 8, "steps": 2, "progress": lines.append}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "REPORT_SKIES", 4)
        # to trace graphs takes longer than the two steps
        tensorflow.config.run_functions_eagerly(True)
        try:
            run = dd.adapt(untrained_file, frames[0], out, **options)
        finally:
            tensorflow.config.run_functions_eagerly(False)
    return out, run, lines


# --- what comes of it


def accuracy_by_day(path):
    """Of a model, on photos of the ordinary camera."""
    model = dd.load_model(path)
    right = []
    for seed in range(900, 930):
        image, labels = dd.synthetic_sky(seed, (SIDE, SIDE), "day", "patch")
        counts = labels != IGNORE
        cloud = model.predict_probabilities(image) >= 0.5
        right.append((cloud == labels)[counts].mean())
    return np.mean(right)


@pytest.mark.slow
def test_a_strange_camera_is_learned_and_the_ordinary_one_is_kept(model_file, frames, tmp_path):
    out = tmp_path / "run"
    run = dd.adapt(model_file, frames[0], out, steps=80, **FAST)
    held = run["held_back"]
    assert held["before"]["frames"] == 6
    assert held["after"]["accuracy"] > held["before"]["accuracy"] + 0.1
    assert held["after"]["cover_error"] < held["before"]["cover_error"]
    before, after = accuracy_by_day(model_file), accuracy_by_day(out / MODEL_FILE)
    assert before > 0.75
    assert after > before - 0.05


def test_a_run_folder_holds_a_usual_model(adapted, untrained_file, frames):
    out, run, lines = adapted
    assert {path.name for path in out.iterdir()} == {
        *(MODEL_FILE, "run.json", "report.md", "split.json")
    }
    assert json.loads((out / "run.json").read_text()) == json.loads(json.dumps(run))
    assert run["settings"]["model"] == "small.keras"
    assert run["steps"] == 2
    assert (out / "report.md").read_text() == adaptation_markdown(run)
    split = dd.Split.load(out / "split.json")
    assert list(split.test) == run["frames"]["held_back"]
    split.check(dd.open_dataset(frames[0]))
    assert lines[0] == "frames: 24 with a mask"
    assert any("%, step" in line for line in lines)

    model, before = dd.load_model(out / MODEL_FILE), dd.load_model(untrained_file)
    assert model.get_config() == before.get_config()
    scored = dd.evaluate(model.predict_probabilities, dd.open_dataset(frames[0]), split.test)
    assert scored.overall["image_mean"]["accuracy"] == pytest.approx(
        run["held_back"]["after"]["accuracy"], abs=0.02
    )


def test_batch_normalization_keeps_its_averages(adapted, untrained_file):
    out, _, _ = adapted
    model, before = dd.load_model(out / MODEL_FILE), dd.load_model(untrained_file)
    averages = [w.path for w in model.weights if "moving" in w.path]
    assert averages
    for weight, kept in zip(model.weights, before.weights, strict=True):
        same = np.array_equal(np.array(weight), np.array(kept))
        if "moving" in weight.path:
            assert same
        elif "kernel" in weight.path:
            assert not same


@pytest.mark.slow
def test_numbers_and_words_are_enough(model_file, frames, tmp_path):
    root, covers = frames
    shutil.copytree(root / "images", tmp_path / "camera" / "images")
    write_covers(tmp_path / "camera", covers)
    run = dd.adapt(model_file, tmp_path / "camera", tmp_path / "run", steps=240, **FAST)
    held = run["held_back"]
    assert held["after"]["cover_error"] < 0.7 * held["before"]["cover_error"]
    assert np.isnan(held["after"]["accuracy"])
    assert "n/a" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.slow
def test_an_interruption_leaves_the_last_round(eagerly, model_file, frames, tmp_path):
    lines = []

    def stop(line):
        lines.append(line)
        if "%, step" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dd.adapt(model_file, frames[0], tmp_path / "run", steps=20, progress=stop, **FAST)
    assert "is that of 5 % of the training" in lines[-1]
    assert dd.load_model(tmp_path / "run" / MODEL_FILE).image_shape == (SIDE, SIDE, 3)


@pytest.mark.slow
def test_without_frames_held_back_the_report_says_so(eagerly, model_file, frames, tmp_path):
    run = dd.adapt(model_file, frames[0], tmp_path / "run", steps=1, held_back=0, **FAST)
    assert run["frames"]["held_back"] == []
    assert "held_back" not in run
    assert "says nothing about other frames" in (tmp_path / "run" / "report.md").read_text()


# --- the command


@pytest.fixture
def photos(tmp_path):
    """A folder of four photos."""
    for name in ("a", "b", "c", "d"):
        write_image(tmp_path / f"{name}.png", np.full((20, 30, 3), 90, np.uint8))
    return tmp_path


def ddunet(capsys, *arguments):
    """Exit code and stderr of a command."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse's way out
        code = error.code
    return code, capsys.readouterr().err


@pytest.mark.slow
def test_the_command_adapts(eagerly, capsys, model_file, frames, tmp_path):
    size = ["--image-size", SIDE, "--batch-size", 4, "--skies", 8]
    command = ["adapt", model_file, frames[0], "--out", tmp_path / "run", "--steps", 2, *size]
    code, err = ddunet(capsys, *command, "--no-convert")
    assert code == 0
    assert "18 of 24" not in err
    assert "6 of 24 frames are held back" in err
    assert (tmp_path / "run" / MODEL_FILE).is_file()

    code, err = ddunet(capsys, *command)
    assert code == 2
    assert err.splitlines() == [
        f"ddunet: error: {tmp_path / 'run'}: holds a run; choose another --out"
    ]


@pytest.mark.slow
def test_the_command_makes_an_int8_file(capsys, frames, tmp_path):
    arguments = ["--image-size", SIDE, "--batch-size", 4, "--skies", 8, "--steps", 1]
    code, err = ddunet(
        capsys, "adapt", "ddunet_c4", frames[0], "--out", tmp_path, *arguments, "--size", 64
    )
    assert code == 0, err
    segmenter = dd.Segmenter(tmp_path / "adapted_64x64_cpu.tflite")
    assert segmenter.image_shape == (64, 64, 3)


def test_mistakes_are_one_line(capsys, untrained_file, photos, tmp_path):
    def error_of(folder, *more):
        code, err = ddunet(
            capsys, "adapt", untrained_file, folder, "--out", tmp_path / "run", *more
        )
        assert code == 2
        (line,) = [line for line in err.splitlines() if "error" in line]
        assert not (tmp_path / "run").exists()
        return line

    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in error_of(tmp_path / "empty")
    assert "no such folder" in error_of(tmp_path / "missing")
    (photos / "frames.csv").write_text("name,sky\na,clear\nb,partly\n")
    assert "needed: 2 or more" in error_of(photos)
    assert "no such mask picture" in error_of(photos, "--horizon", tmp_path / "none.png")
    assert "must be a share from 0 to 0.5" in error_of(photos, "--held-back", "0.9")

    write_frames(tmp_path / "odd", 3)
    write_image(tmp_path / "odd" / "masks" / "frame01.png", np.zeros((10, 10), np.uint8))
    assert "mask of 10x10 for an image of 48x48" in error_of(tmp_path / "odd")
