"""Recipes, and a training that can be interrupted, resumed and repeated."""

from __future__ import annotations

import csv
import platform
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import keras
import numpy as np

from .data.datasets import Mixture, open_dataset
from .data.pipeline import Augmentation, Pipeline
from .data.splits import Split, make_split
from .files import DataError, atomic_path, first_line, write_json, write_text
from .layers import DMSC, PACKAGE
from .losses import MeanIoU, PixelAccuracy, SegmentationLoss
from .model import DDUNet


@keras.saving.register_keras_serializable(PACKAGE)
class L2Adam(keras.optimizers.Adam):
    """Adam with `l2` times the weight added to its gradient, as Paddle's `weight_decay` does.

    Other than in AdamW the decay passes through Adam's moments. It acts on all weights.
    """

    def __init__(self, learning_rate=1e-3, l2=5e-4, name="l2_adam", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.l2 = l2

    def update_step(self, gradient, variable, learning_rate):
        gradient = gradient + self.l2 * keras.ops.cast(variable, gradient.dtype)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}


@dataclass(frozen=True)
class Recipe:
    """How to train: everything but the data and the network's size.

    Args:
        image_size: (height, width) that images are resized to.
        epochs, batch_size: of the whole training.
        learning_rate: the highest.
        schedule: "exponential" (x 0.95 after each epoch) or "cosine" (to zero, after a warm-up).
        warmup_epochs: epochs of linear increase from zero, for "cosine".
        weight_decay: decoupled (AdamW), of kernels alone; 0 means Adam.
        l2: added to the gradient of all weights (not decoupled); 0 means none.
        clipnorm: longest gradient of all weights together; None means no limit.
        aux_weights: weights of the losses of deep supervision, full size first.
        iou_weight: weight of the soft IoU term of `SegmentationLoss`.
        saturating: see `SegmentationLoss`.
        range_penalty: see `DMSC`; keeps the maps in a range that int8 resolves.
        upsampling: see `DDUNet`.
        augmentation: of the training images; None for none beyond the dataset's own.
    """

    image_size: tuple[int, int] = (160, 160)
    epochs: int = 60
    batch_size: int = 16
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup_epochs: float = 1
    weight_decay: float = 1e-4
    l2: float = 0.0
    clipnorm: float | None = 1.0
    aux_weights: tuple[float, ...] = (1.0, 0.5, 0.2)
    iou_weight: float = 0.5
    saturating: bool = False
    range_penalty: float = 0.1
    upsampling: str = "bilinear"
    augmentation: Augmentation | None = field(default_factory=Augmentation)

    def compile_arguments(self, model, steps_per_epoch, epochs=None) -> dict:
        """What `model.compile` takes: optimizer, loss, loss_weights and metrics.

        Args:
            model: a `DDUNet`.
            steps_per_epoch: batches in an epoch, such as `pipeline.steps`.
            epochs: of the training; the recipe's own by default.

        Example:

        >>> model = DDUNet((32, 32, 3), base_channels=2)
        >>> model.compile(**RECIPES["default"].compile_arguments(model, steps_per_epoch=10))
        """
        epochs = epochs or self.epochs
        if self.schedule == "cosine":
            warmup = min(int(self.warmup_epochs * steps_per_epoch), epochs * steps_per_epoch // 2)
            rate = keras.optimizers.schedules.CosineDecay(
                0.0 if warmup else self.learning_rate,
                max(1, epochs * steps_per_epoch - warmup),
                warmup_target=self.learning_rate if warmup else None,
                warmup_steps=warmup,
            )
        else:
            rate = keras.optimizers.schedules.ExponentialDecay(
                self.learning_rate, steps_per_epoch, 0.95, staircase=True
            )
        limit = {"global_clipnorm": self.clipnorm} if self.clipnorm else {}
        if self.l2:
            optimizer = L2Adam(rate, l2=self.l2, **limit)
        elif self.weight_decay:
            optimizer = keras.optimizers.AdamW(rate, weight_decay=self.weight_decay, **limit)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        else:
            optimizer = keras.optimizers.Adam(rate, **limit)
        outputs = len(model.outputs)
        if outputs > len(self.aux_weights):
            raise ValueError(
                f"{outputs} outputs need as many loss weights. Received: {self.aux_weights}"
            )
        return {
            "optimizer": optimizer,
            "loss": SegmentationLoss(iou_weight=self.iou_weight, saturating=self.saturating),
            "loss_weights": list(self.aux_weights[:outputs]) if outputs > 1 else None,
            "metrics": [PixelAccuracy(model.num_classes), MeanIoU(model.num_classes)],
        }


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


class _Recorder(keras.callbacks.Callback):
    """After each epoch: history, curves, best and last model, each written whole.

    The last model comes last, and its optimizer's count of steps says how far the training came:
    what a killed process wrote beyond it is made again, and the same.
    """

    def __init__(self, out, rows, monitor):
        super().__init__()
        self.out, self.rows, self.monitor = out, rows, monitor

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        values = {name: float(value) for name, value in (logs or {}).items()}
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        seconds = time.perf_counter() - self.started
        row = {"epoch": epoch + 1, **values, "learning_rate": rate, "seconds": round(seconds, 2)}
        row["iterations"] = _iterations(self.model)
        if not np.isfinite(row["loss"]):
            raise DataError(
                f"{self.out}: the loss became {row['loss']} in epoch {epoch + 1}; lower the "
                "learning rate, or look at the data with `ddunet check`"
            )
        self.rows.append(row)
        _write_history(self.out / "history.csv", self.rows)
        if best_row(self.rows, self.monitor) is row:
            save_model(self.model, self.out / "best.keras")
        save_model(self.model, self.out / "last.keras")


def best_row(rows, monitor) -> dict:
    """The first row of a history with the highest value of `monitor`; None means the last row."""
    return max(rows, key=lambda row: row[monitor]) if monitor else rows[-1]


def save_model(model, path) -> None:
    """Writes a `.keras` file, whole or not at all."""
    with atomic_path(path) as temporary:
        model.save(temporary)


def _write_history(path, rows):
    lines = [",".join(rows[0])] + [",".join(map(repr, row.values())) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def _iterations(model):
    # steps that were taken; mixed precision leaves out those whose gradients overflow
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def _read_history(path, iterations):
    """The rows up to the one that was written with the checkpoint of these iterations."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [
                {k: int(v) if k in ("epoch", "iterations") else float(v) for k, v in row.items()}
                for row in csv.DictReader(file)
            ]
        done = [row["iterations"] for row in rows].index(iterations) + 1
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"no epoch ends where last.keras does ({error})"
        raise DataError(f"{path}: not the history of this run: {reason}; train anew") from None
    return rows[:done]


def train(
    data,
    out,
    *,
    protocol="date",
    recipe="default",
    variant="full",
    base_channels=8,
    image_size=None,
    epochs=None,
    batch_size=None,
    learning_rate=None,
    seed=0,
    resume=False,
    deterministic=False,
    mixed_precision=False,
    layout=None,
    num_classes=2,
    split=None,
    with_validation=False,
    also=(),
    initial_weights=None,
    verbose="auto",
) -> dict:
    """Trains a DDUNet on a folder of images and masks.

    After each epoch `out` holds `last.keras` (with the optimizer's state) and `best.keras` (highest
    validation MIoU; where the protocol has no validation images, the last), `history.csv`; and
    `run.json`, `split.json`, `curves.png`, TensorBoard's `logs/`. A training that was interrupted,
    at any moment, goes on from its last whole epoch with `resume=True`.

    Args:
        data: folder that `open_dataset` reads.
        out: folder to write to.
        protocol, seed: of `make_split`; `seed` also of initialization, shuffling and augmentation.
        recipe: a name in `RECIPES`, or a `Recipe`.
        variant, base_channels, num_classes: of `DDUNet`.
        image_size, epochs, batch_size, learning_rate: instead of the recipe's. An int means a
            square; a low rate, such as 1e-3, suits a network that is trained already.
        resume: go on with what `out` holds; the other arguments must be as they were.
        deterministic: let TensorFlow use only operations that give the same bits in every run.
        mixed_precision: True for "mixed_float16", or a policy's name.
        layout: of `open_dataset`.
        split: a `Split` instead of one made from `protocol` and `seed`.
        with_validation: train on the validation images, too; then the last epoch counts.
        also: pairs of a folder and a `Split` of it, whose training part is trained on as well.
        initial_weights: a `.keras` or `.pdparams` file to start from.
        verbose: of `fit`.

    Returns:
        What `run.json` holds: settings, versions, data, split, figures of the best and last epoch.

    Raises:
        DataError: data, split or files in `out` cannot be used, or `out` holds a run and `resume`
            is False.
        ValueError: another argument is out of its range.
    """
    if isinstance(recipe, str) and recipe not in RECIPES:
        raise ValueError(f"`recipe` must be one of {tuple(RECIPES)}. Received: recipe={recipe!r}")
    out, name = Path(out), recipe if isinstance(recipe, str) else "custom"
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    recipe = replace(recipe, learning_rate=learning_rate or recipe.learning_rate)
    size = recipe.image_size if image_size is None else image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    epochs, batch_size = epochs or recipe.epochs, batch_size or recipe.batch_size
    policy = "mixed_float16" if mixed_precision is True else mixed_precision or "float32"

    dataset = open_dataset(data, layout, num_classes)
    split = split or make_split(dataset, protocol, seed)
    split.check(dataset)
    split = split.with_validation() if with_validation else split
    names, others = [(0, name) for name in split.train], []
    for folder, part in also:
        others.append(open_dataset(folder, num_classes=num_classes))
        part.check(others[-1])
        names += [(len(others), name) for name in part.train]
    settings = {
        "data": str(data),
        "layout": dataset.layout,
        "images": len(dataset),
        "protocol": split.protocol,
        "with_validation": with_validation,
        "also": [
            {"data": other.root.name, "layout": other.layout, "images": list(part.train)}
            for other, (_, part) in zip(others, also, strict=True)
        ],
        "recipe": name,
        "variant": variant,
        "base_channels": base_channels,
        "num_classes": num_classes,
        "image_size": list(size),
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "deterministic": deterministic,
        "dtype": policy,
        "initial_weights": str(initial_weights) if initial_weights else None,
        "recipe_settings": _plain(asdict(recipe)),
    }
    if deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)

    last = out / "last.keras"
    _check_out(out, settings, split, resume)
    augmentation = recipe.augmentation or _NO_AUGMENTATION
    mixture = Mixture(dataset, *others)
    training = Pipeline(mixture, names, size, batch_size, augmentation, seed)
    steps = training.steps
    rows, started = [], time.time()
    model = DDUNet((*size, 3), base_channels, variant, num_classes, recipe.upsampling, dtype=policy)
    for layer in model.layers:
        if isinstance(layer, DMSC):
            layer.range_penalty = recipe.range_penalty
    model.compile(**recipe.compile_arguments(model, steps, epochs))
    build_training(model)
    if resume and last.exists():
        _restore(model, last)
        rows = _read_history(out / "history.csv", _iterations(model))
    else:
        _set_initial_weights(model, initial_weights)
    done = len(rows)
    run = {
        "ddunet_keras": _version(),
        "command": sys.argv,
        "settings": settings,
        "split": split.describe(dataset),
        "parameters": model.count_params(),
        "backend": keras.backend.backend(),
        "versions": _versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
    }
    split.save(out / "split.json")
    write_json(out / "run.json", run)

    monitor = "val_miou" if split.val else None
    validation = Pipeline(dataset, split.val, size, batch_size) if split.val else None
    callbacks = [_Recorder(out, rows, monitor)]
    if keras.backend.backend() == "tensorflow":
        callbacks.append(keras.callbacks.TensorBoard(out / "logs", write_graph=False))
    if done < epochs:
        try:
            model.fit(
                training.data(done),
                steps_per_epoch=steps,
                shuffle=False,  # the pipeline shuffles
                initial_epoch=done,
                epochs=epochs,
                validation_data=validation and validation.data(),
                callbacks=callbacks,
                verbose=verbose,
            )
        except Exception:
            for pipeline in (training, validation):
                if pipeline is not None and pipeline.error is not None:
                    raise pipeline.error from None
            raise
    run["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    run["seconds"] = round(sum(row["seconds"] for row in rows), 1)
    run["images_per_second"] = round(len(rows) * steps * training.batch_size / run["seconds"], 2)
    run["best"], run["last"] = best_row(rows, monitor), rows[-1]
    from .plots import plot_history

    plot_history(out / "history.csv", out / "curves.png")
    write_json(out / "run.json", run)
    return run


def build_training(model) -> None:
    """Creates the variables of optimizer, loss and metrics ahead of the first step.

    A tf.function that creates variables is traced twice, which takes half a minute here.
    """
    model.optimizer.build(model.trainable_variables)
    image = np.zeros((1, *model.image_shape), "float32")
    labels = np.zeros((1, *model.image_shape[:2]), "uint8")
    logits = model(image, training=False)
    model.compute_loss(image, labels, logits)
    model.compute_metrics(image, labels, logits)
    model.reset_metrics()


_NO_AUGMENTATION = Augmentation(False, False, 1, 0, 0, 0, 0, 1)  # shuffles, and changes nothing


def _plain(value):
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _version():
    from ddunet_keras import __version__

    return __version__


def _versions():
    from importlib import metadata

    names = ("keras", "tensorflow", "jax", "torch", "numpy", "pillow")
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _check_out(out, settings, split, resume):
    """Refuses to overwrite another run, or to resume one that was set otherwise."""
    import json

    path = out / "run.json"
    if not path.exists():
        if resume and out.exists() and any(out.iterdir()):
            raise DataError(f"{out}: holds no run.json to resume; choose another folder")
        return
    if not resume:
        raise DataError(f"{out}: holds a run; --resume goes on with it, or choose another --out")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not a readable run; choose another --out") from None
    changed = [key for key in settings if before.get(key) != settings[key] and key != "data"]
    if changed:
        key = changed[0]
        raise DataError(
            f"{out}: was started with {key}={before.get(key)!r}, not {settings[key]!r}; resume "
            "with the same options, or choose another --out"
        )
    if Split.load(out / "split.json") != split:
        raise DataError(f"{out}: was started with another split; choose another --out")


def _restore(model, path):
    """Gives a compiled model the weights and the optimizer's state of a checkpoint.

    The checkpoint's own optimizer is not used: Keras saves not which weights AdamW spares.
    """
    try:
        saved = keras.saving.load_model(path)
        pairs = [
            *zip(model.variables, saved.variables, strict=True),
            *zip(model.optimizer.variables, saved.optimizer.variables, strict=True),
        ]
        for variable, value in pairs:
            variable.assign(value)
    except Exception as error:  # zip, JSON, HDF5 and Keras raise many types on corrupt input
        reason = first_line(error)
        raise DataError(f"{path}: cannot be resumed ({reason}); choose another --out") from None


def _set_initial_weights(model, path):
    if path is None:
        return
    from .model import load_model
    from .reference import load_paddle_weights

    if Path(path).suffix != ".keras":
        load_paddle_weights(model, path)
        return
    source = load_model(path)
    try:
        for layer in model.layers:
            layer.set_weights(source.get_layer(layer.name).get_weights())
    except ValueError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path}: its weights do not fit this network ({reason})") from None
