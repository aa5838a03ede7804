"""LiteRT's own kernels for Arm, emulated: whether they give the same masks, and at what work.

    apt-get install qemu-user gcc    # Debian, as root
    python tools/benchmark_arm.py tflite/models/ddunet_c8_256.tflite --photos PHOTOS

Each `.tflite` file runs on LiteRT for aarch64 under QEMU, as a Raspberry Pi 4 (Cortex-A72) and as
a Raspberry Pi 5 (Cortex-A76, which has dot products), and on this machine. Without a file it is
DDUNet with random weights, packed and not. A row has the share of equal output bytes, the share of
pixels with equal masks, and millions of instructions for a photo. Instructions are no time, but
XNNPACK's kernels have few branches and waits. Packages of Debian and PyPI for aarch64 are fetched
once, into `--root`. What it printed is in docs/results.md, under "Arm".
"""

from __future__ import annotations

# ruff: noqa: I001  ddunet_keras comes before keras, as it sets how TensorFlow starts
import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ddunet_keras import DDUNet, read_image
from ddunet_keras.deploy.config import ConversionConfig
from ddunet_keras.deploy.convert import build_stages
from ddunet_keras.images import resize_image
from ddunet_keras.litert.model import read_tflite
from ddunet_keras.litert.run import input_feeds, run_litert
from ddunet_keras.prediction import find_photos

import numpy as np

CPUS = {
    "cortex-a72": ("0xd08", "fp asimd evtstrm crc32 cpuid"),
    "cortex-a76": (
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
        "dcpop asimddp",
    ),
}
"""QEMU's name -> part number and features in /proc/cpuinfo, by which XNNPACK picks its kernels."""

CORES = 4

DEBIAN_PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libstdc++6",
    "libgcc-s1",
    "libbz2-1.0",
    "liblzma5",
    "libuuid1",
)
PYPI_PACKAGES = (
    "numpy",
    "flatbuffers",
    "protobuf",
    "tqdm",
    "typing-extensions",
    "backports.strenum",
)
PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")

COUNTING_PLUGIN = r"""
#include <stdint.h>
#include <stdio.h>
struct tb;
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t, void (*)(uint64_t, struct tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct tb *, int, void *, uint64_t);
extern void qemu_plugin_register_atexit_cb(uint64_t, void (*)(uint64_t, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct tb *);
int qemu_plugin_version = 1;
static uint64_t count;
static void block(uint64_t id, struct tb *tb) {
  qemu_plugin_register_vcpu_tb_exec_inline(tb, 0, &count, qemu_plugin_tb_n_insns(tb));
}
static void end(uint64_t id, void *unused) {
  fprintf(stderr, "instructions %llu\n", (unsigned long long)count);
}
int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
  qemu_plugin_register_vcpu_tb_trans_cb(id, block);
  qemu_plugin_register_atexit_cb(id, end, 0);
  return 0;
}
"""
"""C source of a plugin for QEMU that counts instructions."""

WORKER = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
model, source, target, runs = sys.argv[1:]
interpreter = Interpreter(model_path=model, num_threads=1)
interpreter.allocate_tensors()
feeds = np.load(source)
results = []
for feed in np.resize(feeds, (int(runs), *feeds.shape[1:])):
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], feed[None])
    interpreter.invoke()
    results.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
np.save(target, results)
"""
"""Program that runs in the emulator."""


def shell(*command, **options) -> str:
    """Runs a command and returns its stderr; ends the program if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stderr


def prepare(root: Path) -> None:
    """Fills `root` with Python and LiteRT for aarch64, and the plugin that counts."""
    if not shutil.which("qemu-aarch64"):
        sys.exit("qemu-aarch64 was not found: apt-get install qemu-user")
    ready = root / "ready"
    if ready.exists():
        return
    debs, wheels, site = root / "debs", root / "wheels", root / "site"
    for folder in (debs, wheels, site, root / "proc"):
        folder.mkdir(parents=True, exist_ok=True)
    shell("dpkg", "--add-architecture", "arm64")
    shell("apt-get", "update")
    shell("apt-get", "download", *(f"{name}:arm64" for name in DEBIAN_PACKAGES), cwd=debs)
    for deb in debs.glob("*.deb"):
        shell("dpkg", "-x", deb, root)
    litert = f"ai-edge-litert=={importlib.metadata.version('ai-edge-litert')}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "311", *(f"--platform={name}" for name in PLATFORMS)]
    shell(*command, "-d", wheels, litert, *PYPI_PACKAGES)
    for wheel in wheels.glob("*.whl"):
        shutil.unpack_archive(wheel, site, "zip")
    (root / "count.c").write_text(COUNTING_PLUGIN)
    (root / "worker.py").write_text(WORKER)
    shell("gcc", "-shared", "-fPIC", "-O2", "-o", root / "count.so", root / "count.c")
    ready.touch()


def write_cpuinfo(root: Path, cpu: str) -> None:
    part, features = CPUS[cpu]
    lines = [
        f"Features\t: {features}",
        "CPU implementer\t: 0x41",
        "CPU architecture: 8",
        "CPU variant\t: 0x0",
        f"CPU part\t: {part}",
        "CPU revision\t: 3",
    ]
    cores = ["\n".join([f"processor\t: {core}", *lines, "\n"]) for core in range(CORES)]
    (root / "proc" / "cpuinfo").write_text("".join(cores))


def emulate(
    root: Path, cpu: str, data: bytes, feeds: np.ndarray, runs: int
) -> tuple[np.ndarray, int]:
    """Outputs of `runs` images, and all instructions that they and the start took."""
    write_cpuinfo(root, cpu)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, source, target = folder / "m.tflite", folder / "x.npy", folder / "y.npy"
        model.write_bytes(data)
        np.save(source, feeds)
        command = ["qemu-aarch64", "-cpu", cpu, "-plugin", root / "count.so", "-L", root]
        command += ["-E", f"PYTHONPATH={root / 'site'}", root / "usr/bin/python3.11"]
        said = shell(*command, root / "worker.py", model, source, target, str(runs))
        (instructions,) = re.findall(r"instructions (\d+)", said)
        return np.load(target), int(instructions)


def random_network(side: int, base_channels: int) -> dict[str, bytes]:
    """The `cpu` file of DDUNet with random weights, packed and not."""
    images = np.random.default_rng(0).integers(0, 256, (4, side, side, 3)).astype("uint8")
    model = DDUNet((side, side, 3), base_channels, deep_supervision=False)
    stages = build_stages(model, images, ConversionConfig((side, side), target="cpu"))
    return {"not packed": stages.quantized, "packed": stages.packed}


def feeds_for(data: bytes, photos: list[Path]) -> np.ndarray:
    """What a file is fed: the photos, or without any, noise."""
    model = read_tflite(data)
    (graph,) = model.subgraphs
    height, width = graph.tensors[graph.inputs[0]].shape[1:3]
    if photos:
        images = np.stack([resize_image(read_image(path), (height, width)) for path in photos])
    else:
        noise = np.random.default_rng(1).integers(0, 256, (3, height, width, 3))
        images = noise.astype("uint8")
    return np.concatenate([feed for (feed,) in input_feeds(model, images)])


def compare(name: str, data: bytes, root: Path, photos: list[Path]) -> None:
    """Prints a row for each CPU."""
    feeds = feeds_for(data, photos)
    count = len(feeds)
    ours = run_litert(data, feeds, reference=False).astype("int16")
    half = 0 if feeds.dtype == np.int8 else 128  # a probability of one half
    for cpu in CPUS:
        # the difference of the two runs leaves out what the start takes
        _, start = emulate(root, cpu, data, feeds, 1)
        outputs, total = emulate(root, cpu, data, feeds, count + 1)
        theirs = outputs[:count].astype("int16")
        equal = np.mean(theirs == ours)
        masks = np.mean((theirs >= half) == (ours >= half))
        millions = (total - start) / count / 1e6
        row = f"{name:28}{cpu:12}{count:7}{equal:11.3%}{masks:10.3%}{millions:16.1f}"
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.tflite")
    parser.add_argument("--photos", type=Path, help="a folder of them; without it, noise")
    parser.add_argument("--size", type=int, default=256, help="of the network of random weights")
    parser.add_argument("--base-channels", type=int, default=8)
    parser.add_argument("--root", type=Path, default=Path.home() / ".cache/ddunet_arm")
    options = parser.parse_args()
    root = options.root.resolve()
    prepare(root)
    photos = list(find_photos([options.photos]).values()) if options.photos else []
    forms = {path.name: path.read_bytes() for path in options.files}
    if not forms:
        forms = random_network(options.size, options.base_channels)
    print(f"\n{'':28}{'CPU':12}{'images':>7}{'same bytes':>11}{'masks':>10}{'M instructions':>16}")
    for name, data in forms.items():
        compare(name, data, root, photos)


if __name__ == "__main__":
    main()
