"""Pictures: they are written whole, show what they should, and bad input is named."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddunet_keras import metrics, plots
from ddunet_keras.files import IGNORE

HISTORY = {
    "epoch": [0, 1, 2],
    "loss": [0.7, 0.5, 0.4],
    "val_loss": [0.8, 0.6, 0.5],
    "accuracy": [0.6, 0.7, 0.8],
    "val_accuracy": [0.5, 0.6, float("nan")],
    "miou": [0.4, 0.5, 0.6],
    "learning_rate": [1e-3, 9e-4, 8e-4],
}


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def has_color(picture, color):
    rgb = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
    return bool((picture == rgb).all(-1).any())


def test_history_is_drawn_in_two_colours(tmp_path):
    plots.plot_history(HISTORY, tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")
    assert has_color(picture, plots.BLUE) and has_color(picture, plots.ORANGE)


def test_history_panels_follow_what_was_measured(tmp_path):
    widths = []
    for names in (["loss"], ["loss", "miou"], ["loss", "miou", "learning_rate"]):
        plots.plot_history({name: HISTORY[name] for name in names}, tmp_path / "a.png")
        widths.append(pixels(tmp_path / "a.png").shape[1])
    assert widths[0] < widths[1] < widths[2]


def test_a_single_epoch_is_visible(tmp_path):
    plots.plot_history({"loss": [0.5]}, tmp_path / "a.png")
    assert has_color(pixels(tmp_path / "a.png"), plots.BLUE)


@pytest.mark.parametrize(
    "history", [{}, {"loss": []}, {"miou": [0.5]}, {"loss": [1.0, 2.0], "val_loss": [1.0]}]
)
def test_a_history_without_loss_or_of_unequal_lengths_is_refused(tmp_path, history):
    with pytest.raises(ValueError, match="received"):
        plots.plot_history(history, tmp_path / "a.png")


def test_curves_draw_each_set_and_the_threshold(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 5000)
    curve = metrics.curves(metrics.curve_counts((truth + 2 * rng.random(5000)) / 3, truth))
    plots.plot_curves({"day": curve}, tmp_path / "one.png")
    plots.plot_curves({"day": curve, "night": curve}, tmp_path / "two.png", threshold=0.5)
    one, two = pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png")
    assert has_color(one, plots.BLUE) and not has_color(one, plots.ORANGE)
    assert has_color(two, plots.ORANGE)
    with pytest.raises(ValueError, match=r"received \{\}"):
        plots.plot_curves({}, tmp_path / "none.png")


def test_curves_without_sky_pixels_are_drawn_empty(tmp_path):
    curve = metrics.curves(metrics.curve_counts(np.full(9, 0.5), np.ones(9, int)))
    plots.plot_curves({"overcast": curve}, tmp_path / "a.png", threshold=0.5)
    assert pixels(tmp_path / "a.png").std() > 0


@pytest.mark.parametrize("shape", [(40, 40), (30, 70), (70, 30)])
def test_sheet_colours_both_errors_and_ignored_pixels(tmp_path, shape):
    photo = np.full((*shape, 3), (12, 200, 34), np.uint8)
    truth = np.zeros(shape, np.uint8)
    truth[:, : shape[1] // 2] = 1
    right = truth.copy()
    wrong = 1 - truth
    plots.plot_sheet({"best": [("a", photo, truth, right)]}, tmp_path / "right.png")
    plots.plot_sheet({"worst": [("a", photo, truth, wrong)]}, tmp_path / "wrong.png")
    truth[:10] = IGNORE
    plots.plot_sheet({"worst": [("a", photo, truth, wrong)]}, tmp_path / "ignored.png")

    def area(name, color):
        rgb = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
        return int((pixels(tmp_path / name) == rgb).all(-1).sum())

    for color in (plots.BLUE, plots.ORANGE):
        # the legend alone, against the legend and half of a picture
        assert area("wrong.png", color) > area("right.png", color) + 1000
        assert area("ignored.png", color) < area("wrong.png", color)
    assert area("ignored.png", plots.PURPLE) > area("wrong.png", plots.PURPLE) + 1000
    assert area("right.png", "#0cc822") > 1000


def test_sheet_rows_may_differ_in_length_and_size(tmp_path):
    rng = np.random.default_rng(0)

    def entry(height, width):
        labels = rng.integers(0, 3, (height, width)).astype(np.uint8)
        return "a", rng.integers(0, 255, (height, width, 3)).astype(np.uint8), labels, labels

    rows = {"best": [entry(20, 30), entry(50, 20)], "worst": [entry(1, 1)]}
    plots.plot_sheet(rows, tmp_path / "a.png", num_classes=3)
    assert pixels(tmp_path / "a.png").std() > 0
    for nothing in ({}, {"best": []}):
        with pytest.raises(ValueError, match="received"):
            plots.plot_sheet(nothing, tmp_path / "b.png")


def test_a_failed_plot_leaves_the_earlier_file_and_no_other(tmp_path):
    path = tmp_path / "a.png"
    plots.plot_history(HISTORY, path)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        plots.plot_history({"loss": ["low"]}, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_plots_leave_pyplot_alone(tmp_path):
    code = "import sys, ddunet_keras.plots; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_benchmark_draws_each_model_and_data_set_in_its_colour(tmp_path):
    def row(model, size, group, accuracy, **costs):
        about = {"model": model, "data": "skies", "protocol": "date", "size": [size, size]}
        return about | {"group": group, "accuracy": accuracy, "file": f"{model}_{size}"} | costs

    rows = [
        row(model, size, group, 0.9, arena=9000 * size, milliseconds=size / 10)
        for model in ("c4", "c8")
        for size in (96, 256)
        for group in ("day", "day+night")
    ]
    plots.plot_benchmark(rows, tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")
    assert has_color(picture, plots.BLUE)
    assert has_color(picture, plots.ORANGE)
    assert not has_color(picture, plots.GREEN)
    with pytest.raises(ValueError, match="no row has an arena"):
        plots.plot_benchmark([{"model": "c4", "group": "day"}], tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("name", ["$a_{$", "a$b$c", "\udcff", "a\nb", "\x1b[31m", "日本"])
def test_names_are_drawn_as_they_are(tmp_path, name):
    photo, truth = np.zeros((20, 30, 3), np.uint8), np.ones((20, 30), np.uint8)
    plots.plot_sheet({name: [(name, photo, truth, truth)]}, tmp_path / "a.png")
    curve = metrics.curves(metrics.curve_counts(np.full(9, 0.5), np.ones(9, int)))
    plots.plot_curves({name: curve}, tmp_path / "b.png")
    plots.plot_history({"loss": [0.5], f"{name}_accuracy": [0.5]}, tmp_path / "c.png")
    assert len(list(tmp_path.iterdir())) == 3
