"""Trains a model on for one's own camera, with little data, and keeps what it knew.

A few frames of one camera would soon be learned by heart, and the rest be forgotten. So each batch
has two halves. Own frames come with the truth: a mask, or what follows from a word or a number. The
other half is synthetic skies, for which the probabilities that the model gave before are the truth
(Li & Hoiem, Learning without Forgetting, ECCV 2016). Batch normalization keeps its averages: those
of half-synthetic batches would fit no camera.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ddunet_keras import __version__
from ddunet_keras.data.augmentation import NO_AUGMENTATION, Augmentation
from ddunet_keras.data.frames import CameraFrames, Frame, hold_back, open_frames
from ddunet_keras.data.splits import Split
from ddunet_keras.data.synthetic import synthetic_sky
from ddunet_keras.evaluation import markdown_table
from ddunet_keras.files import (
    IGNORE,
    DataError,
    check_writable,
    write_json,
    write_text,
)
from ddunet_keras.images import normalize, resize_image, resize_labels, resize_probabilities
from ddunet_keras.losses import SegmentationLoss
from ddunet_keras.metrics import confusion, image_scores
from ddunet_keras.model import load_model
from ddunet_keras.recipes import RECIPES, AdaptConfig
from ddunet_keras.segmentation_network import SegmentationNetwork

MODEL_FILE = "adapted.keras"
"""Name of the model in the folder of a run."""

ROUNDS = 20
"""Parts of a training; after each the model is written, so that little is lost if it is stopped."""

WARM_UP = 0.05
"""Share of the training in which the learning rate rises from zero; then it falls as a cosine."""

NUMBERS_FROM = 0.3
"""Share of the training from which frames with a number count in full. Where their clouds are, the
model itself has to say, and on a camera that it does not know it says so badly at first."""

GEOMETRY = dataclasses.replace(NO_AUGMENTATION, flips=True, quarter_turns=True, crop=0.7)
"""Of synthetic skies, in each batch."""

OWN_AUGMENTATION = dataclasses.replace(
    GEOMETRY, brightness=0.05, contrast=0.1, channel_gain=0.04, saturation=0.1, gamma=1.1
)
"""Of own frames, in each batch: near to what the camera sees."""

REPLAY_SEEDS = 10_000_000
REPORT_SEEDS = 20_000_000
CALIBRATION_SEEDS = 30_000_000
"""First seeds of the synthetic skies to train on, to report on, and to calibrate on."""

REPORT_SKIES = 48
"""Synthetic skies that the report scores."""

FEW = 5
"""With fewer frames held back, a report says that they tell little."""

_STEPS_OF_PROBABILITY = 254
"""In soft labels of 8 bits, 0 to 254 is a probability from 0 to 1, and 255 is `IGNORE`."""


# === The whole run ===


def adapt(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> dict:
    """Trains a model on for one camera.

    Writes to `out`: `adapted.keras`, anew after each of `ROUNDS` parts of the training, so that an
    interrupted one leaves the last; `run.json`; at the end `report.md` (`adaptation_markdown`); and
    where frames are held back, `split.json` with their names.

    Args:
        model: a `.keras` file of two classes, or the name of a preset.
        data: folder that `open_frames` reads.
        out: folder to write to, without a run in it.
        progress: is called with a line of text now and then, or None.
        **settings: the other fields of `AdaptConfig`, which says what each is.

    Returns:
        What `run.json` holds: settings, frames, steps and seconds, and under "held_back" and
        "synthetic" the scores "before" and "after": accuracy and miou in [0, 1] (of frames with
        masks), cover_error in points, each a mean over frames, and a row for each frame.

    Raises:
        DataError: model, frames or `out` cannot be used, or the loss became no number.
        ValueError: a setting is out of its range.

    Example:

    >>> run = adapt("ddunet_c8", "my_frames", "run")  # doctest: +SKIP
    >>> run["held_back"]["after"]["cover_error"]  # doctest: +SKIP
    3.1
    """
    config = AdaptConfig(Path(model), Path(data), Path(out), **settings)
    say = progress or (lambda line: None)
    path = config.out / MODEL_FILE
    if (config.out / "run.json").exists():
        raise DataError(f"{config.out}: holds a run; choose another --out")
    check_writable(path)
    frames = open_frames(config.data, config.layout, config.horizon)
    say(frames.describe())
    for line in frames.left_out:
        say(f"left out: {line}")
    own, held, note = hold_back(frames.frames, config.held_back)
    say(note)
    network = load_model(config.model)
    if network.num_classes != 2:
        raise DataError(f"{config.model}: has {network.num_classes} classes, 2 were expected")

    run: dict[str, Any] = {
        "ddunet_keras": __version__,
        "command": sys.argv,
        "settings": config.to_dict(),
        "model_sha256": hashlib.sha256(config.model.read_bytes()).hexdigest(),
        "frames": {
            "trained_on": [frame.name for frame in own],
            "held_back": [frame.name for frame in held],
            "left_out": list(frames.left_out),
            "note": note,
        },
    }
    scored = {"held_back": held} if held else {"trained_on": own}
    say(f"scoring the model as it is on {len(held or own)} frames and {REPORT_SKIES} skies")
    before = _scores(network, frames, scored)
    student = network.resized((*config.image_size, 3), network.deep_supervision)
    own_pool = _own_frames(frames, own, config.image_size)
    say(f"drawing {config.skies} synthetic skies")
    replay_pool = _skies(student, config)
    write_json(config.out / "run.json", run)
    if held:
        train = tuple(frame.name for frame in own)
        test = tuple(frame.name for frame in held)
        split = Split("custom", config.seed, train, (), test, frames.layout, note)
        split.save(config.out / "split.json")
    training = _Training(network, student, own_pool, replay_pool, config)
    run |= training.run(say)
    say("scoring what came of it")
    after = _scores(network, frames, scored)
    for name in before:
        run[name] = {"before": before[name], "after": after[name]}
    write_json(config.out / "run.json", run)
    write_text(config.out / "report.md", adaptation_markdown(run))
    return run


# === What is learned from ===


@dataclass(eq=False)
class _Pool:
    """Images to draw from, a little larger than the network's input.

    Attributes:
        images: uint8 (n, height, width, 3).
        labels: uint8 (n, height, width): probabilities of cloud in steps of 1/254, or `IGNORE`.
        augmentation: of what is drawn.
        covers: (n,), the cover of images whose labels are not known, else NaN.
    """

    images: np.ndarray
    labels: np.ndarray
    augmentation: Augmentation
    covers: np.ndarray

    def draw(self, count, size, random):
        """Images (count, height, width, 3) as the network takes them, labels as its loss does, and
        for each whether its labels are known."""
        chosen = random.choice(len(self.images), count, replace=count > len(self.images))
        drawn = [
            self.augmentation(self.images[index], self.labels[index], size, random)
            for index in chosen
        ]
        labels = np.stack([labels for _, labels in drawn])
        soft = np.where(labels == IGNORE, IGNORE, labels / np.float32(_STEPS_OF_PROBABILITY))
        images = normalize(np.stack([image for image, _ in drawn]))
        return images, soft.astype("float32"), np.isnan(self.covers[chosen])


def _own_frames(frames: CameraFrames, own: list[Frame], size) -> _Pool:
    """The pool of own frames."""
    stored = _stored_size(size)
    images = []
    labels = []
    covers = []
    for frame in own:
        image, truth = frames.load(frame)
        truth = resize_labels(truth, stored)
        images.append(resize_image(image, stored))
        labels.append(np.where(truth == 1, np.uint8(_STEPS_OF_PROBABILITY), truth))
        is_known = frame.cover in (None, 0, 1)
        covers.append(math.nan if is_known else frame.cover)
    return _Pool(np.stack(images), np.stack(labels), OWN_AUGMENTATION, np.array(covers))


def _skies(teacher: SegmentationNetwork, config: AdaptConfig) -> _Pool:
    """The pool of synthetic skies, as other cameras see them, with what the teacher says of them.

    They are augmented before the teacher sees them: the model shall stay as it is, and learn
    nothing from a difference between two pictures of one sky.
    """
    augmentation = RECIPES["default"].augmentation or NO_AUGMENTATION
    random = np.random.default_rng([config.seed, 1])  # apart from what the training draws
    stored = _stored_size(config.image_size)
    images = []
    labels = []
    for index in range(config.skies):
        image, truth = augmentation(*black_sky(REPLAY_SEEDS + index, stored), stored, random)
        probabilities = resize_probabilities(teacher.predict_probabilities(image), stored)
        soft = np.rint(probabilities * _STEPS_OF_PROBABILITY).astype(np.uint8)
        images.append(image)
        labels.append(np.where(truth == IGNORE, np.uint8(IGNORE), soft))
    covers = np.full(len(images), math.nan)
    return _Pool(np.stack(images), np.stack(labels), GEOMETRY, covers)


def _stored_size(size):
    """Size at which the smallest cut of an augmentation still has all pixels of the input."""
    return tuple(math.ceil(side / GEOMETRY.crop) for side in size)


def black_sky(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic sky, black where there is no sky: uint8 (h, w, 3), and labels (h, w)."""
    image, labels = synthetic_sky(seed, size)
    return np.where((labels == IGNORE)[..., None], 0, image).astype(np.uint8), labels


# === The training ===


class _WithFixedStatistics(keras.Model):
    """Trains a network whose batch normalization keeps its averages."""

    def __init__(self, model):
        super().__init__(name="fixed_statistics")
        self.model = model

    def call(self, inputs, training=None):
        return keras.tree.flatten(self.model(inputs, training=False))


class _Clock:
    """How much of a training is over, by steps or by time.

    The time counts from the first step's end: until then, graphs are built.
    """

    def __init__(self, config: AdaptConfig):
        self.config = config
        self.steps = 0
        self.started = time.perf_counter()

    def tick(self):
        self.steps += 1
        if self.steps == 1:
            self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started if self.steps else 0.0

    @property
    def share(self) -> float:
        """0 at the start, 1 at the end."""
        if self.config.steps is not None:
            return min(1.0, self.steps / self.config.steps)
        return min(1.0, self.seconds / (60 * self.config.minutes))


class _Training:
    """Trains `student`, and writes its weights into the file of `network` after each round.

    Args:
        network: the model at the size that it is kept in.
        student: the same model at the size that it is trained at.
        own, replay: what is drawn from.
    """

    def __init__(self, network, student, own: _Pool, replay: _Pool, config: AdaptConfig):
        self.network = network
        self.student = student
        self.own = own
        self.replay = replay
        self.config = config
        self.path = config.out / MODEL_FILE
        self.random = np.random.default_rng(config.seed)
        self.clock = _Clock(config)
        self.trainer = _WithFixedStatistics(student)
        outputs = len(student.outputs)
        self.trainer.compile(
            keras.optimizers.Adam(0.0, global_clipnorm=1.0),
            loss=[SegmentationLoss() for _ in range(outputs)],
            loss_weights=list(RECIPES["default"].aux_weights[:outputs]),
        )

    def run(self, say) -> dict:
        """Trains to the end and returns figures of it."""
        say(f"training: {_length(self.config)}")
        clock = self.clock
        rounds = 0
        self._label_by_cover()
        try:
            while clock.share < 1:
                loss = self._step()
                clock.tick()
                if clock.share >= (rounds + 1) / ROUNDS:
                    rounds = math.floor(clock.share * ROUNDS)
                    self._save()
                    say(
                        f"{100 * clock.share:.0f} %, step {clock.steps}, {clock.seconds:.0f} s, "
                        f"loss {loss:.3f}"
                    )
                    self.trainer.reset_metrics()  # the loss is the mean over a round
                    self._label_by_cover()
        except BaseException:
            if rounds:
                say(f"stopped: {self.path} is that of {100 * rounds // ROUNDS} % of the training")
            raise
        return {"steps": clock.steps, "seconds": round(clock.seconds, 1)}

    def _step(self) -> float:
        """One step; returns the mean loss of the round so far."""
        share = self.clock.share
        self.trainer.optimizer.learning_rate = self.config.learning_rate * _rate(share)
        images, labels, weights = self._batch(min(1.0, share / NUMBERS_FROM))
        outputs = len(self.student.outputs)
        logs = self.trainer.train_on_batch(
            images,
            [labels for _ in range(outputs)],
            sample_weight=[weights for _ in range(outputs)],
            return_dict=True,
        )
        if not np.isfinite(logs["loss"]):
            raise DataError(f"the loss became {logs['loss']}; lower --learning-rate")
        return float(logs["loss"])

    def _batch(self, weight_of_numbers):
        """Images, labels and weights."""
        count = self.config.batch_size
        own_count = min(max(1, round(self.config.own_share * count)), count - 1)
        size = self.config.image_size
        images, labels, known = self.own.draw(own_count, size, self.random)
        skies, probabilities, _ = self.replay.draw(count - own_count, size, self.random)
        weights = np.where(known, 1.0, weight_of_numbers)
        return (
            np.concatenate([images, skies]),
            np.concatenate([labels, probabilities]),
            np.concatenate([weights, np.ones(len(skies))]).astype("float32"),
        )

    def _label_by_cover(self):
        """Labels the frames of which only a number is known: cloud is where the model thinks so
        most, in as many pixels as the number says."""
        for index in np.flatnonzero(~np.isnan(self.own.covers)):
            labels = self.own.labels[index]
            logits = resize_probabilities(self._logits(self.own.images[index]), labels.shape)
            counts = labels != IGNORE
            threshold = np.quantile(logits[counts], 1 - self.own.covers[index])
            is_cloud = np.where(logits > threshold, _STEPS_OF_PROBABILITY, 0)
            self.own.labels[index] = np.where(counts, is_cloud, IGNORE)

    def _logits(self, image):
        """(height, width) of the network: unlike probabilities, they do not run into 0 and 1."""
        inputs = normalize(resize_image(image, self.config.image_size))[None]
        outputs = keras.tree.flatten(self.student.predict_on_batch(inputs))
        return np.asarray(outputs[0][0, ..., 0], np.float32)

    def _save(self):
        self.network.copy_weights(self.student)
        self.network.save(self.path)


def _length(config):
    if config.steps is not None:
        return f"{config.steps} steps"
    return f"{config.minutes:g} minutes, after a start of up to a minute"


def _rate(share):
    """Learning rate as a part of the highest."""
    if share < WARM_UP:
        return max(share, WARM_UP / 10) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


# === Scores ===


def _scores(network, frames: CameraFrames, parts: dict[str, list[Frame]]) -> dict[str, dict]:
    """Summaries by the name of a part; the synthetic skies are one more."""

    def own(part) -> Iterator:
        for frame in part:
            image, labels = frames.load(frame)
            yield frame.name, image, labels, frame.cover

    def skies() -> Iterator:
        for index in range(REPORT_SKIES):
            yield str(index), *black_sky(REPORT_SEEDS + index, network.image_shape[:2]), None

    found = {name: _summary(network, own(part)) for name, part in parts.items()}
    return found | {"synthetic": _summary(network, skies())}


def _summary(network, items: Iterable) -> dict:
    rows = [_score(network, *item) for item in items]
    rows = [row for row in rows if row is not None]
    summary: dict[str, Any] = {"frames": len(rows)}
    for key in ("accuracy", "miou", "cover_error"):
        values = [row[key] for row in rows if key in row]
        summary[key] = float(np.mean(values)) if values else math.nan
    return summary | {"rows": rows}


def _score(network, name, image, labels, cover):
    """Scores of a frame, None if no pixel counts; of its cover alone where that is all we know."""
    counts = labels != IGNORE
    if not counts.any():
        return None
    probabilities = resize_probabilities(network.predict_probabilities(image), labels.shape)
    predicted = probabilities >= 0.5
    true_cover = labels[counts].mean() if cover is None else cover
    found_cover = predicted[counts].mean()
    row = {
        "name": name,
        "cover_true": float(true_cover),
        "cover_pred": float(found_cover),
        "cover_error": 100 * float(abs(found_cover - true_cover)),
    }
    if cover is None:
        scores = image_scores(confusion(predicted.astype(np.uint8), labels))
        row |= {key: float(scores[key]) for key in ("accuracy", "miou")}
    return row


def adaptation_markdown(run: dict) -> str:
    """The report of a run of `adapt`: scores before and after."""
    titles = {
        "held_back": "own frames, held back",
        "trained_on": "own frames, **trained on**",
        "synthetic": "synthetic skies",
    }
    rows = []
    for name, title in titles.items():
        for when in ("before", "after"):
            if name in run:
                summary = run[name][when]
                scores = [_percent(summary[key]) for key in ("accuracy", "miou")]
                rows.append([f"{title}, {when}", summary["frames"], *scores, _points(summary)])
    header = ("", "frames", "accuracy", "MIoU", "cover error")
    lines = ["# Adaptation", "", f"{run['settings']['model']}; {run['frames']['note']}."]
    lines += ["In percent, means over frames; the cover error is in points.", ""]
    lines += markdown_table(header, rows)
    verdict = _verdict(run)
    return "\n".join(lines + (["", verdict] if verdict else [])) + "\n"


def _percent(share):
    return f"{100 * share:.1f}" if np.isfinite(share) else "n/a"


def _points(summary):
    return f"{summary['cover_error']:.1f}"


def _verdict(run):
    """What a reader of the scores must know."""
    if "held_back" not in run:
        return "No frame was held back: this says nothing about other frames of the camera."
    before = run["held_back"]["before"]
    after = run["held_back"]["after"]
    words = []
    if after["cover_error"] > before["cover_error"]:
        words.append("On the frames held back the model was better before: keep that one.")
    if after["frames"] < FEW:
        words.append(f"{after['frames']} frames held back tell little.")
    return " ".join(words)
