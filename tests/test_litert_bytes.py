"""The bytes that the rewriting passes give from fixed inputs: what must not change unnoticed.

A pass that is moved or rewritten for its reader gives the same files as before. One that is meant
to give others gets new hashes here, and its change says why. `test_litert_columns.py` and
`test_litert_schedule.py` say that what the files compute is right.
"""

import hashlib

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from random_tflite import Network, random_network, u_net
from test_litert_columns import dynamic_head, gated_branches

from ddunet_keras.litert.columns import merge_columns
from ddunet_keras.litert.model import read_tflite, write_tflite
from ddunet_keras.litert.schedule import fit_memory


def depthwise(dilation, channels):
    net = Network(dilation, (12, 16), channels)
    return net.data(net.depthwise(net.source, dilation))


def convolution(size, channels, filters):
    net = Network(size, (6, 16), channels)
    return net.data(net.conv(net.source, filters, size))


def concatenation(channels, filters):
    """Two feature maps, joined for a 1x1 convolution of so many filters, or for a sum: 0."""
    net = Network(2, (8, 16), channels)
    joined = net.join(net.depthwise(net.source), net.source)
    result = net.conv(joined, filters, 1) if filters else net.sum(joined, joined)
    return net.data(result)


def padding():
    """PAD of whole pixels behind a narrow convolution, and one that a convolution takes in."""
    net = Network(0, (8, 16), 8)
    pads = net.graph.constant(np.array([[0, 0], [2, 1], [0, 3], [0, 0]], np.int32))
    narrow = net.down(net.conv(net.source, 8, 1))
    return net.data(net.add("PAD", [narrow, pads], (1, 7, 11, 8), schema.PadOptionsT()))


NETWORKS = {
    "U-net": u_net(),
    "low U-net": u_net((16, 16)),
    "wide U-net": u_net((32, 48)),
    "head of one class": dynamic_head(),
    "head of 4 channels": dynamic_head(channels=4),
    "head of three classes": dynamic_head(classes=3),
    "head of shuffled taps": dynamic_head(shuffled=True),
    "gated branches": gated_branches(5),
    "convolution 3x3": convolution(3, 3, 8),
    "convolution 5x5": convolution(5, 8, 1),
    "depthwise, dilation 1": depthwise(1, 8),
    "depthwise, dilation 2": depthwise(2, 8),
    "depthwise, dilation 3": depthwise(3, 4),
    "concatenation for a convolution": concatenation(4, 5),
    "wide concatenation for a convolution": concatenation(40, 5),
    "concatenation for a sum": concatenation(4, 0),
    "padding": padding(),
} | {f"random {seed}": random_network(seed) for seed in range(8)}

COLUMNS = {  # name of the network: hash
    "U-net": "22116aec23fa6c7a",
    "low U-net": "62b97e9c4352ed02",
    "wide U-net": "28b280df21222978",
    "head of one class": "d1cf598c60747b32",
    "head of 4 channels": "a25d5d40456e05b4",
    "head of three classes": "5dcaa94fd6169571",
    "head of shuffled taps": "81280cace1307c87",
    "gated branches": "1e9dcb24552828bf",
    "convolution 3x3": "bbf43d9ffc39c29c",
    "convolution 5x5": "23d46dfc9b4e3576",
    "depthwise, dilation 1": "206f35686e86b246",
    "depthwise, dilation 2": "79b4c519fcc3b9d9",
    "depthwise, dilation 3": "8635f9ec56cc58d9",
    "concatenation for a convolution": "17f55e3437cce0c5",
    "wide concatenation for a convolution": "81d5eb6c975e8a91",
    "concatenation for a sum": "c2eceb4bdf53d0fa",
    "padding": "7ccbd2cf24a05217",
    "random 0": "5b77d4021c42aec4",
    "random 1": "d26457b0c7cd275a",
    "random 2": "f8fe9a450a8ae244",
    "random 3": "680c75a5c50982e4",
    "random 4": "e67fd708d448e76a",
    "random 5": "c6f8e1956fde0c19",
    "random 6": "3dd1f61a773302f8",
    "random 7": "c185618213c8f7d9",
}
MEMORY = {  # name of the network, KiB of arena: hash
    ("U-net", None): "b5331a339eecafe9",
    ("low U-net", None): "332536c60d008ebf",
    ("wide U-net", None): "18b77aeb4bce5c85",
    ("head of one class", None): "f9341000d9dcb76f",
    ("head of 4 channels", None): "74346114b549971f",
    ("head of three classes", None): "023dbf2d59706bb5",
    ("head of shuffled taps", None): "8c516b7a93d38de9",
    ("gated branches", None): "a0276b20fb9f2835",
    ("convolution 3x3", None): "bd88b775bd232ffe",
    ("convolution 5x5", None): "e6d1fde506652f54",
    ("depthwise, dilation 1", None): "47beda4778fe2a30",
    ("depthwise, dilation 2", None): "3f1f16605b176270",
    ("depthwise, dilation 3", None): "da27144308e26e27",
    ("concatenation for a convolution", None): "537ab234ccdccb89",
    ("wide concatenation for a convolution", None): "31b767b20feb68e1",
    ("concatenation for a sum", None): "581569e52419097d",
    ("padding", None): "eef4e82f3d2d56c1",
    ("random 0", None): "359895b7c283523d",
    ("random 1", None): "c2ee82cff6fe90d1",
    ("random 2", None): "6b3d82f7d84a734a",
    ("random 3", None): "439f393b0467fa0b",
    ("random 4", None): "73a9a17ae734a3c8",
    ("random 5", None): "fec40ec0c79e9299",
    ("random 6", None): "e1aeb5d767d0128b",
    ("random 7", None): "9f2bddae8e09d69b",
    ("U-net", 50): "5e9ce37f36a6d78a",
    ("U-net", 46): "05a6a1d4ff8624bd",
    ("U-net", 42): "05a6a1d4ff8624bd",
    ("low U-net", 16.5): "f86d4e1fb3d24272",
    ("wide U-net", 70): "9b78de7f234d8c65",
    ("wide U-net", 60): "bc217ac0953c5834",
    ("random 0", 8): "722f5ef63aa16184",
    ("random 1", 27): "b66c35b734495337",
    ("random 1", 25): "7dab7528a25265b8",
}


def digest(model):
    return hashlib.sha256(write_tflite(model)).hexdigest()[:16]


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_columns(name):
    model = read_tflite(NETWORKS[name])
    merge_columns(model)
    assert digest(model) == COLUMNS[name]


@pytest.mark.parametrize(("name", "ram_kib"), MEMORY)
def test_order_plan_and_strips(name, ram_kib):
    model = fit_memory(read_tflite(NETWORKS[name]), ram_kib)
    assert digest(model) == MEMORY[name, ram_kib]
