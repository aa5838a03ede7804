"""Feeds a model: decoding, caching, shuffling and augmentation, the same for every Keras backend.

An image's augmentation depends on (seed, epoch, position) alone, so that an interrupted training
sees the same pictures as an uninterrupted one, whatever reads them in however many threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ddunet_keras.data.augmentation import Augmentation
from ddunet_keras.images import normalize, resize_image, resize_labels

CACHE_BYTES = 4_000_000_000
"""The cache of decoded images stays below this; larger datasets are decoded in every epoch."""

WORKERS = 4
"""Threads that decode and augment the images of a batch, without TensorFlow."""


class Pipeline:
    """Batches of network inputs and labels from a dataset.

    Args:
        dataset: from `ddunet_keras.open_dataset`, or anything with `find(name)` and `load(sample)`.
        names: of the samples, such as `split.train`.
        image_size: (height, width) of the batches.
        batch_size: images in a batch. With augmentation the last, smaller batch of an epoch is left
            out (the shuffling leaves out others each time), without it is kept.
        augmentation: an `Augmentation`, or None: then the images come whole and in order.
        seed: of shuffling and augmentation.
        cache: keep the decoded images in memory, at the size that the augmentation needs; None
            does where they fit `CACHE_BYTES`.

    Attributes:
        error: what stopped `tf_data`, as it was raised; TensorFlow passes on no more than a text.

    Batch: images float32 (batch, height, width, 3) in [-1, 1], labels uint8 (batch, height, width)
    with 255 where a pixel is ignored.

    Example: with augmentation `data()` is endless, so `fit` is told the steps of an epoch, as in
    `model.fit(train.data(), steps_per_epoch=train.steps, shuffle=False)`.

    >>> dataset = dd.open_dataset(dd.write_synthetic(tmp / "skies", 10, image_size=(32, 32)))
    >>> names = [sample.name for sample in dataset]
    >>> train = Pipeline(dataset, names, (32, 32), batch_size=4, augmentation=Augmentation())
    >>> train.steps
    2
    >>> image, labels = train.item(epoch=0, position=3)
    >>> image.shape, labels.shape
    ((32, 32, 3), (32, 32))

    Raises:
        ValueError: no names, or a size that is not positive.
        DataError: a name is not in the dataset, or a file cannot be read.
    """

    def __init__(
        self,
        dataset: Any,
        names: Sequence[Any],
        image_size: tuple[int, int],
        batch_size: int = 16,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache: bool | None = None,
    ):
        if not names:
            raise ValueError(f"`names` must not be empty. Received: {names!r}")
        if batch_size < 1 or min(image_size) < 1:
            raise ValueError(
                "`batch_size` and `image_size` must be positive. "
                f"Received: batch_size={batch_size}, image_size={image_size}"
            )
        self.dataset = dataset
        self.samples = [dataset.find(name) for name in names]
        height, width = image_size
        self.image_size = (height, width)
        self.batch_size = min(batch_size, len(names)) if augmentation else batch_size
        self.augmentation = augmentation
        self.seed = seed
        zoom = augmentation.crop if augmentation else 1
        self._stored_size = tuple(math.ceil(side / zoom) for side in self.image_size)
        if cache is None:
            cache = 4 * math.prod(self._stored_size) * len(names) <= CACHE_BYTES
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] | None = {} if cache else None
        self.error: Exception | None = None

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        count = len(self.samples) / self.batch_size
        return int(count) if self.augmentation else math.ceil(count)

    def item(self, epoch: int, position: int) -> tuple[np.ndarray, np.ndarray]:
        """The image and labels at a place of an epoch; equal arguments give equal arrays."""
        if self.augmentation is None:
            image, labels = self._load(position)
            return (
                normalize(resize_image(image, self.image_size)),
                resize_labels(labels, self.image_size),
            )
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
        random = np.random.default_rng([self.seed, epoch, position])
        image, labels = self._load(int(order[position]))
        image, labels = self.augmentation(image, labels, self.image_size, random)
        return normalize(image), labels

    def _load(self, index):
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        image, labels = self.dataset.load(self.samples[index])
        if self._cache is None:
            return image, labels
        # never enlarged: that would cost memory and add nothing
        size = tuple(np.minimum(self._stored_size, labels.shape).tolist())
        self._cache[index] = resize_image(image, size), resize_labels(labels, size)
        return self._cache[index]

    def data(self, initial_epoch: int = 0):
        """What `fit` takes: a `tf.data.Dataset` on TensorFlow, else a `keras.utils.PyDataset`.

        With augmentation it goes on through the epochs from `initial_epoch`, without end on
        TensorFlow: give `fit` `steps_per_epoch=pipeline.steps`.
        """
        import keras

        if keras.backend.backend() == "tensorflow":
            return self.tf_data(initial_epoch)
        return self.py_dataset(initial_epoch)

    def tf_data(self, initial_epoch: int = 0):
        """A `tf.data.Dataset` that decodes and augments in parallel and prefetches."""
        import tensorflow as tf

        height, width = self.image_size
        count = self.steps * self.batch_size if self.augmentation else len(self.samples)
        if self.augmentation:
            places = tf.data.Dataset.range(initial_epoch * count, tf.int64.max)
        else:
            places = tf.data.Dataset.range(count)

        def item(place):
            try:
                return self.item(*divmod(int(place), count))
            except Exception as error:
                self.error = error
                raise

        def load(place):
            image, labels = tf.numpy_function(item, [place], (tf.float32, tf.uint8), stateful=False)
            return tf.ensure_shape(image, (height, width, 3)), tf.ensure_shape(
                labels, (height, width)
            )

        data = places.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return data.batch(self.batch_size).prefetch(2)

    def py_dataset(self, initial_epoch: int = 0):
        """A `keras.utils.PyDataset` for a backend without TensorFlow."""
        import keras

        pipeline = self

        class Batches(keras.utils.PyDataset):
            epoch = initial_epoch

            def __len__(self):
                return pipeline.steps

            def __getitem__(self, step):
                places = range(step * pipeline.batch_size, (step + 1) * pipeline.batch_size)
                places = [p for p in places if p < len(pipeline.samples)]
                epoch = self.epoch
                items = list(pool.map(lambda p: pipeline.item(epoch, p), places))
                images, labels = zip(*items, strict=True)
                return np.stack(images), np.stack(labels)

            def on_epoch_end(self):
                self.epoch += 1

        pool = ThreadPoolExecutor(WORKERS)
        return Batches()
