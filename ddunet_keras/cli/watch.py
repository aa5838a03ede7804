"""`ddunet watch`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from ddunet_keras.camera.alpaca import AlpacaServer
from ddunet_keras.camera.config import (
    Values,
    WatchConfig,
    make_config,
    read_config,
    write_config,
)
from ddunet_keras.camera.mqtt import MqttPublisher
from ddunet_keras.camera.notices import Notices
from ddunet_keras.camera.records import MISSING, UNREADABLE, describe
from ddunet_keras.camera.safety import SafetyMonitor
from ddunet_keras.camera.safety_file import SafetyFile
from ddunet_keras.camera.watch import Watch
from ddunet_keras.cli.console import Terminated, log, say
from ddunet_keras.cli.models import open_model
from ddunet_keras.cli.options import command, config_options, config_values
from ddunet_keras.cli.predict import UNUSABLE
from ddunet_keras.files import DataError, printable
from ddunet_keras.presets import PRESETS, preset_file

EXIT_CODES = (
    "Exit code: 0 when it is stopped; 2 if an option or file cannot be used. With --once: 0 if the "
    "newest frame has a cloud cover; 2 if it is missing or cannot be read, 3 if it says nothing of "
    "the sky."
)


def run_watch(arguments: argparse.Namespace) -> int:
    values = _values(arguments)
    if arguments.write_config:
        write_config(arguments.write_config, values)
        print(f"wrote {arguments.write_config}")
        return 0
    config = make_config("watch", values)
    others = {name: make_config(name, values) for name in ("safety", "alpaca", "mqtt")}
    _check_together(config, others, arguments.once)
    notify = Notices(partial(say, "note"))
    report = (lambda record: None) if arguments.quiet else _print
    with contextlib.ExitStack() as opened:
        if not arguments.once:  # a service is ended so
            opened.enter_context(contextlib.suppress(KeyboardInterrupt, Terminated))
        model = open_model(_model_path(config.model), config.threads, config.delegate)
        model.predict_probabilities(np.zeros((16, 16, 3), np.uint8))  # its start counts for none
        monitor = SafetyMonitor(others["safety"]) if others["safety"].enabled else None
        publishers = _open_publishers(**others, notify=notify, opened=opened)
        watch = Watch(config, model, notify, report, monitor, publishers)
        opened.callback(watch.close)
        if arguments.once:
            record = watch.once()
            if record is None:
                raise DataError(f"{watch.source_name}: there is no frame yet")
            return _exit_code(record)
        log(_describe_service(watch.source_name, config, others))
        watch.run()
    return 0


def _values(arguments: argparse.Namespace) -> Values:
    """The settings of the file, and over them those of the command line."""
    values: Values = read_config(arguments.config) if arguments.config else {}
    given = config_values(arguments, WatchConfig)
    if given.get("source", "") is None:
        del given["source"]
    values["watch"] = values.get("watch", {}) | given
    return values


def _model_path(text):
    """A model's file; of a preset the int8 one, which needs no training framework."""
    path = Path(text)
    return preset_file(text, "tflite") if text in PRESETS and not path.exists() else path


def _check_together(config, others, once):
    """Tells before anything is opened what does not go together."""
    if once:
        for name, config in others.items():
            if config.enabled:
                raise DataError(f"[{name}] is for a service that goes on; leave out --once")
    if others["alpaca"].enabled and not others["safety"].enabled:
        raise DataError("[alpaca] tells whether it is safe: set enabled = true in [safety], too")
    text_file = others["safety"].text_file
    if text_file is not None and not others["safety"].enabled:
        raise DataError("[safety] text_file needs enabled = true there")
    if text_file is not None and not text_file.parent.is_dir():  # or a share that is not mounted
        raise DataError(f"[safety] text_file: there is no folder {text_file.parent}")
    zone = others["safety"].zone
    if others["safety"].enabled and zone is not None and zone not in (config.zone or ()):
        raise DataError(f"[safety] zone = {zone!r} is not measured: add it to zone in [watch], too")


def _open_publishers(safety, alpaca, mqtt, notify, opened):
    """Who is told of records and safety; `opened` closes them."""
    publishers: list[SafetyFile | AlpacaServer | MqttPublisher] = []
    if safety.enabled and safety.text_file is not None:
        publishers.append(SafetyFile(safety.text_file, notify))
        opened.callback(publishers[-1].close)
    if alpaca.enabled:
        publishers.append(AlpacaServer(alpaca, notify))
        opened.callback(publishers[-1].close)
    if mqtt.enabled:
        publishers.append(MqttPublisher(mqtt, notify, with_safety=safety.enabled))
        opened.callback(publishers[-1].close)
    return publishers


def _describe_service(source, config, others):
    """A line on what runs, for whoever waits for the first frame."""
    parts = [f"watching {source} every {config.interval:g} s", f"results are in {config.out}"]
    safety, alpaca, mqtt = others["safety"], others["alpaca"], others["mqtt"]
    if safety.enabled and safety.text_file is not None:
        parts.append(f"safe or unsafe is in {safety.text_file}")
    if alpaca.enabled:
        parts.append(f"Alpaca is at http://{alpaca.host}:{alpaca.port}")
    if mqtt.enabled:
        parts.append(f"MQTT goes to {mqtt.host}")
    return printable("; ".join(parts))


def _print(record):
    print(describe(record), flush=True)


def _exit_code(record):
    if record["usable"]:
        return 0
    return 2 if record["reason"].startswith((MISSING, UNREADABLE)) else UNUSABLE


def add_commands(commands: argparse._SubParsersAction) -> None:
    option = command(
        commands,
        "watch",
        run_watch,
        "watch a sky camera: the cloud cover of each new frame",
        EXIT_CODES,
    )
    fields = {field.name: field.metadata for field in dataclasses.fields(WatchConfig)}
    option("source", nargs="?", metavar="SOURCE", help=fields["source"]["help"])
    option(
        "--zone",
        action="append",
        unset=True,
        metavar="zenith:DEGREES|circle:x,y,r|MASK",
        help="tell the cover of this part of the sky, too; may be repeated",
    )
    config_options(option, WatchConfig, skip=("source", "zone"), unset=True)
    option(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with these settings and those of safety, Alpaca and MQTT; options on the "
        "command line override it",
    )
    option(
        "--write-config",
        type=Path,
        metavar="FILE",
        help="write such a file with all settings, explained, and do nothing else",
    )
    option("--once", action="store_true", help="take what is new, and end: for cron")
    option("--quiet", action="store_true", help="print no line for each frame, faults alone")
