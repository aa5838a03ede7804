"""The report of a day: one web page that needs nothing else, and the same chart as a picture."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from pathlib import Path
from string import Template

import numpy as np

from ddunet_keras.camera.chart import chart_svg, draw_chart, write_chart
from ddunet_keras.camera.day import Day, Measurement, clock
from ddunet_keras.camera.sun import Place, moon_illumination
from ddunet_keras.files import StrPath, check_writable, write_text

JPEG_QUALITY = 75

MAX_REASONS = 20
"""Most different reasons that are listed; each broken file may have its own."""

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Cloud cover, $date</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
 max-width: 64rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .5rem;
 margin: 0 0 1rem; }
dl div { background: #f1f4f8; border-radius: .4rem; padding: .5rem .75rem; }
dt { font-size: .85rem; color: #444; }
dd { margin: 0; font-size: 1.25rem; font-weight: 600; white-space: nowrap; }
.wide { overflow-x: auto; }
.wide svg { width: 100%; min-width: 40rem; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid #ddd;
 white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.wrap { white-space: normal; overflow-wrap: anywhere; }
td img { display: block; height: 4rem; width: auto; margin-left: auto; border-radius: .2rem; }
footer { margin-top: 2rem; font-size: .85rem; color: #444; overflow-wrap: anywhere; }
@media (max-width: 34rem) {
 dd { font-size: 1.1rem; }
 table { font-size: .8rem; }
 th, td { padding: .2rem .3rem; }
 th { white-space: normal; }
 td img { height: 2.5rem; }
}
</style>
</head>
<body>
<h1>Cloud cover, $date</h1>
<dl>
$figures
</dl>
<div class="wide" tabindex="0" role="region" aria-label="Chart of the day">
$chart
</div>
<h2>Hour by hour</h2>
<div class="wide" tabindex="0" role="region" aria-label="Table of the hours">
<table>
<thead><tr><th scope="col">from</th><th scope="col">cloud cover</th><th scope="col">least to \
most</th><th scope="col">usable</th>$safe_head<th scope="col">overlay</th></tr></thead>
<tbody>
$hours
</tbody>
</table>
</div>
$reasons
<footer>
$notes
</footer>
</body>
</html>
""")


def write_report(
    day: Day, out: StrPath, place: Place | None = None, png: StrPath | None = None
) -> None:
    """Writes a day's page, and the picture of its chart where it is asked for.

    Args:
        day: from `read_day`.
        out: the page, HTML; it holds its pictures and needs no network.
        place: where the camera stands, for day, twilight, night and moon.
        png: the picture of the chart.

    Raises:
        WriteError: one of them cannot be written.

    Example:

    >>> from ddunet_keras.camera.day import read_day
    >>> line = '{"time": "2026-11-28T12:00:00+01:00", "percent": 40.0, "usable": true}'
    >>> _ = (tmp / "log.jsonl").write_text(line)
    >>> write_report(read_day(tmp / "log.jsonl"), tmp / "day.html", Place(48.1, 11.6))
    >>> "40.0 %" in (tmp / "day.html").read_text()
    True
    """
    for path in (out, png):
        if path is not None:
            check_writable(path)
    figure = draw_chart(day, place)
    chart = chart_svg(figure, f"Cloud cover over {day.date}; the table below has its values")
    has_safety = any(one.safe is not None for one in day.measurements)
    page = PAGE.substitute(
        date=day.date,
        figures="\n".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
            for name, value in summary(day).items()
        ),
        chart=chart,
        safe_head='<th scope="col">safe</th>' if has_safety else "",
        hours="\n".join(_hour_row(day, hour, has_safety) for hour in range(day.length)),
        reasons=_reasons(day),
        notes="<br>\n".join(html.escape(note) for note in _notes(day, place)),
    )
    write_text(out, page)
    if png is not None:
        write_chart(figure, png)


def summary(day: Day) -> dict[str, str]:
    """The figures of a day, as text.

    The cover is a mean over the time that was measured. The other shares are of frames, and
    the time without frames is that between the first and the last one.

    Example:

    >>> from datetime import datetime, timezone
    >>> noon = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)
    >>> both = (Measurement(noon, 40.0, True), Measurement(noon.replace(minute=4)))
    >>> summary(Day(both, tmp, tmp))["usable of 2 frames"]
    '50 %'
    """
    hours = day.hours
    held = day.held
    known = np.isfinite(day.percents)
    safe = np.array([one.safe is True for one in day.measurements])
    figures = {
        "mean cloud cover": _percent(_mean_cover(day, known)),
        f"usable of {len(known)} frames": f"{100 * known.mean():.0f} %",
        "first to last frame": f"{clock(day, hours[0])} to {clock(day, hours[-1])}",
        "without frames": _duration(hours[-1] - hours[0] - held[:-1].sum()),
    }
    if any(one.safe is not None for one in day.measurements):
        figures["safe"] = _duration(held[safe].sum())
    return figures


def _mean_cover(day, chosen):
    """Mean over the time for which the chosen measurements stand, NaN where there are none."""
    if not chosen.any():
        return np.nan
    weights = day.held[chosen]
    return np.average(day.percents[chosen], weights=weights if weights.any() else None)


def _percent(value):
    return "unknown" if np.isnan(value) else f"{value:.1f} %"


def _duration(hours):
    minutes = round(60 * max(float(hours), 0.0))
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _hour_row(day, hour, has_safety):
    """A row of the table: the frames that began in this hour."""
    of_hour = (day.hours >= hour) & (day.hours < hour + 1)
    known = np.isfinite(day.percents) & of_hour
    count = int(of_hour.sum())
    cells = [f'<th scope="row">{clock(day, hour)}</th>']
    if known.any():
        percents = day.percents[known]
        cells.append(f"<td>{_percent(_mean_cover(day, known))}</td>")
        cells.append(f"<td>{percents.min():.0f}&ndash;{percents.max():.0f} %</td>")
    else:
        cells += ["<td>unknown</td>" if count else "<td>no frames</td>", "<td></td>"]
    cells.append(f"<td>{known.sum()} of {count}</td>" if count else "<td></td>")
    frames = [one for one, inside in zip(day.measurements, of_hour, strict=True) if inside]
    if has_safety:
        safe = sum(one.safe is True for one in frames)
        cells.append(f"<td>{100 * safe / count:.0f} %</td>" if count else "<td></td>")
    cells.append(f"<td>{_picture(day, frames)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _picture(day: Day, frames: list[Measurement]) -> str:
    """The overlay in the middle of an hour, as an element that holds it; empty without one."""
    with_overlay = [one for one in frames if one.thumbnail is not None]
    if not with_overlay:
        return ""
    chosen = with_overlay[len(with_overlay) // 2]
    picture = day.thumbnail(chosen)
    if picture is None:
        return ""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    title = html.escape(chosen.frame, quote=True)
    alternative = f"overlay at {chosen.time:%H:%M}"
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{picture.width}" '
        f'height="{picture.height}" alt="{alternative}" title="{title}">'
    )


def _reasons(day):
    """Why frames were not usable, and how many; empty if all were."""
    counts = Counter(
        one.reason or "no cloud cover in the log"
        for one, percent in zip(day.measurements, day.percents, strict=True)
        if np.isnan(percent)
    )
    if not counts:
        return ""
    rows = "\n".join(
        f'<tr><td class="wrap">{html.escape(reason)}</td><td>{count}</td></tr>'
        for reason, count in counts.most_common(MAX_REASONS)
    )
    rest = counts.total() - sum(count for _, count in counts.most_common(MAX_REASONS))
    if rest:
        rows += f"\n<tr><td>other</td><td>{rest}</td></tr>"
    head = '<thead><tr><th scope="col">reason</th><th scope="col">frames</th></tr></thead>'
    return f"<h2>Frames without a cover</h2>\n<table>{head}\n<tbody>\n{rows}\n</tbody>\n</table>"


def _notes(day, place):
    """What a reader has to know of the figures."""
    notes = [f"Log: {Path(day.source).name}."]
    models = sorted({one.model for one in day.measurements if one.model})
    if models:
        notes.append(f"Model: {', '.join(models)}.")
    notes.append(f"Times are at {day.offset}.")
    if day.measurements[-1].time.utcoffset() != day.start.utcoffset():
        notes.append("The clocks were changed in this day; the chart goes on with the first time.")
    if place is None:
        notes.append("Give --latitude and --longitude to see day, twilight, night and moon.")
    else:
        middle = day.measurements[len(day.measurements) // 2].time
        share = 100 * moon_illumination(place, middle)
        notes.append(f"At {place.latitude:g}, {place.longitude:g}. Moon: {share:.0f} % lit.")
    if day.unreadable:
        notes.append(f"{day.unreadable} lines of the log could not be read.")
    if day.other_days:
        notes.append(f"{day.other_days} records of other days were left out.")
    return notes
