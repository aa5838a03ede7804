"""The commands take the networks that DDUNet is compared with, by name."""

import json

import keras
import numpy as np
import pytest
from marks import slow_case

from ddunet_keras import TrainingConfig, build_network, cli, open_dataset, write_synthetic
from ddunet_keras.benchmarks import benchmark
from ddunet_keras.data.splits import Split
from ddunet_keras.deploy.calibrate import Photos
from ddunet_keras.deploy.config import ConversionConfig
from ddunet_keras.deploy.convert import build_stages
from ddunet_keras.deploy.network_graph import build_network_graph, check_network_graph
from ddunet_keras.litert.model import operator_name, read_tflite
from ddunet_keras.litert.run import run_litert_in_child, run_tflm
from ddunet_keras.litert.soundness import check_int8, check_sound
from ddunet_keras.networks.architectures import NETWORKS
from ddunet_keras.networks.cloudunetv2 import LearnedScale

SIZE = (32, 48)

CONVERTED = ("cloudsegnet", "cloudunetv2")
"""Networks whose conversion has a test for both targets."""


@pytest.fixture(scope="module")
def skies(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data") / "skies", 36, SIZE)


@pytest.fixture
def run(network, skies, tmp_path, eagerly):
    """The folder of a training."""
    folder = tmp_path / "run"
    options = ["--network", network, "--epochs", "1", "--image-size", "32,48"]
    options += ["--batch-size", "16", "--recipe", "plain"]
    assert cli.main(["train", str(skies), "--out", str(folder), *options]) == 0
    return folder


@pytest.mark.parametrize(
    "network",
    [
        "cloudsegnet",
        slow_case("ucloudnet_k2"),  # has three outputs
    ],
)
def test_train_evaluate_predict_and_benchmark(network, run, skies, tmp_path, capsys):
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["network"] == network
    assert record["settings"]["variant"] is None
    assert record["parameters"] == NETWORKS[network].parameters

    best = str(run / "best.keras")
    assert cli.main(["evaluate", best, str(skies)]) == 0
    assert "MIoU" in capsys.readouterr().out
    photo = sorted((skies / "images").iterdir())[0]
    assert cli.main(["predict", str(photo), "--model", best, "--out", str(tmp_path / "p")]) == 0
    assert list((tmp_path / "p").iterdir())

    # beside the models that ship, of which there are none here: the split is the training's
    (tmp_path / "none").mkdir()
    result = benchmark([open_dataset(skies)], weights=tmp_path / "none", trained=[run])
    assert {row["network"] for row in result["rows"]} == {network}
    names = Split.load(run / "split.json").test
    assert max(row["images"] for row in result["rows"]) == len(names)


def test_what_is_of_ddunet_alone_says_so(skies, tmp_path, capsys):
    arguments = ["train", str(skies), "--out", str(tmp_path / "run"), "--network", "unet"]
    assert cli.main([*arguments, "--variant", "full"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "`variant` is of network ddunet alone" in said
    with pytest.raises(ValueError, match=r"`base_channels` .* network='unet', base_channels=4"):
        TrainingConfig("data", "run", network="unet", base_channels=4)
    assert TrainingConfig("data", "run").variant == "full"
    model = build_network("cloudsegnet", (*SIZE, 3))
    images = np.zeros((2, *SIZE, 3), np.uint8)
    for settings in ({"qat_epochs": 1}, {"target": "edgetpu"}, {"target": "android"}):
        with pytest.raises(ValueError, match=r"of networks other than DDUNet.*cloudsegnet"):
            build_stages(model, images, ConversionConfig(SIZE, **settings))


# === Conversion ===


def photos_of(count=6):
    height, width = SIZE
    images = np.random.default_rng(2).integers(0, 256, (count, height // 4, width // 4, 3))
    smooth = images.astype(np.uint8).repeat(4, 1).repeat(4, 2)
    return Photos(smooth[2:], smooth[:2], None, {}, ())


def trained_like(name, size, **options):
    """A network whose batch normalization has seen something."""
    keras.utils.set_random_seed(3)
    model = build_network(name, (*size, 3), deep_supervision=False, **options)
    random = np.random.default_rng(4)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            noise = [random.uniform(-0.2, 0.2, gamma.shape) for _ in range(3)]
            layer.set_weights([gamma + noise[0], beta + noise[1], mean + noise[2], variance])
        elif isinstance(layer, LearnedScale):
            layer.set_weights([np.array(0.5)])
    return model


@pytest.mark.parametrize(
    "name, classes",
    [
        ("ucloudnet_k2", 2),
        ("cloudsegnet", 3),
        slow_case("ucloudnet_k2", 3),
        slow_case("cloudsegnet", 2),
    ],
)
def test_the_deploy_graph_is_the_network(name, classes):
    model = trained_like(name, SIZE, num_classes=classes)
    assert check_network_graph(model, (40, 56)) < 1e-5  # a size that is padded
    pixels = photos_of().test
    graph = build_network_graph(model, SIZE)
    ours = np.array(graph(pixels[:1].astype("float32") - 128))[0]
    expected = model.predict_probabilities(pixels[0])
    np.testing.assert_allclose(ours if classes > 2 else ours[..., 0], expected, atol=2e-3)


def check_int8_file(name, target):
    """The int8 file is made of integers, sound, and the same in TFLM and LiteRT."""
    model = trained_like(name, SIZE)
    photos = photos_of()
    stages = build_stages(model, photos.calibration, ConversionConfig(SIZE, target=target))
    parsed = read_tflite(stages.packed)
    check_int8(parsed)
    check_sound(parsed)
    reference = run_litert_in_child(stages.packed, photos.test, True)
    assert np.array_equal(reference, run_litert_in_child(stages.quantized, photos.test, True))
    if target == "tflm":
        pytest.importorskip("tflite_micro")
        outputs, _ = run_tflm(stages.packed, photos.test)
        assert np.array_equal(outputs, reference)
    return {operator_name(parsed, operator) for operator in parsed.subgraphs[0].operators}


@pytest.mark.parametrize("target", ["tflm", "cpu"])
def test_cloudsegnet_converts(target):
    operators = check_int8_file("cloudsegnet", target)
    assert {"CONV_2D", "MAX_POOL_2D", "RESIZE_NEAREST_NEIGHBOR"} <= operators


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflm", "cpu"])
def test_an_attention_over_512_channels_converts(target):
    operators = check_int8_file("cloudunetv2", target)
    assert {"SOFTMAX", "QUANTIZE", "BATCH_MATMUL"} <= operators


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in CONVERTED])
def test_every_network_converts(name):
    check_int8_file(name, "tflm")
    keras.backend.clear_session()


def test_convert_writes_a_verified_file(skies, tmp_path):
    """The command, on a network whose mask does not hang on rounding."""
    model = build_network("cloudsegnet", (*SIZE, 3))
    head = model.get_layer("logits")
    head.set_weights([head.get_weights()[0], head.get_weights()[1] + 3])
    model.save(tmp_path / "small.keras")
    out = tmp_path / "small.tflite"
    options = ["--size", "32,48", "--target", "cpu", "--no-inspect", "--out", str(out)]
    options += ["--images", "6", "--verify", "2", "--calibration", str(skies)]
    assert cli.main(["convert", str(tmp_path / "small.keras"), *options]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["verification"]["passed"]
    assert cli.main(["inspect", str(out)]) == 0
