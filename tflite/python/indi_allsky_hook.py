#!/usr/bin/env python3
"""Cloud cover as the image pre-save hook of indi-allsky, for its image labels.

indi-allsky starts a pre-save hook without arguments while it processes a frame, and without the
frame itself. So this one measures the newest saved picture: the label of a frame tells the clouds
of the frame before. The environment names a file, DATA_JSON, for the answer:

    custom_1  cloud cover in percent, such as "63.4", or "unknown"
    custom_2  cloud cover in eighths of the sky, such as "5", or "unknown"
    custom_3  confidence, 0 to 1, such as "0.84", or "unknown"
    custom_4  why the cover is unknown, such as "black"; else nothing

If something goes wrong, it prints a line and ends with exit status 1: indi-allsky logs the line,
and saves the frame without these labels. docs/camera.md has the installation.
"""

import json
import os
import sys
import time

# what indi-allsky cannot tell a hook: change it here
IMAGE = "/var/www/html/allsky/images/latest.jpg"  # the newest saved picture
HORIZON = None  # or "auto", "circle:x,y,r", or the path of a mask picture
MODEL = None  # or the path of a .tflite file
MAX_AGE = 600  # seconds; an older picture says nothing of the sky now

UNKNOWN = "unknown"


def labels() -> dict[str, str]:
    """The values for the image labels."""
    age = time.time() - os.stat(IMAGE).st_mtime
    if age > MAX_AGE:
        return unknown(f"the picture is {age:.0f} s old")
    import ddunet_keras  # here, so that a package that is missing is told as any other error

    photo = ddunet_keras.read_photo(IMAGE)
    result = ddunet_keras.Segmenter(MODEL).segment(photo.image, horizon=HORIZON)
    if not result.usable:
        return unknown(result.reason)
    confidence = UNKNOWN if result.confidence is None else f"{result.confidence:.2f}"
    return {
        "custom_1": f"{result.cloud_cover.percent:.1f}",
        "custom_2": f"{result.cloud_cover.okta}",
        "custom_3": confidence,
        "custom_4": "",
    }


def unknown(reason: str) -> dict[str, str]:
    """The values where nothing can be said of the sky."""
    return {"custom_1": UNKNOWN, "custom_2": UNKNOWN, "custom_3": UNKNOWN, "custom_4": reason}


def main() -> int:
    answer = os.environ.get("DATA_JSON")
    if answer is None:
        print("indi_allsky_hook: DATA_JSON is not set: indi-allsky starts this as pre-save hook")
        return 1
    try:
        values = labels()
        with open(answer, "w", encoding="utf-8") as file:
            json.dump(values, file)
    except Exception as error:  # whatever it is, indi-allsky gets a line for its log
        print(f"indi_allsky_hook: {type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
