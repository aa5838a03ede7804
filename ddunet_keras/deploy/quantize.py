"""From the deploy graph to flatbuffers: float32, float16, and int8 after or with training.

Post-training quantization is done in six steps, each of which was measured to lower the error of
the mask: channels are equalized (`graph.equalization`), the range of each map is cut at its
quantiles, weights are rounded so that their errors cancel on the calibration images (GPTQ, Frantar
et al., ICLR 2023), biases take up the mean error that is left (Nagel et al., ICCV 2019, section
4.2), the dynamic head's generated bias takes up what it can foresee of an image's own error, and
the threshold of the mask is moved to where it lies in float. TensorFlow's converter does the rest.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.data.datasets import Mixture
from ddunet_keras.data.pipeline import Augmentation, Pipeline
from ddunet_keras.files import DataError, silence
from ddunet_keras.images import resize_image
from ddunet_keras.litert.model import (
    add_constant,
    constant,
    dequantize,
    dtype_name,
    operator_name,
    read_tflite,
    write_tflite,
)
from ddunet_keras.litert.run import encode, invoke, make_interpreter

from .graph import GRID, build_graph, check_graph, equalization

IO = ("int8", "uint8", "float32")
QUANTILE = 1e-4
"""Share of a map's values on the calibration images that its int8 range leaves out at each end."""
MILD = Augmentation(
    crop=0.8, brightness=0.05, contrast=0.1, channel_gain=0.04, saturation=0.1, gamma=1.1
)
"""Of training images where a model's own probabilities are the targets."""

# beyond these the output changes no more: not in steps of 1/256, or not at all
_LOGITS = {"LOGISTIC": (-6.24, 6.24), "GREATER_EQUAL": (-1.0, 1.0)}
# of the ranges of what has few values for each image, whose extremes a hundred images do not show;
# with 1, the bundled model's 4-channel sibling lost 18 % of the pixels of some images of new dates
_MARGIN = 1.4
_SHARING = ("AVERAGE_POOL_2D", "PAD", "RESHAPE", "SPLIT")  # output and input have one scale
_BINS = 4096
_NEAR = 0.7  # logits this near to their threshold: errors there move the mask, and none is cut off
_RIDGES = (10.0, 30.0, 100.0, 300.0, 1000.0)  # with some 200 photos
_MANY = 100  # photos for what a mean is taken over; those for the roundings are fewer, for time


@contextlib.contextmanager
def quiet():
    """Silences what the converter, LiteRT and TensorFlow say on the standard streams."""
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow")]
    levels = [logger.level for logger in loggers]
    with silence(1, 2), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def calibration_images(dataset, split, size, count=200, seed=0) -> np.ndarray:
    """Photos from the training part of a split, of day and night in the proportion they have there.

    Args:
        dataset: from `ddunet_keras.open_dataset`.
        split: a `Split` of it.
        size: (height, width) that they are resized to.
        count: number of photos; all where there are fewer.
        seed: of the choice.

    Returns:
        uint8 (n, height, width, 3).

    Raises:
        DataError: the training part is empty, or an image cannot be read.
    """
    random = np.random.default_rng(seed)
    strata = {}
    for name in split.train:
        strata.setdefault(dataset.find(name).night, []).append(name)
    if not strata:
        raise DataError(f"{dataset.root}: the split has no training images to calibrate with")
    # systematic: shuffled within day and night, one behind the other, every k-th is taken
    names = [name for stratum in strata.values() for name in random.permutation(stratum)]
    chosen = [names[int(i)] for i in np.linspace(0, len(names), min(count, len(names)), False)]
    images = [dataset.load(dataset.find(name))[0] for name in chosen]
    return np.stack([resize_image(image, size) for image in images])


def float_model(model, size, *, dtype="float32", head="matmul", output="probability") -> bytes:
    """A `.tflite` file with float input (`pixel - 128`) and output.

    Args:
        model, size, head, output: as in `build_graph`.
        dtype: "float32", or "float16" for weights of half the size.

    Raises:
        ValueError: an argument has another value, or the graph is not the model.
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f"`dtype` must be 'float32' or 'float16'. Received: dtype={dtype!r}")
    check_graph(model, size, head)
    return _convert(build_graph(model, size, head=head, output=output), dtype)


def quantize(model, size, images, *, head="multiply", output="probability", io="int8") -> bytes:
    """Post-training quantization to int8.

    Args:
        model, size, head, output: as in `build_graph`.
        images: uint8 (n, height, width, 3) of `size`, from `calibration_images`; about 100.
        io: type of input and output: "int8" is `pixel - 128`, "uint8" the pixel, "float32" is
            `pixel - 128` as a float.

    Returns:
        The `.tflite` file.

    Raises:
        ValueError: an argument has another value, or the graph is not the model.
    """
    images = _checked(images, size, io)
    scales = equalization(model, _some(images, 64))
    check_graph(model, size, head, scales)
    plain = _convert(build_graph(model, size, head=head, output=output, scales=scales))
    data = _quantize(plain, _ranges(plain, images), io)
    return _finish(_best_rounding(data, plain, images, head), plain, images, head)


def _checked(images, size, io):
    images = np.asarray(images)
    if io not in IO:
        raise ValueError(f"`io` must be one of {IO}. Received: io={io!r}")
    if images.dtype != np.uint8 or images.shape[1:] != (*size, 3) or not len(images):
        raise ValueError(
            f"`images` must be uint8 (n, {size[0]}, {size[1]}, 3). "
            f"Received: {images.dtype} of shape {images.shape}"
        )
    return images


def train_quantized(
    model,
    size,
    images,
    parts,
    *,
    epochs=8,
    head="multiply",
    output="probability",
    io="int8",
    prune=None,
    cluster=None,
    seed=0,
    batch_size=16,
    learning_rate=2e-4,
    rounding_rate=0.01,
    progress=None,
) -> bytes:
    """Quantization-aware training: the int8 network learns to give the float model's probabilities.

    Wrappers of tensorflow-model-optimization round weights and maps in training as the file will
    round them; the model's own probabilities on mildly augmented training images are the targets,
    so that its masks are kept, and masks are not needed. It starts from the file that `quantize`
    gives and counts weights in steps of its grid, so that one rate suits them all. The ranges of
    maps stay: learned ones (LSQ) lowered the loss by a quarter, but masks of new days agreed no
    better.

    Args:
        model, size, head, output: as in `build_graph`.
        images: as in `quantize`, for the ranges of maps and the weights' first rounding.
        parts: pairs of a dataset and its `Split`, of which the training part alone is used.
        epochs: of each stage: pruning and clustering, where asked for, and quantization.
        io: as in `quantize`.
        prune: share of each kernel's weights that become zero, in (0, 1).
        cluster: number of values, 2 or more, that each kernel's weights share; in the file, where
            filters have scales of their own, those of each filter. Neither touches depthwise
            kernels, which hold few of the weights.
        seed: of order and augmentation.
        batch_size: of each stage.
        learning_rate: of Adam, in pruning and clustering; it falls to zero as a cosine.
        rounding_rate: the same in quantization, where weights are counted in steps of the int8
            grid: by so many steps one may change in a batch at first. With a third or three times
            this rate the loss ends alike, with ten times it rises at first.
        progress: called with a line of text now and then, or None.

    Returns:
        The `.tflite` file.

    Raises:
        ValueError: an argument has another value, or the graph is not the model.
        DataError: the splits' images cannot be used.
    """
    images = _checked(images, size, io)
    if prune is not None and not 0 < prune < 1:
        raise ValueError(f"`prune` must lie in (0, 1). Received: prune={prune!r}")
    for name, value, least in (("epochs", epochs, 1), ("cluster", cluster or 2, 2)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be {least} or more. Received: {name}={value!r}")
    scales = equalization(model, _some(images, 64))
    check_graph(model, size, head, scales)
    with quiet():
        import tf_keras
    form = {"head": head, "scales": scales, "framework": tf_keras}
    graph = build_graph(model, size, output=output, **form)
    plain = _convert(graph)
    ranges = _ranges(plain, images)

    names = [(index, name) for index, (_, split) in enumerate(parts) for name in split.train]
    mixture = Mixture(*(dataset for dataset, _ in parts))
    pipeline = Pipeline(mixture, names, size, batch_size, MILD, seed)
    form["batch_size"] = pipeline.batch_size
    student = build_graph(model, size, output="logits", **form)
    teacher = build_graph(
        model, size, head="matmul", output="logits", batch_size=pipeline.batch_size
    )
    tf_keras.utils.set_random_seed(seed)
    keywords = {"epochs": epochs, "rate": learning_rate, "say": progress or (lambda line: None)}
    if prune:
        student = _pruned(student, prune, teacher, pipeline, keywords)
    if cluster:
        student = _clustered(student, cluster, bool(prune), teacher, pipeline, keywords)
    tensors = read_tflite(plain).subgraphs[0].tensors
    named = {_layer(tensors[index]): bounds for index, bounds in ranges.items()}
    if prune or cluster:
        for layer in graph.layers:
            layer.set_weights(student.get_layer(layer.name).get_weights() if layer.weights else [])
        changed = _convert(graph)
        # tensors may bear other numbers and names there, but come in the same order
        data = _quantize(
            changed,
            dict(zip(_computed(changed), (ranges[i] for i in _computed(plain)), strict=True)),
            io,
        )
    else:
        # what is trained is the file: it starts from the best that rounding can do
        data = _best_rounding(_quantize(plain, ranges, io), plain, images, head)
    keywords["rate"] = rounding_rate
    if teacher.output_shape[-1] == 1 and output != "logits":
        keywords["limits"] = _LOGITS["LOGISTIC" if output == "probability" else "GREATER_EQUAL"]
    data = _rounded(student, data, named, bool(prune or cluster), teacher, pipeline, keywords)
    return _finish(data, plain, images, head)


def _kernels(network):
    """The layers whose kernels are pruned and clustered."""
    return [layer for layer in network.layers if layer.trainable and hasattr(layer, "kernel")]


def _wrapped(network, layers, wrap):
    from tf_keras.models import clone_model

    names = {layer.name for layer in layers}
    return clone_model(network, clone_function=lambda x: wrap(x) if x.name in names else x)


def _pruned(student, share, teacher, pipeline, keywords):
    with quiet():
        from tensorflow_model_optimization.sparsity import keras as sparsity

        steps = keywords["epochs"] * pipeline.steps
        # from none to all in the first half, in at most 20 strides
        schedule = sparsity.PolynomialDecay(0.0, share, 0, max(1, steps // 2), 3, steps // 40 + 1)
        wrapped = _wrapped(
            student,
            _kernels(student),
            lambda layer: sparsity.prune_low_magnitude(layer, pruning_schedule=schedule),
        )
        callback = sparsity.UpdatePruningStep()
        callback.set_model(wrapped)
        callback.on_train_begin()
    begin = callback.on_train_batch_begin
    _distill(wrapped, teacher, pipeline, "pruning", begin=begin, **keywords)
    with quiet():
        callback.on_epoch_end(0)
        return sparsity.strip_pruning(wrapped)


def _clustered(student, values, sparse, teacher, pipeline, keywords):
    with quiet():
        from tensorflow_model_optimization.clustering import keras as clustering

        cluster = clustering.experimental.cluster_weights if sparse else clustering.cluster_weights
        options = {"preserve_sparsity": True} if sparse else {}
        options["cluster_centroids_init"] = clustering.CentroidInitialization.KMEANS_PLUS_PLUS
        layers = [x for x in _kernels(student) if len(np.unique(x.get_weights()[0])) > values]
        wrapped = _wrapped(student, layers, lambda layer: cluster(layer, values, **options))
    _distill(wrapped, teacher, pipeline, "clustering", **keywords)
    with quiet():
        return clustering.strip_clustering(wrapped)


def _rounded(student, data, ranges, keep, teacher, pipeline, keywords):
    """Trains an int8 file's weights, on the scales that they have there, and returns the file.

    With `keep`, weights that are equal, zeros above all, stay equal: pruning and clustering last.
    """
    import tensorflow as tf

    model = read_tflite(data)
    (graph,) = model.subgraphs

    def step(index):
        quantization = graph.tensors[index].quantization
        shape = np.ones(len(graph.tensors[index].shape), int)
        shape[quantization.quantizedDimension] = -1
        # a filter of zeros may have no scale
        return np.maximum(np.array(quantization.scale, "float32"), 1e-12).reshape(shape)

    # kernels are (filters, h, w, channels) there, depthwise (1, h, w, channels), and biases
    found, steps, projections = [], {}, []
    for operator in graph.operators:
        if operator_name(model, operator) in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            layer = student.get_layer(_layer(graph.tensors[operator.outputs[0]]) or "logits")
            if not layer.trainable:
                continue
            whole, bias = (constant(model, graph, index) for index in operator.inputs[1:])
            whole = whole.transpose(1, 2, 3, 0).astype("float32")
            kernel_step = step(operator.inputs[1]).transpose(1, 2, 3, 0)
            map_step = step(operator.outputs[0]).item()
            ratio = step(operator.inputs[2]) / map_step
            kernel, offset = layer.weights
            kernel.assign(whole)
            offset.assign(bias * ratio)
            steps[layer.name] = kernel_step, map_step
            found.append((operator.inputs[1:], kernel, offset, ratio))
            if keep:
                values, index = np.unique(whole * kernel_step, return_inverse=True)
                index = tf.constant(index.reshape(kernel.shape), tf.int32)
                nonzero = tf.constant((values != 0).astype("float32"))
                projections.append((kernel, index, nonzero))

    def project():
        for kernel, index, nonzero in projections:
            means = tf.math.unsorted_segment_mean(kernel, index, len(nonzero)) * nonzero
            kernel.assign(tf.gather(means, index))

    with quiet():
        wrap = _rounding()
        wrapped = _wrapped(
            student, student.layers[1:], lambda x: wrap(x, ranges.get(x.name), steps.get(x.name))
        )
    _distill(wrapped, teacher, pipeline, "quantization", project=project, **keywords)
    for (kernel_index, bias_index), kernel, bias, ratio in found:
        whole = np.rint(kernel.numpy().transpose(3, 0, 1, 2))
        _set_constant(model, kernel_index, np.clip(whole, -127, 127).astype("int8"))
        whole = np.rint(bias.numpy() / ratio)
        _set_constant(model, bias_index, np.clip(whole, -(2**31), 2**31 - 1).astype("<i4"))
    return write_tflite(model)


def _rounding():
    """A function: layer, (low, high) of its output or None, steps of its kernel and of its output
    or None -> the layer with kernel and output rounded, whose weights are counts of these steps."""
    import tensorflow as tf
    from tensorflow_model_optimization.quantization import keras as quantization

    class Weights(quantization.quantizers.Quantizer):
        """The weights of counts of steps: whole ones, or those of biases, which are finer."""

        def __init__(self, step, whole):
            self.step, self.whole = step, whole

        def build(self, tensor_shape, name, layer):
            return {}

        def __call__(self, inputs, training, weights, **kwargs):
            if self.whole:
                whole = tf.clip_by_value(tf.round(inputs), -127, 127)
                return (inputs + tf.stop_gradient(whole - inputs)) * self.step
            return inputs * self.step

        def get_config(self):
            return {"step": self.step, "whole": self.whole}

    class Maps(quantization.quantizers.Quantizer):
        """Rounds a map in the range of its calibration; what lies outside learns nothing."""

        def __init__(self, low, high):
            self.low, self.high = low, high

        def build(self, tensor_shape, name, layer):
            return {}

        def __call__(self, inputs, training, weights, **kwargs):
            return tf.quantization.fake_quant_with_min_max_args(inputs, self.low, self.high)

        def get_config(self):
            return {"low": self.low, "high": self.high}

    class Config(quantization.QuantizeConfig):
        def __init__(self, kernel, steps, bounds):
            self.kernel, self.steps, self.bounds = kernel, steps, bounds

        def get_weights_and_quantizers(self, layer):
            if self.steps is None:
                return []
            kernel, bias = Weights(self.steps[0], True), Weights(self.steps[1], False)
            return [(getattr(layer, self.kernel), kernel), (layer.bias, bias)]

        def get_activations_and_quantizers(self, layer):
            return []

        def set_quantize_weights(self, layer, quantize_weights):
            if quantize_weights:
                setattr(layer, self.kernel, quantize_weights[0])
                layer.bias = quantize_weights[1]

        def set_quantize_activations(self, layer, quantize_activations):
            pass

        def get_output_quantizers(self, layer):
            return [Maps(*self.bounds)] if self.bounds else []

        def get_config(self):
            return {"kernel": self.kernel, "steps": self.steps, "bounds": self.bounds}

    def wrap(layer, bounds, steps):
        kernel = "depthwise_kernel" if hasattr(layer, "depthwise_kernel") else "kernel"
        # the parts of a split keep the range of the whole
        bounds = None if isinstance(layer.output, list) else bounds
        return quantization.QuantizeWrapperV2(layer, Config(kernel, steps, bounds))

    return wrap


def _layer(tensor):
    """Name of the layer of tf_keras that made a tensor: "network/layer/operation;fused..."."""
    parts = tensor.name.decode().split(";")[0].split("/")
    return parts[1] if len(parts) > 1 else None


def _distill(
    student,
    teacher,
    pipeline,
    stage,
    epochs,
    rate,
    say,
    begin=None,
    project=lambda: None,
    limits=None,
):
    """Trains the student's logits towards the teacher's probabilities, cut off at logits `limits`
    as the file's are."""
    import tensorflow as tf
    import tf_keras

    steps = epochs * pipeline.steps
    optimizer = tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(rate, steps))
    if teacher.output_shape[-1] == 1:
        activation, entropy = tf.sigmoid, tf.nn.sigmoid_cross_entropy_with_logits
    else:
        activation, entropy = tf.nn.softmax, tf.nn.softmax_cross_entropy_with_logits

    @tf.function
    def train(images):
        # the pipeline gives the model's own input, and the graph takes pixel - 128
        images = tf.round(images * 127.5 + 127.5) - 128
        truth = teacher(images, training=False)
        truth = truth if limits is None else tf.clip_by_value(truth, *limits)
        target = activation(truth)
        with tf.GradientTape() as tape:
            logits = student(images, training=True)
            # the Kullback-Leibler divergence, which can fall to zero
            loss = tf.reduce_mean(entropy(target, logits) - entropy(target, truth))
        gradients = tape.gradient(loss, student.trainable_variables)
        optimizer.apply_gradients(zip(gradients, student.trainable_variables, strict=True))
        project()
        return loss

    total = 0.0
    try:
        for step, (images, _) in enumerate(pipeline.tf_data().take(steps)):
            if begin is not None:
                begin(step)
            with quiet() if step == 0 else contextlib.nullcontext():
                total += float(train(images))
            epoch, done = divmod(step + 1, pipeline.steps)
            if not done:
                say(f"{stage}: epoch {epoch} of {epochs}, loss {total / pipeline.steps:.3g}")
                total = 0.0
    except Exception:
        if pipeline.error is not None:
            raise pipeline.error from None
        raise


def check_int8(data, io="int8") -> None:
    """Checks that a file is what was asked for: int8 throughout, built-in operators, fixed shapes.

    Args:
        data: the `.tflite` file.
        io: the type that input and output shall have.

    Raises:
        DataError: says what is not, and where.
    """
    model = read_tflite(data)
    (graph,) = model.subgraphs
    ends = {*graph.inputs, *graph.outputs}
    inside = {"int8", "int32", "bool"} | ({"uint8"} if io == "uint8" else set())
    for index, tensor in enumerate(graph.tensors):
        name, kind = (tensor.name or b"").decode(), dtype_name(tensor)
        if index in ends:
            if kind != io and not (index in graph.outputs and kind in ("int8", "uint8")):
                raise DataError(f"{name}: input and output should be {io}, this is {kind}")
        elif kind not in inside:
            raise DataError(f"{name}: a tensor of {kind} in an int8 file")
        if any(side < 1 for side in (*tensor.shape, *(tensor.shapeSignature or ()))):
            raise DataError(f"{name}: its shape {list(tensor.shape)} is not fixed")
    for operator in graph.operators:
        name = operator_name(model, operator)
        code = model.operatorCodes[operator.opcodeIndex]
        if code.customCode:
            where = (graph.tensors[operator.outputs[0]].name or b"").decode()
            raise DataError(f"{where}: {name} is no built-in operator of TensorFlow Lite")


def _some(images, count):
    """Evenly spaced ones: photos come sorted, those of the day first."""
    return images[np.linspace(0, len(images), min(count, len(images)), False).astype(int)]


def _convert(graph, dtype="float32") -> bytes:
    import tensorflow as tf

    signature = tf.TensorSpec(graph.input_shape, tf.float32)
    function = tf.function(lambda image: graph(image, training=False), autograph=False)
    with quiet():
        # the graph itself must not be handed over: variables would stay in it
        function = function.get_concrete_function(signature)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if dtype == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        return converter.convert()


def _quantize(plain, ranges, io):
    """The float file in int8, with the given (low, high) of its tensors."""
    from tensorflow import dtypes
    from tensorflow.lite.python.convert import mlir_quantize

    model, io = read_tflite(plain), dtypes.as_dtype(io)
    (graph,) = model.subgraphs
    # takes the range of its parts; with its own, the converter leaves float what reshapes one
    joined = {o.outputs[0] for o in graph.operators if operator_name(model, o) == "CONCATENATION"}
    for index in ranges.keys() - joined:
        tensor, bounds = graph.tensors[index], ranges[index]
        tensor.quantization = tensor.quantization or schema.QuantizationParametersT()
        tensor.quantization.min, tensor.quantization.max = [[bound] for bound in bounds]
    with quiet():
        return mlir_quantize(write_tflite(model), input_data_type=io, output_data_type=io)


def _exact(model, ranges):
    """The ranges a little wider, so that kernels round alike.

    TFLM divides the product of the inputs' scales by the output's in double precision, LiteRT in
    single, and a last bit tips values that lie halfway. Scales of 12 binary digits have products
    that are exact in float32. The quotient is exact, too, where the output's scale is that of the
    first input, or 1, times a power of two. A product with a Softmax, whose scale is 1 / 256, needs
    less: the output's scale has 6 digits, and the first input's is that times a number of 10, if it
    is a convolution's for this product alone. The last of them is 1, so that next to no value lies
    halfway, where XNNPACK rounds otherwise on Arm than on x86. The output of a ReLU has 8 digits,
    and its input that times a number of 8 digits. The right side of a matrix product has the zero
    point 0, with which LiteRT is 6 times faster.
    """
    graph = model.subgraphs[0]
    products = [
        (*operator.inputs, operator.outputs[0])
        for operator in graph.operators
        if operator_name(model, operator) in ("MUL", "BATCH_MATMUL")
    ]
    used = [index for operator in graph.operators for index in operator.inputs]
    free = {
        operator.outputs[0]
        for operator in graph.operators
        if operator_name(model, operator).endswith("CONV_2D")
        and used.count(operator.outputs[0]) == 1
    }
    matrices = {
        operator.inputs[1]
        for operator in graph.operators
        if operator_name(model, operator) == "BATCH_MATMUL"
    }
    matrices |= {  # and what is reshaped into one
        operator.inputs[0]
        for operator in graph.operators
        if operator_name(model, operator) == "RESHAPE" and operator.outputs[0] in matrices
    }
    for index in matrices:
        bound = max(map(abs, ranges[index]))
        ranges[index] = -bound, bound
    widths = {index: (high - low) / 255 for index, (low, high) in ranges.items()}
    scales = {index: _digits(width, 12) for index, width in widths.items()}
    for source, other, output in products:
        if source in free and math.frexp(scales.get(other, 0.0))[0] == 0.5:
            scales[output] = _digits(widths[output], 6)
            scales[source] = scales[output] * _digits(widths[source] / scales[output], 10, odd=True)
        else:
            units = 1.0, scales.get(source, 1.0)
            scales[output] = min(unit * _digits(widths[output] / unit, 1) for unit in units)
    makers = _makers(graph)
    readers = {index: operator for operator in graph.operators for index in operator.inputs}
    for operator in graph.operators:
        if operator_name(model, operator) == "RELU":
            source, output = operator.inputs[0], operator.outputs[0]
            if operator_name(model, readers[output]) == "CONCATENATION":  # gives it its scale
                joined = readers[output].outputs[0]
                ranges[output], output = ranges[joined], joined
            scale = _digits(widths[output], 8)
            scales[output] = scales[operator.outputs[0]] = scale
            scales[source] = scale * _digits(widths[source] / scale, 8)
            if operator_name(model, makers[source]) == "RESIZE_BILINEAR":  # keeps the scale
                before = makers[source].inputs[0]
                ranges[before], scales[before] = ranges[source], scales[source]
    exact = {}
    for index, (low, _) in ranges.items():
        zero_point = min(127, max(-128, round(-128 - low / scales[index])))
        zero_point = 0 if index in matrices else zero_point
        exact[index] = tuple(scales[index] * (end - zero_point) for end in (-128, 127))
    return exact


def _shared(model, ranges):
    """The ranges as the converter unites them where an operator has one scale, for training to
    round as the file does."""
    graph = model.subgraphs[0]
    makers = _makers(graph)
    for operator in graph.operators:
        if operator_name(model, operator) == "CONCATENATION":
            parts = [index for index in operator.inputs if index in ranges]
            pools = [makers[i] for i in parts if operator_name(model, makers[i]) in _SHARING]
            parts += [pool.inputs[0] for pool in pools]
            ranges.update(dict.fromkeys(parts, ranges[operator.outputs[0]]))
    for operator in graph.operators:
        if operator_name(model, operator) in _SHARING:
            source = next(index for index in operator.inputs if index in ranges)
            ranges.update(dict.fromkeys(operator.outputs, ranges[source]))
    return ranges


def _makers(graph):
    """Index of each computed tensor -> its operator; of several outputs, the first's alone."""
    return {operator.outputs[0]: operator for operator in graph.operators}


def _digits(value, count, odd=False):
    """The least number of so many binary digits that is not below a positive value; with `odd` its
    last digit is 1."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp((math.ceil(mantissa * 2**count) | odd) / 2**count, exponent)


def _run(data, images, xnnpack=()):
    """Yields for each image a function: index of a tensor -> its value.

    Calculates with the kernels that microcontrollers have as well. With `xnnpack`, indices of
    tensors, with those of CPUs, whose rounding differs in the mean, and for these tensors alone.
    """
    if xnnpack:
        model = read_tflite(data)
        model.subgraphs[0].outputs = xnnpack  # others do not leave it
        model.signatureDefs = None
        data = write_tflite(model)
    with quiet():
        interpreter = make_interpreter(data, reference=False, keep=not xnnpack)
    dtype = interpreter.get_input_details()[0]["dtype"]
    for image in images:
        invoke(interpreter, [encode(image[None], dtype)])
        yield interpreter.get_tensor


def _computed(plain):
    """Indices of the input and of the operators' outputs, in their order."""
    graph = read_tflite(plain).subgraphs[0]
    return [graph.inputs[0], *(index for operator in graph.operators for index in operator.outputs)]


def _ranges(plain, images):
    """Index of each computed tensor -> (low, high)."""
    graph = (model := read_tflite(plain)).subgraphs[0]
    computed = _computed(plain)[1:]
    low, high = dict.fromkeys(computed, 0.0), dict.fromkeys(computed, 0.0)
    for value in _run(plain, images):
        for index in computed:
            array = value(index)
            low[index] = min(low[index], float(array.min()))
            high[index] = max(high[index], float(array.max()))
    counts = dict.fromkeys(computed, 0)
    for value in _run(plain, images):
        for index in computed:
            width = (high[index] - low[index]) / _BINS or 1.0
            bins = ((value(index).ravel() - low[index]) / width).astype("int32")
            counts[index] += np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS)
    ranges = {}
    for index in computed:
        share = np.cumsum(counts[index]) / counts[index].sum()
        edges = np.linspace(low[index], high[index], _BINS + 1)
        first, last = np.searchsorted(share, (QUANTILE, 1 - QUANTILE))
        ranges[index] = min(0.0, edges[first]), max(0.0, edges[last + 1])
        if math.prod(graph.tensors[index].shape[:-1]) <= GRID**2:
            # few values for each image: so few images will not have shown the extremes
            ranges[index] = _MARGIN * ranges[index][0], _MARGIN * ranges[index][1]
        if not high[index] > low[index]:  # all zero: LiteRT aborts on the scale that is left
            ranges[index] = 0.0, 1.0
    ranges[graph.inputs[0]] = -128.0, 127.0
    makers = _makers(graph)
    for operator in graph.operators:
        name, output = operator_name(model, operator), operator.outputs[0]
        inputs = [ranges[index] for index in operator.inputs if index in ranges]
        if name == "SOFTMAX":
            ranges[output] = 0.0, 255 / 256  # its scale is fixed
            continue
        if name in _SHARING:
            ranges.update(dict.fromkeys(operator.outputs, inputs[0]))
        if name in _LOGITS:
            ranges[logits := operator.inputs[0]] = least, most = _LOGITS[name]
            if operator_name(model, makers[logits]) == "ADD":  # of the dynamic head's sum and bias
                total, bias = makers[logits].inputs
                (low, high), (lowest, highest) = ranges[total], ranges[bias]
                # a bias in its margin brings logits, and then confident ones, to less than `most`
                lowest, highest = lowest / _MARGIN, highest / _MARGIN
                ranges[total] = max(low, least - highest), min(high, most - lowest)
        # what is always zero, such as the product with a gate that stays shut, has no scale:
        # kernels refuse one that is far below those of their inputs
        widths = [high - low for low, high in inputs]
        least = math.prod(widths) / 255 if name == "MUL" else max(widths) / 1000
        low, high = ranges[output]
        ranges[output] = low, max(high, low + least)
    return _shared(model, _exact(model, ranges))


def _convolutions(int8, plain):
    """Pairs of operators (int8, float) of all convolutions, found by the names of their outputs."""
    tensors = plain.subgraphs[0].tensors
    known = {tensors[op.outputs[0]].name: op for op in plain.subgraphs[0].operators}
    tensors = int8.subgraphs[0].tensors
    return [
        (operator, known[tensors[operator.outputs[0]].name])
        for operator in int8.subgraphs[0].operators
        if operator_name(int8, operator) in ("CONV_2D", "DEPTHWISE_CONV_2D")
        and tensors[operator.outputs[0]].name in known
    ]


def _set_constant(model, index, array):
    tensors = model.subgraphs[0].tensors
    shared = sum(tensor.buffer == tensors[index].buffer for tensor in tensors) > 1
    if shared:
        model.buffers.append(schema.BufferT())
        tensors[index].buffer = len(model.buffers) - 1
    model.buffers[tensors[index].buffer].data = np.frombuffer(array.tobytes(), np.uint8)


def _patches(x, kernel, options, count=256):
    """(positions, kernel height, width, channels): what a convolution sees at some positions."""
    rates = getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1)
    if options.padding == schema.Padding.SAME:
        pad = [(rate * (side - 1) // 2,) * 2 for side, rate in zip(kernel, rates, strict=True)]
        x = np.pad(x, ((0, 0), *pad, (0, 0)))
    span = [(side - 1) * rate + 1 for side, rate in zip(kernel, rates, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(x[0], span, (0, 1))
    views = views[:: options.strideH, :: options.strideW, :, :: rates[0], :: rates[1]]
    rows, columns = views.shape[:2]
    chosen = np.unique(np.linspace(0, rows * columns - 1, count).astype(int))
    return views[chosen // columns, chosen % columns].transpose(0, 2, 3, 1)


def _best_rounding(data, plain, images, head):
    """The best weights and biases that rounding gives."""
    some = _some(images, 32)
    data = _correct_biases(_round_weights(data, plain, some), plain, some, head)
    # few photos leave the cloud cover of others off by up to a point
    return _correct_biases(data, plain, _some(images, _MANY), head, steps=1)


def _round_weights(data, plain, images):
    """Rounds weights one by one, the next ones taking up the error (GPTQ), and biases its mean."""
    int8, original = read_tflite(data), read_tflite(plain)
    graph, tensors = original.subgraphs[0], int8.subgraphs[0].tensors
    pairs = _convolutions(int8, original)
    seen = [[] for _ in pairs]
    for value in _run(plain, images):
        for patches, (_, twin) in zip(seen, pairs, strict=True):
            kernel = graph.tensors[twin.inputs[1]].shape[1:3]
            patches.append(_patches(value(twin.inputs[0]), kernel, twin.builtinOptions))
    for patches, (operator, twin) in zip(seen, pairs, strict=True):
        x, weights = np.concatenate(patches), constant(original, graph, twin.inputs[1])
        scale = np.array(tensors[operator.inputs[1]].quantization.scale)
        depthwise = operator_name(int8, operator) == "DEPTHWISE_CONV_2D"
        # (groups, filters, taps): in a depthwise convolution each channel is a group
        if depthwise:
            w = weights.transpose(3, 0, 1, 2).reshape(len(scale), 1, -1)
            x = x.transpose(3, 0, 1, 2).reshape(len(scale), len(x), -1)
        else:
            w, x = weights.reshape(1, len(scale), -1), x.reshape(1, len(x), -1)
        w, mean = w / scale.reshape(len(w), -1, 1), x.mean(1, keepdims=True)
        x = x - mean
        rounded = _gptq(w, (x.transpose(0, 2, 1) @ x).astype("float64") / x.shape[1])
        lost = ((w - rounded) @ mean.transpose(0, 2, 1)).ravel() * scale
        if depthwise:
            rounded = rounded.reshape(len(scale), *weights.shape[1:3], 1).transpose(3, 1, 2, 0)
        rounded = np.ascontiguousarray(rounded.reshape(weights.shape), "int8")
        _set_constant(int8, operator.inputs[1], rounded)
        _shift_bias(int8, operator, lost)
    return write_tflite(int8)


def _gptq(weights, moments):
    """Whole numbers in [-127, 127] for weights (g, filters, k) under second moments (g, k, k)."""
    size = weights.shape[-1]
    damping = 0.01 * np.trace(moments, axis1=1, axis2=2) / size + 1e-12
    moments = moments + damping[:, None, None] * np.eye(size)
    factors = np.linalg.cholesky(np.linalg.inv(moments)).transpose(0, 2, 1)
    left, rounded = weights.copy(), np.empty_like(weights)
    for k in range(size):
        rounded[..., k] = np.clip(np.rint(left[..., k]), -127, 127)
        error = (left[..., k] - rounded[..., k]) / factors[:, k, k, None]
        left[..., k + 1 :] -= error[..., None] * factors[:, k, None, k + 1 :]
    return rounded


def _shift_bias(model, operator, amount):
    """Adds an amount, in the unit of the output, to the int32 biases of a convolution."""
    index = operator.inputs[2]
    scale = np.array(model.subgraphs[0].tensors[index].quantization.scale)
    bias = constant(model, model.subgraphs[0], index) + np.rint(amount / scale)
    _set_constant(model, index, np.clip(bias, -(2**31), 2**31 - 1).astype("<i4"))


def _correct_biases(data, plain, images, head, steps=12):
    """Takes the mean error of each convolution without activation into its bias, from the input to
    the output in some steps, as each correction changes what comes after it."""
    int8, original = read_tflite(data), read_tflite(plain)
    pairs = _convolutions(int8, original)
    pairs = [pair for pair in pairs if not pair[0].builtinOptions.fusedActivationFunction]

    def means(source, indices, xnnpack=False):
        total = [0.0] * len(indices)
        for value in _run(source, images, indices if xnnpack else ()):
            for k, index in enumerate(indices):
                total[k] += value(index).mean((0, 1, 2), dtype="float64")
        return [t / len(images) for t in total]

    truth = means(plain, [twin.outputs[0] for _, twin in pairs])
    for part in np.array_split(np.arange(len(pairs)), min(steps, len(pairs))):
        outputs = [pairs[k][0].outputs[0] for k in part]
        found = means(write_tflite(int8), outputs, xnnpack=head == "matmul")
        for k, output, got in zip(part, outputs, found, strict=True):
            quantization = int8.subgraphs[0].tensors[output].quantization
            got = (got - quantization.zeroPoint[0]) * quantization.scale[0]
            _shift_bias(int8, pairs[k][0], truth[k] - got)
    return write_tflite(int8)


def _finish(data, plain, images, head):
    data = _refit_bias(data, plain, images, head)
    data = _center_threshold(data, plain, _some(images, _MANY), head)
    return _fuse_activations(data) if head == "matmul" else data


def _fuse_activations(data):
    """Each RELU as the activation of a sum with zero: XNNPACK has no RELU of int8, and leaves it to
    a kernel that is 20 times slower."""
    model = read_tflite(data)
    (graph,) = model.subgraphs
    sums = [op.opcodeIndex for op in graph.operators if operator_name(model, op) == "ADD"]
    for operator in graph.operators:
        if sums and operator_name(model, operator) == "RELU":
            (source,) = operator.inputs
            quantization = schema.QuantizationParametersT()
            quantization.scale = graph.tensors[source].quantization.scale
            quantization.zeroPoint = [0]
            zero = add_constant(model, graph, np.zeros(1, np.int8), quantization)
            graph.tensors[zero].name = b"zero"
            operator.opcodeIndex = sums[0]
            operator.inputs = [source, zero]
            operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
            operator.builtinOptions = schema.AddOptionsT()
            operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU
    return write_tflite(model)


def _logits(model):
    """Index of the logits of two classes, which the last operators make an output; else None."""
    ends = (op for op in model.subgraphs[0].operators if operator_name(model, op) in _LOGITS)
    return next((operator.inputs[0] for operator in ends), None)


def _logit_errors(data, plain, images, head, others=()):
    """Yields for each image the errors of two classes' logits near their threshold, and a function
    for the values of `others`, as `_run` does."""
    model = read_tflite(data)
    logits, twin = _logits(model), _logits(read_tflite(plain))
    rounded = _run(data, images, [*others, logits] if head == "matmul" else ())
    for value, truth in zip(rounded, _run(plain, images), strict=True):
        expected = truth(twin)
        found = dequantize(model.subgraphs[0].tensors[logits], value(logits))
        yield (found - expected)[np.abs(expected) < _NEAR], value


def _refit_bias(data, plain, images, head):
    """Fits the last layer of the dynamic head's bias anew, on what the int8 network gives it.

    About half of the error of two classes' logits near their threshold is one shift for a whole
    image, as maps of a smooth sky are rounded alike everywhere. The head knows the means of its
    maps, and so can foresee a part of the shift: ridge regression on the hidden layer, its strength
    chosen by leaving photos out, one by one.
    """
    model = read_tflite(data)
    graph = model.subgraphs[0]
    makers, logits = _makers(graph), _logits(model)
    if logits is None or operator_name(model, makers[logits]) != "ADD":
        return data  # more than two classes, or a static head
    hidden, kernel = makers[makers[logits].inputs[1]].inputs[:2]
    features, shifts, counts = [], [], []
    for errors, value in _logit_errors(data, plain, images, head, [hidden]):
        features.append(dequantize(graph.tensors[hidden], value(hidden)).ravel())
        shifts.append(errors.mean() if errors.size else 0.0)
        counts.append(errors.size)
    x, weight = np.array(features, "float64"), np.array(counts, "float64")
    if not weight.any():
        return data
    weight /= weight.mean()
    spread = np.maximum(x.std(0), 1e-6)
    z = np.sqrt(weight)[:, None] * (x - np.average(x, 0, weight)) / spread
    shifts = np.sqrt(weight) * (shifts - np.average(shifts, weights=weight))
    best, slopes = 0.9 * (shifts**2).sum(), None  # left out, a photo must gain by a tenth
    for ridge in _RIDGES:
        solver = np.linalg.solve(z.T @ z + ridge * np.eye(z.shape[1]), z.T)
        left_out = (shifts - z @ (solver @ shifts)) / (1 - (z * solver.T).sum(1))
        if (error := (left_out**2).sum()) < best:
            best, slopes = error, solver @ shifts / spread
    if slopes is None:
        return data
    scale = graph.tensors[kernel].quantization.scale[0]
    whole = constant(model, graph, kernel)
    wanted = whole.reshape(1, 1, -1) - slopes / scale
    centered = x - x.mean(0)
    moments = (centered.T @ centered / len(x))[None]
    whole = _gptq(wanted, moments).reshape(whole.shape).astype("int8")
    _set_constant(model, kernel, whole)
    return write_tflite(model)


def _center_threshold(data, plain, images, head):
    """Shifts the logits of two classes so that their threshold, zero, lies where it does in float.

    What the kernels round adds up to a mean error, and rounding to the nearest takes what lies up
    to half a step below the threshold for cloud.
    """
    model = read_tflite(data)
    graph = model.subgraphs[0]
    makers, logits = _makers(graph), _logits(model)
    if logits is None:
        return data
    errors = np.concatenate([near for near, _ in _logit_errors(data, plain, images, head)])
    maker = makers[logits]
    if operator_name(model, maker) == "ADD":  # of the dynamic head's sum and bias
        maker = makers[maker.inputs[0]]
    step = graph.tensors[logits].quantization.scale[0]
    _shift_bias(model, maker, -step / 2 - (errors.mean() if errors.size else 0))
    return write_tflite(model)
