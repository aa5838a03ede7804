"""A training that can be interrupted, resumed and repeated."""

from __future__ import annotations

import csv
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ddunet_keras import __version__
from ddunet_keras.data.augmentation import NO_AUGMENTATION
from ddunet_keras.data.datasets import Dataset, Mixture, open_dataset
from ddunet_keras.data.pipeline import Pipeline
from ddunet_keras.data.splits import Split, make_split
from ddunet_keras.files import (
    PARTIAL_PREFIX,
    DataError,
    first_line,
    read_json,
    write_json,
    write_text,
)
from ddunet_keras.layers import DMSC, PACKAGE
from ddunet_keras.losses import MeanIoU, PixelAccuracy, SegmentationLoss
from ddunet_keras.model import build_network, load_model
from ddunet_keras.recipes import Recipe, TrainingConfig
from ddunet_keras.reference import load_paddle_weights
from ddunet_keras.segmentation_network import SegmentationNetwork

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"


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


# === What a recipe compiles ===


def compile_arguments(
    recipe: Recipe, model: SegmentationNetwork, steps_per_epoch: int, epochs: int
) -> dict:
    """What `model.compile` takes; see `Recipe.compile_arguments`."""
    for layer in model.layers:
        if isinstance(layer, DMSC):
            layer.range_penalty = recipe.range_penalty
    outputs = len(model.outputs)
    if outputs > len(recipe.aux_weights):
        raise ValueError(
            f"{outputs} outputs need as many loss weights. "
            f"Received: aux_weights={recipe.aux_weights}"
        )
    loss = SegmentationLoss(iou_weight=recipe.iou_weight, saturating=recipe.saturating)
    return {
        "optimizer": _optimizer(recipe, _learning_rate(recipe, steps_per_epoch, epochs)),
        "loss": [loss for _ in range(outputs)],
        "loss_weights": list(recipe.aux_weights[:outputs]),
        "metrics": [PixelAccuracy(model.num_classes), MeanIoU(model.num_classes)],
    }


def _learning_rate(recipe, steps_per_epoch, epochs):
    if recipe.schedule == "exponential":
        return keras.optimizers.schedules.ExponentialDecay(
            recipe.learning_rate, steps_per_epoch, 0.95, staircase=True
        )
    steps = epochs * steps_per_epoch
    warmup_steps = min(int(recipe.warmup_epochs * steps_per_epoch), steps // 2)
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(recipe.learning_rate, max(1, steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, steps - warmup_steps),
        warmup_target=recipe.learning_rate,
        warmup_steps=warmup_steps,
    )


def _optimizer(recipe, rate):
    limit = {"global_clipnorm": recipe.clipnorm}
    if recipe.l2:
        return L2Adam(rate, l2=recipe.l2, **limit)
    if recipe.weight_decay:
        optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay, **limit)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        return optimizer
    return keras.optimizers.Adam(rate, **limit)


# === The training ===


def train(data: str | Path, out: str | Path, *, verbose: Any = "auto", **settings: Any) -> dict:
    """Trains DDUNet, or another network, on a folder of images and masks.

    After each epoch `out` holds `last.keras` (with the optimizer's state) and `best.keras` (highest
    validation MIoU; where the protocol has no validation images, the last), `history.csv`; and
    `run.json`, `split.json`, `curves.png`, TensorBoard's `logs/`. A training that was interrupted,
    at any moment, goes on from its last complete epoch with `resume=True`.

    Args:
        data: folder that `open_dataset` reads.
        out: folder to write to.
        verbose: of `fit`.
        **settings: the other fields of `TrainingConfig`, which says what each is.

    Returns:
        What `run.json` holds: settings, versions, data, split, figures of the best and last epoch.

    Raises:
        DataError: data, split or files in `out` cannot be used, or `out` holds a run and `resume`
            is False; the loss became infinite or no number.
        ValueError: a setting is out of its range.
        TypeError: there is no setting of this name.

    Example:

    >>> run = train("SWINySEG", "run", epochs=30, base_channels=4)  # doctest: +SKIP
    >>> run["best"]["val_miou"]  # doctest: +SKIP
    0.81
    """
    config = TrainingConfig(Path(data), Path(out), **settings)
    recipe = config.resolved_recipe()
    images = _open_images(config)
    described = config.to_dict() | images.described
    _check_folder(config, described, images.split)
    _make_repeatable(config)

    training, validation = images.pipelines(recipe, config.seed)
    model = _build_model(config, recipe, training.steps)
    last = config.out / "last.keras"
    if config.resume and last.exists():
        _restore(model, last)
        rows = _read_history(config.out / "history.csv", _iterations(model))
    else:
        _set_initial_weights(model, config.initial_weights)
        rows = []

    run = {
        "ddunet_keras": __version__,
        "command": sys.argv,
        "settings": described,
        "split": images.split.describe(images.dataset),
        "parameters": model.count_params(),
        "backend": keras.backend.backend(),
        "versions": _versions(),
        "started": time.strftime(TIME_FORMAT),
    }
    _remove_partial_files(config.out)
    images.split.save(config.out / "split.json")
    write_json(config.out / "run.json", run)

    monitor = "val_miou" if validation else None
    _fit(model, config.out, recipe.epochs, training, validation, rows, monitor, verbose)
    seconds = sum(row["seconds"] for row in rows)
    seen = len(rows) * training.steps * training.batch_size
    run["finished"] = time.strftime(TIME_FORMAT)
    run["seconds"] = round(seconds, 1)
    run["images_per_second"] = round(seen / seconds, 2)
    run["best"] = best_row(rows, monitor)
    run["last"] = rows[-1]
    from ddunet_keras.plots import plot_history  # only here: Matplotlib takes a second

    history = {name: [row[name] for row in rows] for name in rows[0]}
    plot_history(history, config.out / "curves.png")
    write_json(config.out / "run.json", run)
    return run


@dataclass(frozen=True)
class _Images:
    """What is trained on: a data set and its split, and the training parts of others."""

    dataset: Dataset
    split: Split
    others: tuple[tuple[Dataset, Split], ...]

    @property
    def described(self) -> dict:
        """What `run.json` says about them beside the settings."""
        also = [
            {"data": dataset.root.name, "layout": dataset.layout, "images": list(split.train)}
            for dataset, split in self.others
        ]
        return {
            "layout": self.dataset.layout,
            "images": len(self.dataset),
            "protocol": self.split.protocol,
            "also": also,
        }

    def pipelines(self, recipe, seed):
        """For training and validation; None where the split has no validation images."""
        concatenated = Mixture(self.dataset, *(dataset for dataset, _ in self.others))
        splits = [self.split, *(split for _, split in self.others)]
        names = [(index, name) for index, split in enumerate(splits) for name in split.train]
        augmentation = recipe.augmentation or NO_AUGMENTATION  # which shuffles all the same
        size, batch_size = recipe.image_size, recipe.batch_size
        training = Pipeline(concatenated, names, size, batch_size, augmentation, seed)
        if not self.split.val:
            return training, None
        return training, Pipeline(self.dataset, self.split.val, size, batch_size)


def _open_images(config):
    dataset = open_dataset(config.data, config.layout, config.num_classes)
    split = config.split or make_split(dataset, config.protocol, config.seed)
    split.check(dataset)
    if config.with_validation:
        split = split.with_validation()
    others = []
    for folder, part in config.also:
        other = open_dataset(folder, num_classes=config.num_classes)
        part.check(other)
        others.append((other, part))
    return _Images(dataset, split, tuple(others))


def _make_repeatable(config):
    if config.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)


def _build_model(config, recipe, steps):
    options: dict[str, Any] = {}
    if config.network == "ddunet":
        options["base_channels"] = config.base_channels
        options["variant"] = config.variant
        options["upsampling"] = recipe.upsampling
    model = build_network(
        config.network,
        (*recipe.image_size, 3),
        config.num_classes,
        dtype=_mixed_policy() if config.mixed_precision else "float32",
        **options,
    )
    model.compile(**compile_arguments(recipe, model, steps, recipe.epochs))
    build_training(model)
    return model


def _mixed_policy():
    """float16 on a GPU; CPUs and TPUs compute bfloat16."""
    if keras.backend.backend() == "torch":  # which Keras lists no devices of
        return "mixed_float16"
    on_gpu = any(device.startswith("gpu") for device in keras.distribution.list_devices())
    return "mixed_float16" if on_gpu else "mixed_bfloat16"


def build_training(model: SegmentationNetwork) -> None:
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


def _fit(model, out, epochs, training, validation, rows, monitor, verbose):
    """Trains the epochs that `rows` lacks, and adds their rows."""
    done = len(rows)
    if done >= epochs:
        return
    try:
        model.fit(
            training.data(done),
            steps_per_epoch=training.steps,
            shuffle=False,  # the pipeline shuffles
            initial_epoch=done,
            epochs=epochs,
            validation_data=validation and validation.data(),
            callbacks=_callbacks(out, rows, monitor),
            verbose=verbose,
        )
    except Exception:
        for pipeline in (training, validation):
            if pipeline is not None and pipeline.error is not None:
                raise pipeline.error from None
        raise


# === What is written after each epoch ===


def _callbacks(out, rows, monitor):
    """History, best model, last model, in this order: the last model says how far a run came.

    Its optimizer counts the steps. What a killed process wrote beyond that count, `resume` drops
    and makes again, the same.

    `keras.callbacks.BackupAndRestore` is no substitute: it writes weights and epoch into two files,
    so that a kill between them repeats an epoch, and it restores inside `fit`, when the order of
    the images is settled.
    """
    folder = str(out).replace("{", "{{").replace("}", "}}")  # Keras would fill them in
    best_before = best_row(rows, monitor)[monitor] if rows and monitor else None
    callbacks = [
        HistoryFile(out / "history.csv", rows),
        keras.callbacks.ModelCheckpoint(
            f"{folder}/best.keras",
            monitor=monitor or "loss",
            mode="max",
            save_best_only=monitor is not None,
            initial_value_threshold=best_before,
        ),
        keras.callbacks.ModelCheckpoint(f"{folder}/last.keras", monitor="loss", mode="min"),
    ]
    if keras.backend.backend() == "tensorflow":
        callbacks.append(keras.callbacks.TensorBoard(out / "logs", write_graph=False))
    return callbacks


class HistoryFile(keras.callbacks.Callback):
    """Writes `history.csv` anew after each epoch, complete or not at all, with one row an epoch.

    `keras.callbacks.CSVLogger` counts epochs from 0, has columns of "NA" where there is no
    validation, and knows nothing of the optimizer's steps, by which a run is resumed.

    Args:
        path: of the file.
        rows: of the epochs before; the new ones are appended.

    Raises:
        DataError: the loss of an epoch is infinite or no number.
    """

    def __init__(self, path: Path, rows: list[dict]):
        super().__init__()
        self.path = path
        self.rows = rows

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1}
        row |= {name: float(value) for name, value in (logs or {}).items()}
        if not np.isfinite(row["loss"]):
            raise DataError(
                f"{self.path.parent}: the loss became {row['loss']} in epoch {epoch + 1}; lower "
                "the learning rate, or look at the data with `ddunet check`"
            )
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row["seconds"] = round(time.perf_counter() - self.started, 2)
        row["iterations"] = _iterations(self.model)
        self.rows.append(row)
        lines = [",".join(self.rows[0])]
        lines += [",".join(repr(value) for value in row.values()) for row in self.rows]
        write_text(self.path, "\n".join(lines) + "\n")


def best_row(rows: list[dict], monitor: str | None) -> dict:
    """The first row of a history with the highest value of `monitor`; None means the last row."""
    if monitor is None:
        return rows[-1]
    return max(rows, key=lambda row: row[monitor])


def _iterations(model):
    # steps that were taken; mixed precision leaves out those whose gradients overflow
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def _versions():
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("keras", "tensorflow", "jax", "torch", "numpy", "pillow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# === Going on ===


def _check_folder(config, described, split):
    """Refuses to overwrite another run, or to resume one that was set otherwise."""
    out, path = config.out, config.out / "run.json"
    if not path.exists():
        # a training that was killed early may have left these, and nothing is lost with them
        own = {"split.json", *(partial.name for partial in out.glob(f"{PARTIAL_PREFIX}*"))}
        if config.resume and out.exists() and {entry.name for entry in out.iterdir()} - own:
            raise DataError(f"{out}: holds no run.json to resume; choose another folder")
        return
    if not config.resume:
        raise DataError(f"{out}: holds a run; --resume goes on with it, or choose another --out")
    try:
        before = read_json(path)["settings"]
        changed = [key for key in described if before.get(key) != described[key]]
    except (DataError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not a readable run; choose another --out") from None
    moved = ("data", "out")  # folders may be moved, and be named otherwise
    for key in changed:
        if key not in moved:
            raise DataError(
                f"{out}: was started with {key}={before.get(key)!r}, not {described[key]!r}; "
                "resume with the same options, or choose another --out"
            )
    if Split.load(out / "split.json") != split:
        raise DataError(f"{out}: was started with another split; choose another --out")


def _remove_partial_files(out):
    """What a killed training was writing, on whatever machine: the folder is of one training."""
    for path in out.glob(f"{PARTIAL_PREFIX}*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _restore(model, path):
    """Gives a compiled model the weights and the optimizer's state of a checkpoint.

    The model's own optimizer stays: Keras saves not which weights AdamW spares. It saves not how
    often dropout was drawn either: once in a step.
    """
    try:
        model.load_weights(path)
    except Exception as error:  # zip, JSON, HDF5 and Keras raise many types on corrupt input
        reason = first_line(error)
        raise DataError(f"{path}: cannot be resumed ({reason}); choose another --out") from None
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Dropout, keras.layers.SpatialDropout2D)):
            state = layer.seed_generator.state
            seed, _ = keras.ops.convert_to_numpy(state)
            state.assign([seed, int(model.optimizer.iterations)])


def _read_history(path, iterations):
    """The rows up to the one that was written with the checkpoint of these iterations."""
    integers = ("epoch", "iterations")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [
                {name: int(text) if name in integers else float(text) for name, text in row.items()}
                for row in csv.DictReader(file)
            ]
        done = [row["iterations"] for row in rows].index(iterations) + 1
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"no epoch ends where last.keras does ({error})"
        raise DataError(f"{path}: not the history of this run: {reason}; train anew") from None
    return rows[:done]


def _set_initial_weights(model, path):
    if path is None:
        return
    if path.suffix != ".keras":
        load_paddle_weights(model, path)
        return
    source = load_model(path)
    try:
        model.copy_weights(source)
    except ValueError as error:
        reason = first_line(error)
        raise DataError(f"{path}: its weights do not fit this network ({reason})") from None
