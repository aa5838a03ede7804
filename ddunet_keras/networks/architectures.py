"""`NETWORKS`: the names, sizes and sources of the networks. No Keras is imported here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What is known of a network before it is built.

    Attributes:
        title: its name in the paper's Table I.
        module: of `ddunet_keras.networks`.
        function: in it; (image, layer factory, channels, **options) -> list of logits.
        stride: height and width of the image are padded to multiples of it.
        parameters: of two classes, batch normalization's averages included.
        paper: Table I's million parameters; None where it does not have the network.
        origin: "code" where a public code settles the network; "count" where it is a guess that
            Table I's parameters confirm; "text" where it is a reconstruction after a description.
        options: further arguments of `function`.
    """

    title: str
    module: str
    function: str
    stride: int
    parameters: int
    paper: float | None
    origin: str
    options: Mapping[str, int] = dataclasses.field(default_factory=dict)


NETWORKS: dict[str, Architecture] = {
    "unet": Architecture("U-Net", "unet", "logits", 16, 24_891_137, 24.90, "code"),
    "pspnet": Architecture("PSPNet", "pspnet", "logits", 32, 6_913_729, 6.92, "code"),
    "deeplabv3plus": Architecture(
        "DeepLabV3+", "deeplabv3plus", "logits", 8, 2_753_457, 2.753, "code"
    ),
    "cloudsegnet": Architecture("CloudSegNet", "cloudsegnet", "logits", 8, 4_929, 0.005, "code"),
    "segcloud_described": Architecture(
        "SegCloud", "segcloud", "described_logits", 32, 18_866_497, 19.61, "text"
    ),
    "segcloud_counted": Architecture(
        "SegCloud", "segcloud", "counted_logits", 16, 19_600_897, 19.61, "count"
    ),
    "cloudunet": Architecture("CloudU-Net", "cloudunet", "logits", 16, 34_536_897, 35.49, "text"),
    "cloudunetv2": Architecture(
        "CloudU-Netv2", "cloudunetv2", "logits", 16, 14_873_955, 14.55, "count"
    ),
    "masegcloud": Architecture("MA-SegCloud", "masegcloud", "logits", 16, 14_635_984, 16.3, "code"),
    "ucloudnet_k2": Architecture(
        "UCloudNet, k=2", "ucloudnet", "logits", 16, 47_169, None, "code", {"base_channels": 2}
    ),
    "ucloudnet_k4": Architecture(
        "UCloudNet, k=4", "ucloudnet", "logits", 16, 186_273, None, "code", {"base_channels": 4}
    ),
}
"""Name for `build_network` -> what it is."""
