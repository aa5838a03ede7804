"""A made-up day of a sky camera, as `ddunet watch` would write it, for the tests of the report.

    python tests/made_day.py FOLDER

writes it with 600 frames and their thumbnails, to look at.
"""

import json
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

import ddunet_keras as dd
from ddunet_keras.files import write_image

ZONE = timezone(timedelta(hours=1))
MIDNIGHT = datetime(2026, 10, 17, tzinfo=ZONE)
DAY = MIDNIGHT.date()
PLACE = (48.1, 11.6)
SKIES = 24
"""Of each time of day; the one whose cover is nearest is taken for a frame."""


def time_of_day(hour):
    """ "day", "dusk" or "night", roughly as at `PLACE` on `DAY`."""
    if 7 <= hour < 17:
        return "day"
    return "dusk" if 6 <= hour < 18 else "night"


def smooth_cover(hour):
    """A night that is clear at first, clouds by day, and an overcast that breaks up."""
    return float(np.interp(hour, [0, 5, 8, 11, 14, 16, 20, 24], [2, 4, 35, 55, 90, 100, 60, 5]))


def cover_at(hour, random):
    waves = 6 * np.sin(3.1 * hour) + 4 * np.sin(9.7 * hour)
    here = smooth_cover(hour)
    noise = random.normal(0, 1) + waves * min(here, 100 - here) / 50
    return float(np.clip(here + noise, 0, 100))


def overlays(side):
    """time -> list of (percent, overlay) of synthetic skies."""
    found = {}
    for time in ("day", "dusk", "night"):
        found[time] = []
        for seed in range(SKIES):
            image, labels = dd.synthetic_sky(seed, (side, side), time=time, view="fisheye")
            valid = labels != 255
            result = dd.Segmentation(image, (labels == 1).astype(np.float32), valid)
            found[time].append((result.cloud_cover.percent, result.overlay()))
    return found


def make_records(count=600, seed=0):
    """Records of a day: a gap at noon, dew before sunrise, a roof that is safe in clear nights."""
    random = np.random.default_rng(seed)
    records = []
    for index in range(count):
        hour = 24 * index / count
        if 11.6 < hour < 12.4:
            continue
        time = MIDNIGHT + timedelta(seconds=round(3600 * hour))
        is_usable = not 5.2 < hour < 5.9
        percent = cover_at(hour, random)
        is_dark = time_of_day(hour) == "night"
        confidence = random.normal(0.7 if is_dark else 0.9, 0.03)
        safe = is_usable and is_dark and percent < 25
        records.append(
            {
                "time": time.isoformat(),
                "time_from": "exif",
                "frame": f"frames/{time:%H%M%S}.jpg",
                "percent": round(percent, 2) if is_usable else None,
                "okta": round(percent / 12.5) if is_usable else None,
                "valid_fraction": 0.7,
                "usable": is_usable,
                "reason": None if is_usable else "flat colour",
                "confidence": round(float(np.clip(confidence, 0, 1)), 3) if is_usable else None,
                "zones": {"zenith:30": round(percent, 2) if is_usable else None},
                "model": "ddunet_c8",
                "seconds": 0.05,
                "safe": safe,
                "safe_reason": None,
                "thumbnail": f"thumbnails/{DAY}/{time:%H%M%S}.jpg" if is_usable else None,
            }
        )
    return records


def write_log(folder, records):
    """Writes `folder/log/DAY.jsonl` and returns its path."""
    path = Path(folder) / "log" / f"{DAY}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_thumbnails(folder, records, side=160):
    skies = overlays(side)
    for record in records:
        if record["thumbnail"] is not None:
            hour = datetime.fromisoformat(record["time"]).hour
            cover = smooth_cover(hour)
            _, picture = min(skies[time_of_day(hour)], key=lambda sky: abs(sky[0] - cover))
            write_image(Path(folder) / record["thumbnail"], picture)


if __name__ == "__main__":
    made = make_records()
    write_thumbnails(sys.argv[1], made)
    print(write_log(sys.argv[1], made))
