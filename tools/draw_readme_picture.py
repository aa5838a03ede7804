"""Draws the pictures of the README: `docs/sky.jpg`, a sky, its mask and its cloud cover, and
`docs/example.jpg`, that sky alone, for a first try.

    python tools/draw_readme_picture.py

The sky is a synthetic one, so the picture is free of anyone's terms. It printed:

    docs/sky.jpg: 64.0 % cloud, 5 okta
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import ddunet_keras as dd

SEED = 58
"""Cumulus below cirrus: both classes and many edges are to be seen."""

PHOTO_SIZE = (288, 384)
"""Height and width in pixels of each of the three panels."""

GAP = 12
CAPTION_HEIGHT = 34
FONT_SIZE = 20
JPEG_QUALITY = 88


def draw(captions: list[str], panels: list[np.ndarray]) -> Image.Image:
    """Puts pictures of one size side by side, each above its caption."""
    height, width = PHOTO_SIZE
    step = width + GAP
    picture = Image.new("RGB", (step * len(panels) - GAP, height + CAPTION_HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT_SIZE)
    for index, (caption, panel) in enumerate(zip(captions, panels, strict=True)):
        left = index * step
        picture.paste(Image.fromarray(panel), (left, 0))
        pen.rectangle((left, 0, left + width - 1, height - 1), outline="silver")
        middle = (left + width / 2, height + CAPTION_HEIGHT / 2)
        pen.text(middle, caption, fill="black", font=font, anchor="mm")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/sky.jpg"))
    parser.add_argument("--example", type=Path, default=Path("docs/example.jpg"))
    arguments = parser.parse_args()
    out = arguments.out
    photo, _ = dd.synthetic_sky(SEED, PHOTO_SIZE, time="day", view="patch")
    Image.fromarray(photo).save(arguments.example, quality=JPEG_QUALITY)
    result = dd.Segmenter().segment(photo)
    cover = result.cloud_cover
    text = f"{cover.percent:.1f} % cloud, {cover.okta} okta"
    mask = np.repeat(result.mask[..., None], 3, axis=-1)
    picture = draw(["sky", "mask", text], [photo, mask, result.overlay()])
    picture.save(out, quality=JPEG_QUALITY)
    print(f"{out}: {text}")


if __name__ == "__main__":
    main()
