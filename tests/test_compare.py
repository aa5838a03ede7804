"""`compare.py`: the tables say what the results hold; what is done is not done again."""

import copy
import json
from pathlib import Path

import compare
import pytest
from compare_table import camera_cells, comparison_markdown, plot_comparison, spread
from made_whole_sky import write_whole_sky
from PIL import Image

from ddunet_keras import write_synthetic
from ddunet_keras.files import DataError
from ddunet_keras.litert.child import ChildError
from ddunet_keras.networks.architectures import NETWORKS


def score_row(data, group, dtype, accuracy, miou):
    means = {"accuracy": accuracy, "f1": accuracy + 0.01, "miou": miou, "pooled_miou": miou + 0.02}
    return {"data": data, "group": group, "dtype": dtype, **means}


def made_up_run(network, seed, accuracy, refused=None):
    rows = []
    for dtype, less in (("float32", 0), ("int8", 0.005)):
        if dtype == "int8" and refused:
            continue
        for group, more in (("day", 0.02), ("night", -0.04), ("day+night", 0)):
            rows.append(score_row("SWINySEG", group, dtype, accuracy + more - less, 0.7 + more))
        rows.append(score_row("WSISEG", "day", dtype, 0.93, 0.81))
    cameras = [
        {"camera": "dslr", "dtype": "float32", "accuracy": 0.951, "miou": 0.872},
        {"camera": "dslr", "dtype": "int8", "accuracy": 0.1, "miou": 0.1},
        {"camera": "ov2640", "dtype": "float32", "accuracy": None, "miou": None},
        {
            "camera": "nights",
            "dtype": "float32",
            "words": {
                "clear": {"frames": 5, "usable": 5, "right": 4},
                "overcast": {"frames": 3, "usable": 2, "right": 2},
                "thin": {"frames": 9, "usable": 9, "right": None},
            },
        },
    ]
    size = None if refused else 300_000
    found = {"refused": refused, "bytes": size, "agreement": 99.25, "least_agreement": 91.0 + seed}
    return {
        "network": network,
        "seed": seed,
        "parameters": compare.CANDIDATES[network].parameters,
        "learning_rate": 3e-3,
        "seconds": 60.0,
        "macs": 123_456_789,
        "int8": {target: {**found, "arena": 1024 * 450} for target in ("tflm", "cpu")},
        "rows": rows,
        "cameras": cameras,
    }


@pytest.fixture
def made_up():
    """Results of two networks, one on three splits and the other refused by int8."""
    return {
        "command": "python tools/compare.py SWINySEG out",
        "settings": {
            "data": "SWINySEG",
            "protocol": "date",
            "recipe": "default",
            "size": 96,
            "epochs": 16,
            "whole_sky": "WSISEG",
            "cameras": ["dslr", "ov2640", "nights"],
        },
        "titles": {name: about.title for name, about in compare.CANDIDATES.items()},
        "paper_parameters": {name: about.paper for name, about in compare.CANDIDATES.items()},
        "own_learning_rates": {"unet": 1e-4},
        "mixed_precision": ["unet"],
        "runs": [
            made_up_run("unet", 0, 0.91, refused="the masks agree with the float model's"),
            *(made_up_run("ddunet_c8", seed, 0.90 + 0.01 * seed) for seed in (0, 1, 2)),
        ],
        "failures": [{"network": "pspnet", "seed": 0, "reason": "the training failed (why)"}],
        "milliseconds": {"ddunet_c8": 2.46},
        "ethos_u": {
            "ddunet_c8": {"milliseconds": 14.72, "cpu_operators": 0},
            "unet": {"milliseconds": 52.0, "cpu_operators": 3},
        },
    }


def cells_of(text, heading, network):
    """The cells of a network's row in the table under a heading, by the column's number."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (row,) = [line for line in section.splitlines() if line.startswith(f"| {network} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


DDUNET = "DDUNet, 8 channels"


def test_the_tables_say_what_the_results_hold(made_up):
    text = comparison_markdown(made_up)
    cells = cells_of(text, "Test days", DDUNET)
    assert cells == [
        *("329,447", "123", "90.0", "91.0", "70.0", "72.0"),
    ]
    assert cells_of(text, "Test days", "U-Net")[2] == "91.0"
    cells = cells_of(text, "Over the splits", DDUNET)
    assert cells == ["3", "91.0 ± 1.0", "70.0 ± 0.0", "-0.50 ± 0.00"]
    assert "| U-Net |" not in text.partition("## Over the splits")[2].partition("\n## ")[0]
    cells = cells_of(text, "Day and night apart", DDUNET)
    assert cells == ["92.0", "72.0", "86.0", "66.0"]
    cells = cells_of(text, "Other cameras", "U-Net")
    # whole-sky, dslr, ov2640 (no frame usable), and 6 of 8 nights whose word judges
    assert cells == ["93.0", "81.0", "95.1", "87.2", "", "", "75.0"]
    assert text.index("| DDUNet, 8 channels |") < text.index("| U-Net |")
    assert "U-Net is trained with a learning rate of 0.0001." in text
    assert "Trained in mixed precision: U-Net." in text
    assert "| pspnet | 0 | the training failed (why) |" in text


def test_a_camera_whose_words_judge_nothing_has_no_figure(made_up):
    for run in made_up["runs"]:
        for row in run["cameras"]:
            for word in row.get("words", {}).values():
                word["right"] = None
    assert camera_cells(made_up["runs"], "nights") == [spread([])]


def test_int8_has_what_was_refused_and_why(made_up):
    text = comparison_markdown(made_up)
    cells = cells_of(text, "int8", DDUNET)
    assert cells == [
        *("89.5", "-0.50", "99.25", "91.0", "300", "450", "2.46", "14.7", ""),
    ]
    cells = cells_of(text, "int8", "U-Net")
    reason = "tflm, seed 0 and cpu, seed 0: the masks agree with the float model's"
    ethos_u = "52.0 and 3 operators on the CPU"
    assert cells == ["", "", "99.25", "91.0", "", "450", "", ethos_u, reason]


def test_figures_of_the_paper_stand_beside_with_their_protocol(made_up):
    text = comparison_markdown(made_up)
    cells = cells_of(text, "The paper's figures beside these", DDUNET)
    assert cells[:6] == ["0.329", "0.33", "90.0", "95.3", "70.0", "88.4"]
    assert "which leak" in cells[6]
    cells = cells_of(text, "The paper's figures beside these", "U-Net")
    assert cells == ["24.891", "24.9", "91.0", "", "70.0", "", ""]


def test_a_comparison_that_has_only_begun_has_a_table(made_up, tmp_path):
    begun = {**made_up, "runs": [], "failures": [], "milliseconds": {}}
    assert "## Test days" not in comparison_markdown(begun)
    plot_comparison(begun, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    without = copy.deepcopy(made_up)
    without["settings"].update(whole_sky=None, cameras=[])
    assert "## Other cameras" not in comparison_markdown(without)


def test_the_picture_has_what_has_an_int8_file(made_up, tmp_path):
    plot_comparison(made_up, tmp_path / "both.png")
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.size == (1000, 460)
    # U-Net has none, so leaving it out changes nothing
    made_up["runs"] = made_up["runs"][1:]
    plot_comparison(made_up, tmp_path / "one.png")
    assert (tmp_path / "both.png").read_bytes() == (tmp_path / "one.png").read_bytes()


@pytest.mark.parametrize(
    "found, options, expected",
    [
        ([], {}, ""),
        ([91.04], {}, "91.0"),
        ([90.0, 92.0], {}, "91.0 ± 1.4"),
        ([-0.5, 0.7], {"digits": 2, "sign": "+"}, "+0.10 ± 0.85"),
        ([12_345.6], {"digits": 0}, "12,346"),
    ],
)
def test_spread(found, options, expected):
    assert spread(found, **options) == expected


# === What is trained ===


def settings_of(folder, **changes):
    settings = {
        "data": folder / "skies",
        "out": folder / "out",
        "networks": ("cloudsegnet", "unet", "ddunet_c4"),
        "seeds": (0, 1, 2),
        "size": 32,
        "epochs": 1,
        "whole_sky": None,
        "cameras": (),
        "verify": 2,
    }
    return compare.Comparison(**{**settings, **changes})


def test_all_networks_are_candidates_and_the_large_have_one_seed(tmp_path):
    assert set(NETWORKS) == set(compare.CANDIDATES) - {"ddunet_c4", "ddunet_c8"}
    for name, about in NETWORKS.items():
        candidate = compare.CANDIDATES[name]
        assert (candidate.parameters, candidate.paper) == (about.parameters, about.paper)
    assert list(settings_of(tmp_path).runs()) == [
        *(("cloudsegnet", 0), ("ddunet_c4", 0), ("unet", 0)),
        *(("cloudsegnet", 1), ("ddunet_c4", 1)),
        *(("cloudsegnet", 2), ("ddunet_c4", 2)),
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["--networks", "vgg"],
        ["--whole-sky", "missing"],
        ["--cameras", "skies"],  # named as the data set is
        ["--seeds", "0", "0"],
    ],
)
def test_bad_input_is_one_line(options, tmp_path, capsys):
    skies = write_synthetic(tmp_path / "skies", 2, (32, 32))
    with pytest.raises(SystemExit) as stop:
        compare.main([str(skies), str(tmp_path / "out"), *options])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and options[1] in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_networks_are_trained_scored_and_converted_once(tmp_path, capfd):
    write_synthetic(tmp_path / "skies", 60, (48, 48))
    write_whole_sky(tmp_path / "dome", 3, (48, 48))
    write_synthetic(tmp_path / "camera", 3, (48, 48), seed=9)
    out = tmp_path / "out"
    arguments = [str(tmp_path / "skies"), str(out), "--size", "32", "--epochs", "1"]
    arguments += ["--whole-sky", str(tmp_path / "dome"), "--cameras", str(tmp_path / "camera")]
    arguments += ["--seeds", "0", "--verify", "2", "--networks"]
    assert compare.main([*arguments, "cloudsegnet"]) == 0
    (first,) = json.loads((out / "comparison.json").read_text())["runs"]
    # kernel, inputs, outputs and side of CloudSegNet's convolutions
    convolutions = [(3, 3, 16, 32), (3, 16, 8, 16), (3, 8, 8, 8), (3, 8, 8, 4)]
    convolutions += [(3, 8, 8, 8), (3, 8, 16, 16), (5, 16, 1, 32)]
    macs = sum(k**2 * inputs * outputs * side**2 for k, inputs, outputs, side in convolutions)
    assert first["macs"] == pytest.approx(macs, rel=0.01)

    # one more: the first is neither trained nor converted again
    written = (out / "cloudsegnet_0" / "last.keras").stat().st_mtime_ns
    assert compare.main([*arguments, "cloudsegnet", "ddunet_c4"]) == 0
    assert (out / "cloudsegnet_0" / "last.keras").stat().st_mtime_ns == written
    result = json.loads((out / "comparison.json").read_text())
    assert [run["network"] for run in result["runs"]] == ["cloudsegnet", "ddunet_c4"]
    assert result["runs"][0] == first
    for run in result["runs"]:
        assert run["parameters"] == compare.CANDIDATES[run["network"]].parameters
        assert {row["data"] for row in run["rows"]} == {"skies", "dome"}
        assert {row["camera"] for row in run["cameras"]} == {"camera"}
        for target, found in run["int8"].items():
            file = out / f"{run['network']}_0" / compare.INT8_FILES[target]
            assert file.is_file() == (found["refused"] is None)
            assert found["agreement"] > 50 and found["arena"] > 10_000
    table = (out / "comparison.md").read_text()
    assert table == comparison_markdown(result)
    assert "| CloudSegNet | 4,929 |" in table and "dome: accuracy" in table

    # another data set or size does not mix with what is there
    (tmp_path / "skies").rename(tmp_path / "others")
    others = [str(tmp_path / "others"), *arguments[1:]]
    assert compare.main([*others, "cloudsegnet"]) == 1
    assert "was trained with data='skies', not 'others'" in capfd.readouterr().out
    (tmp_path / "others").rename(tmp_path / "skies")
    capfd.readouterr()
    arguments[arguments.index("32")] = "48"
    assert compare.main([*arguments, "cloudsegnet"]) == 1
    assert "was trained with image_size=[32, 32], not [48, 48]" in capfd.readouterr().out


def test_a_conversion_that_ends_costs_no_accuracy(tmp_path, monkeypatch):
    write_synthetic(tmp_path / "skies", 2, (32, 32))
    trained = {"parameters": 4929, "seconds": 1.0, "finished": "now"}
    trained["settings"] = {"learning_rate": 3e-3}
    scores = made_up_run("cloudsegnet", 0, 0.9, refused="it")

    def step(function, *arguments, timeout):
        if function is compare.convert_run:
            raise ChildError("stopped after 21600 seconds")
        return {name: scores[name] for name in ("rows", "cameras")}, None

    monkeypatch.setattr(compare, "train_run", lambda *arguments: trained)
    monkeypatch.setattr(compare, "in_child", step)
    (tmp_path / "out" / "cloudsegnet_0").mkdir(parents=True)
    config = settings_of(tmp_path, networks=("cloudsegnet",), seeds=(0,))
    (run,) = compare.compare(config)["runs"]
    assert run["rows"] and run["macs"] is None
    assert run["int8"]["tflm"]["refused"] == "stopped after 21600 seconds"
    assert "| CloudSegNet | 4,929 |" in (tmp_path / "out" / "comparison.md").read_text()


def test_a_training_that_fails_is_named(tmp_path, monkeypatch):
    write_synthetic(tmp_path / "skies", 2, (32, 32))

    def fails(config, name, seed):
        raise DataError(f"{name}: why")

    monkeypatch.setattr(compare, "do_run", fails)
    config = settings_of(tmp_path, networks=("cloudsegnet",), seeds=(0,))
    result = compare.compare(config)
    assert result["failures"] == [
        {"network": "cloudsegnet", "seed": 0, "reason": "cloudsegnet: why"}
    ]
    assert "cloudsegnet: why" in Path(config.out / "comparison.md").read_text()
