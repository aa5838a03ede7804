"""Trains the full DDUNet with JAX alone: 134 epochs of 6091 images at 304 px in 13 minutes (H200).

    python tools/train_on_gpu.py export MODEL.keras start.npz
    python tools/train_on_gpu.py train DATA start.npz OUT --protocol paper --minutes 10
    python tools/train_on_gpu.py import OUT/final.npz MODEL.keras OUT/final.keras

The first and last need Keras; the second only JAX, NumPy and Pillow, and runs where the GPU is
(with PYTHONPATH=. where the package is not installed).
Keras on JAX computes the same, but in kernels that make a step of this network, whose maps are
large and whose channels are few, many times slower. Here maps are (batch, channels, height, width)
in bfloat16, a depthwise convolution is nine shifted products that XLA fuses, and the images stay on
the device, where they are warped and resampled; masks become cloud fractions. Of the draws,
`--fresh` are new augmentations, as SWINySEG's own, of the photos that are none themselves; the
others are photos of the training list, flipped and cropped.
`tests/test_train_on_gpu.py` compares values, gradients and averages with the Keras network.

The learning rate follows the clock, so a run ends in time on any machine. `OUT/last.npz` is written
every 45 seconds and is a start like any other; `history.csv` has a line for every epoch.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ddunet_keras.data.datasets import open_dataset, swinyseg_draw
from ddunet_keras.data.splits import make_split
from ddunet_keras.files import DataError, atomic_path, first_line, write_json
from ddunet_keras.images import align_corners_matrix

EPSILON = 1e-5  # of batch normalization
RANGE_PENALTY, IOU_WEIGHT, AUX_WEIGHTS = 0.1, 0.5, (1.0, 0.5, 0.2)  # as RECIPES["default"]
WEIGHT_DECAY, BATCH = 1e-4, 32


# === The network ===


def _network():
    """The functions that need JAX, as a namespace: `export` and `import` run without it."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    f32 = jnp.float32

    def shifts(maps, rate=1):
        """What each of the nine taps of a 3x3 kernel sees of maps padded with zeros, float32."""
        height, width = maps.shape[2:]
        padded = jnp.pad(maps, ((0, 0), (0, 0), (rate, rate), (rate, rate)))
        for top in (0, rate, 2 * rate):
            for left in (0, rate, 2 * rate):
                yield padded[:, :, top : top + height, left : left + width].astype(f32)

    def shifted_sum(maps, kernel, rate):
        """3x3 depthwise convolution of maps with a kernel (9, c)."""
        taps = zip(shifts(maps, rate), kernel[:, :, None, None], strict=True)
        return sum(seen * weights for seen, weights in taps).astype(maps.dtype)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def depthwise(maps, kernel, rate):
        return shifted_sum(maps, kernel, rate)

    def depthwise_backward(rate, saved, gradient):
        maps, kernel = saved
        exact = gradient.astype(f32)
        taps = [jnp.sum(seen * exact, axis=(0, 2, 3)) for seen in shifts(maps, rate)]
        return shifted_sum(gradient, kernel[::-1], rate), jnp.stack(taps)

    depthwise.defvjp(lambda m, k, rate: (shifted_sum(m, k, rate), (m, k)), depthwise_backward)

    def product(maps, kernel):
        batch, channels, height, width = maps.shape
        kernel = jnp.broadcast_to(kernel.T.astype(maps.dtype), (batch, *kernel.T.shape))
        flat = maps.reshape(batch, channels, height * width)
        out = lax.dot_general(kernel, flat, (((2,), (1,)), ((0,), (0,))))
        return out.reshape(batch, -1, height, width)

    @jax.custom_vjp
    def pointwise(maps, kernel):
        return product(maps, kernel)

    def pointwise_backward(saved, gradient):
        maps, kernel = saved
        flat, other = (a.reshape(*a.shape[:2], -1) for a in (maps, gradient))
        each = lax.dot_general(
            flat, other, (((2,), (2,)), ((0,), (0,))), preferred_element_type=f32
        )
        return product(gradient, kernel.T), jnp.sum(each, axis=0)

    pointwise.defvjp(lambda m, k: (product(m, k), (m, k)), pointwise_backward)

    def enlarge(maps):
        rows, columns = (jnp.asarray(resampling(n, 2 * n), maps.dtype) for n in maps.shape[2:])
        return jnp.einsum("ih,bchj->bcij", rows, jnp.einsum("bchw,jw->bchj", maps, columns))

    class Network:
        """One pass. `averages` are the moments of this batch where `train` is true."""

        def __init__(self, weights, moving, train, dtype=jnp.bfloat16):
            self.weights, self.moving, self.train, self.dtype = weights, moving, train, dtype
            self.averages, self.penalty = {}, 0.0

        def norm(self, name, maps):
            mean, variance = (self.moving[f"{name}/moving_{k}"] for k in ("mean", "variance"))
            gamma, beta = (self.weights[f"{name}/{k}"] for k in ("gamma", "beta"))
            if self.train:  # moments about the moving mean, which lies near: no digits are lost
                near = maps.astype(f32) - mean[None, :, None, None]
                first, second = (jnp.mean(a, axis=(0, 2, 3)) for a in (near, near * near))
                mean, variance = first + mean, second - first * first
                self.averages[f"{name}/moving_mean"] = lax.stop_gradient(mean)
                self.averages[f"{name}/moving_variance"] = lax.stop_gradient(variance)
            scale = gamma * lax.rsqrt(variance + EPSILON)
            mean, scale, beta = (a[None, :, None, None] for a in (mean, scale, beta))
            return (maps.astype(f32) - mean) * scale + beta

        def depthwise(self, name, maps, rate=1):
            return depthwise(maps, self.weights[f"{name}/kernel"].reshape(9, -1), rate)

        def conv(self, name, maps, stride=1):
            kernel = self.weights[f"{name}/kernel"]
            if kernel.shape[0] == 1:
                return pointwise(maps, kernel[0, 0])
            return lax.conv_general_dilated(
                maps,
                kernel.astype(maps.dtype),
                window_strides=(stride, stride),
                padding=[(1, 1), (1, 1)],
                dimension_numbers=("NCHW", "HWIO", "NCHW"),
            )

        def conv_norm_relu(self, name, maps, stride=1):
            maps = self.norm(f"{name}/norm", self.conv(f"{name}/conv", maps, stride))
            return jax.nn.relu(maps).astype(self.dtype)

        def dense(self, name, x):
            kernel, bias = (self.weights[f"{name}/{k}"] for k in ("kernel", "bias"))
            return jnp.matmul(x, kernel, precision="highest") + bias

        def residual(self, name, maps):
            x = self.norm(f"{name}/depthwise_norm", self.depthwise(f"{name}/depthwise", maps))
            x = self.conv(f"{name}/pointwise", jnp.clip(x, 0, 6).astype(self.dtype))
            same = x.shape == maps.shape
            x = self.norm(f"{name}/pointwise_norm", x)
            return (maps.astype(f32) + x if same else x).astype(self.dtype)

        def dmsc(self, name, maps):
            x = self.conv_norm_relu(f"{name}/in_conv", maps)
            gate = jax.nn.relu(self.dense(f"{name}/gate_1", average(x)))
            gate = jax.nn.softmax(self.dense(f"{name}/gate_2", gate))
            mixed = 0.0
            for i, rate in enumerate((1, 2, 3, 4)):
                branch = self.depthwise(f"{name}/branch_{i}", x, rate)
                branch = jax.nn.relu(self.norm(f"{name}/branch_norm_{i}", branch))
                mixed += gate[:, i, None, None, None] * branch
            if self.train:
                self.penalty += jnp.mean(jnp.square(jax.nn.relu(mixed - 6.0)))
            mixed = self.residual(f"{name}/residual", mixed.astype(self.dtype))
            out = self.conv(f"{name}/out_conv", mixed).astype(f32)
            out += self.weights[f"{name}/out_conv/bias"][None, :, None, None]
            out = self.norm(f"{name}/out_norm", out.astype(self.dtype))
            return jax.nn.relu(x.astype(f32) + out).astype(self.dtype)

        def head(self, name, decoder, encoder):
            batch, channels, height, width = decoder.shape
            averages = jnp.concatenate([average(decoder), average(encoder)], -1)
            kernel, bias = (
                self.dense(f"{name}/{k}_2", jax.nn.relu(self.dense(f"{name}/{k}_1", averages)))
                for k in ("weight", "bias")
            )
            flat = decoder.astype(f32).reshape(batch, channels, -1)
            taps = lax.dot_general(
                kernel.reshape(batch, channels, 9), flat, (((1,), (1,)), ((0,), (0,)))
            ).reshape(batch, 9, height, width)
            return sum(seen[:, tap] for tap, seen in enumerate(shifts(taps))) + bias[:, :, None]

        def __call__(self, images):
            """(batch, 3, h, w) in [-1, 1] -> logits at full, half and quarter size."""
            x, skips = self.conv_norm_relu("stem", images.astype(self.dtype)), []
            for stage in range(5):
                x = self.conv_norm_relu(f"down_{stage}", x, 2) if stage else x
                x = self.dmsc(f"encoder_{stage + 1}", x)
                skips.append(x)
            decoded = []
            for stage in range(1, 5):
                x = self.norm(f"up_{stage}/norm", enlarge(self.conv(f"up_{stage}/conv", x)))
                x = jnp.concatenate([jax.nn.relu(x).astype(self.dtype), skips[4 - stage]], 1)
                for part in (1, 2):
                    x = self.residual(f"decoder_{stage}_{part}", x)
                decoded.append(x)
            return [self.head(f"head_{i + 1}", decoded[3 - i], skips[i]) for i in range(3)]

    def average(maps):
        return jnp.mean(maps.astype(f32), axis=(2, 3))

    def loss(logits, target):
        """Of `SegmentationLoss(iou_weight=IOU_WEIGHT)`; target (batch, h, w) in [0, 1]."""
        if logits.shape != target.shape:
            rows, columns = (
                align_corners_matrix(*sides).astype("float32")
                for sides in zip(target.shape[1:], logits.shape[1:], strict=True)
            )
            target = jnp.einsum("ih,bhw,jw->bij", rows, target, columns)
        entropy = jax.nn.softplus(logits) - logits * target
        probability, count = jax.nn.sigmoid(logits), logits[0].size
        both, true, predicted = (
            jnp.sum(a, axis=(1, 2)) for a in (target * probability, target, probability)
        )
        both = jnp.stack([both, count - true - predicted + both])
        true, predicted = (jnp.stack([a, count - a]) for a in (true, predicted))
        iou = (both + 0.01 * count) / (true + predicted - both + 0.01 * count)
        return jnp.mean(jnp.mean(entropy, axis=(1, 2)) + IOU_WEIGHT * (1 - jnp.mean(iou, axis=0)))

    return Network, loss


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


def resampling(size, new_size):
    """(new_size, size) weights of `images.resize_image` along one axis."""
    scale = max(1, size / new_size)
    places = (np.arange(new_size)[:, None] + 0.5) * size / new_size - 0.5
    weights = np.maximum(0, 1 - abs(places - np.arange(size)) / scale)
    return (weights / weights.sum(1, keepdims=True)).astype("float32")


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


def train(data, start, out, options):
    """Writes last.npz and history.csv as it goes, and final.npz and run.json at the end."""
    began = time.time()
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    Network, loss = _network()
    weights, moving = divide(read_weights(start))
    flat, unravel = ravel_pytree(weights)
    moving_flat, unravel_moving = ravel_pytree(moving)
    kept = ("bias", "gamma", "beta")  # without decay
    decays = {k: np.full_like(v, not k.endswith(kept)) for k, v in weights.items()}
    decays = np.asarray(ravel_pytree(decays)[0])
    flat, moving_flat = np.asarray(flat), np.asarray(moving_flat)

    def step(state, photos, chosen, transforms, rate, momentum):
        """AdamW, gradients of norm 1 at most. Rate 0 leaves the weights as they are."""
        value, first, second, averages, count, sums = state
        x, y = warped(photos, chosen, transforms)
        x = jnp.einsum("ih,bchw,jw->bcij", tall, x, wide) / 127.5 - 1
        y = jnp.einsum("ih,bhw,jw->bij", tall, y, wide)

        def objective(value):
            network = Network(unravel(value), unravel_moving(averages), train=True)
            logits = network(x)
            losses = [loss(part, y) for part in logits]
            total = sum(w * part for w, part in zip(AUX_WEIGHTS, losses, strict=True))
            right = jnp.mean((logits[0] > 0) == (y >= 0.5))
            return total + RANGE_PENALTY * network.penalty, (network.averages, right)

        (total, (seen, right)), gradient = jax.value_and_grad(objective, has_aux=True)(value)
        gradient *= jnp.minimum(1.0, 1.0 / jnp.linalg.norm(gradient))
        count += 1
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        change = jnp.sqrt(second / (1 - 0.999**count)) + 1e-7
        change = first / (1 - 0.9**count) / change + WEIGHT_DECAY * decays * value
        averages = momentum * averages + (1 - momentum) * ravel_pytree(seen)[0]
        return (
            value - rate * change,
            first,
            second,
            averages,
            count,
            sums + jnp.stack([total, right, 1.0]),
        )

    rng, order = np.random.default_rng(options.seed), np.zeros(0, int)

    def draw(crop):
        """Which photos, and `warped`'s transforms of them."""
        nonlocal order
        while len(order) < BATCH:
            order = np.concatenate([order, rng.permutation(len(listed))])
        fresh = rng.uniform(size=BATCH) < options.fresh
        chosen = np.empty(BATCH, "int32")
        chosen[fresh] = rng.choice(originals, fresh.sum())
        chosen[~fresh], order = np.split(order, [BATCH - fresh.sum()])
        transforms = np.empty((BATCH, 2, 3), "float32")
        for new, transform in zip(fresh, transforms, strict=True):
            if new:
                transform[:, :2], transform[:, 2] = swinyseg_draw(rng, shape)
            else:
                share = rng.uniform(crop, 1)
                transform[:, :2] = np.diag(share * rng.choice([-1, 1], 2))
                transform[:, 2] = rng.uniform(-0.5, 0.5, 2) * (1 - share) * shape[::-1]
        return chosen, transforms

    def run(state, rate, momentum=0.9, crop=options.crop):
        rate, momentum = np.float32(rate), np.float32(momentum)
        return compiled(state, photos, *draw(crop), rate, momentum)

    def state_of(value, averages):
        zeros = np.zeros_like(flat)
        parts = (value, zeros, zeros.copy(), averages, np.float32(0), np.zeros(3, "float32"))
        return tuple(jnp.array(part) for part in parts)

    def save(state, name):
        write_weights(out / f"{name}.npz", {**unravel(state[0]), **unravel_moving(state[3])})

    def say(text):
        print(f"{time.time() - began:6.1f} s  {text}", flush=True)

    if any(out.glob("*.npz")):
        raise DataError(f"{out}: holds a run; name another folder, or start from its .npz")
    out.mkdir(parents=True, exist_ok=True)
    dataset, listed, originals = listing(data, options.protocol, options.seed)
    if not 0 <= options.fresh <= (1 if originals else 0):
        have = f"{len(originals)} of {len(listed)} training images are no augmentations"
        raise ValueError(f"--fresh {options.fresh:g}: must lie in [0, 1], and {have}")
    shape = dataset.load(dataset.find(listed[0]))[1].shape
    tall, wide = (resampling(side, options.size) for side in shape)
    say(f"{len(listed)} images on {jax.devices()[0]}; compiling, which takes a minute or two")
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(load, dataset, listed)
        images = jax.ShapeDtypeStruct((len(listed), *shape), "uint32")
        state = state_of(flat, moving_flat)
        inputs = (state, images, *draw(1), np.float32(0), np.float32(0))
        compiled = jax.jit(step, donate_argnums=0).lower(*inputs).compile()
        photos = jax.device_put(loaded.result())
    say("compiled")
    begin = written = time.time()
    steps = epoch = 0
    seconds = began + 60 * options.minutes - begin
    if seconds <= 0:
        raise ValueError(f"--minutes {options.minutes:g} ended before the first step")
    with open(out / "history.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("epoch", "learning_rate", "loss", "accuracy", "seconds"))
        while (done := (time.time() - begin) / seconds) < 1:
            rate = options.learning_rate * (1 + np.cos(np.pi * done)) / 2
            rate *= min(1, (steps + 1) / 150)
            for _ in range(10):
                state = run(state, rate, crop=options.crop if done < 0.8 else 0.95)
            steps += 10
            state[0].block_until_ready()
            if (past := steps * BATCH // len(listed)) > epoch:
                total, right, count = np.asarray(state[5])
                state, epoch = (*state[:5], jnp.zeros(3)), past
                row = (epoch, f"{rate:.3g}")
                row += (f"{total / count:.4f}", f"{right / count:.4f}")
                rows.writerow((*row, f"{time.time() - begin:.1f}"))
                if not np.isfinite(total):
                    raise ValueError("the loss diverged; take a lower --learning-rate")
                file.flush()
                say("epoch {}, rate {}, loss {}, accuracy {}".format(*row))
                if time.time() - written > 45:
                    save(state, "last")
                    written = time.time()
    final = state_of(state[0], state[3])
    for number in range(60):  # batch normalization's averages of these very weights
        final = run(final, 0.0, momentum=number / (number + 1), crop=0.95)
    save(final, "final")
    settings = vars(options) | {"jax": jax.__version__, "device": str(jax.devices()[0].device_kind)}
    settings |= {"steps": steps, "epochs": steps * BATCH / len(listed), "batch_size": BATCH}
    write_json(out / "run.json", settings)
    say(f"{steps} steps; wrote {out / 'final.npz'}")


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
