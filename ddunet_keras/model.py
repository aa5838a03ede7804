"""DDUNet, the Dual Dynamic U-Net as a Keras model; `build_network` and `load_model`."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from ddunet_keras.files import DataError, first_line
from ddunet_keras.layers import (
    DMSC,
    DWBG,
    PACKAGE,
    ConvBNReLU,
    InvertedResidual,
    UpConvBNReLU,
)
from ddunet_keras.networks.architectures import NETWORKS
from ddunet_keras.networks.network import ComparedNetwork
from ddunet_keras.presets import preset_file
from ddunet_keras.recipes import VARIANTS
from ddunet_keras.segmentation_network import SegmentationNetwork
from ddunet_keras.settings import CLASSES, POSITIVE, Choice

MAX_CONFIG_BYTES = 1_000_000
"""Longest description of a model that is read from a file; a network's has 3 kB."""


@keras.saving.register_keras_serializable(PACKAGE)
class DDUNet(SegmentationNetwork):
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


def _check_image_shape(image_shape):
    shape = tuple(image_shape) if isinstance(image_shape, (tuple, list)) else ()
    fits = len(shape) == 3 and all(isinstance(s, (int, np.integer)) and s > 0 for s in shape)
    if not fits or shape[2] != 3 or shape[0] % 16 or shape[1] % 16:
        raise ValueError(
            "`image_shape` must be (height, width, 3) with height and width multiples of 16. "
            f"Received: image_shape={image_shape!r}"
        )
    return tuple(int(s) for s in shape)


def build_network(
    name: str,
    image_shape: tuple[int, int, int] = (304, 304, 3),
    num_classes: int = 2,
    **options: Any,
) -> SegmentationNetwork:
    """Builds a network by its name, with weights that are to be trained.

    Args:
        name: "ddunet", or one of `ddunet_keras.NETWORKS`, such as "unet".
        image_shape: (height, width, 3); DDUNet takes multiples of 16 alone.
        num_classes: 2 gives one channel of logits (cloud), more give one channel for each class.
        **options: the other arguments of `DDUNet` or of `ComparedNetwork`.

    Raises:
        ValueError: there is no such network, or an argument is out of its range.

    Example:

    >>> build_network("ucloudnet_k2", image_shape=(64, 96, 3), num_classes=3).num_classes
    3
    """
    if name == "ddunet":
        return DDUNet(image_shape, num_classes=num_classes, **options)
    return ComparedNetwork(
        Choice(("ddunet", *NETWORKS)).check("name", name), image_shape, num_classes, **options
    )


LOADABLE = {f"{PACKAGE}>{kind.__name__}": kind for kind in (DDUNet, ComparedNetwork)}
"""Registered name -> class of what `load_model` loads. A file gives arguments for one of these, and
nothing that it names is imported."""


def load_model(path: str | Path) -> SegmentationNetwork:
    """Loads a `.keras` file that holds a DDUNet or another network, without its optimizer.

    The file's own description is checked first: it names no class but those of this package's
    networks, so nothing that a foreign file asks for is imported or run.

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
        _check_description(config)
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # zip, JSON, HDF5 and Keras raise many types on corrupt input
        reason = first_line(error)
        raise DataError(f"{path}: no readable DDUNet model ({reason})") from None


def _check_description(description):
    """Refuses whatever is no network of this package with plain arguments."""
    kind = LOADABLE.get(description.get("registered_name"))
    if kind is None or description.get("class_name") != kind.__name__:
        raise ValueError(f"it holds a {description.get('class_name')}, not a DDUNet")
    for name, value in description["config"].items():
        if isinstance(value, dict):  # Keras would build what it describes
            raise ValueError(f"its {name} is no plain value")
