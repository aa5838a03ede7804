"""Training before the quantization, as tensorflow-model-optimization (tfmot) documents it.

Three kinds: quantization-aware training (`quantize_apply`), pruning (`prune_low_magnitude`) and
clustering (`cluster_weights`). The targets are the float model's own probabilities, so masks are
not needed and what the model knows is kept. Each gives the weights of the deploy graph, which is
then quantized like any other.

tfmot wraps layers of tf_keras alone, so the deploy graph is built with that framework here.
"""

from __future__ import annotations

import math

import numpy as np

from ddunet_keras.data.pipeline import Augmentation
from ddunet_keras.deploy.graph import build_graph
from ddunet_keras.deploy.ranges import tensor_ranges
from ddunet_keras.deploy.tensorflow_converter import convert_graph, quiet, without_warnings
from ddunet_keras.litert.model import read_tflite, tensor_name

AUGMENTATION = Augmentation(
    crop=0.8,
    brightness=0.05,
    contrast=0.1,
    channel_gain=0.04,
    saturation=0.1,
    gamma=1.1,
    other_camera=0,
    black_outside=0,
)
"""Mild: the model's probabilities are the targets, and should be good ones."""

BATCH_SIZE = 16
LEARNING_RATE = 2e-4
"""Of Adam; it falls to zero as a cosine."""

PRUNING_SHARE = 0.5
"""Share of the training at which the wanted share of weights is zero; the rest heals."""


def trained_weights(model, config, images, factors, progress) -> dict[str, list[np.ndarray]]:
    """Trains the deploy graph as `config` asks for it.

    Args:
        model: a `DDUNet`.
        config: a `ConversionConfig` that trains.
        images: uint8 (n, height, width, 3), calibration photos; drawn anew, augmented, each epoch.
        factors: of the channels, from `channel_factors`.
        progress: called with a line of text after each epoch.

    Returns:
        name of a layer of `build_graph` -> its weights.
    """
    with quiet():
        import tf_keras
    batch_size = min(BATCH_SIZE, len(images))
    settings = {"output": "logits", "framework": tf_keras, "batch_size": batch_size}
    teacher = build_graph(model, config.size, form="xnnpack", **settings)
    student = build_graph(model, config.size, form=config.form, factors=factors, **settings)
    tf_keras.utils.set_random_seed(config.seed)
    batches = _batches(images, teacher, batch_size, config.seed)
    if config.qat_epochs:
        ranges = _layer_ranges(model, config, factors, images)
        return _quantization_aware(student, ranges, batches, config.qat_epochs, progress)
    if config.prune:
        student = _pruned(student, config.prune, batches, config.training_epochs, progress)
    if config.cluster:
        sparse = bool(config.prune)
        epochs = config.training_epochs
        student = _clustered(student, config.cluster, sparse, batches, epochs, progress)
    return {layer.name: layer.get_weights() for layer in student.layers}


# === The three kinds ===


def _layer_ranges(model, config, factors, images) -> dict[str, tuple[float, float]]:
    """Name of a layer -> the range that its output will have in the file."""
    import tf_keras

    settings = {"form": config.form, "output": config.output, "factors": factors}
    graph = build_graph(model, config.size, framework=tf_keras, **settings)
    data = convert_graph(graph)
    (subgraph,) = read_tflite(data).subgraphs
    ranges = {}
    for index, bounds in tensor_ranges(data, images).items():
        # tf_keras calls a tensor "network/layer/operation;...", the input "image"
        parts = tensor_name(subgraph.tensors[index]).split(";")[0].split("/")
        if len(parts) > 1:
            ranges[parts[1]] = bounds
    return ranges


def _quantization_aware(student, ranges, batches, epochs, progress):
    import tf_keras

    with quiet():
        from tensorflow_model_optimization.quantization import keras as quantization

        config_class = _quantize_config_class(quantization)

        def annotate(layer):
            if isinstance(layer, tf_keras.layers.InputLayer):
                return layer
            return quantization.quantize_annotate_layer(layer, config_class(ranges.get(layer.name)))

        annotated = tf_keras.models.clone_model(student, clone_function=annotate)
        custom = {type(layer).__name__: type(layer) for layer in student.layers}
        custom[config_class.__name__] = config_class
        with quantization.quantize_scope(custom):
            quantized = quantization.quantize_apply(annotated)
    _distill(quantized, batches, epochs, "quantization-aware training", progress)
    return _unwrapped(student, quantized)


def _quantize_config_class(quantization):
    """What tfmot is to quantize in each layer: the kernel, filter by filter, and the output.

    Its own default does not know ReLU6 as the activation of a convolution, and learns the outputs'
    ranges, which takes it hundreds of steps; the file's are known.
    """
    import tensorflow as tf

    quantizers = quantization.quantizers

    class FixedRange(quantizers.Quantizer):
        def __init__(self, low, high):
            self.low = low
            self.high = high

        def build(self, tensor_shape, name, layer):
            return {}

        def __call__(self, inputs, training, weights, **kwargs):
            return tf.quantization.fake_quant_with_min_max_args(inputs, self.low, self.high)

        def get_config(self):
            return {"low": self.low, "high": self.high}

    class KernelAndOutput(quantization.QuantizeConfig):
        def __init__(self, output_range):
            self.output_range = output_range

        def get_weights_and_quantizers(self, layer):
            name = _kernel_name(layer)
            if name is None:
                return []
            quantizer = quantizers.LastValueQuantizer(
                num_bits=8, per_axis=True, symmetric=True, narrow_range=True
            )
            return [(getattr(layer, name), quantizer)]

        def set_quantize_weights(self, layer, quantize_weights):
            if quantize_weights:
                setattr(layer, _kernel_name(layer), quantize_weights[0])

        def get_activations_and_quantizers(self, layer):
            return []

        def set_quantize_activations(self, layer, quantize_activations):
            pass

        def get_output_quantizers(self, layer):
            # the parts of a split have the range of the whole
            if self.output_range is None or isinstance(layer.output, list):
                return []
            return [FixedRange(*self.output_range)]

        def get_config(self):
            return {"output_range": self.output_range}

    return KernelAndOutput


def _kernel_name(layer):
    """Name of the attribute that holds a layer's kernel, or None."""
    for name in ("depthwise_kernel", "kernel"):
        if hasattr(layer, name):
            return name
    return None


def _unwrapped(student, quantized) -> dict[str, list[np.ndarray]]:
    """The trained weights, without tfmot's wrappers and their ranges."""
    weights = {}
    for layer in student.layers:
        values = []
        for variable in layer.weights:
            kind = variable.name.rsplit("/", 1)[-1]
            wrapper = quantized.get_layer(f"quant_{layer.name}")
            (value,) = [w for w in wrapper.weights if w.name.rsplit("/", 1)[-1] == kind]
            values.append(value.numpy())
        weights[layer.name] = values
    return weights


def _pruned(student, share, batches, epochs, progress):
    with quiet():
        from tensorflow_model_optimization.sparsity import keras as sparsity

        steps = epochs * len(batches)
        last = max(1, int(steps * PRUNING_SHARE))
        frequency = max(1, last // 20)
        schedule = sparsity.PolynomialDecay(0.0, share, 0, last, frequency=frequency)
        wrapped = _wrapped(
            student,
            _kernel_layers(student),
            lambda layer: sparsity.prune_low_magnitude(layer, pruning_schedule=schedule),
        )
    _distill(wrapped, batches, epochs, "pruning", progress, [sparsity.UpdatePruningStep()])
    with quiet():
        return sparsity.strip_pruning(wrapped)


def _clustered(student, values, sparse, batches, epochs, progress):
    with quiet():
        from tensorflow_model_optimization.clustering import keras as clustering

        # only here has it `preserve_sparsity`; tfmot's guide to it imports it from the same place
        from tensorflow_model_optimization.python.core.clustering.keras.experimental import (
            cluster as experimental,
        )

        settings: dict = {
            "number_of_clusters": values,
            "cluster_centroids_init": clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
        }
        cluster = clustering.cluster_weights
        if sparse:
            cluster = experimental.cluster_weights
            settings["preserve_sparsity"] = True
        layers = [
            layer
            for layer in _kernel_layers(student)
            if len(np.unique(layer.get_weights()[0])) > values
        ]
        wrapped = _wrapped(student, layers, lambda layer: cluster(layer, **settings))
    _distill(wrapped, batches, epochs, "clustering", progress)
    with quiet():
        return clustering.strip_clustering(wrapped)


def _kernel_layers(network) -> list:
    """The layers whose kernels are pruned and clustered: not depthwise ones, which hold few of the
    weights."""
    return [layer for layer in network.layers if layer.trainable and hasattr(layer, "kernel")]


def _wrapped(network, layers, wrap):
    from tf_keras.models import clone_model

    names = {layer.name for layer in layers}
    return clone_model(
        network, clone_function=lambda layer: wrap(layer) if layer.name in names else layer
    )


# === What they share ===


def _batches(images, teacher, batch_size, seed):
    """Batches of augmented photos and of the teacher's probabilities for them."""
    import tf_keras

    class Batches(tf_keras.utils.Sequence):
        def __init__(self):
            super().__init__()
            self.epoch = 0

        def __len__(self):
            return math.ceil(len(images) / batch_size)

        def __getitem__(self, step):
            random = np.random.default_rng([seed, self.epoch, step])
            chosen = random.choice(len(images), batch_size, replace=False)
            inputs = np.stack([_augmented(images[index], random) for index in chosen])
            inputs = inputs.astype("float32") - 128
            return inputs, _class_probabilities(teacher(inputs, training=False))

        def on_epoch_end(self):
            self.epoch += 1

    return Batches()


def _augmented(image, random):
    no_labels = np.zeros(image.shape[:2], "uint8")
    return AUGMENTATION(image, no_labels, image.shape[:2], random)[0]


def _class_probabilities(logits):
    import tensorflow as tf

    return tf.sigmoid(logits) if logits.shape[-1] == 1 else tf.nn.softmax(logits)


def _distill(network, batches, epochs, stage, progress, callbacks=()):
    """Trains the network's logits towards the teacher's probabilities."""
    import tf_keras

    two_classes = network.output_shape[-1] == 1
    losses = tf_keras.losses
    loss = losses.BinaryCrossentropy if two_classes else losses.CategoricalCrossentropy
    steps = epochs * len(batches)
    rate = tf_keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)

    def say(epoch, logs):
        progress(f"{stage}: epoch {epoch + 1} of {epochs}, loss {logs['loss']:.4g}")

    teller = tf_keras.callbacks.LambdaCallback(on_epoch_end=say)
    network.compile(tf_keras.optimizers.Adam(rate), loss(from_logits=True))
    with without_warnings():  # but not `quiet`, which would silence `progress`
        network.fit(batches, epochs=epochs, callbacks=[*callbacks, teller], verbose=0)
