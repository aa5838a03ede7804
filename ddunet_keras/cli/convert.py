"""`ddunet convert` and `inspect`."""

from __future__ import annotations

import json
from pathlib import Path

from ddunet_keras.cli.console import log, start_keras
from ddunet_keras.cli.models import choose_split, split_beside
from ddunet_keras.cli.options import (
    PRESET_NAMES,
    also_option,
    command,
    count,
    model_file,
    positive,
    seed_option,
    share,
    size_of,
    split_options,
    values,
)
from ddunet_keras.data.datasets import LAYOUTS, open_dataset
from ddunet_keras.data.splits import Split
from ddunet_keras.files import DataError, atomic_path
from ddunet_keras.prediction import find_photos

# as ddunet_keras.deploy.convert has them
TARGETS = ("tflm", "ethos-u", "edgetpu", "android", "cpu")


def run_convert(arguments):
    start_keras()
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
        split = choose_split(arguments, dataset, split_beside(arguments.model))
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
            progress=log,
            model_file=arguments.model.name,
            **options,
        )
    except ConversionError as error:
        print(error.verification.to_markdown(), error.layers, sep="\n")
        raise
    print(out.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"wrote {out} ({result['bytes']:,} bytes) and beside it .json, .md, .png")


def run_inspect(arguments):
    from ddunet_keras.litert.inspect import inspect_model

    report = inspect_model(arguments.file)
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report.to_markdown())
    if arguments.plot:
        with atomic_path(arguments.plot) as temporary:
            report.plot(temporary)


def add_commands(commands) -> None:
    option = command(
        commands, "convert", run_convert, "make a verified int8 .tflite of a trained model"
    )
    option("model", type=model_file, metavar="MODEL", help=f"a .keras file or {PRESET_NAMES}")
    option("--size", type=size_of(16), required=True, metavar="H,W", help="of the file's input")
    option("--target", choices=TARGETS, default="tflm", help="device that the file is for")
    help = "data set that the model was trained on, or a folder of photos (without masks)"
    option("--calibration", type=Path, required=True, metavar="DATA", help=help)
    also_option(option, "calibrate and, with --qat, train")
    option("--layout", choices=LAYOUTS, help="of DATA (default: found by looking)")
    split_options(option)
    option(
        "--images",
        type=positive,
        default=200,
        metavar="N",
        help="to calibrate on, of training part",
    )
    option("--verify", type=count, default=32, metavar="N", help="test images; 0 for all")
    help = "epochs of quantization-aware training"
    option("--qat", dest="qat_epochs", type=count, default=0, metavar="EPOCHS", help=help)
    option("--prune", type=share, metavar="S", help="with --qat: share of weights set to zero")
    option("--cluster", type=values, metavar="N", help="with --qat: values a layer's weights share")
    option("--precision", choices=("int8", "float16", "float32"), default="int8", help="of weights")
    option(
        "--io", choices=("int8", "uint8", "float32"), help="input and output (default: target's)"
    )
    option(
        "--output", choices=("probability", "logits", "mask"), default="probability", help="what"
    )
    option("--ram", type=positive, metavar="KIB", help="tflm: arena that is to suffice, by strips")
    option("--c-array", type=Path, metavar="DIR", help="tflm: the file as C sources too")
    option("--debug", action="store_true", help="error of each layer against the float model")
    option("--no-inspect", dest="inspect", action="store_false", help="no Vela, TFLM and latency")
    option("--out", type=Path, metavar="FILE", help="(default: MODEL_SIZE_TARGET.tflite)")
    seed_option(option)

    option = command(
        commands,
        "inspect",
        run_inspect,
        "what a .tflite file costs on devices: memory, time, operators",
    )
    option("file", type=Path, metavar="FILE", help="any .tflite file")
    option("--json", action="store_true", help="print JSON in place of tables")
    option("--plot", type=Path, metavar="PNG", help="picture of the memory over the operators")
