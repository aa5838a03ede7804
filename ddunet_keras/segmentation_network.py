"""What every network of this package can do: `SegmentationNetwork`, the base of `DDUNet`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from ddunet_keras.files import atomic_path
from ddunet_keras.images import normalize, resize_image
from ddunet_keras.sky import Segmentation, segment


class SegmentationNetwork(keras.Model):
    """A functional Keras model that segments photos of the sky.

    A network sets `image_shape`, `num_classes` and `deep_supervision`, and gives all arguments of
    its `__init__` in `get_config`, from which it is built again when a file is loaded.

    Input: (batch, height, width, 3), RGB as `x / 127.5 - 1`, so in [-1, 1]. Output: logits
    (batch, height, width, 1 or num_classes); with deep supervision a list of several, that of full
    size first.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    deep_supervision: bool

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)

    def resized(
        self,
        image_shape: tuple[int, int, int],
        deep_supervision: bool = False,
        dtype: Any = None,
    ) -> SegmentationNetwork:
        """The same network with the same weights for another size.

        Args:
            image_shape: (height, width, 3).
            deep_supervision: keep the heads that only train.
            dtype: a dtype policy in place of the model's own.

        Example:

        >>> dd.DDUNet((32, 32, 3), base_channels=2).resized((64, 96, 3)).output_shape
        (None, 64, 96, 1)
        """
        config = self.get_config()
        config["image_shape"] = image_shape
        config["deep_supervision"] = deep_supervision
        if dtype:
            config["dtype"] = dtype
        model = type(self)(**config)
        model.copy_weights(self)
        return model

    def copy_weights(self, source: SegmentationNetwork) -> None:
        """Takes over the weights of a network that has all layers of this one.

        Raises:
            ValueError: a layer is missing there, or its weights have another shape.
        """
        for layer in self.layers:
            if layer.weights:
                layer.set_weights(source.get_layer(layer.name).get_weights())

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of Keras, for labels that are given once or for each output.

        With deep supervision every output is compared with the same labels, which
        `SegmentationLoss` brings to the output's size.
        """
        if isinstance(y_pred, (list, tuple)):
            if not isinstance(y, (list, tuple, dict)):
                y = [y for _ in y_pred]
            if sample_weight is not None and not isinstance(sample_weight, (list, tuple, dict)):
                sample_weight = [sample_weight for _ in y_pred]
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The metrics of Keras, of the output of full size alone."""

        def first(value):
            if isinstance(value, dict):
                return value.get(self.output_names[0])
            return value[0] if isinstance(value, (list, tuple)) else value

        # as dicts of one output: Keras 3.12 would count the model's outputs otherwise
        y, y_pred = {"logits": first(y)}, {"logits": first(y_pred)}
        return super().compute_metrics(x, y, y_pred, first(sample_weight))

    def save(self, filepath: str | Path, overwrite: bool = True, **kwargs) -> None:
        """Writes a `.keras` file, complete or not at all; `load_model` reads it.

        Args:
            filepath: of the file; its name ends in `.keras`.
            overwrite: ask before a file is replaced, where False.
            **kwargs: of `keras.Model.save`.

        Raises:
            ValueError: the name ends otherwise. Keras writes HDF5 files (`.h5`), too, and cannot
                read these networks from them.

        Example:

        >>> dd.DDUNet((32, 32, 3), base_channels=2).save(tmp / "model.keras")
        """
        if not str(filepath).endswith(".keras"):
            raise ValueError(
                f"the name of a model's file must end in .keras. Received: filepath={filepath!r}"
            )
        if "://" in str(filepath) or not overwrite:
            super().save(filepath, overwrite=overwrite, **kwargs)
            return
        with atomic_path(filepath) as temporary:
            super().save(temporary, **kwargs)

    def predict_probabilities(self, image: np.ndarray) -> np.ndarray:
        """Class probabilities of one photo at the size of the network.

        Args:
            image: uint8 (h, w, 3), RGB, of any size.

        Returns:
            float32 (height, width), the probability of cloud; for `num_classes` n > 2
            (height, width, n). Height and width are those of `image_shape`. It is the `predictor`
            that `ddunet_keras.evaluate` takes.
        """
        inputs = normalize(resize_image(image, self.image_shape[:2]))[None]
        logits = self.predict_on_batch(inputs)
        logits = logits[0] if isinstance(logits, (list, tuple)) else logits
        if self.num_classes == 2:
            return ops.convert_to_numpy(ops.sigmoid(logits[0, ..., 0]))
        return ops.convert_to_numpy(ops.softmax(logits[0]))

    def segment(
        self,
        image: np.ndarray,
        threshold: float = 0.5,
        horizon: Any = None,
        channel_order: str = "rgb",
        force: bool = False,
    ) -> Segmentation:
        """Finds the clouds in one photo.

        Args:
            image: uint8 (h, w, 3) of any size.
            threshold: probability in (0, 1) from which a pixel is cloud (two classes only).
            horizon: None, "auto", "circle:x,y,r" (pixels of the photo), a mask file or a boolean
                array; outside it nothing counts. See `ddunet_keras.sky.horizon_mask`.
            channel_order: "rgb", or "bgr" as OpenCV reads.
            force: find clouds in a photo that says nothing of the sky, too, such as a black one.

        Returns:
            `ddunet_keras.sky.Segmentation`: `mask`, `cloud_cover`, `overlay()`, all at the photo's
            own size; `usable`, `reason` and `confidence`.

        Raises:
            ValueError: the image is not uint8 (h, w, 3), or another argument is out of its range.

        Example:

        >>> photo, _ = dd.synthetic_sky(0, (40, 60))
        >>> dd.DDUNet(image_shape=(32, 48, 3), base_channels=2).segment(photo).mask.shape
        (40, 60)
        """
        return segment(self.predict_probabilities, image, threshold, horizon, channel_order, force)
