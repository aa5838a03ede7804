"""The command `ddunet`: every subcommand is a few calls of the library, and this alone prints."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from ddunet_keras import __version__
from ddunet_keras.data.datasets import LAYOUTS, open_dataset
from ddunet_keras.data.splits import PROTOCOLS, Split, make_split, trained_on
from ddunet_keras.files import DataError, atomic_path, silence, write_json, write_text
from ddunet_keras.prediction import find_photos, predict_files
from ddunet_keras.presets import DEFAULT, PRESETS, preset_file

# as ddunet_keras.model and .training have them; importing these would make `--help` wait for Keras
VARIANTS = ("full", "dmsc", "baseline")
RECIPES = ("default", "geometric", "plain", "paper", "authors")
# as ddunet_keras.deploy.convert has them
TARGETS = ("tflm", "ethos-u", "edgetpu", "android", "cpu")

_DEMO_MARK = "made-by-ddunet-demo.txt"


def main(argv=None) -> int:
    """Runs `ddunet` with the given arguments, those of the process by default.

    Returns:
        The exit code: 0, 2 after a user's error (one line on stderr), 130 after Ctrl-C.

    Example:

    >>> main(["synthetic", str(tmp), "--count", "4"])  # doctest: +SKIP
    0
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's own start-up messages
    try:
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if (error.name or __package__).startswith(__package__):
            raise
        return _fail(f"needs {error.name}: pip install 'ddunet-keras[train]'")
    except (ValueError, OSError) as error:
        return _fail(error)


def _fail(message, code=2):
    _say("error", message)
    return code


def _say(kind, message):
    print(f"ddunet: {kind}:", " ".join(str(message).split()), file=sys.stderr)


def _start_keras():
    """Imports Keras without the lines that TensorFlow writes before it heeds its log level."""
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "3":
        return
    with silence(2):
        import keras  # noqa: F401


def _progress(done_what):
    """A counter on stderr, where a person reads it."""

    def show(done, total):
        end = "\n" if done == total else ""
        print(f"\r{done_what} {done} of {total}", end=end, file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else None


def _log(line):
    print(f"ddunet: {line}", file=sys.stderr, flush=True)


def _train(arguments):
    _start_keras()
    from ddunet_keras.training import train

    options = vars(arguments) | {"split": arguments.split and Split.load(arguments.split)}
    options["also"] = [(folder, Split.load(split)) for folder, split in arguments.also]
    del options["run"]
    verbose = "auto" if sys.stdout.isatty() else 2  # to a file, a line an epoch
    train(**options, verbose=verbose)
    print(f"wrote {arguments.out}: best.keras, last.keras, run.json, split.json, curves.png")


def _open_model(path, threads=None, delegate=None):
    """What `segment` and `predict_probabilities` are asked of; a .tflite starts no TensorFlow."""
    if path.suffix == ".tflite":
        from ddunet_keras.runtime import Segmenter

        return Segmenter(path, threads, delegate)
    if threads or delegate:
        raise DataError("--threads and --delegate are for a .tflite file")
    _start_keras()
    from ddunet_keras.model import load_model

    return load_model(path)


def _split_beside(path):
    """The split that a training left beside its model; None where there is none."""
    beside = path.parent / "split.json"
    return Split.load(beside) if beside.is_file() else None


def _choose_split(arguments, dataset, trained):
    if arguments.split:
        return Split.load(arguments.split)
    if arguments.protocol or trained is None:
        return make_split(dataset, arguments.protocol or "date", arguments.seed)
    return trained


def _evaluate(arguments):
    from ddunet_keras.evaluation import evaluate

    model = _open_model(arguments.model)
    dataset = open_dataset(arguments.data, arguments.layout, model.num_classes)
    trained = _split_beside(arguments.model)
    about = {"model": str(arguments.model), "data": str(arguments.data), "part": arguments.part}
    if arguments.part == "all":
        names, about["protocol"] = [sample.name for sample in dataset], "none"
    else:
        split = _choose_split(arguments, dataset, trained)
        try:
            split.check(dataset)
        except DataError as error:
            raise DataError(f"{error}; --part all needs no split") from None
        names = getattr(split, arguments.part)
        if not names:
            raise DataError(f"--part {arguments.part}: empty in protocol {split.protocol!r}")
        about |= {"protocol": split.protocol, "seed": split.seed, "note": split.note}
    about["trained_on"] = "unknown"
    seen = trained_on(arguments.model.parent, dataset)
    if seen is not None:
        about["trained_on"] = count = sum(dataset.find(name).source in seen for name in names)
        if count and arguments.part != "train":
            _say(
                "warning",
                f"the model was trained on {count} of these {len(names)} images, or on "
                f"augmentations of them; see {arguments.model.parent / 'split.json'}",
            )
    settings = {"threshold": arguments.threshold, "progress": _progress("scored")}
    result = evaluate(model.predict_probabilities, dataset, names, **settings, **about)
    print(result.to_markdown())
    if arguments.out:
        result.save(arguments.out)
        print(f"wrote {arguments.out}: evaluation.json, evaluation.md, curves.png, sheet.png")


def _benchmark(arguments):
    _start_keras()
    from ddunet_keras.benchmark import benchmark, benchmark_markdown
    from ddunet_keras.plots import plot_benchmark

    datasets = [open_dataset(folder) for folder in arguments.data]
    result = benchmark(datasets, sizes=arguments.sizes, progress=_log)
    text, out = benchmark_markdown(result), arguments.out
    print(text)
    write_json(out / "benchmark.json", result)
    write_text(out / "benchmark.md", text)
    if any(row.get("arena") for row in result["rows"]):
        plot_benchmark(result["rows"], out / "benchmark.png")
    else:
        _say("warning", "no int8 file, so no picture: they are in tflite/models of a clone")
    print(f"wrote {out}: benchmark.json, benchmark.md")


def _ablate(arguments):
    from ddunet_keras.benchmark import ablate, ablation_markdown

    _start_keras()
    options = {key: value for key, value in vars(arguments).items() if key != "run"}
    print(ablation_markdown(ablate(**options, progress=_log)))
    print(f"wrote {arguments.out}: ablation.json, ablation.md, and a folder for each training")


def _predict(arguments):
    photos = find_photos(arguments.inputs)
    arguments.model = arguments.model or preset_file(DEFAULT, "tflite")
    model = _open_model(arguments.model, arguments.threads, arguments.delegate)
    model.predict_probabilities(np.zeros((16, 16, 3), np.uint8))  # its start counts for no photo
    about = {"model": str(arguments.model)}
    options = {key: getattr(arguments, key) for key in ("threshold", "horizon", "overlay")}
    failed = 0
    for record in predict_files(model, photos, arguments.out, **options, **about):
        if "error" in record:
            failed += 1
            _fail(record["error"])
        elif arguments.json:
            print(json.dumps(record), flush=True)
        else:
            cover = record["cloud_cover"]
            print(
                f"{record['image']}: {cover['percent']:.1f} % cloud, {cover['okta']} okta, "
                f"{record['seconds']:.2f} s",
                flush=True,
            )
    if not arguments.json:
        print(f"wrote {arguments.out}: predictions.json, masks of {len(photos) - failed} photos")
    return 2 if failed else 0


def _convert(arguments):
    _start_keras()
    from ddunet_keras.deploy.convert import ConversionError, convert, labelled_photos, plain_photos
    from ddunet_keras.model import load_model

    model, size, target = load_model(arguments.model), arguments.size, arguments.target
    draw = {"count": arguments.images, "verify": arguments.verify, "seed": arguments.seed}
    try:
        dataset = open_dataset(arguments.calibration, arguments.layout, model.num_classes)
    except DataError:
        if arguments.layout or not arguments.calibration.is_dir():
            raise
        paths = find_photos([arguments.calibration]).values()
        photos = plain_photos(paths, size, **draw)
    else:
        split = _choose_split(arguments, dataset, _split_beside(arguments.model))
        others = [(open_dataset(folder), Split.load(split)) for folder, split in arguments.also]
        photos = labelled_photos(dataset, split, size, also=others, **draw)
    name = f"{arguments.model.stem}_{'x'.join(map(str, size))}_{target}.tflite"
    out = arguments.out or Path(name)
    keys = ("target", "precision", "io", "output", "qat_epochs", "prune", "cluster", "ram", "seed")
    options = {key: getattr(arguments, key) for key in (*keys, "c_array", "debug", "inspect")}
    try:
        result = convert(
            model,
            photos,
            out,
            size=size,
            progress=_log,
            model_file=arguments.model.name,
            **options,
        )
    except ConversionError as error:
        print(error.verification.to_markdown(), error.layers, sep="\n")
        raise
    print(out.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"wrote {out} ({result['bytes']:,} bytes) and beside it .json, .md, .png")


def _inspect(arguments):
    from ddunet_keras.deploy.targets import inspect_model

    report = inspect_model(arguments.file)
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report.to_markdown())
    if arguments.plot:
        with atomic_path(arguments.plot) as temporary:
            report.plot(temporary)


def _synthetic(arguments):
    from ddunet_keras.data.synthetic import write_synthetic

    write_synthetic(arguments.out, arguments.count, arguments.size, arguments.seed)
    print(f"wrote {arguments.out}: {arguments.count} images and masks, metadata.csv")


def _split(arguments):
    dataset = open_dataset(arguments.data, arguments.layout, arguments.num_classes)
    split = make_split(dataset, arguments.protocol, arguments.seed)
    split.save(arguments.out)
    for part, about in split.describe(dataset).items():
        print(f"{part:5} {about['images']:6} images, {len(about['dates'])} dates")
    print(f"wrote {arguments.out}: {split.note}")


def _check(arguments):
    dataset = open_dataset(arguments.data, arguments.layout, arguments.num_classes)
    dataset.verify(_progress("checked"))
    print(f"{arguments.data}: {len(dataset)} images and masks in order, layout {dataset.layout}")


def _demo(arguments):
    out, model = arguments.out, arguments.out / "run" / "best.keras"
    if out.exists() and any(out.iterdir()):
        if not (out / _DEMO_MARK).is_file():
            raise DataError(f"--out {out}: exists and is not of the demo; give another")
        shutil.rmtree(out)
    write_text(out / _DEMO_MARK, "`ddunet demo` made this folder and replaces it when run again.\n")
    size = arguments.size
    steps = (
        ("synthetic", out / "skies", "--count", arguments.count, "--size", size),
        ("train", out / "skies", "--out", out / "run", "--base-channels", 4)
        + ("--image-size", size, "--epochs", arguments.epochs),
        ("evaluate", model, out / "skies", "--out", out / "evaluation"),
        ("synthetic", out / "photos", "--count", 8, "--size", "480,640", "--seed", 1),
        ("predict", out / "photos" / "images", "--model", model, "--out", out / "predictions"),
    )
    start = time.perf_counter()
    for step in steps:
        words = [str(word) for word in step]
        print(f"\n$ ddunet {shlex.join(words)}", flush=True)
        step = _parser().parse_args(words)
        step.run(step)
    print(f"\nDone in {time.perf_counter() - start:.0f} s. Look at:")
    for name in ("run/curves.png", "evaluation/sheet.png", "predictions/*_overlay.jpg"):
        print(f"  {out.resolve() / name}")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(_fail(f"{message} (see {self.prog} --help)"))


def _number(kind, low, high, what):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {what}; received {text!r}")
        return value

    return parse


def _size(step):
    def parse(text):
        numbers = re.fullmatch(r"(\d{1,5})(?:[,x](\d{1,5}))?", text)
        size = numbers and (int(numbers[1]), int(numbers[2] or numbers[1]))
        if not size or min(size) < 16 or size[0] % step or size[1] % step:
            what = f"multiples of {step}" if step > 1 else "16 or more"
            raise argparse.ArgumentTypeError(f"must be SIDE or HEIGHT,WIDTH, {what}; got {text!r}")
        return size

    return parse


def _horizon(text):
    circle = r"circle:\s*[-+.\d]+\s*,\s*[-+.\d]+\s*,\s*[.\d]+\s*"
    if text != "auto" and not re.fullmatch(circle, text) and not Path(text).is_file():
        raise argparse.ArgumentTypeError(
            f"must be auto, circle:x,y,r or the file of a mask picture; received {text!r}"
        )
    return text


def _model(text):
    """A model's file, or that of the preset of this name."""
    path = Path(text)
    try:
        return preset_file(text) if text in PRESETS and not path.exists() else path
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_positive = _number(int, 1, 10**9, "a positive integer")
_seed = _number(int, 0, 2**32 - 1, "an integer from 0 to 2**32 - 1")
_classes = _number(int, 2, 255, "an integer from 2 to 255")
_count = _number(int, 0, 10**9, "0 or a positive integer")
_share = _number(float, 1e-6, 1 - 1e-6, "a number between 0 and 1")
_rate = _number(float, 1e-9, 1, "a number above 0, up to 1")
_values = _number(int, 2, 256, "an integer from 2 to 256")
_threshold = _number(float, 1e-6, 1 - 1e-6, "a number between 0 and 1")


def _parser():
    parser = _Parser(
        prog="ddunet",
        description="Cloud segmentation of sky photos with DDUNet (arXiv 2501.15385).",
        epilog="`ddunet COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"ddunet {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run, text):
        added = commands.add_parser(run.__name__[1:], help=text, description=text)
        added.set_defaults(run=run)

        def option(*names, **settings):
            if settings.get("default") is not None and "action" not in settings:
                settings["help"] += " (default: %(default)s)"
            added.add_argument(*names, **settings)

        return option

    def data(option, classes=True):
        option("data", type=Path, metavar="DATA", help="folder of a data set")
        option("--layout", choices=LAYOUTS, help="how it lies there (default: found by looking)")
        if classes:
            option("--num-classes", type=_classes, default=2, metavar="N", help="2; HYTA: also 3")

    def seed(option):
        option("--seed", type=_seed, default=0, help="equal seeds give equal results", metavar="N")

    def threshold(option):
        option("--threshold", type=_threshold, default=0.5, metavar="P", help="cloud from here on")

    def also(option, what):
        option(
            "--also",
            nargs=2,
            action="append",
            default=[],
            metavar=("DATA", "SPLIT"),
            help=f"{what} on the training part of another data set, too; may be repeated",
        )

    protocols = "paper (leaks, for Table I), capture (no photo is shared), date (no day is shared)"

    presets = " or ".join(PRESETS)
    model = f"a .keras or .tflite file, such as RUN/best.keras, or {presets}"

    option = command(_train, "train DDUNet on a data set")
    data(option)
    option("--out", type=Path, required=True, metavar="RUN", help="folder for what comes of it")
    option("--protocol", choices=PROTOCOLS, default="date", help=protocols)
    option("--split", type=Path, metavar="FILE", help="a split of your own, in place of --protocol")
    option("--with-validation", action="store_true", help="train on the validation part, too")
    also(option, "train")
    option("--recipe", choices=RECIPES, default="default", help="loss, optimizer and augmentation")
    option("--variant", choices=VARIANTS, default="full", help="of the network")
    option("--base-channels", type=_positive, default=8, metavar="N", help="width of the network")
    option("--image-size", type=_size(16), metavar="H,W", help="training size (default: recipe's)")
    option("--epochs", type=_positive, metavar="N", help="(default: the recipe's)")
    option("--batch-size", type=_positive, metavar="N", help="(default: the recipe's)")
    option("--learning-rate", type=_rate, metavar="R", help="the highest (default: the recipe's)")
    seed(option)
    option(
        "--initial-weights",
        type=_model,
        metavar="FILE|PRESET",
        help=f".keras, .pdparams or {presets}, to start from",
    )
    option("--resume", action="store_true", help="continue an interrupted run in RUN")
    option("--deterministic", action="store_true", help="the same bits each time, slower")
    option("--mixed-precision", action="store_true", help="compute in float16 (GPU)")

    option = command(_evaluate, "score a model on a data set")
    option("model", type=_model, metavar="MODEL", help=model)
    data(option, classes=False)
    option("--protocol", choices=PROTOCOLS, help=f"{protocols} (default: RUN's or date)")
    option("--split", type=Path, metavar="FILE", help="a split of your own, in place of --protocol")
    option("--part", choices=("test", "val", "train", "all"), default="test", help="all: no split")
    seed(option)
    threshold(option)
    option("--out", type=Path, metavar="DIR", help="folder for JSON, Markdown, CSV and pictures")

    option = command(_predict, "find the clouds in photos: mask, overlay and cloud cover")
    option("inputs", type=Path, nargs="+", metavar="IMAGE|FOLDER", help="photos")
    option("--model", type=_model, metavar="MODEL", help=f"{model} (default: {DEFAULT}, int8)")
    option("--out", type=Path, default=Path("predictions"), metavar="DIR", help="for the results")
    option("--threads", type=_positive, metavar="N", help=".tflite: of LiteRT (default: all cores)")
    option("--delegate", metavar="NAME", help=".tflite: edgetpu, or a LiteRT delegate's library")
    threshold(option)
    option(
        "--horizon",
        type=_horizon,
        metavar="MASK|circle:x,y,r|auto",
        help="where sky is: a mask picture, a circle in pixels, or a fisheye's disc, found",
    )
    option("--no-overlay", dest="overlay", action="store_false", help="write no overlays")
    option("--json", action="store_true", help="print one JSON object a photo")

    option = command(_convert, "make a verified int8 .tflite of a trained model")
    option("model", type=_model, metavar="MODEL", help=f"a .keras file or {presets}")
    option("--size", type=_size(16), required=True, metavar="H,W", help="of the file's input")
    option("--target", choices=TARGETS, default="tflm", help="device that the file is for")
    help = "data set that the model was trained on, or a folder of photos (without masks)"
    option("--calibration", type=Path, required=True, metavar="DATA", help=help)
    also(option, "calibrate and, with --qat, train")
    option("--layout", choices=LAYOUTS, help="of DATA (default: found by looking)")
    option("--protocol", choices=PROTOCOLS, help=f"{protocols} (default: RUN's or date)")
    option("--split", type=Path, metavar="FILE", help="a split of your own, in place of --protocol")
    option(
        "--images",
        type=_positive,
        default=200,
        metavar="N",
        help="to calibrate on, of training part",
    )
    option("--verify", type=_count, default=32, metavar="N", help="test images; 0 for all")
    help = "epochs of quantization-aware training"
    option("--qat", dest="qat_epochs", type=_count, default=0, metavar="EPOCHS", help=help)
    option("--prune", type=_share, metavar="S", help="with --qat: share of weights set to zero")
    option(
        "--cluster", type=_values, metavar="N", help="with --qat: values a layer's weights share"
    )
    option("--precision", choices=("int8", "float16", "float32"), default="int8", help="of weights")
    option(
        "--io", choices=("int8", "uint8", "float32"), help="input and output (default: target's)"
    )
    option(
        "--output", choices=("probability", "logits", "mask"), default="probability", help="what"
    )
    option("--ram", type=_positive, metavar="KIB", help="tflm: arena that is to suffice, by strips")
    option("--c-array", type=Path, metavar="DIR", help="tflm: the file as C sources too")
    option("--debug", action="store_true", help="error of each layer against the float model")
    option("--no-inspect", dest="inspect", action="store_false", help="no Vela, TFLM and latency")
    option("--out", type=Path, metavar="FILE", help="(default: MODEL_SIZE_TARGET.tflite)")
    seed(option)

    option = command(_inspect, "what a .tflite file costs on devices: memory, time, operators")
    option("file", type=Path, metavar="FILE", help="any .tflite file")
    option("--json", action="store_true", help="print JSON in place of tables")
    option("--plot", type=Path, metavar="PNG", help="picture of the memory over the operators")

    option = command(_benchmark, "score the models that ship, float and int8, on unseen images")
    option("data", type=Path, nargs="+", metavar="DATA", help="SWINySEG's folder; others, too")
    option("--out", type=Path, default=Path("benchmark"), metavar="DIR", help="for the tables")
    option("--sizes", type=_positive, nargs="+", metavar="SIDE", help="these alone (default: all)")

    option = command(_ablate, "train variants alike on the same splits, and compare them")
    data(option, classes=False)
    option("--out", type=Path, required=True, metavar="DIR", help="for trainings and the table")
    option(
        "--variants", choices=VARIANTS, nargs="+", default=[*VARIANTS[::-1]], help="of the network"
    )
    option("--base-channels", type=_positive, nargs="+", default=[4], metavar="N", help="widths")
    option("--protocols", choices=PROTOCOLS, nargs="+", default=["date"], help=protocols)
    option("--seeds", type=_seed, nargs="+", default=[0, 1, 2], metavar="N", help="of the splits")
    option("--recipe", choices=RECIPES, default="default", help="of every training")
    option("--image-size", type=_size(16), default="96,96", metavar="H,W", help="of every training")
    option("--epochs", type=_positive, default=30, metavar="N", help="of every training")

    option = command(_synthetic, "write a data set of made-up skies with exact masks")
    option("out", type=Path, metavar="OUT", help="new folder")
    option("--count", type=_positive, default=120, metavar="N", help="number of images")
    option("--size", type=_size(1), default="256", metavar="H,W", help="of the images")
    seed(option)

    option = command(_split, "write a split of a data set, to be edited or kept")
    data(option)
    option("--protocol", choices=PROTOCOLS, default="date", help=protocols)
    seed(option)
    option("--out", type=Path, required=True, metavar="FILE", help="JSON, for --split FILE")

    option = command(_check, "decode every image and mask of a data set and say what is wrong")
    data(option)

    option = command(_demo, "all of the above on made-up skies, in a few minutes")
    option("--out", type=Path, default=Path("demo"), metavar="DIR", help="is made anew each time")
    option("--count", type=_positive, default=240, metavar="N", help="number of images")
    option("--size", type=_positive, default=96, metavar="N", help="of the images")
    option("--epochs", type=_positive, default=15, metavar="N", help="of the training")
    return parser
