"""Pictures that show no sky: text, test cards, plots, noise, surfaces, rooms, things.

`KINDS` maps a name to a function that draws a picture from a random generator, uint8 (h, w, 3).
`tools/fit_frame_quality.py` fits the recognition of frames without a sky to them, and the tests
measure it on them. To look at one of each:

    python tools/pictures_without_sky.py SHEET.png
"""

from __future__ import annotations

import argparse
import io
import itertools
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ddunet_keras.files import write_image

HEIGHT = 480
SHEET_COLUMNS = 10
THUMBNAIL = (160, 120)

Draw = Callable[[np.random.Generator], np.ndarray]
KINDS: dict[str, Draw] = {}


def kind(function: Draw) -> Draw:
    """Adds a function to `KINDS` by its own name."""
    KINDS[function.__name__] = function
    return function


# --- what the kinds are made of


def size_of(rng):
    """(width, height) as cameras have it."""
    return int(HEIGHT * rng.choice([1, 4 / 3, 3 / 2, 16 / 9])), HEIGHT


def any_colour(rng, low=0, high=256):
    return tuple(int(value) for value in rng.integers(low, high, 3))


def dark_colour(rng):
    return any_colour(rng, 0, 70)


def light_colour(rng):
    return any_colour(rng, 185, 256)


def canvas(rng, colour):
    picture = Image.new("RGB", size_of(rng), colour)
    return picture, ImageDraw.Draw(picture)


def font(size):
    return ImageFont.load_default(max(int(size), 8))


def words(rng, count):
    letters = np.array(list(string.ascii_lowercase))
    lengths = rng.integers(1, 10, count)
    return " ".join("".join(rng.choice(letters, length)) for length in lengths)


def lines_of_text(draw, rng, box, size, colours, leading=1.4):
    """Fills a box (left, top, right, bottom) with lines of words."""
    left, top, right, bottom = box
    letter = font(size)
    y = top
    while y + size < bottom:
        x = left + size * int(rng.integers(0, 5)) * (rng.random() < 0.3)
        while x < right - 6 * size:
            word = words(rng, 1)
            colour = colours[int(rng.integers(len(colours)))]
            draw.text((x, y), word, fill=colour, font=letter)
            x += draw.textlength(word + " ", font=letter)
            if rng.random() < 0.06:
                break
        y += leading * size


def as_array(picture):
    return np.asarray(picture.convert("RGB"))


def to_bytes(array):
    return np.clip(np.rint(array), 0, 255).astype(np.uint8)


def grid(rng):
    """x and y of each pixel, from 0 to about 1, of a picture of drawn proportions."""
    width, height = size_of(rng)
    y, x = np.mgrid[0:height, 0:width] / height
    return x, y


def blurred_noise(rng, size, radius):
    """(height, width) noise of mean 0 and deviation 1 with spots of about `radius` pixels."""
    width, height = size
    small = (max(int(width / radius), 2), max(int(height / radius), 2))
    noise = rng.normal(size=small[::-1]).astype(np.float32)
    noise = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    return noise / noise.std()


def mix(first, second, share):
    """Colours between two, by a share (h, w)."""
    share = np.asarray(share)[..., None]
    return np.array(first) * (1 - share) + np.array(second) * share


def polygon(draw, points, colour):
    draw.polygon([tuple(point) for point in points], fill=colour)


# --- text


@kind
def camera_off(rng):
    picture, draw = canvas(rng, dark_colour(rng) if rng.random() < 0.6 else any_colour(rng))
    text = rng.choice(["CAMERA OFF", "No image", "Kamera aus", "OFFLINE", "Closed until sunset"])
    draw.text(
        (picture.width / 2, picture.height * rng.uniform(0.3, 0.7)),
        str(text),
        fill=light_colour(rng),
        font=font(rng.integers(24, 80)),
        anchor="mm",
    )
    return as_array(picture)


@kind
def no_signal(rng):
    picture, draw = canvas(rng, (0, 0, int(rng.integers(120, 256))))
    draw.rectangle((60, 60, 330, 130), outline=(255, 255, 255), width=3)
    draw.text((80, 75), "NO SIGNAL", fill=(255, 255, 255), font=font(36))
    return as_array(picture)


@kind
def page(rng):
    picture, draw = canvas(rng, light_colour(rng))
    box = (30, 25, picture.width - 30, picture.height - 25)
    lines_of_text(draw, rng, box, rng.integers(10, 26), [dark_colour(rng)])
    return as_array(picture)


@kind
def terminal(rng):
    picture, draw = canvas(rng, dark_colour(rng))
    colours = [any_colour(rng, 120) for _ in range(4)]
    box = (5, 5, picture.width - 5, int(picture.height * rng.uniform(0.4, 1)))
    lines_of_text(draw, rng, box, rng.integers(9, 18), colours, 1.2)
    return as_array(picture)


@kind
def newspaper(rng):
    picture, draw = canvas(rng, any_colour(rng, 200, 245))
    draw.text((30, 10), words(rng, 3).upper(), fill=(20, 20, 20), font=font(48))
    columns = int(rng.integers(3, 6))
    width = (picture.width - 40) // columns
    for column in range(columns):
        left = 20 + column * width
        box = (left, 80, left + width - 5, picture.height - 10)
        lines_of_text(draw, rng, box, 9, [(40, 40, 40)], 1.2)
    draw.rectangle((40, 200, 40 + width, 330), fill=any_colour(rng, 60, 160))
    return as_array(picture)


@kind
def table(rng):
    picture, draw = canvas(rng, (255, 255, 255))
    rows = int(rng.integers(12, 28))
    step = picture.height / rows
    for row in range(rows):
        y = int(row * step)
        if row % 2:
            draw.rectangle((0, y, picture.width, y + step), fill=(226, 236, 246))
        for x in range(0, picture.width, 90):
            text = f"{rng.uniform(0, 1000):.2f}"
            draw.text((x + 6, y + 2), text, fill=(30, 30, 30), font=font(step * 0.6))
            draw.line((x, 0, x, picture.height), fill=(190, 190, 190))
    return as_array(picture)


@kind
def big_word(rng):
    picture, draw = canvas(rng, any_colour(rng))
    text = words(rng, 1)[:5].upper()
    middle = (picture.width / 2, picture.height / 2)
    draw.text(middle, text, fill=any_colour(rng), font=font(rng.integers(120, 260)), anchor="mm")
    return as_array(picture)


@kind
def error_window(rng):
    picture, draw = canvas(rng, any_colour(rng, 0, 180))
    left, top = rng.integers(40, 160, 2)
    draw.rectangle((left, top, left + 380, top + 220), fill=(236, 236, 236))
    draw.rectangle((left, top, left + 380, top + 32), fill=any_colour(rng, 30, 120))
    lines_of_text(draw, rng, (left + 20, top + 50, left + 370, top + 150), 16, [(20, 20, 20)])
    for x in (left + 200, left + 290):
        draw.rectangle(
            (x, top + 170, x + 75, top + 200), fill=(200, 200, 210), outline=(90, 90, 90)
        )
    draw.rectangle((0, picture.height - 34, picture.width, picture.height), fill=(30, 32, 40))
    return as_array(picture)


@kind
def web_page(rng):
    picture, draw = canvas(rng, (250, 250, 250))
    draw.rectangle((0, 0, picture.width, 60), fill=any_colour(rng, 20, 140))
    draw.text((20, 16), words(rng, 2), fill=(255, 255, 255), font=font(24))
    for top in range(80, picture.height, 140):
        for left in range(20, picture.width - 100, 210):
            draw.rounded_rectangle((left, top, left + 190, top + 125), 8, fill=(255, 255, 255))
            draw.rectangle((left, top, left + 190, top + 60), fill=any_colour(rng, 60, 230))
            box = (left + 8, top + 66, left + 185, top + 120)
            lines_of_text(draw, rng, box, 11, [(70, 70, 70)])
    return as_array(picture)


@kind
def clock(rng):
    picture, draw = canvas(rng, dark_colour(rng))
    text = f"{rng.integers(24):02d}:{rng.integers(60):02d}:{rng.integers(60):02d}"
    middle = (picture.width / 2, picture.height / 2)
    draw.text(middle, text, fill=any_colour(rng, 100), font=font(110), anchor="mm")
    draw.text((middle[0], middle[1] + 90), "2026-11-29", fill=(150, 150, 150), font=font(30))
    return as_array(picture)


@kind
def watermark(rng):
    picture, draw = canvas(rng, any_colour(rng, 90, 230))
    ink = tuple(max(value - int(rng.integers(25, 90)), 0) for value in picture.getpixel((0, 0)))
    text = words(rng, 2)
    for y in range(0, picture.height, 60):
        for x in range(-60, picture.width, 190):
            draw.text((x + y // 2 % 120, y), text, fill=ink, font=font(24))
    return as_array(picture.rotate(float(rng.uniform(-30, 30)), fillcolor=picture.getpixel((0, 0))))


@kind
def chat(rng):
    picture, draw = canvas(rng, any_colour(rng, 210, 250))
    y = 10
    while y < picture.height - 50:
        width = int(rng.integers(150, 350))
        left = 15 if rng.random() < 0.5 else picture.width - width - 15
        height = int(rng.integers(34, 90))
        colour = (255, 255, 255) if left == 15 else (200, 240, 190)
        draw.rounded_rectangle((left, y, left + width, y + height), 12, fill=colour)
        box = (left + 10, y + 6, left + width - 8, y + height)
        lines_of_text(draw, rng, box, 14, [(30, 30, 30)])
        y += height + 12
    return as_array(picture)


@kind
def calendar(rng):
    picture, draw = canvas(rng, (255, 255, 255))
    draw.rectangle((0, 0, picture.width, 70), fill=any_colour(rng, 30, 200))
    draw.text((20, 15), words(rng, 1).title(), fill=(255, 255, 255), font=font(40))
    width = picture.width / 7
    for day in range(35):
        left = day % 7 * width
        top = 75 + day // 7 * 80
        draw.rectangle((left, top, left + width, top + 80), outline=(160, 160, 160))
        draw.text((left + 8, top + 6), str(day % 31 + 1), fill=(60, 60, 60), font=font(26))
    return as_array(picture)


# --- test cards and codes


@kind
def colour_bars(rng):
    colours = [(191,) * 3, (191, 191, 0), (0, 191, 191), (0, 191, 0), (191, 0, 191), (191, 0, 0)]
    colours.append((0, 0, 191))
    picture, draw = canvas(rng, (16, 16, 16))
    width = picture.width / len(colours)
    bottom = picture.height * rng.choice([0.67, 1])
    for index, colour in enumerate(colours):
        draw.rectangle((index * width, 0, (index + 1) * width, bottom), fill=colour)
    for index in range(6):
        left = index * picture.width / 6
        draw.rectangle((left, bottom, left + picture.width / 6, HEIGHT), fill=any_colour(rng))
    return as_array(picture)


@kind
def grey_steps(rng):
    steps = int(rng.integers(5, 20))
    x, _ = grid(rng)
    share = np.floor(x / x.max() * (steps - 0.01)) / (steps - 1)
    return to_bytes(np.repeat(255 * share[..., None], 3, axis=-1))


@kind
def chessboard(rng):
    x, y = grid(rng)
    fields = rng.integers(4, 14)
    odd = (np.floor(x * fields) + np.floor(y * fields)) % 2
    return to_bytes(mix(dark_colour(rng), light_colour(rng), odd))


@kind
def fine_chessboard(rng):
    x, y = grid(rng)
    fields = rng.integers(25, 60)
    odd = (np.floor(x * fields) + np.floor(y * fields)) % 2
    return to_bytes(mix(any_colour(rng), any_colour(rng), odd))


@kind
def zone_plate(rng):
    x, y = grid(rng)
    phase = ((x - 0.6) ** 2 + (y - 0.5) ** 2) * rng.uniform(80, 300)
    return to_bytes(mix((0, 0, 0), (255, 255, 255), 0.5 + 0.5 * np.cos(phase)))


@kind
def siemens_star(rng):
    x, y = grid(rng)
    angle = np.arctan2(y - 0.5, x - x.max() / 2)
    odd = np.sin(angle * rng.integers(12, 48)) > 0
    return to_bytes(mix(dark_colour(rng), light_colour(rng), odd))


@kind
def crosshatch(rng):
    picture, draw = canvas(rng, dark_colour(rng))
    step = int(rng.integers(24, 80))
    for position in range(0, picture.width, step):
        draw.line((position, 0, position, HEIGHT), fill=(230, 230, 230), width=3)
        draw.line((0, position, picture.width, position), fill=(230, 230, 230), width=3)
    radius = 200
    middle = picture.width // 2
    circle = (middle - radius, 240 - radius, middle + radius, 240 + radius)
    draw.ellipse(circle, outline=(255, 255, 255), width=4)
    return as_array(picture)


@kind
def stripes(rng):
    x, y = grid(rng)
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    along = x * np.cos(angle) + y * np.sin(angle)
    odd = np.floor(along * rng.integers(6, 40)) % 2
    return to_bytes(mix(any_colour(rng, 0, 110), any_colour(rng, 140), odd))


@kind
def sine_waves(rng):
    x, y = grid(rng)
    angle = rng.uniform(0, np.pi)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(40, 160))
    return to_bytes(mix(any_colour(rng, 0, 110), any_colour(rng, 140), 0.5 + 0.5 * wave))


@kind
def target(rng):
    x, y = grid(rng)
    odd = np.floor(np.hypot(x - x.max() / 2, y - 0.5) * rng.integers(8, 30)) % 2
    return to_bytes(mix(any_colour(rng, 0, 120), light_colour(rng), odd))


@kind
def square_code(rng):
    fields = int(rng.integers(21, 45))
    code = rng.random((fields, fields)) < 0.5
    for rows, columns in (
        (slice(7), slice(7)),
        (slice(7), slice(-7, None)),
        (slice(-7, None), slice(7)),
    ):
        finder = np.zeros((7, 7), bool)
        finder[1:6, 1:6] = True
        finder[2:5, 2:5] = False
        code[rows, columns] = finder
    code = np.pad(code, 4, constant_values=True)
    picture = Image.fromarray(code).resize((HEIGHT, HEIGHT), Image.Resampling.NEAREST)
    return as_array(picture)


@kind
def bar_code(rng):
    picture, draw = canvas(rng, (250, 250, 250))
    x = 40
    while x < picture.width - 40:
        width = int(rng.integers(2, 10))
        draw.rectangle((x, 60, x + width, HEIGHT - 100), fill=(10, 10, 10))
        x += width + int(rng.integers(3, 12))
    draw.text((60, HEIGHT - 90), "4 006381 333931", fill=(10, 10, 10), font=font(44))
    return as_array(picture)


@kind
def dots(rng):
    picture, draw = canvas(rng, light_colour(rng))
    step = int(rng.integers(24, 60))
    for y in range(step // 2, HEIGHT, step):
        for x in range(step // 2, picture.width, step):
            r = step // 4
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(20, 20, 20))
    return as_array(picture)


@kind
def colour_chart(rng):
    picture, draw = canvas(rng, (25, 25, 25))
    width = picture.width / 6
    for index in range(24):
        left = index % 6 * width + 10
        top = index // 6 * 120 + 10
        draw.rectangle((left, top, left + width - 20, top + 100), fill=any_colour(rng))
    return as_array(picture)


@kind
def hue_wheel(rng):
    x, y = grid(rng)
    hue = (np.arctan2(y - 0.5, x - x.max() / 2) / (2 * np.pi) + rng.random()) % 1
    shift = np.array([0, 1 / 3, 2 / 3])
    return to_bytes(255 * (0.5 + 0.5 * np.cos(2 * np.pi * (hue[..., None] - shift))))


@kind
def maze(rng):
    walls = np.ones((25, 33), bool)
    walls[1::2, 1::2] = False
    for row in range(1, 25, 2):
        for column in range(1, 33, 2):
            if rng.random() < 0.5 and row > 1:
                walls[row - 1, column] = False
            elif column > 1:
                walls[row, column - 1] = False
    colours = np.array([light_colour(rng), dark_colour(rng)], np.uint8)
    picture = Image.fromarray(colours[walls.astype(int)])
    return as_array(picture.resize((640, 480), Image.Resampling.NEAREST))


# --- plots


@kind
def line_plot(rng):
    picture, draw = canvas(rng, (255, 255, 255))
    for y in range(40, 440, 60):
        draw.line((50, y, picture.width - 20, y), fill=(215, 215, 215))
        draw.text((8, y - 8), f"{y}", fill=(0, 0, 0), font=font(14))
    x = np.arange(50, picture.width - 20, 4)
    for _ in range(int(rng.integers(1, 5))):
        y = 240 + np.cumsum(rng.normal(0, 8, x.size))
        points = [(int(a), int(b)) for a, b in zip(x, y, strict=True)]
        draw.line(points, fill=any_colour(rng, 0, 200), width=3)
    draw.rectangle((50, 30, picture.width - 20, 440), outline=(0, 0, 0), width=2)
    return as_array(picture)


@kind
def bar_chart(rng):
    picture, draw = canvas(rng, light_colour(rng))
    count = int(rng.integers(5, 14))
    width = (picture.width - 80) / count
    colour = any_colour(rng, 0, 180)
    for index in range(count):
        left = 60 + index * width
        top = int(rng.integers(40, 400))
        draw.rectangle((left, top, left + width * 0.7, 430), fill=colour)
    draw.line((55, 20, 55, 430, picture.width, 430), fill=(0, 0, 0), width=3)
    return as_array(picture)


@kind
def pie_chart(rng):
    picture, draw = canvas(rng, (255, 255, 255))
    start = 0.0
    while start < 360:
        end = min(start + rng.uniform(20, 90), 360)
        draw.pieslice((60, 40, 460, 440), start, end, fill=any_colour(rng, 40))
        start = end
    lines_of_text(draw, rng, (480, 100, picture.width, 300), 16, [(30, 30, 30)])
    return as_array(picture)


@kind
def scatter_plot(rng):
    picture, draw = canvas(rng, (255, 255, 255))
    for colour in [any_colour(rng, 0, 200) for _ in range(3)]:
        centre = rng.uniform(100, 380, 2)
        for x, y in rng.normal(centre, 50, (120, 2)):
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    draw.rectangle((30, 20, picture.width - 20, 450), outline=(0, 0, 0), width=2)
    return as_array(picture)


@kind
def heat_map(rng):
    shape = tuple(rng.integers(8, 30, 2))
    values = rng.random(shape)
    colours = to_bytes(mix(any_colour(rng), any_colour(rng), values))
    picture = Image.fromarray(colours).resize(size_of(rng), Image.Resampling.NEAREST)
    return as_array(picture)


@kind
def street_map(rng):
    picture, draw = canvas(rng, any_colour(rng, 215, 245))
    for _ in range(6):
        x, y = rng.uniform(0, 500, 2)
        width, height = rng.uniform(50, 200, 2)
        draw.rectangle((x, y, x + width, y + height), fill=(200, 225, 190))
    for _ in range(25):
        points = rng.uniform(-100, 800, 4)
        draw.line(tuple(points), fill=(255, 255, 255), width=int(rng.integers(4, 14)))
        draw.line(tuple(points), fill=(200, 190, 170), width=2)
    for _ in range(12):
        position = tuple(rng.uniform(0, 450, 2))
        draw.text(position, words(rng, 1), fill=(70, 70, 70), font=font(16))
    return as_array(picture)


# --- noise and broken transmission


@kind
def colour_noise(rng):
    width, height = size_of(rng)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@kind
def grey_noise(rng):
    width, height = size_of(rng)
    noise = rng.normal(rng.uniform(80, 170), rng.uniform(40, 80), (height, width, 1))
    return to_bytes(np.repeat(noise, 3, axis=-1))


@kind
def coarse_noise(rng):
    width, height = size_of(rng)
    factor = int(rng.integers(3, 9))
    small = rng.integers(0, 256, (height // factor, width // factor, 3), np.uint8)
    return as_array(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST))


@kind
def salt_and_pepper(rng):
    width, height = size_of(rng)
    array = np.full((height, width, 3), any_colour(rng, 60, 200), np.uint8)
    array[rng.random((height, width)) < 0.15] = 0
    array[rng.random((height, width)) < 0.15] = 255
    return array


@kind
def analog_snow(rng):
    width, height = size_of(rng)
    noise = rng.integers(0, 256, (height // 3, width // 2), np.uint8)
    noise = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(noise.convert("RGB")).astype(float)
    return to_bytes(array * (1 + 0.3 * np.sin(np.arange(height) / 20))[:, None, None])


@kind
def banding(rng):
    width, height = size_of(rng)
    rows = rng.integers(0, 256, (height // int(rng.integers(2, 12)), 1, 3), np.uint8)
    picture = Image.fromarray(rows).resize((width, height), Image.Resampling.NEAREST)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    return as_array(picture)


@kind
def mosaic_of_blocks(rng):
    width, height = size_of(rng)
    small = to_bytes(128 + 60 * rng.normal(size=(height // 16, width // 16, 3)))
    array = as_array(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST))
    return to_bytes(array + 12 * rng.normal(size=array.shape))


@kind
def broken_jpeg(rng):
    """Blocks of coefficients that mean nothing."""
    width, height = size_of(rng)
    packed = io.BytesIO()
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(packed, "JPEG", quality=int(rng.integers(1, 8)))
    return as_array(Image.open(packed))


# --- surfaces


@kind
def brick_wall(rng):
    picture, draw = canvas(rng, any_colour(rng, 150, 200))
    red = np.array([150, 75, 55]) + rng.integers(-40, 40, 3)
    height = int(rng.integers(24, 50))
    for row, y in enumerate(range(0, HEIGHT, height)):
        for x in range(-(row % 2) * height, picture.width, 2 * height):
            colour = tuple(int(value) for value in (red + rng.normal(0, 14)).clip(0, 255))
            draw.rectangle((x + 2, y + 2, x + 2 * height - 3, y + height - 3), fill=colour)
    return to_bytes(as_array(picture) + rng.normal(0, 9, (*picture.size[::-1], 1)))


@kind
def lawn(rng):
    picture, draw = canvas(rng, (40, 70, 25))
    for _ in range(7000):
        x = rng.uniform(0, picture.width)
        y = rng.uniform(0, HEIGHT)
        length = rng.uniform(6, 10 + 30 * y / HEIGHT)
        tip = (x + rng.normal(0, length / 2), y - length)
        green = int(rng.integers(70, 190))
        colour = (int(green * rng.uniform(0.4, 0.9)), green, int(green * rng.uniform(0.15, 0.5)))
        draw.line((x, y, *tip), fill=colour, width=int(rng.integers(1, 4)))
    return as_array(picture)


@kind
def smooth_lawn(rng):
    size = size_of(rng)
    light = 0.2 * blurred_noise(rng, size, 60) + 0.25 * blurred_noise(rng, size, 4)
    light += 0.25 * blurred_noise(rng, size, 1.5)
    green = np.array([95, 140, 55]) + rng.integers(-20, 20, 3)
    return to_bytes(green * (1 + 0.5 * light[..., None]))


@kind
def wood(rng):
    x, y = grid(rng)
    warp = blurred_noise(rng, x.shape[::-1], 120) * 0.1
    rings = np.sin((y + warp) * rng.uniform(60, 180)) + 0.4 * blurred_noise(rng, x.shape[::-1], 3)
    boards = np.floor(y * rng.integers(3, 8)) % 2
    brown = np.array([150, 105, 60]) + rng.integers(-30, 30, 3)
    return to_bytes(brown * (1 + 0.12 * rings + 0.12 * boards)[..., None])


@kind
def gravel(rng):
    picture, draw = canvas(rng, (60, 58, 55))
    for _ in range(2500):
        x, y = rng.uniform(0, picture.width), rng.uniform(0, HEIGHT)
        a, b = rng.uniform(5, 16, 2)
        grey = int(rng.integers(80, 215))
        tint = rng.normal(0, 7, 3)
        colour = tuple(int(value) for value in (grey + tint).clip(0, 255))
        draw.ellipse((x - a, y - b, x + a, y + b), fill=colour, outline=(45, 45, 45))
    return as_array(picture)


@kind
def fabric(rng):
    x, y = grid(rng)
    threads = rng.uniform(150, 330)
    weave = np.sin(x * threads) * np.sin(y * threads) + 0.3 * blurred_noise(rng, x.shape[::-1], 2)
    return to_bytes(np.array(any_colour(rng, 60, 200)) * (1 + 0.3 * weave)[..., None])


@kind
def tiles(rng):
    picture, draw = canvas(rng, any_colour(rng, 90, 160))
    step = int(rng.integers(40, 110))
    base = np.array(any_colour(rng, 120, 240))
    for y in range(0, HEIGHT, step):
        for x in range(0, picture.width, step):
            colour = tuple(int(value) for value in (base + rng.normal(0, 9)).clip(0, 255))
            draw.rectangle((x, y, x + step - 5, y + step - 5), fill=colour)
    return to_bytes(as_array(picture) + rng.normal(0, 4, (*picture.size[::-1], 1)))


@kind
def blinds(rng):
    x, y = grid(rng)
    count = rng.integers(12, 40)
    phase = (y + 0.02 * x) * count % 1
    return to_bytes(np.array(light_colour(rng)) * (0.35 + 0.65 * phase)[..., None])


@kind
def foliage(rng):
    picture, draw = canvas(rng, (15, 25, 12))
    for _ in range(3000):
        x, y = rng.uniform(0, picture.width), rng.uniform(0, HEIGHT)
        length, width, turn = rng.uniform(8, 26), rng.uniform(3, 9), rng.uniform(0, 6.3)
        ahead = np.array([np.cos(turn), np.sin(turn)]) * length
        aside = np.array([-np.sin(turn), np.cos(turn)]) * width
        middle = np.array([x, y])
        green = int(rng.integers(40, 200))
        colour = (int(green * rng.uniform(0.4, 0.85)), green, int(green * rng.uniform(0.2, 0.6)))
        points = [middle - ahead, middle + aside, middle + ahead, middle - aside]
        polygon(draw, points, colour)
    return as_array(picture)


@kind
def corrugated_sheet(rng):
    x, y = grid(rng)
    light = 0.75 + 0.25 * np.sin(x * rng.uniform(60, 200)) - 0.15 * y
    light += 0.03 * blurred_noise(rng, x.shape[::-1], 6)
    return to_bytes(np.array(any_colour(rng, 120, 230)) * light[..., None])


@kind
def carpet(rng):
    size = size_of(rng)
    light = 1 + 0.22 * blurred_noise(rng, size, 1.2) + 0.1 * blurred_noise(rng, size, 5)
    return to_bytes(np.array(any_colour(rng, 50, 190)) * light[..., None])


@kind
def cobbles(rng):
    size = size_of(rng)
    width, height = size
    count = int(rng.integers(80, 250))
    points = rng.uniform(0, 1, (count, 2)) * (height, width)
    y, x = np.mgrid[0:height:2, 0:width:2]
    nearest = np.full(x.shape, np.inf)
    second = nearest.copy()
    owner = np.zeros(x.shape, int)
    for index, (row, column) in enumerate(points):
        distance = np.hypot(y - row, x - column)
        closer = distance < nearest
        second = np.where(closer, nearest, np.minimum(second, distance))
        nearest = np.where(closer, distance, nearest)
        owner[closer] = index
    shade = rng.uniform(90, 200, count)[owner] * np.clip((second - nearest) / 12, 0.25, 1)
    array = to_bytes(shade[..., None] * np.array([1, 0.97, 0.92]))
    return as_array(Image.fromarray(array).resize(size, Image.Resampling.BILINEAR))


@kind
def sheet_of_paper(rng):
    """Empty, with a fold and a shadow, on a table."""
    picture, draw = canvas(rng, any_colour(rng, 50, 130))
    corners = np.array([[90, 40], [picture.width - 70, 70], [picture.width - 100, 450], [60, 420]])
    polygon(draw, corners + rng.uniform(-30, 30, (4, 2)), (235, 232, 225))
    draw.line((90, 240, picture.width - 80, 250), fill=(205, 203, 198), width=3)
    return as_array(picture.filter(ImageFilter.GaussianBlur(2)))


# --- rooms and things


@kind
def room(rng):
    picture, draw = canvas(rng, any_colour(rng, 140, 235))
    width, height = picture.size
    left, right = width * rng.uniform(0.15, 0.35), width * rng.uniform(0.65, 0.85)
    top, bottom = height * rng.uniform(0.12, 0.25), height * rng.uniform(0.6, 0.72)
    wall = np.array(any_colour(rng, 120, 220))
    sides = {
        0.75: [(0, 0), (left, top), (left, bottom), (0, height)],
        0.85: [(width, 0), (right, top), (right, bottom), (width, height)],
        1.0: [(left, top), (right, top), (right, bottom), (left, bottom)],
    }
    for light, corners in sides.items():
        polygon(draw, corners, tuple(int(value) for value in wall * light))
    floor = [(0, height), (left, bottom), (right, bottom), (width, height)]
    polygon(draw, floor, any_colour(rng, 60, 150))
    window = (left + 30, top + 20, left + 130, top + 120)
    draw.rectangle(window, fill=(225, 235, 250), outline=(90, 70, 50), width=5)
    draw.line((left + 80, top + 20, left + 80, top + 120), fill=(90, 70, 50), width=4)
    seat = (right - 190, bottom - 80, right - 30, bottom + 60)
    draw.rounded_rectangle(seat, 14, fill=any_colour(rng, 30, 180))
    draw.rectangle((left + 150, top + 30, left + 210, top + 75), fill=any_colour(rng))
    draw.rectangle((30, bottom - 20, 140, height - 30), fill=any_colour(rng, 40, 120))
    picture = picture.filter(ImageFilter.GaussianBlur(1.5))
    return to_bytes(as_array(picture) + rng.normal(0, 5, (height, width, 1)))


@kind
def corridor(rng):
    x, y = grid(rng)
    u = (x - x.max() / 2) / (x.max() / 2)
    v = (y - 0.5) * 2
    depth = 1 / np.maximum(np.maximum(abs(u), abs(v)), 0.12)
    is_wall = abs(u) > abs(v)
    light = 1 / (0.6 + 0.35 * depth)
    doors = (np.floor(depth * 2) % 2) * is_wall
    colours = np.where(is_wall[..., None], any_colour(rng, 130, 230), any_colour(rng, 80, 200))
    return to_bytes(colours * (light * (1 - 0.35 * doors))[..., None])


@kind
def book_shelf(rng):
    picture, draw = canvas(rng, (60, 40, 25))
    for top in range(10, HEIGHT, 120):
        x = 5
        while x < picture.width:
            width = int(rng.integers(10, 36))
            height = int(rng.integers(70, 108))
            draw.rectangle(
                (x, top + 110 - height, x + width, top + 108), fill=any_colour(rng, 20, 220)
            )
            x += width + 1
    return to_bytes(as_array(picture) + rng.normal(0, 6, (*picture.size[::-1], 1)))


@kind
def portrait(rng):
    picture, draw = canvas(rng, any_colour(rng, 60, 220))
    middle = picture.width / 2 + rng.uniform(-60, 60)
    skin = np.array([224, 172, 135]) * rng.uniform(0.45, 1.05)
    skin = tuple(int(min(value, 255)) for value in skin)
    draw.ellipse((middle - 210, 330, middle + 210, 700), fill=any_colour(rng, 20, 200))
    draw.ellipse((middle - 130, 30, middle + 130, 330), fill=dark_colour(rng))
    draw.ellipse((middle - 105, 70, middle + 105, 370), fill=skin)
    for eye in (middle - 42, middle + 42):
        draw.ellipse((eye - 18, 185, eye + 18, 207), fill=(245, 245, 245))
        draw.ellipse((eye - 8, 187, eye + 8, 205), fill=(50, 35, 25))
    draw.line((middle, 210, middle - 10, 265, middle + 8, 268), fill=(150, 100, 80), width=5)
    draw.chord((middle - 40, 280, middle + 40, 325), 0, 180, fill=(160, 60, 60))
    picture = picture.filter(ImageFilter.GaussianBlur(4))
    return to_bytes(as_array(picture) + rng.normal(0, 4, (*picture.size[::-1], 1)))


@kind
def desk(rng):
    picture, draw = canvas(rng, any_colour(rng, 110, 200))
    for _ in range(int(rng.integers(6, 14))):
        x, y = rng.uniform(0, picture.width - 60), rng.uniform(0, HEIGHT - 60)
        w, h = rng.uniform(30, 190, 2)
        box = (x, y, x + w, y + h)
        shadow = tuple(value + 9 for value in box)
        shape = draw.ellipse if rng.random() < 0.4 else draw.rectangle
        shape(shadow, fill=(70, 65, 60))
        shape(box, fill=any_colour(rng))
    picture = picture.filter(ImageFilter.GaussianBlur(1.2))
    return to_bytes(as_array(picture) + rng.normal(0, 6, (*picture.size[::-1], 1)))


@kind
def keyboard(rng):
    picture, draw = canvas(rng, (45, 45, 48))
    step = int(rng.integers(38, 60))
    for y in range(60, HEIGHT - 60, step):
        for x in range(20, picture.width - 40, step):
            draw.rounded_rectangle((x, y, x + step - 6, y + step - 6), 6, fill=(205, 205, 208))
            draw.text((x + 12, y + 8), words(rng, 1)[0].upper(), fill=(20, 20, 20), font=font(20))
    return as_array(picture)


@kind
def crowd_of_balls(rng):
    picture, draw = canvas(rng, any_colour(rng))
    for _ in range(int(rng.integers(25, 90))):
        x, y = rng.uniform(0, picture.width), rng.uniform(0, HEIGHT)
        radius = rng.uniform(12, 70)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=any_colour(rng))
        r = radius / 4
        draw.ellipse((x - 2 * r, y - 2 * r, x - r, y - r), fill=(255, 255, 255))
    return as_array(picture)


@kind
def rectangles(rng):
    picture, draw = canvas(rng, (240, 240, 235))
    x_lines = np.sort(rng.uniform(0, picture.width, 6))
    y_lines = np.sort(rng.uniform(0, HEIGHT, 5))
    for left, right in itertools.pairwise(x_lines):
        for top, bottom in itertools.pairwise(y_lines):
            if rng.random() < 0.5:
                draw.rectangle((left, top, right, bottom), fill=any_colour(rng))
    for x in x_lines:
        draw.line((x, 0, x, HEIGHT), fill=(10, 10, 10), width=9)
    for y in y_lines:
        draw.line((0, y, picture.width, y), fill=(10, 10, 10), width=9)
    return as_array(picture)


@kind
def triangles(rng):
    picture, draw = canvas(rng, any_colour(rng))
    for _ in range(120):
        middle = rng.uniform(0, 1, 2) * picture.size
        polygon(draw, middle + rng.normal(0, 60, (3, 2)), any_colour(rng))
    return as_array(picture)


@kind
def gradient_with_edges(rng):
    """Two slopes of colour that meet at a straight edge, and a box on them."""
    x, y = grid(rng)
    angle = rng.uniform(0, np.pi)
    side = (x - 0.6) * np.cos(angle) + (y - 0.5) * np.sin(angle) > 0
    slope = np.where(side, x / x.max(), 1 - y)
    array = mix(any_colour(rng), any_colour(rng), slope)
    array[100:200, 80:260] = any_colour(rng)
    return to_bytes(array)


@kind
def logo(rng):
    picture, draw = canvas(rng, (255, 255, 255) if rng.random() < 0.6 else dark_colour(rng))
    x = picture.width / 2
    colour = any_colour(rng, 0, 220)
    draw.ellipse((x - 140, 60, x + 140, 340), fill=colour)
    draw.rectangle((x - 50, 150, x + 50, 250), fill=picture.getpixel((0, 0)))
    draw.text((x, 400), words(rng, 1).upper(), fill=colour, font=font(60), anchor="mm")
    return as_array(picture)


@kind
def fractal_set(rng):
    x, y = grid(rng)
    point = (x * 3 / x.max() - 2.1) + 1j * (y * 2.4 - 1.2)
    value = np.zeros_like(point)
    steps = np.zeros(x.shape)
    for _ in range(30):
        inside = abs(value) < 2
        value[inside] = value[inside] ** 2 + point[inside]
        steps += inside
    return to_bytes(mix(any_colour(rng), any_colour(rng), (steps % 8) / 8))


@kind
def spiral(rng):
    x, y = grid(rng)
    dx, dy = x - x.max() / 2, y - 0.5
    phase = np.hypot(dx, dy) * rng.uniform(30, 90) + np.arctan2(dy, dx)
    return to_bytes(mix(dark_colour(rng), light_colour(rng), np.sin(phase) > 0))


@kind
def fruit_bowl(rng):
    picture, draw = canvas(rng, any_colour(rng, 150, 240))
    draw.rectangle((0, 330, picture.width, HEIGHT), fill=any_colour(rng, 60, 140))
    colours = [(200, 40, 35), (235, 190, 40), (90, 160, 50), (240, 130, 30)]
    for _ in range(14):
        x = picture.width / 2 + rng.normal(0, 110)
        y = rng.uniform(170, 330)
        r = rng.uniform(35, 65)
        colour = colours[int(rng.integers(4))]
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        draw.ellipse((x - r / 2, y - r / 2, x - r / 5, y - r / 5), fill=(255, 245, 225))
    draw.chord(
        (picture.width / 2 - 230, 180, picture.width / 2 + 230, 450), 0, 180, (225, 225, 230)
    )
    return as_array(picture.filter(ImageFilter.GaussianBlur(2)))


@kind
def parking_lot(rng):
    picture, draw = canvas(rng, (95, 95, 98))
    for y in range(20, HEIGHT, 150):
        for x in range(10, picture.width, 75):
            draw.line((x, y, x, y + 110), fill=(230, 230, 225), width=4)
            if rng.random() < 0.6:
                draw.rounded_rectangle((x + 12, y + 8, x + 62, y + 104), 10, fill=any_colour(rng))
                draw.rectangle((x + 18, y + 30, x + 56, y + 48), fill=(30, 35, 45))
    return to_bytes(as_array(picture) + rng.normal(0, 7, (*picture.size[::-1], 1)))


@kind
def circuit_board(rng):
    picture, draw = canvas(rng, (20, 90, 45))
    for _ in range(60):
        x, y = rng.integers(0, picture.width), rng.integers(0, HEIGHT)
        x2 = int(x + rng.integers(-150, 150))
        draw.line((x, y, x2, y, x2, y + 80), fill=(70, 150, 90), width=3)
    for _ in range(16):
        x, y = rng.uniform(0, picture.width - 60), rng.uniform(0, HEIGHT - 60)
        w, h = rng.uniform(20, 90, 2)
        draw.rectangle((x, y, x + w, y + h), fill=(25, 25, 28))
        for pin in range(int(x), int(x + w), 9):
            draw.rectangle((pin, y - 5, pin + 4, y), fill=(200, 200, 205))
    return as_array(picture)


@kind
def playing_cards(rng):
    picture, draw = canvas(rng, (20, 110, 60))
    for x in range(20, picture.width - 80, 90):
        for y in (30, 180, 330):
            draw.rounded_rectangle((x, y, x + 78, y + 125), 8, fill=(250, 250, 248))
            colour = (200, 20, 30) if rng.random() < 0.5 else (15, 15, 15)
            draw.text((x + 8, y + 6), str(rng.integers(2, 11)), fill=colour, font=font(26))
            draw.ellipse((x + 26, y + 48, x + 54, y + 80), fill=colour)
    return as_array(picture)


def main() -> None:
    """Writes a sheet with one picture of each kind."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("sheet", type=Path, metavar="SHEET.png")
    out = parser.parse_args().sheet
    width, height = THUMBNAIL
    rows = -(-len(KINDS) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * width, rows * height))
    for index, (name, draw) in enumerate(KINDS.items()):
        thumbnail = Image.fromarray(draw(np.random.default_rng(0))).resize(THUMBNAIL)
        ImageDraw.Draw(thumbnail).text((4, 4), name, fill=(255, 0, 0))
        sheet.paste(thumbnail, (index % SHEET_COLUMNS * width, index // SHEET_COLUMNS * height))
    write_image(out, sheet)
    print(f"wrote {out}: {len(KINDS)} kinds")


if __name__ == "__main__":
    main()
