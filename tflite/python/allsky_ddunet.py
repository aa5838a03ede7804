"""Cloud cover as a module of Allsky (AllskyTeam/allsky), for its day and night flows.

It measures each frame and gives it the variables AS_DDUNET_PERCENT, AS_DDUNET_OKTA,
AS_DDUNET_CONFIDENCE, AS_DDUNET_USABLE and AS_DDUNET_REASON. Where nothing can be said of the sky,
the first three are absent. Whatever goes wrong is logged, and the frame goes on.

The interface is the one that Allsky's developer guide documents ("Module structure"): a class
derived from ALLSKYMODULEBASE, the frame as BGR in `allsky_shared.image`, and `save_extra_data`.
docs/camera.md has the installation.
"""

import functools
import os

import allsky_shared
import numpy as np
from allsky_base import ALLSKYMODULEBASE

ERROR_LEVEL = 0  # Allsky shows these to the user, too
INFO_LEVEL = 4


class ALLSKYDDUNET(ALLSKYMODULEBASE):
    """The module, as Allsky's module manager shows it."""

    meta_data = {  # noqa: RUF012  a dict in the class: so Allsky finds it
        "name": "Cloud cover (DDUNet)",
        "description": "Finds the clouds in each frame with a neural network, on this computer.",
        "module": "allsky_ddunet",
        "version": "v1.0.0",
        "group": "Image Analysis",
        "events": ["day", "night"],
        "enabled": "false",
        "experimental": "false",
        "testable": "false",
        "centersettings": "false",
        "extradatafilename": "allsky_ddunet.json",
        "extradata": {
            "values": {
                "AS_DDUNET_PERCENT": {
                    "name": "${DDUNET_PERCENT}",
                    "format": "{dp=0|per}",
                    "sample": "",
                    "group": "Cloud",
                    "description": "Cloud cover in percent of the sky",
                    "type": "number",
                },
                "AS_DDUNET_OKTA": {
                    "name": "${DDUNET_OKTA}",
                    "format": "{dp=0}",
                    "sample": "",
                    "group": "Cloud",
                    "description": "Cloud cover in eighths of the sky",
                    "type": "number",
                },
                "AS_DDUNET_CONFIDENCE": {
                    "name": "${DDUNET_CONFIDENCE}",
                    "format": "{dp=2}",
                    "sample": "",
                    "group": "Cloud",
                    "description": "Probability that the cover is right within one eighth",
                    "type": "number",
                },
                "AS_DDUNET_USABLE": {
                    "name": "${DDUNET_USABLE}",
                    "format": "",
                    "sample": "",
                    "group": "Cloud",
                    "description": "Whether the frame shows the sky at all",
                    "type": "bool",
                },
                "AS_DDUNET_REASON": {
                    "name": "${DDUNET_REASON}",
                    "format": "",
                    "sample": "",
                    "group": "Cloud",
                    "description": "Why there is no cloud cover, such as: black",
                    "type": "string",
                },
            }
        },
        "arguments": {"mask": "", "horizon": "", "model": ""},
        "argumentdetails": {
            "mask": {
                "required": "false",
                "description": "Mask",
                "help": "Picture, white where the frame shows the sky. It goes before Horizon.",
                "type": {"fieldtype": "image"},
            },
            "horizon": {
                "required": "false",
                "description": "Horizon",
                "help": "auto for the disc of a fisheye, or circle:x,y,r in pixels of the frame. "
                "Blank: all of the frame is sky.",
            },
            "model": {
                "required": "false",
                "description": "Model",
                "help": "Path of a .tflite file of ddunet_keras. Blank: the one that it ships.",
            },
        },
        "businfo": [],
        "changelog": {
            "v1.0.0": [{"author": "ddunet_keras", "authorurl": "", "changes": "Initial release"}]
        },
    }

    def run(self) -> str:
        """Measures the frame; returns what Allsky shows as the module's result."""
        try:
            values, result = self.measure()
            allsky_shared.log(INFO_LEVEL, f"INFO: {result}")
        except Exception as error:  # whatever it is, the frame goes on
            result = f"ERROR: allsky_ddunet: {type(error).__name__}: {error}"
            allsky_shared.log(ERROR_LEVEL, result)
            values = {"AS_DDUNET_USABLE": False, "AS_DDUNET_REASON": "error, see the log"}
        try:
            allsky_shared.save_extra_data(
                self.meta_data["extradatafilename"],
                values,
                self.meta_data["module"],
                self.meta_data["extradata"],
            )
        except Exception as error:  # as above: a full disk, for instance
            result = f"ERROR: allsky_ddunet: cannot save its variables: {error}"
            allsky_shared.log(ERROR_LEVEL, result)
        return result

    def measure(self) -> tuple[dict, str]:
        """Allsky's variables of the frame, and the same in a line."""
        frame = np.asarray(allsky_shared.image)
        if frame.ndim == 2:
            frame = np.repeat(frame[..., None], 3, axis=-1)
        horizon = self.get_param("horizon", "", str).strip() or None
        mask = self.get_param("mask", "", str).strip()
        if mask:
            horizon = os.path.join(allsky_shared.ALLSKY_OVERLAY, "images", mask)
        segmenter = load_segmenter(self.get_param("model", "", str).strip())
        segmentation = segmenter.segment(frame, horizon=horizon, channel_order="bgr")
        if not segmentation.usable:
            reason = segmentation.reason
            values = {"AS_DDUNET_USABLE": False, "AS_DDUNET_REASON": reason}
            return values, f"Cloud cover unknown: {reason}"
        cover = segmentation.cloud_cover
        values = {
            "AS_DDUNET_PERCENT": round(cover.percent, 1),
            "AS_DDUNET_OKTA": cover.okta,
            "AS_DDUNET_USABLE": True,
            "AS_DDUNET_REASON": "",
        }
        if segmentation.confidence is not None:
            values["AS_DDUNET_CONFIDENCE"] = round(segmentation.confidence, 2)
        return values, f"Cloud cover {cover.percent:.1f} %, {cover.okta} okta"


@functools.cache
def load_segmenter(model: str):
    """The segmenter of a file, loaded once as long as Allsky's process lives.

    The package is imported here and not above, so that a package that is missing is logged like any
    other error.
    """
    import ddunet_keras

    return ddunet_keras.Segmenter(model or None)


def ddunet(params, event):
    """What Allsky calls for each frame."""
    return ALLSKYDDUNET(params, event).run()


def ddunet_cleanup():
    """What Allsky calls when the module is removed from a flow."""
    meta_data = ALLSKYDDUNET.meta_data
    cleanup = {"files": {meta_data["extradatafilename"]}, "env": {}}
    allsky_shared.cleanupModule({"metaData": meta_data, "cleanup": cleanup})
