"""Trains the full DDUNet with JAX alone: 134 epochs of 6091 images at 304 px in 13 minutes (H200).

    python tools/train_on_gpu.py export MODEL.keras start.npz
    python tools/train_on_gpu.py train DATA start.npz OUT --protocol paper --minutes 10
    python tools/train_on_gpu.py import OUT/final.npz MODEL.keras OUT/final.keras

The first and last need Keras; the second only JAX, NumPy and Pillow, and runs where the GPU is
(with PYTHONPATH=. where the package is not installed).
`gpu_network.py` has the network, and why it is not Keras's. The images stay on the device, where
they are warped and resampled; masks become cloud fractions.

The learning rate follows the clock, so a run ends in time on any machine. `OUT/last.npz` is written
every 45 seconds and is a start like any other; `history.csv` has a line for every epoch.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ddunet_keras.data.datasets import open_dataset, swinyseg_draw
from ddunet_keras.data.splits import make_split
from ddunet_keras.files import DataError, atomic_path, first_line, write_json

RANGE_PENALTY = 0.1  # this, the next and the decay are those of RECIPES["default"]
AUX_WEIGHTS = (1.0, 0.5, 0.2)
WEIGHT_DECAY = 1e-4
BATCH = 32
WARMUP_STEPS = 150
LATE = 0.8  # share of the time after which photos are cropped less, as they are when it is used
LATE_CROP = 0.95
STEPS_BETWEEN_LOOKS = 10  # the device works ahead of Python in between
SECONDS_BETWEEN_FILES = 45


# === Training ===


def divide(values):
    """A network's values by path -> (what is trained, moving averages)."""
    moving = {path: value for path, value in values.items() if "/moving_" in path}
    return {path: value for path, value in values.items() if path not in moving}, moving


def read_weights(path):
    """What `export` or `train` wrote: path of a variable -> array."""
    try:
        with open(path, "rb") as stream, np.load(stream) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, TypeError, AttributeError, BadZipFile) as error:
        reason = first_line(error)
        raise DataError(f"{path}: no readable .npz file of weights ({reason})") from None


def write_weights(path, values):
    with atomic_path(path) as temporary:
        np.savez(temporary, **{name: np.asarray(value) for name, value in values.items()})


def listing(data, protocol, seed):
    """The data set, the names of its training images, and which of them are no augmentations."""
    dataset = open_dataset(data)
    train = make_split(dataset, protocol, seed).train
    originals = [i for i, name in enumerate(train) if dataset.find(name).source == name]
    return dataset, train, originals


def packed(image, labels):
    """Red, green, blue and label of every pixel, a byte each of uint32 (h, w)."""
    return np.dstack([image, labels]).view("<u4")[..., 0]


def load(dataset, train):
    """The training images, `packed`: uint32 (n, h, w)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow works outside Python's lock
        photos = list(pool.map(lambda name: packed(*dataset.load(dataset.find(name))), train))
    if len({photo.shape for photo in photos}) > 1 or max((p >> 24).max() for p in photos) > 1:
        raise DataError(
            f"{dataset.root}: has photos of several sizes or pixels to ignore, for which use "
            "`ddunet train`"
        )
    return np.stack(photos)


def warped(photos, chosen, transforms):
    """`images.warp` of some photos: (b, 3, h, w), 0..255, and cloud fractions (b, h, w).

    `transforms`: (b, 2, 3), matrix and shift of each.
    """
    import jax.numpy as jnp

    height, width = photos.shape[1:]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), -1) + 0.5
    middle = jnp.asarray([width, height]) / 2
    places = jnp.einsum("bij,hwj->bihw", transforms[:, :, :2], grid - middle, precision="highest")
    places += (middle + transforms[:, :, 2] - 0.5)[:, :, None, None]
    limits = jnp.asarray([width - 1, height - 1])[:, None, None]
    places = jnp.clip(places, 0, limits)
    low = jnp.floor(places)
    share, low = places - low, low.astype("int32")
    high = jnp.minimum(low + 1, limits)
    mixed = 0.0
    for y, part_y in ((low[:, 1], 1 - share[:, 1]), (high[:, 1], share[:, 1])):
        for x, part_x in ((low[:, 0], 1 - share[:, 0]), (high[:, 0], share[:, 0])):
            seen = photos[chosen[:, None, None], y, x]
            seen = jnp.stack([seen >> shift & 255 for shift in (0, 8, 16, 24)], 1)
            mixed += seen.astype("float32") * (part_y * part_x)[:, None]
    return jnp.floor(mixed[:, :3] + 1e-3), mixed[:, 3]  # as Pillow, which cuts the fraction off


class Draws:
    """Draws batches: which photos, and the transforms of `warped` for them.

    A share `fresh` of a batch are new augmentations, as SWINySEG's own, of the photos that are none
    themselves; the others are photos of the list in random order, each once, mirrored and cropped.

    Args:
        count: number of training photos.
        originals: places of those that are no augmentations.
        fresh: share of new augmentations, 0 to 1.
        shape: (height, width) of the photos.
        seed: equal seeds give equal draws.
    """

    def __init__(self, count, originals, fresh, shape, seed):
        self.count = count
        self.originals = originals
        self.fresh = fresh
        self.shape = shape
        self.random = np.random.default_rng(seed)
        self.order = np.zeros(0, int)

    def __call__(self, crop):
        """Places (BATCH,) and transforms (BATCH, 2, 3); `crop` is the least share of a side."""
        while len(self.order) < BATCH:
            again = self.random.permutation(self.count)
            self.order = np.concatenate([self.order, again])
        fresh = self.random.uniform(size=BATCH) < self.fresh
        listed = BATCH - fresh.sum()
        chosen = np.empty(BATCH, "int32")
        chosen[fresh] = self.random.choice(self.originals, fresh.sum())
        chosen[~fresh] = self.order[:listed]
        self.order = self.order[listed:]
        transforms = [self._augmented() if new else self._cropped(crop) for new in fresh]
        return chosen, np.array(transforms, "float32")

    def _augmented(self):
        return np.column_stack(swinyseg_draw(self.random, self.shape))

    def _cropped(self, crop):
        share = self.random.uniform(crop, 1)
        matrix = np.diag(share * self.random.choice([-1, 1], 2))
        width_first = np.array(self.shape[::-1])
        shift = self.random.uniform(-0.5, 0.5, 2) * (1 - share) * width_first
        return np.column_stack([matrix, shift])


class Trainer:
    """Weights, optimizer and averages on the device, and the step that changes them.

    The state is a tuple: weights, Adam's two moments, batch normalization's averages, number of
    steps, and sums of loss, accuracy and steps since `take_sums`.

    Args:
        values: path of a variable -> array, as `export` writes them.
        shape: (height, width) of the photos.
        size: side that they are resized to, a multiple of 16.
    """

    def __init__(self, values, shape, size):
        from gpu_network import resampling
        from jax.flatten_util import ravel_pytree

        weights, moving = divide(values)
        without_decay = ("bias", "gamma", "beta")
        decays = {k: np.full_like(v, not k.endswith(without_decay)) for k, v in weights.items()}
        flat, self.unravel = ravel_pytree(weights)
        flat_moving, self.unravel_moving = ravel_pytree(moving)
        self.decays = np.asarray(ravel_pytree(decays)[0])
        self.tall, self.wide = (resampling(side, size) for side in shape)
        self.restart(np.asarray(flat), np.asarray(flat_moving))

    def restart(self, weights, averages):
        """Takes these weights and averages, and new moments."""
        import jax.numpy as jnp

        zeros = np.zeros(weights.shape, "float32")
        sums = np.zeros(3, "float32")
        parts = (weights, zeros, zeros.copy(), averages, np.float32(0), sums)
        self.state = tuple(jnp.array(part) for part in parts)

    def step(self, state, photos, chosen, transforms, rate, momentum):
        """AdamW, gradients of norm 1 at most. Rate 0 leaves the weights as they are."""
        import jax
        import jax.numpy as jnp
        from jax.flatten_util import ravel_pytree

        weights, first, second, averages, count, sums = state
        images, masks = warped(photos, chosen, transforms)
        images = jnp.einsum("ih,bchw,jw->bcij", self.tall, images, self.wide) / 127.5 - 1
        masks = jnp.einsum("ih,bhw,jw->bij", self.tall, masks, self.wide)

        def objective(weights):
            return self.objective(weights, averages, images, masks)

        (total, (seen, right)), gradient = jax.value_and_grad(objective, has_aux=True)(weights)
        gradient *= jnp.minimum(1.0, 1.0 / jnp.linalg.norm(gradient))
        count += 1
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        deviation = jnp.sqrt(second / (1 - 0.999**count)) + 1e-7
        change = first / (1 - 0.9**count) / deviation + WEIGHT_DECAY * self.decays * weights
        averages = momentum * averages + (1 - momentum) * ravel_pytree(seen)[0]
        sums += jnp.stack([total, right, 1.0])
        return weights - rate * change, first, second, averages, count, sums

    def objective(self, weights, averages, images, masks):
        """The loss, and beside it the batch's averages and accuracy."""
        import jax.numpy as jnp
        from gpu_network import Network, loss

        network = Network(self.unravel(weights), self.unravel_moving(averages), train=True)
        logits = network(images)
        total = RANGE_PENALTY * network.penalty
        for weight, part in zip(AUX_WEIGHTS, logits, strict=True):
            total += weight * loss(part, masks)
        right = jnp.mean((logits[0] > 0) == (masks >= 0.5))
        return total, (network.averages, right)

    def compile(self, photos_shape, draws):
        """Compiles the step for photos of this shape, which takes a minute or two."""
        import jax

        photos = jax.ShapeDtypeStruct(photos_shape, "uint32")
        inputs = (self.state, photos, *draws(1), np.float32(0), np.float32(0))
        self.compiled = jax.jit(self.step, donate_argnums=0).lower(*inputs).compile()

    def run(self, photos, draw, rate, momentum=0.9):
        """One step."""
        rate, momentum = np.float32(rate), np.float32(momentum)
        self.state = self.compiled(self.state, photos, *draw, rate, momentum)

    def wait(self):
        self.state[0].block_until_ready()

    def take_sums(self):
        """Mean loss and accuracy since it was last called."""
        import jax.numpy as jnp

        total, right, count = np.asarray(self.state[5])
        self.state = (*self.state[:5], jnp.zeros(3))
        return float(total / count), float(right / count)

    def save(self, path):
        weights, averages = self.state[0], self.state[3]
        write_weights(path, {**self.unravel(weights), **self.unravel_moving(averages)})

    def settle_averages(self, photos, draws):
        """Batch normalization's averages of these very weights, over 60 batches."""
        weights, averages = np.asarray(self.state[0]), np.asarray(self.state[3])
        self.restart(weights, averages)
        for number in range(60):
            self.run(photos, draws(LATE_CROP), 0.0, momentum=number / (number + 1))


def train(data, start, out, options):
    """Writes last.npz and history.csv as it goes, and final.npz and run.json at the end."""
    began = time.time()
    import jax

    def say(text):
        print(f"{time.time() - began:6.1f} s  {text}", flush=True)

    values = read_weights(start)
    if any(out.glob("*.npz")):
        raise DataError(f"{out}: holds a run; name another folder, or start from its .npz")
    out.mkdir(parents=True, exist_ok=True)
    dataset, listed, originals = listing(data, options.protocol, options.seed)
    if not 0 <= options.fresh <= (1 if originals else 0):
        have = f"{len(originals)} of {len(listed)} training images are no augmentations"
        raise ValueError(f"--fresh {options.fresh:g}: must lie in [0, 1], and {have}")
    shape = dataset.load(dataset.find(listed[0]))[1].shape
    draws = Draws(len(listed), originals, options.fresh, shape, options.seed)
    trainer = Trainer(values, shape, options.size)
    say(f"{len(listed)} images on {jax.devices()[0]}; compiling, which takes a minute or two")
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(load, dataset, listed)
        trainer.compile((len(listed), *shape), draws)
        photos = jax.device_put(loaded.result())
    say("compiled")
    seconds = began + 60 * options.minutes - time.time()
    if seconds <= 0:
        raise ValueError(f"--minutes {options.minutes:g} ended before the first step")
    steps = train_for(seconds, trainer, photos, draws, out, options, say)
    trainer.settle_averages(photos, draws)
    trainer.save(out / "final.npz")
    settings = {
        **vars(options),
        "jax": jax.__version__,
        "device": str(jax.devices()[0].device_kind),
        "steps": steps,
        "epochs": steps * BATCH / len(listed),
        "batch_size": BATCH,
    }
    write_json(out / "run.json", settings)
    say(f"{steps} steps; wrote {out / 'final.npz'}")


def train_for(seconds, trainer, photos, draws, out, options, say):
    """Steps until the time is over, and returns their number.

    The learning rate rises over WARMUP_STEPS and falls as a cosine of the share of the time.
    """
    begin = written = time.time()
    steps = epoch = 0
    with open(out / "history.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("epoch", "learning_rate", "loss", "accuracy", "seconds"))
        while True:
            done = (time.time() - begin) / seconds
            if done >= 1:
                return steps
            rate = options.learning_rate * (1 + np.cos(np.pi * done)) / 2
            rate *= min(1, (steps + 1) / WARMUP_STEPS)
            crop = options.crop if done < LATE else LATE_CROP
            for _ in range(STEPS_BETWEEN_LOOKS):
                trainer.run(photos, draws(crop), rate)
            steps += STEPS_BETWEEN_LOOKS
            trainer.wait()
            past = steps * BATCH // draws.count
            if past == epoch:
                continue
            epoch = past
            loss, accuracy = trainer.take_sums()
            row = (epoch, f"{rate:.3g}", f"{loss:.4f}", f"{accuracy:.4f}")
            rows.writerow((*row, f"{time.time() - begin:.1f}"))
            file.flush()
            if not np.isfinite(loss):
                raise ValueError("the loss diverged; take a lower --learning-rate")
            say("epoch {}, rate {}, loss {}, accuracy {}".format(*row))
            if time.time() - written > SECONDS_BETWEEN_FILES:
                trainer.save(out / "last.npz")
                written = time.time()


# === From and to Keras ===


def export(model, path):
    from ddunet_keras import load_model

    write_weights(path, {variable.path: variable for variable in load_model(model).variables})


def take(path, like, out, size):
    from ddunet_keras import load_model

    values = read_weights(path)
    model = load_model(like).resized((size, size, 3), deep_supervision=True)
    for variable in model.variables:
        if np.shape(values.get(variable.path)) != variable.shape:
            raise DataError(f"{path}: holds no {variable.path} of shape {variable.shape}")
        variable.assign(values[variable.path])
    with atomic_path(out) as temporary:
        model.save(temporary)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("export", help="weights of a .keras file, by path")
    command.add_argument("model", type=Path)
    command.add_argument("npz", type=Path)
    command = commands.add_parser("train", help="on the GPU")
    command.add_argument("data", type=Path)
    command.add_argument("start", type=Path, help=".npz")
    command.add_argument("out", type=Path, help="folder")
    command.add_argument("--protocol", default="date", help="paper, capture or date")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--size", type=int, default=304, help="multiple of 16")
    command.add_argument("--minutes", type=float, default=10, help="in all, compiling included")
    command.add_argument("--learning-rate", type=float, default=2.5e-3)
    command.add_argument("--crop", type=float, default=0.85, help="least share of a side")
    command.add_argument("--fresh", type=float, default=0.6, help="share of new augmentations")
    command = commands.add_parser("import", help="a .keras file from trained weights")
    command.add_argument("npz", type=Path)
    command.add_argument("like", type=Path, help=".keras file of the same network")
    command.add_argument("out", type=Path, help=".keras file")
    command.add_argument("--size", type=int, default=304)
    options = parser.parse_args(arguments)
    try:
        if options.command == "export":
            export(options.model, options.npz)
        elif options.command == "train":
            train(options.data, options.start, options.out, options)
        else:
            take(options.npz, options.like, options.out, options.size)
    except (DataError, ValueError) as error:
        parser.exit(2, f"error: {first_line(error)}\n")


if __name__ == "__main__":
    main()
