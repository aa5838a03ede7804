"""How to train: recipes, and the settings of a training. No Keras is imported here."""

# ruff: noqa: RUF009  `setting` makes a field of a dataclass

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddunet_keras.data.augmentation import Augmentation
from ddunet_keras.data.datasets import LAYOUTS
from ddunet_keras.data.splits import PROTOCOLS, Split
from ddunet_keras.files import as_json
from ddunet_keras.networks.architectures import NETWORKS
from ddunet_keras.presets import PRESETS, preset_file
from ddunet_keras.settings import (
    CLASSES,
    FLAG,
    PATH,
    POSITIVE,
    SEED,
    Choice,
    Each,
    FilePath,
    ImageSize,
    Number,
    Rule,
    check_settings,
    document_settings,
    setting,
)

if TYPE_CHECKING:
    from ddunet_keras.segmentation_network import SegmentationNetwork

VARIANTS = ("full", "dmsc", "baseline")
"""The networks of Table II; `DDUNet` says what they are."""

UPSAMPLINGS = ("bilinear", "align_corners")

RATE = Number(float, 0, 1, "a learning rate from 0 to 1")
WEIGHT = Number(float, 0, 1e3, "0 or a positive number")
LIMIT = Number(float, 1e-9, 1e9, "a positive number")


class _AugmentationRule(Rule):
    words = "an Augmentation"

    def check(self, name, value):
        if not isinstance(value, Augmentation):
            self._refuse(name, value)
        return value


@document_settings
@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train: everything but the data and the network's size.

    Raises:
        ValueError: a setting is out of its range.

    Example:

    >>> Recipe(epochs=10, learning_rate=1e-3).image_size
    (160, 160)
    """

    image_size: tuple[int, int] = setting(
        ImageSize(16), (160, 160), help="(height, width) that images are resized to"
    )
    epochs: int = setting(POSITIVE, 60, help="of the whole training")
    batch_size: int = setting(POSITIVE, 16, help="images in a batch")
    learning_rate: float = setting(RATE, 3e-3, help="the highest")
    schedule: str = setting(
        Choice(("cosine", "exponential")),
        "cosine",
        help='"cosine": to zero, after a warm-up; "exponential": x 0.95 after each epoch',
    )
    warmup_epochs: float = setting(
        WEIGHT, 1.0, help='epochs of linear increase from zero, for "cosine"'
    )
    weight_decay: float = setting(
        WEIGHT, 1e-4, help="decoupled (AdamW), of kernels alone; 0 means Adam"
    )
    l2: float = setting(
        WEIGHT, 0.0, help="added to the gradient of all weights (not decoupled); 0 means none"
    )
    clipnorm: float | None = setting(
        LIMIT,
        1.0,
        optional=True,
        help="longest gradient of all weights together; None means no limit",
    )
    aux_weights: tuple[float, ...] = setting(
        Each(WEIGHT),
        (1.0, 0.5, 0.2),
        help="weights of the losses of deep supervision, full size first",
    )
    iou_weight: float = setting(
        WEIGHT, 0.5, help="weight of the soft IoU term of `SegmentationLoss`"
    )
    saturating: bool = setting(FLAG, False, help="see `SegmentationLoss`")
    range_penalty: float = setting(
        WEIGHT, 0.1, help="see `DMSC`; keeps activations in a range that int8 resolves"
    )
    upsampling: str = setting(Choice(UPSAMPLINGS), "bilinear", help="see `DDUNet`")
    augmentation: Augmentation | None = setting(
        _AugmentationRule(),
        Augmentation(horizon_circle=0.1),
        optional=True,
        help="of the training images; None for none beyond the dataset's own",
    )

    def __post_init__(self):
        check_settings(self)

    def compile_arguments(
        self, model: SegmentationNetwork, steps_per_epoch: int, epochs: int | None = None
    ) -> dict:
        """What `model.compile` takes: optimizer, loss, loss_weights and metrics.

        Args:
            model: a `DDUNet` or another network. The range penalty of its DMSC layers is set.
            steps_per_epoch: batches in an epoch, such as `pipeline.steps`.
            epochs: of the training; the recipe's own by default.

        Raises:
            ValueError: the model has more outputs than the recipe has `aux_weights`.

        Example:

        >>> model = dd.DDUNet((32, 32, 3), base_channels=2)
        >>> model.compile(**RECIPES["default"].compile_arguments(model, steps_per_epoch=10))
        """
        from ddunet_keras.training import compile_arguments  # only here: it imports Keras

        return compile_arguments(self, model, steps_per_epoch, epochs or self.epochs)


RECIPES = {
    "default": Recipe(),
    "geometric": Recipe(
        augmentation=Augmentation(
            quarter_turns=False,
            crop=0.8,
            brightness=0,
            contrast=0,
            channel_gain=0,
            saturation=0,
            gamma=1,
            other_camera=0,
            black_outside=0,
        )
    ),
    "plain": Recipe(augmentation=None),
    "paper": Recipe(
        image_size=(256, 256),
        epochs=100,
        learning_rate=1e-3,
        schedule="exponential",
        weight_decay=0.0,
        clipnorm=None,
        iou_weight=0.0,
        range_penalty=0.0,
        augmentation=None,
    ),
    "authors": Recipe(
        image_size=(304, 304),
        epochs=100,
        learning_rate=5e-4,
        schedule="exponential",
        weight_decay=0.0,
        l2=5e-4,
        clipnorm=None,
        aux_weights=(1.0, 0.4, 0.2),
        iou_weight=0.0,
        range_penalty=0.0,
        saturating=True,
        upsampling="align_corners",
        augmentation=None,
    ),
}
"""`paper` follows the paper's text, `authors` their code, `default` is what trained best here."""


class _RecipeRule(Choice):
    def check(self, name, value):
        return value if isinstance(value, Recipe) else super().check(name, value)


class _SplitRule(Rule):
    """A `Split`, or the file of one."""

    words = "a Split or the file of one"

    def check(self, name, value):
        if isinstance(value, Split):
            return value
        if not isinstance(value, (str, Path)):
            self._refuse(name, value)
        return Split.load(value)


class _PairsRule(Rule):
    """Pairs of a folder and a `Split` of it, or the file of one."""

    words = "pairs of a folder and a split of it"

    def check(self, name, value):
        pairs = []
        for pair in value:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                self._refuse(name, value)
            folder, split = pair
            pairs.append((PATH.check(name, folder), SPLIT.check(name, split)))
        return tuple(pairs)


class _WeightsRule(FilePath):
    """A file of weights, or that of the preset of this name."""

    def check(self, name, value):
        if str(value) in PRESETS and not Path(value).exists():
            return preset_file(str(value))
        return super().check(name, value)


SPLIT = _SplitRule()
SPLIT_PAIRS = _PairsRule()
RECIPE = _RecipeRule(tuple(RECIPES))

PROTOCOL_HELP = (
    "how images are divided: date (no day in two parts), capture (no photo in two parts), paper "
    "(for Table I: it leaks)"
)


@document_settings
@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """All settings of `ddunet_keras.train` and of `ddunet train`.

    Where a value is None, the recipe's counts. `recipe` may be a `Recipe` of your own; `split` a
    `Split` or the file of one; `also` has pairs of a folder and a split of it.

    Raises:
        ValueError: a setting is out of its range.
        DataError: the file of a split cannot be used.

    Example:

    >>> TrainingConfig("SWINySEG", "run", epochs=30).image_size
    >>> TrainingConfig("SWINySEG", "run", epochs=0)
    Traceback (most recent call last):
    ValueError: `epochs` must be a positive integer. Received: epochs=0
    """

    data: Path = setting(PATH, help="folder of a data set", metavar="DATA", positional=True)
    out: Path = setting(PATH, help="folder for models, settings and curves", metavar="RUN")
    layout: str | None = setting(
        Choice(tuple(LAYOUTS)), None, help="layout of DATA (default: detected)"
    )
    num_classes: int = setting(
        CLASSES, 2, help="number of classes: 2; HYTA also has 3", metavar="N"
    )
    protocol: str = setting(Choice(PROTOCOLS), "date", help=PROTOCOL_HELP)
    split: Split | None = setting(
        SPLIT, None, help="a split of your own, in place of the protocol's", metavar="FILE"
    )
    with_validation: bool = setting(
        FLAG, False, help="train on the validation part, too; then the last epoch counts"
    )
    also: tuple[tuple[Path, Split], ...] = setting(
        SPLIT_PAIRS, (), help="train on the training part of another data set, too; may be repeated"
    )
    recipe: str | Recipe = setting(RECIPE, "default", help="loss, optimizer and augmentation")
    network: str = setting(
        Choice(("ddunet", *NETWORKS)), "ddunet", help="network to train", metavar="NAME"
    )
    variant: str | None = setting(Choice(VARIANTS), None, help="variant of DDUNet (default: full)")
    base_channels: int | None = setting(
        POSITIVE, None, help="width of DDUNet (default: 8)", metavar="N"
    )
    image_size: tuple[int, int] | None = setting(
        ImageSize(16), None, help="training size (default: the recipe's)", metavar="H,W"
    )
    epochs: int | None = setting(
        POSITIVE, None, help="epochs of the training (default: the recipe's)", metavar="N"
    )
    batch_size: int | None = setting(
        POSITIVE, None, help="images in a batch (default: the recipe's)", metavar="N"
    )
    learning_rate: float | None = setting(
        Number(float, 1e-9, 1, "a number above 0, up to 1"),
        None,
        help="highest learning rate; 1e-3 suits a trained network (default: the recipe's)",
        metavar="R",
    )
    seed: int = setting(
        SEED, 0, help="seed of split, initial weights, order and augmentation", metavar="N"
    )
    initial_weights: Path | None = setting(
        _WeightsRule(),
        None,
        help=f".keras or .pdparams file, or {' or '.join(PRESETS)}, to start from",
        metavar="FILE|PRESET",
    )
    resume: bool = setting(FLAG, False, help="continue an interrupted run in RUN")
    deterministic: bool = setting(FLAG, False, help="the same bits on every run; slower")
    mixed_precision: bool = setting(
        FLAG, False, help="compute in float16 on a GPU, in bfloat16 on a CPU"
    )

    def __post_init__(self):
        check_settings(self)
        for name, default in (("variant", "full"), ("base_channels", 8)):
            value = getattr(self, name)
            if self.network == "ddunet" and value is None:
                object.__setattr__(self, name, default)
            elif self.network != "ddunet" and value is not None:
                raise ValueError(
                    f"`{name}` is of network ddunet alone. "
                    f"Received: network={self.network!r}, {name}={value!r}"
                )

    @property
    def recipe_name(self) -> str:
        """Of the recipe; "custom" for one that is not in `RECIPES`."""
        return self.recipe if isinstance(self.recipe, str) else "custom"

    def resolved_recipe(self) -> Recipe:
        """The recipe, with what is set here in place of its own."""
        recipe = RECIPES[self.recipe] if isinstance(self.recipe, str) else self.recipe
        names = ("image_size", "epochs", "batch_size", "learning_rate")
        own = {name: getattr(self, name) for name in names}
        return dataclasses.replace(recipe, **{k: v for k, v in own.items() if v is not None})

    def to_dict(self) -> dict[str, Any]:
        """The settings as `run.json` holds them, with lists for tuples and texts for paths.

        The recipe's settings stand beside its name, under "recipe_settings"; size, epochs, batch
        and learning rate are those that count. `resume` says nothing about the run, `split` stands
        in `split.json`, and for `also` a run lists the images.
        """
        recipe = self.resolved_recipe()
        left_out = ("resume", "split", "also")
        values = {
            field.name: as_json(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in left_out
        }
        values["recipe"] = self.recipe_name
        values["recipe_settings"] = as_json(dataclasses.asdict(recipe))
        for name in ("image_size", "epochs", "batch_size", "learning_rate"):
            values[name] = values["recipe_settings"][name]
        return values


@document_settings
@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """All settings of `ddunet_keras.ablate` and of `ddunet ablate`: every combination is trained.

    Raises:
        ValueError: a setting is out of its range.
    """

    data: Path = setting(PATH, help="folder of a data set", metavar="DATA", positional=True)
    out: Path = setting(PATH, help="folder for trainings and the table", metavar="DIR")
    layout: str | None = setting(
        Choice(tuple(LAYOUTS)), None, help="layout of DATA (default: detected)"
    )
    variants: tuple[str, ...] = setting(
        Each(Choice(VARIANTS)), ("baseline", "dmsc", "full"), help="variants of the network"
    )
    base_channels: tuple[int, ...] = setting(
        Each(POSITIVE), (4,), help="widths of the network", metavar="N"
    )
    protocols: tuple[str, ...] = setting(Each(Choice(PROTOCOLS)), ("date",), help=PROTOCOL_HELP)
    seeds: tuple[int, ...] = setting(
        Each(SEED), (0, 1, 2), help="seeds of splits and initial weights", metavar="N"
    )
    recipe: str = setting(Choice(tuple(RECIPES)), "default", help="of every training")
    image_size: tuple[int, int] = setting(
        ImageSize(16), (96, 96), help="of every training", metavar="H,W"
    )
    epochs: int = setting(POSITIVE, 30, help="of every training", metavar="N")

    def __post_init__(self):
        check_settings(self)


class _HorizonRule(Rule):
    words = "a mask picture, 'circle:x,y,r' or 'auto'"

    def check(self, name, value):
        if not isinstance(value, (str, Path, np.ndarray)):
            self._refuse(name, value)
        return value


@document_settings
@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """All settings of `ddunet_keras.adapt` and of `ddunet adapt`.

    Raises:
        ValueError: a setting is out of its range.

    Example:

    >>> AdaptConfig("ddunet_c8", "my_frames", "run").minutes
    10.0
    >>> AdaptConfig("ddunet_c8", "my_frames", "run", held_back=0.9)
    Traceback (most recent call last):
    ValueError: `held_back` must be a share from 0 to 0.5. Received: held_back=0.9
    """

    model: Path = setting(
        _WeightsRule(),
        help=f"a .keras file, or {' or '.join(PRESETS)}, to go on from",
        metavar="MODEL",
        positional=True,
    )
    data: Path = setting(
        PATH,
        help="folder of frames with masks, or with frames.csv: clear, overcast or percent",
        metavar="FRAMES",
        positional=True,
    )
    out: Path = setting(PATH, help="folder for the model, settings and report", metavar="RUN")
    layout: str | None = setting(
        Choice(tuple(LAYOUTS)), None, help="layout of FRAMES with masks (default: detected)"
    )
    horizon: Any = setting(
        _HorizonRule(),
        None,
        help="where frames show sky: a mask picture (white is sky), a circle in pixels, or auto",
        metavar="MASK|circle:x,y,r|auto",
    )
    held_back: float = setting(
        Number(float, 0, 0.5, "a share from 0 to 0.5"),
        0.25,
        help="share of the frames to report on; 0 trains on all and reports nothing honest",
        metavar="SHARE",
    )
    minutes: float = setting(
        Number(float, 0.01, 1440, "from 0.01 to 1440 minutes"),
        10.0,
        help="time for the training",
        metavar="MIN",
    )
    steps: int | None = setting(
        POSITIVE, None, help="batches to train on, in place of --minutes: repeatable", metavar="N"
    )
    image_size: tuple[int, int] = setting(
        ImageSize(16), (160, 160), help="size of the training images", metavar="H,W"
    )
    batch_size: int = setting(
        Number(int, 2, 10**4, "an integer from 2"), 16, help="images in a batch", metavar="N"
    )
    own_share: float = setting(
        Number(float, 0.05, 0.95, "a share from 0.05 to 0.95"),
        0.5,
        help="share of a batch that is own frames; the rest is synthetic skies",
        metavar="SHARE",
    )
    skies: int = setting(
        Number(int, 8, 10**5, "an integer from 8"),
        240,
        help="synthetic skies on which the model shall stay as it is",
        metavar="N",
    )
    learning_rate: float = setting(
        Number(float, 1e-9, 1, "a number above 0, up to 1"), 5e-4, help="the highest", metavar="R"
    )
    seed: int = setting(SEED, 0, help="seed of order and augmentation", metavar="N")

    def __post_init__(self):
        check_settings(self)

    def to_dict(self) -> dict[str, Any]:
        """The settings as `run.json` holds them; of a preset its file's name."""
        values = {
            field.name: as_json(getattr(self, field.name)) for field in dataclasses.fields(self)
        }
        values["model"] = self.model.name
        values["horizon"] = "array" if isinstance(self.horizon, np.ndarray) else self.horizon
        return values
