"""A camera's horizon as C source, for microcontrollers."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ddunet_keras import __version__
from ddunet_keras.files import DataError, StrPath, write_text

BYTES_A_LINE = 12

_HEADER = """\
/* Written by ddunet_keras {version}: do not edit, write it again. Where a camera sees sky:
   one bit for each pixel of the network's input, row by row, the first in the highest bit of the
   first byte; 1 is sky. tflite/micro/sky_app.cc uses it if it finds it. */
#ifndef DDUNET_HORIZON_H_
#define DDUNET_HORIZON_H_

#include <stdint.h>

#define DDUNET_HORIZON_WIDTH {width}
#define DDUNET_HORIZON_HEIGHT {height}

static const uint8_t ddunet_horizon[{count}] = {{
{rows}
}};

#endif /* DDUNET_HORIZON_H_ */
"""


def write_horizon_array(path: StrPath, valid: np.ndarray, size: tuple[int, int]) -> None:
    """Writes a horizon mask as a C array of one bit a pixel, at the size of a network's input.

    The whole frame becomes the input, whatever its proportions, and so does the mask. A pixel of
    the input counts as sky if at least half of it is.

    Args:
        path: the header to write; `tflite/micro/sky_app.cc` looks for `ddunet_horizon.h`.
        valid: boolean (h, w), True where the camera sees sky: as `horizon_mask` gives it.
        size: height and width of the network's input, pixels.

    Raises:
        DataError: no pixel of the input would be sky.
        ValueError: `valid` is not boolean (h, w).
        WriteError: the file cannot be written.

    Example:

    >>> valid = np.ones((240, 320), bool)
    >>> valid[120:] = False
    >>> write_horizon_array(tmp / "ddunet_horizon.h", valid, size=(4, 4))
    >>> (tmp / "ddunet_horizon.h").read_text().splitlines()[-5:-2]
    ['static const uint8_t ddunet_horizon[2] = {', '  0xff, 0x00,', '};']
    """
    if not isinstance(valid, np.ndarray) or valid.dtype != bool or valid.ndim != 2:
        about = f"{getattr(valid, 'dtype', type(valid).__name__)} of {np.shape(valid)}"
        raise ValueError(f"`valid` must be boolean (h, w). Received: {about}")
    height, width = size
    shades = Image.fromarray(valid.astype(np.uint8) * np.uint8(255))
    small = np.asarray(shades.resize((width, height), Image.Resampling.BOX)) >= 128
    if not small.any():
        raise DataError(f"the horizon leaves no sky in {width}x{height} pixels")
    data = np.packbits(small).tolist()  # row by row, the highest bit first
    lines = [data[start : start + BYTES_A_LINE] for start in range(0, len(data), BYTES_A_LINE)]
    text = _HEADER.format(
        version=__version__,
        width=width,
        height=height,
        count=len(data),
        rows="\n".join("  " + " ".join(f"{byte:#04x}," for byte in line) for line in lines),
    )
    write_text(path, text)
