"""DDUNet: the Dual Dynamic U-Net as a Keras model."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from ddunet_keras.files import DataError, atomic_path, first_line
from ddunet_keras.images import normalize, resize_image
from ddunet_keras.layers import (
    DMSC,
    DWBG,
    PACKAGE,
    ConvBNReLU,
    InvertedResidual,
    UpConvBNReLU,
)
from ddunet_keras.presets import preset_file
from ddunet_keras.recipes import VARIANTS
from ddunet_keras.settings import CLASSES, POSITIVE, Choice
from ddunet_keras.sky import Segmentation, segment

MAX_CONFIG_BYTES = 1_000_000
"""Longest description of a model that is read from a file; a DDUNet's has 3 kB."""


@keras.saving.register_keras_serializable(PACKAGE)
class DDUNet(keras.Model):
    """Segments clouds in a photo of the sky with 0.33 M parameters (at `base_channels=8`).

    A U-Net of five stages. `variant="full"` has dynamic multi-scale convolutions (`DMSC`) in the
    encoder and heads whose weights are generated for each image (`DWBG`); "dmsc" has a static head,
    "baseline" has 3x3 convolutions in the encoder too. Source: Li et al., IGARSS 2025,
    arXiv:2501.15385, figure 1; the authors' code where the text is open.

    It is a functional Keras model: `compile`, `fit`, `save` work as ever. Where there are several
    outputs, `fit` and `evaluate` need the labels only once: every output is compared with them, and
    metrics see the output of full size alone. `compile` takes one loss, or, where `loss_weights`
    are given, a list of as many losses as there are outputs.

    Args:
        image_shape: (height, width, 3); height and width are multiples of 16, square or not.
        base_channels: channels of the first stage; the paper has 4, 8 and 16.
        variant: "full", "dmsc" or "baseline".
        num_classes: 2 gives one channel of logits (cloud), more give one channel for each class.
        upsampling: "bilinear" (half-pixel centres, runs on every device) or "align_corners" (the
            authors', needed with their checkpoints).
        deep_supervision: whether "full" gives the logits of its last three decoder stages, for
            training, or those at full size alone. The weights are the same.

    Input: (batch, height, width, 3), RGB as `x / 127.5 - 1`, so in [-1, 1]; `segment` takes a photo
    as it is. Output: logits (batch, height, width, 1 or num_classes); with deep supervision a list
    of three, at full, half and quarter size.

    Raises:
        ValueError: an argument has another value than those named here.

    Example:

    >>> model = DDUNet(image_shape=(64, 96, 3), base_channels=4)
    >>> [tuple(logits.shape) for logits in model(np.zeros((1, 64, 96, 3)))]
    [(1, 64, 96, 1), (1, 32, 48, 1), (1, 16, 24, 1)]
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (304, 304, 3),
        base_channels: int = 8,
        variant: str = "full",
        num_classes: int = 2,
        upsampling: str = "bilinear",
        deep_supervision: bool = True,
        dtype: Any = None,
        name: str = "ddunet",
    ):
        image_shape = _check_image_shape(image_shape)
        base_channels = POSITIVE.check("base_channels", base_channels)
        variant = Choice(VARIANTS).check("variant", variant)
        num_classes = CLASSES.check("num_classes", num_classes)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())

        # === Layers ===
        widths = [base_channels * 2**stage for stage in range(5)]
        out_channels = 1 if num_classes == 2 else num_classes
        stem = ConvBNReLU(base_channels, dtype=policy, name="stem")
        encoder_block = ConvBNReLU if variant == "baseline" else DMSC
        encoder = [
            encoder_block(width, dtype=policy, name=f"encoder_{stage + 1}")
            for stage, width in enumerate(widths)
        ]
        down = [
            ConvBNReLU(width, strides=2, dtype=policy, name=f"down_{stage + 1}")
            for stage, width in enumerate(widths[1:])
        ]
        up = [
            UpConvBNReLU(width, upsampling, dtype=policy, name=f"up_{stage + 1}")
            for stage, width in enumerate(widths[-2::-1])
        ]
        decoder = [
            [
                InvertedResidual(filters, dtype=policy, name=f"decoder_{stage + 1}_{part + 1}")
                for part, filters in enumerate(
                    (width,) if variant == "baseline" else (2 * width, width)
                )
            ]
            for stage, width in enumerate(widths[-2::-1])
        ]
        # logits are float32 at least, whatever the policy: the loss needs the range
        head_dtype = keras.backend.result_type(policy.compute_dtype, "float32")
        heads = (
            [
                DWBG(out_channels, ratio, dtype=head_dtype, name=f"head_{index + 1}")
                for index, ratio in enumerate((4, 2, 1) if deep_supervision else (4,))
            ]
            if variant == "full"
            else [
                layers.Conv2D(
                    out_channels,
                    3,
                    padding="same",
                    data_format="channels_last",
                    dtype=head_dtype,
                    name="head_1",
                )
            ]
        )

        # === Functional Model ===
        image = keras.Input(shape=image_shape, name="image")
        x = stem(image)
        skips = []
        for stage in range(5):
            x = encoder[stage](down[stage - 1](x) if stage else x)
            skips.append(x)
        decoded = []
        for stage, blocks in enumerate(decoder):
            x = layers.Concatenate(dtype=policy, name=f"concatenate_{stage + 1}")(
                [up[stage](x), skips[3 - stage]]
            )
            for block in blocks:
                x = block(x)
            decoded.append(x)
        if variant == "full":
            logits = [
                head([feature, skip])
                for head, feature, skip in zip(heads, decoded[::-1], skips, strict=False)
            ]
        else:
            logits = [heads[0](x)]
        super().__init__(inputs=image, outputs=logits if len(logits) > 1 else logits[0], name=name)

        # === Config ===
        self.image_shape = image_shape
        self.base_channels = base_channels
        self.variant = variant
        self.num_classes = num_classes
        self.upsampling = upsampling
        self.deep_supervision = bool(deep_supervision)
        # by this `compile` knows that a float16 loss is to be scaled
        self.dtype_policy = policy

    def get_config(self):
        return {
            "image_shape": self.image_shape,
            "base_channels": self.base_channels,
            "variant": self.variant,
            "num_classes": self.num_classes,
            "upsampling": self.upsampling,
            "deep_supervision": self.deep_supervision,
            "dtype": self.dtype_policy.name,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)

    @classmethod
    def from_preset(
        cls,
        name: str = "ddunet_c8",
        image_shape: tuple[int, int, int] | None = None,
        deep_supervision: bool = True,
    ) -> DDUNet:
        """A trained network that comes with the package.

        Args:
            name: one of `ddunet_keras.PRESETS`.
            image_shape: (height, width, 3) instead of the one that it was trained at.
            deep_supervision: as in `DDUNet`; needed to train on.

        Raises:
            ValueError: there is no such preset, or `image_shape` is none.
            DataError: the preset's file is missing or damaged.

        Example:

        >>> DDUNet.from_preset("ddunet_c4", (64, 96, 3)).count_params()
        90447
        """
        model = load_model(preset_file(name))
        if deep_supervision and image_shape is None:
            return model
        return model.resized(image_shape or model.image_shape, deep_supervision)

    def resized(
        self,
        image_shape: tuple[int, int, int],
        deep_supervision: bool = False,
        dtype: Any = None,
    ) -> DDUNet:
        """The same network with the same weights for another size.

        Args:
            image_shape: (height, width, 3).
            deep_supervision: keep the heads that only train.
            dtype: a dtype policy in place of the model's own.

        Example:

        >>> DDUNet((32, 32, 3), base_channels=2).resized((64, 96, 3)).output_shape
        (None, 64, 96, 1)
        """
        config = self.get_config()
        config["image_shape"] = image_shape
        config["deep_supervision"] = deep_supervision
        if dtype:
            config["dtype"] = dtype
        model = type(self)(**config)
        for layer in model.layers:
            layer.set_weights(self.get_layer(layer.name).get_weights())
        return model

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
                return value.get("head_1")
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
                read a DDUNet from them.

        Example:

        >>> DDUNet((32, 32, 3), base_channels=2).save(tmp / "model.keras")
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
        >>> DDUNet(image_shape=(32, 48, 3), base_channels=2).segment(photo).mask.shape
        (40, 60)
        """
        return segment(self.predict_probabilities, image, threshold, horizon, channel_order, force)


def _check_image_shape(image_shape):
    shape = tuple(image_shape) if isinstance(image_shape, (tuple, list)) else ()
    fits = len(shape) == 3 and all(isinstance(s, (int, np.integer)) and s > 0 for s in shape)
    if not fits or shape[2] != 3 or shape[0] % 16 or shape[1] % 16:
        raise ValueError(
            "`image_shape` must be (height, width, 3) with height and width multiples of 16. "
            f"Received: image_shape={image_shape!r}"
        )
    return tuple(int(s) for s in shape)


def load_model(path: str | Path) -> DDUNet:
    """Loads a `.keras` file that holds a DDUNet, without its optimizer.

    The file's own description is checked first: it names no class but DDUNet, so nothing that a
    foreign file asks for is imported or run.

    Raises:
        DataError: the file is missing, empty, truncated, of another type or holds another model.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".keras":
        what = "not a .keras file" if path.is_file() else "no such file"
        raise DataError(f"{path}: {what}; a model that `ddunet train` wrote was expected")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
                raise ValueError("its config.json is over 1 MB")
            config = json.loads(archive.read("config.json"))
        if config.get("registered_name") != f"{PACKAGE}>DDUNet":
            raise ValueError(f"it holds a {config.get('class_name')}, not a DDUNet")
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # zip, JSON, HDF5 and Keras raise many types on corrupt input
        reason = first_line(error)
        raise DataError(f"{path}: no readable DDUNet model ({reason})") from None
