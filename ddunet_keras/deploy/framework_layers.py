"""Layers of the deploy graph that neither Keras 3 nor tf_keras has in the form that TFLite needs.

Each function takes a framework (`keras` or `tf_keras`) and returns a layer class of it.
"""

from __future__ import annotations

import functools

from ddunet_keras.images import align_corners_matrix


@functools.lru_cache
def align_corners_layer(framework):
    """Bilinear x2 upsampling with align_corners=True, as one RESIZE_BILINEAR."""
    import tensorflow as tf

    class AlignCornersUpSampling2D(framework.layers.Layer):
        def call(self, inputs):
            height, width = inputs.shape[1:3]
            if inputs.dtype == tf.float64:
                # TensorFlow's operator computes in float32, which is too coarse to check the graph
                rows = align_corners_matrix(height, 2 * height)
                columns = align_corners_matrix(width, 2 * width)
                return tf.einsum("yh,nhwc,xw->nyxc", rows, inputs, columns)
            size = [2 * height, 2 * width]
            return tf.raw_ops.ResizeBilinear(images=inputs, size=size, align_corners=True)

        def compute_output_shape(self, input_shape):
            batch, height, width, channels = input_shape
            return (batch, 2 * height, 2 * width, channels)

    return AlignCornersUpSampling2D


@functools.lru_cache
def crop_layer(framework):
    """The upper left part of feature maps, by SLICE."""
    import tensorflow as tf

    class Crop(framework.layers.Layer):
        def __init__(self, size, **kwargs):
            super().__init__(**kwargs)
            self.size = size

        def call(self, inputs):
            return tf.slice(inputs, [0, 0, 0, 0], [-1, *self.size, -1])

        def compute_output_shape(self, input_shape):
            batch, _, _, channels = input_shape
            return (batch, *self.size, channels)

        def get_config(self):
            return {**super().get_config(), "size": self.size}

    return Crop


@functools.lru_cache
def repeat_first_layer(framework):
    """A copy of the first row or column before all others, by SLICE and CONCATENATION."""
    import tensorflow as tf

    class RepeatFirst(framework.layers.Layer):
        def __init__(self, axis, **kwargs):
            super().__init__(**kwargs)
            self.axis = axis

        def call(self, inputs):
            size = [1 if axis == self.axis else -1 for axis in range(4)]
            return tf.concat([tf.slice(inputs, [0, 0, 0, 0], size), inputs], self.axis)

        def compute_output_shape(self, input_shape):
            shape = list(input_shape)
            shape[self.axis] += 1
            return tuple(shape)

        def get_config(self):
            return {**super().get_config(), "axis": self.axis}

    return RepeatFirst


@functools.lru_cache
def split_layer(framework):
    """`tf.split` along the channels."""
    import tensorflow as tf

    class Split(framework.layers.Layer):
        def __init__(self, parts, **kwargs):
            super().__init__(**kwargs)
            self.parts = parts

        def call(self, inputs):
            return tf.split(inputs, self.parts, axis=-1)

        def compute_output_shape(self, input_shape):
            part = (*input_shape[:-1], input_shape[-1] // self.parts)
            return [part] * self.parts

        def get_config(self):
            return {**super().get_config(), "parts": self.parts}

    return Split


@functools.lru_cache
def matmul_layer(framework):
    """`tf.matmul` of two computed tensors, as BATCH_MATMUL."""
    import tensorflow as tf

    class MatMul(framework.layers.Layer):
        def call(self, inputs):
            return tf.matmul(*inputs)

        def compute_output_shape(self, input_shape):
            left, right = input_shape
            return (*left[:-1], right[-1])

    return MatMul


@functools.lru_cache
def mask_layer(framework):
    """Class of each pixel, int8 (..., 1), from logits."""
    import tensorflow as tf

    class Mask(framework.layers.Layer):
        def call(self, inputs):
            if inputs.shape[-1] == 1:
                return tf.cast(inputs >= 0, "int8")
            return tf.cast(tf.expand_dims(tf.argmax(inputs, -1, "int32"), -1), "int8")

        def compute_output_shape(self, input_shape):
            return (*input_shape[:-1], 1)

    return Mask
