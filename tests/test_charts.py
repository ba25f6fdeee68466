"""The figures: colours that everybody can tell apart, and alt text whose numbers are pandas' numbers."""

import json
from itertools import combinations

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st

from bnlib import charts

# Linear sRGB -> what a viewer without L or M cones sees: Machado, Oliveira and Fernandes 2009, severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
# Linear sRGB -> CIE XYZ (D65); the second row is relative luminance.
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    scaled = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(axis=1)
    root = np.where(scaled > 216 / 24389, np.cbrt(scaled), (24389 / 27 * scaled + 16) / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def luminance(colour: str) -> float:
    return float(XYZ[1] @ linear(colour))


@pytest.mark.parametrize("arm", charts.ARMS.values(), ids=list(charts.ARMS))
def test_colours_read_on_white_and_on_the_dark_page(arm):
    assert 0.13 <= luminance(arm.colour) <= 0.30
    dark = luminance("#121212")
    assert 1.05 / (luminance(arm.colour) + 0.05) >= 3
    assert (luminance(arm.colour) + 0.05) / (dark + 0.05) >= 3


@pytest.mark.parametrize("vision", VISION)
def test_colours_stay_apart_in_colour_blind_eyes(vision):
    # A variant shares the colour of its original on purpose; their dashes differ.
    variants = {
        "bn_small_gamma": "bn",
        "stationary_bn": "noisy_bn",
        "l1_centred": "l1",
        "linf_centred": "linf",
        "bn_residual": "bn",
        "residual": "standard",
        "layer": "bn_after_4",
        "group": "noisy_standard",
        "batch_renorm": "noisy_bn",
        "instance": "l2",
        "rms": "linf",
        "weight": "l1",
        "skipinit": "linf",
        "fixup": "l2",
        "start": "bn_after_4",
        "forward": "noisy_bn",
        "gdnp": "bn_after_4",
        "gdnp_printed": "bn_after_4",
    }
    for variant, original in variants.items():
        assert charts.ARMS[variant].colour == charts.ARMS[original].colour
    arms = {name: arm for name, arm in charts.ARMS.items() if name not in variants}
    seen = {name: lab(VISION[vision] @ linear(arm.colour)) for name, arm in arms.items()}
    distance = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in combinations(seen, 2)}
    closest = min(distance, key=distance.get)
    # A just noticeable difference is about 2.3; thin lines need some ten times as much.
    assert distance[closest] >= 20, closest
    for pair in combinations(("standard", "bn", "bn_after_4"), 2):
        assert distance[pair] >= 40, pair


def test_dashes_tell_the_arms_apart_in_greyscale():
    dashes = [arm.dash for arm in charts.ARMS.values()]
    assert len(set(dashes)) == len(dashes)
    assert len({arm.label for arm in charts.ARMS.values()}) == len(charts.ARMS)


def test_the_theme_takes_its_ink_from_the_page():
    config = charts.theme()["config"]
    assert config["background"] == "transparent"
    assert config["axis"]["labelColor"] == config["legend"]["labelColor"] == "currentColor"
    assert "Roboto" in config["font"]


# --- numbers ---


def test_rounding_keeps_five_significant_digits_and_the_input():
    frame = pd.DataFrame(
        {"a": [1.2345678, -1.2345678e-9, np.inf, np.nan], "n": [1, 2, 3, 4], "s": list("wxyz")}
    )
    out = charts.rounded(frame)
    assert out["a"].tolist()[:2] == [1.2346, -1.2346e-9] and out["a"].isna().tolist() == [
        False,
        False,
        True,
        True,
    ]
    assert out["n"].tolist() == [1, 2, 3, 4] and out["s"].tolist() == list("wxyz")
    assert frame["a"][0] == 1.2345678


@given(st.floats(-1e300, 1e300, allow_subnormal=False))
def test_rounding_is_close_and_idempotent(value):
    once = charts.significant(np.array([value]))
    assert np.isclose(once[0], value, rtol=5.1e-5, atol=0)
    assert charts.significant(once)[0] == once[0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (15000, "15000"),
        (0.12345, "0.123"),
        (2.0, "2"),
        (-0.5, "−0.5"),
        (1234.5, "1234"),
        (9999.5, "10000"),
        (1e-7, "1e−7"),
        (-2.346e12, "−2.35e12"),
        (np.nan, "not finite"),
    ],
)
def test_numbers_are_spelt_for_readers(value, words):
    assert charts.spell(value) == words


# --- figures ---


def runs(**columns) -> pd.DataFrame:
    """Two arms, three seeds, five steps; the value is step + seed for bn and twice that for standard."""
    rows = [
        ("bn" if k == 1 else "standard", seed, step, k * (step + seed + 1.0))
        for k in (2, 1)
        for seed in range(3)
        for step in range(0, 50, 10)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "step", "value"]).assign(**columns)


def data(chart: alt.TopLevelMixin) -> pd.DataFrame:
    (rows,) = chart.to_dict()["datasets"].values()
    return pd.DataFrame(rows)


def test_curves_describe_themselves_with_computed_numbers():
    chart = charts.curves(runs(), y_title="Training loss (nats)", title="Toy")
    assert chart.description == (
        "Toy. Curves of Training loss (nats) against step (0 to 40); values from 1 to 86, 3 seeds each. "
        "Median at the end: Standard 84; Batch norm 42."
    )
    assert chart.to_dict()["width"] == "container"


def test_curves_draw_every_seed_the_band_and_the_median():
    layers = charts.curves(runs(), y_title="Loss").to_dict()["layer"]
    assert [layer["mark"]["type"] for layer in layers] == ["area", "line", "line"]
    assert layers[1]["encoding"]["detail"]["field"] == "seed"
    assert layers[2]["encoding"]["y"]["aggregate"] == "median"
    assert layers[2]["encoding"]["strokeDash"]["scale"]["domain"] == ["Standard", "Batch norm"]
    one = charts.curves(runs().query("seed == 0"), y_title="Loss").to_dict()["layer"]
    assert [layer["mark"]["type"] for layer in one] == ["line"]


def test_arms_keep_their_order_without_a_number_in_every_row():
    spec = charts.curves(runs(), y_title="Loss").to_dict()
    version = ".".join(alt.VEGALITE_VERSION.split(".")[:2])
    vega = vl_convert.vegalite_to_vega(spec, vl_version=version)
    (scale,) = (scale for scale in vega["scales"] if scale["name"] == "color")
    assert scale["domain"] == ["Standard", "Batch norm"]  # not in alphabetical order
    assert "sort_index" not in json.dumps(vega["data"])


def test_there_is_no_median_over_the_survivors():
    frame = runs()
    frame.loc[(frame["arm"] == "standard") & (frame["seed"] == 2) & (frame["step"] >= 30), "value"] = np.inf
    chart = charts.curves(frame, y_title="Loss")
    table = data(chart)
    whole = table.groupby(["arm", "x"])["all"].min().to_dict()
    assert [whole["Standard", x] for x in range(0, 50, 10)] == [1, 1, 1, 0, 0]
    assert all(whole["Batch norm", x] == 1 for x in range(0, 50, 10))
    assert "Standard: none, 1 of 3 runs are not finite; Batch norm 42" in chart.description
    stopped = runs().query("not (arm == 'bn' and seed == 0 and step > 20)")
    assert (
        "Batch norm: none, 1 of 3 runs are not finite" in charts.curves(stopped, y_title="Loss").description
    )


def test_small_multiples_share_axes_and_keep_the_order_of_their_labels():
    frame = pd.concat([runs(lr=0.1), runs(lr=0.5)])
    labels = {0.5: "Learning rate 0.5", 0.1: "Learning rate 0.1"}
    chart = charts.small_multiples(frame, "lr", y_title="Loss", facet_labels=labels).to_dict()
    assert chart["facet"]["sort"] == list(labels.values())
    assert "scale" not in chart["resolve"]
    assert "Learning rate 0.5, median at the end: Standard 84" in chart["description"]
    free = charts.small_multiples(frame, "lr", y_title="Loss", independent_y=True).to_dict()
    assert free["resolve"]["scale"] == {"y": "independent"}
    with pytest.raises(ValueError, match="no words for lr"):
        charts.small_multiples(frame, "lr", y_title="Loss", facet_labels={0.1: "low"})


def test_a_heatmap_marks_what_diverged():
    frame = pd.DataFrame(
        [
            (lr, batch, seed, lr * batch + seed)
            for lr in (0.1, 1.0)
            for batch in (32, 128)
            for seed in range(3)
        ],
        columns=["lr", "batch", "seed", "value"],
    )
    frame.loc[(frame["lr"] == 1.0) & (frame["batch"] == 32) & (frame["seed"] == 0), "value"] = np.nan
    words = {"x_title": "Learning rate", "y_title": "Batch size", "value_title": "loss"}
    chart = charts.heatmap(frame, "lr", "batch", **words)
    cells = data(chart).set_index(["x", "y"])["value"]
    assert cells[0.1, 32] == pytest.approx(4.2) and cells[1.0, 128] == 129 and np.isnan(cells[1.0, 32])
    assert chart.description == (
        "Heatmap of loss, median over 3 seeds: learning rate 0.1, 1 across, batch size 32, 128 upwards. "
        "Lowest 4.2 at learning rate 0.1, batch size 32. Highest 129 at learning rate 1, batch size 128. "
        "1 of 4 cells diverged."
    )
    with pytest.raises(ValueError, match="needs positive values"):
        charts.heatmap(frame.assign(value=-1.0), "lr", "batch", log=True, **words)
    assert "4 of 4 cells" in charts.heatmap(frame.assign(value=np.nan), "lr", "batch", **words).description


def test_ridges_describe_the_first_and_the_last_histogram():
    centres = np.linspace(-5, 5, 101)
    rows = [
        ("bn", step, x, np.exp(-((x - shift) ** 2) / 2))
        for step, shift in ((0, 0.0), (100, 2.0))
        for x in centres
    ]
    frame = pd.DataFrame(rows, columns=["arm", "step", "bin", "density"])
    chart = charts.ridges(frame, x_title="Activation", row_title="Step")
    assert "step 0 (top) to 100 (bottom)" in chart.description
    assert (
        "Batch norm: mean 0, standard deviation 1 at 0; mean 2, standard deviation 0.99 at 100."
        in chart.description
    )
    table = data(chart)
    assert set(table["base"]) == {0, -1} and table["top"].max() <= 2.2
    with pytest.raises(ValueError, match="one seed and layer"):
        charts.ridges(pd.concat([frame, frame]), x_title="Activation", row_title="Step")


def test_dots_show_every_seed_and_count_the_lost():
    last = runs().query("step == 40").reset_index(drop=True)
    chart = charts.dots(last, y_title="Final loss", threshold=50)
    assert chart.description == (
        "Final loss of each run, one dot per seed, lines join equal seeds. Standard: median 84, 82 to 86. "
        "Batch norm: median 42, 41 to 43. The dashed rule is at 50."
    )
    last.loc[0, "value"] = np.nan
    assert "Standard: 1 of 3 runs not finite." in charts.dots(last, y_title="Final loss").description


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (runs().drop(columns="value"), "no column 'value'"),
        (runs().iloc[:0], "no rows"),
        (runs(arm="vanilla"), "Unknown arm 'vanilla': use one of standard"),
        (pd.concat([runs(), runs()]), "select one metric, layer and setting first"),
    ],
)
def test_a_frame_that_cannot_be_drawn_is_refused(frame, reason):
    with pytest.raises(ValueError, match=reason):
        charts.curves(frame, y_title="Loss")


def test_other_arms_can_be_drawn_too():
    arms = {"sgd": charts.Arm("SGD", "#0078c3", (1, 0)), "gdnp": charts.Arm("GDNP", "#d25a00", (7, 3))}
    frame = runs().replace({"arm": {"standard": "sgd", "bn": "gdnp"}})
    chart = charts.curves(frame, y_title="Loss", arms=arms)
    assert "SGD 84; GDNP 42" in chart.description
    assert chart.to_dict()["layer"][2]["encoding"]["color"]["scale"]["range"] == ["#0078c3", "#d25a00"]
