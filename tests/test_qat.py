"""Training before the quantization: what it promises of the weights, and the file's values."""

import keras
import numpy as np
import pytest

from ddunet_keras.deploy.config import ConversionConfig
from ddunet_keras.deploy.convert import build_stages
from ddunet_keras.deploy.graph import build_graph
from ddunet_keras.litert.model import constant, operator_name, read_tflite
from ddunet_keras.litert.run import run_litert
from ddunet_keras.litert.soundness import check_int8
from ddunet_keras.model import DDUNet

SIZE = (32, 48)


@pytest.fixture(scope="module")
def photos():
    random = np.random.default_rng(0)
    smooth = random.normal(size=(12, *SIZE, 3)).cumsum(1).cumsum(2)
    smooth -= smooth.min((1, 2, 3), keepdims=True)
    return (255 * smooth / smooth.max((1, 2, 3), keepdims=True)).astype("uint8")


def network(variant):
    keras.utils.set_random_seed(0)
    return DDUNet((32, 32, 3), base_channels=2, variant=variant)


def trained(photos, lines=None, variant="baseline", **settings):
    config = ConversionConfig(SIZE, **settings)
    say = (lambda line: None) if lines is None else lines.append
    return build_stages(network(variant), photos, config, say).packed


def kernels(data):
    """int8 kernels (filters, weights) of the convolutions that are neither depthwise nor fixed."""
    model = read_tflite(data)
    (graph,) = model.subgraphs
    for operator in graph.operators:
        if operator_name(model, operator) == "CONV_2D":
            kernel = constant(model, graph, operator.inputs[1])
            kernel = kernel.reshape(len(kernel), -1)
            if len(np.unique(kernel)) > 2 or kernel.size < 9:
                yield kernel


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflm", "cpu"])
def test_a_trained_file_is_near_the_float_model(target, photos):
    lines = []
    data = trained(photos, lines, "full", target=target, qat_epochs=2)
    check_int8(read_tflite(data))
    told = [line for line in lines if line.startswith("quantization-aware training: epoch")]
    assert len(told) == 2
    graph = build_graph(network("full"), SIZE)
    truth = np.concatenate([np.array(graph(p[None].astype("float32") - 128)) for p in photos])
    raw = run_litert(data, photos, reference=True)
    assert np.abs((raw + 128.0) / 256 - truth).mean() < 0.02


@pytest.mark.slow
def test_pruned_weights_are_zero_in_the_file(photos):
    data = trained(photos, prune=0.5, training_epochs=4)
    zeros = [(kernel == 0).mean() for kernel in kernels(data) if kernel.size >= 32]
    assert min(zeros) >= 0.49


@pytest.mark.slow
def test_clustered_filters_have_few_values_in_the_file(photos):
    data = trained(photos, cluster=4, training_epochs=1)
    values = [len(np.unique(row)) for kernel in kernels(data) for row in kernel]
    assert max(values) <= 4


@pytest.mark.slow
def test_pruned_and_clustered_weights_are_both_in_the_file(photos):
    data = trained(photos, prune=0.5, cluster=4, training_epochs=1)
    for kernel in kernels(data):
        assert max(len(np.unique(row)) for row in kernel) <= 4
        assert kernel.size < 32 or (kernel == 0).mean() >= 0.49
