"""LiteRT's own kernels for Arm, emulated: the same bits as here, and how many instructions.

    apt-get install qemu-user gcc    # Debian 12, as root
    python tools/benchmark_arm.py tflite/models/ddunet_c8_256.tflite

Each `.tflite` file, or DDUNet of random weights with merged columns and without, runs on LiteRT
for aarch64 under QEMU, as a Raspberry Pi 4 (Cortex-A72) and as a Raspberry Pi 5 (Cortex-A76, which
has dot products), and on this machine. Debian's and PyPI's packages for aarch64 are fetched once,
into `--root`. Instructions are no time, but XNNPACK's kernels have few branches and waits.
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

from ddunet_keras import DDUNet
from ddunet_keras.litert.columns import merge_columns
from ddunet_keras.deploy.convert import TARGETS
from ddunet_keras.litert.model import read_tflite
from ddunet_keras.deploy.quantize import quantize
from ddunet_keras.litert.run import input_feeds, run_litert
from ddunet_keras.files import read_image
from ddunet_keras.images import resize_image
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
"""QEMU's name -> what /proc/cpuinfo says of it, by which XNNPACK picks its kernels."""
DEBIAN = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "zlib1g")
DEBIAN += ("libexpat1", "libffi8", "libstdc++6", "libgcc-s1", "libbz2-1.0", "liblzma5", "libuuid1")
PYPI = ("numpy", "flatbuffers", "protobuf", "tqdm", "typing-extensions", "backports.strenum")
PLUGIN = r"""
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


def shell(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stderr


def prepare(root):
    """Fills `root` with Python and LiteRT for aarch64, and the plugin that counts."""
    if not shutil.which("qemu-aarch64"):
        sys.exit("qemu-aarch64 was not found: apt-get install qemu-user")
    if (root / "ready").exists():
        return
    debs, wheels, site = root / "debs", root / "wheels", root / "site"
    for folder in (debs, wheels, site, root / "proc"):
        folder.mkdir(parents=True, exist_ok=True)
    shell("dpkg", "--add-architecture", "arm64")
    shell("apt-get", "update")
    shell("apt-get", "download", *(f"{name}:arm64" for name in DEBIAN), cwd=debs)
    for deb in debs.glob("*.deb"):
        shell("dpkg", "-x", deb, root)
    litert = f"ai-edge-litert=={importlib.metadata.version('ai-edge-litert')}"
    platforms = ("manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "311", *(f"--platform={name}" for name in platforms)]
    shell(*command, "-d", wheels, litert, *PYPI)
    for wheel in wheels.glob("*.whl"):
        shutil.unpack_archive(wheel, site, "zip")
    (root / "count.c").write_text(PLUGIN)
    (root / "worker.py").write_text(WORKER)
    shell("gcc", "-shared", "-fPIC", "-O2", "-o", root / "count.so", root / "count.c")
    (root / "ready").touch()


def emulate(root, cpu, data, feeds, runs):
    """Outputs of `runs` images, and all instructions that they and the start took."""
    part, features = CPUS[cpu]
    about = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    about += f"CPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n\n"
    (root / "proc" / "cpuinfo").write_text("".join(f"processor\t: {n}\n{about}" for n in range(4)))
    with tempfile.TemporaryDirectory() as folder:
        model, source, target = (Path(folder) / name for name in ("m.tflite", "x.npy", "y.npy"))
        model.write_bytes(data)
        np.save(source, feeds)
        command = ["qemu-aarch64", "-cpu", cpu, "-plugin", root / "count.so", "-L", root]
        command += ["-E", f"PYTHONPATH={root / 'site'}", root / "usr/bin/python3.11"]
        said = shell(*command, root / "worker.py", model, source, target, str(runs))
        return np.load(target), int(re.search(r"instructions (\d+)", said)[1])


def main():
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
    photos = find_photos([options.photos]).values() if options.photos else ()

    forms = {path.name: path.read_bytes() for path in options.files}
    if not forms:
        size = (options.size, options.size)
        images = np.random.default_rng(0).integers(0, 256, (4, *size, 3)).astype("uint8")
        model = DDUNet((*size, 3), options.base_channels, deep_supervision=False)
        plain = quantize(model, size, images, head=TARGETS["cpu"].head, output="probability")
        forms = {"columns as they are": plain, "merged columns": merge_columns(plain)}
    print(f"\n{'':28}{'CPU':12}{'images':>7}{'same bits':>11}{'masks':>10}{'M instructions':>16}")
    for name, data in forms.items():
        model = read_tflite(data)
        height, width = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shape[1:3]
        feeds = np.random.default_rng(1).integers(0, 256, (3, height, width, 3)).astype("uint8")
        if photos:
            feeds = np.stack([resize_image(read_image(path), (height, width)) for path in photos])
        feeds = np.concatenate([feed for (feed,) in input_feeds(model, feeds)])
        ours = run_litert(data, feeds, reference=False).astype("int16")
        half = 0 if feeds.dtype == np.int8 else 128
        for cpu in CPUS:
            _, start = emulate(root, cpu, data, feeds, 1)
            theirs, total = emulate(root, cpu, data, feeds, len(feeds) + 1)
            theirs = theirs[: len(feeds)].astype("int16")
            equal, masks = np.mean(theirs == ours), np.mean((theirs >= half) == (ours >= half))
            each = (total - start) / len(feeds) / 1e6
            line = f"{name:28}{cpu:12}{len(feeds):7}{equal:11.3%}{masks:10.3%}{each:16.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
