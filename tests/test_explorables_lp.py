"""The figures of chapter 8, in running Vega views, against NumPy and pandas on records with known numbers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from browser import assert_fits, drawn, rows_with
from sample import record_of

from bnlib import charts
from bnlib.experiments import landscape
from bnlib.explorables import lp as explorables
from bnlib.widgets import Explorer

SEEDS = 3
STEPS = [0, 10, 20]
ARMS = list(explorables.lp.ARMS)
LAYERS = ["conv2", "conv5"]
PIXELS = {"conv2": 256, "conv5": 16}
FACTORS, LENGTHS = [0.5, 4.0], [0.01, 0.1]
LEVELS = [round(0.005 + 0.99 * k / 40, 5) for k in range(41)]
RATE = 0.1


def _rows(run: str, rng: np.random.Generator) -> list[tuple]:
    """One run's rows; every value is positive and none is a round number."""
    rows = [(run, step, "", "train_loss", rng.uniform(0.5, 2.5)) for step in range(STEPS[-1])]
    for step in STEPS:
        rows.append((run, step, "", "train_accuracy", rng.uniform(0.2, 0.9)))
        for layer in LAYERS:
            rows += [
                (run, step, layer, name, rng.uniform(0.1, 2)) for name in ("mean", "variance", "wasserstein")
            ]
            quantiles = np.sort(rng.normal(0, rng.uniform(0.2, 2), len(LEVELS)))
            rows += [(run, step, layer, f"quantile={p}", q) for p, q in zip(LEVELS, quantiles, strict=True)]
            for order in explorables.RECORDED_ORDERS:
                for images in (8, 32):
                    for kind in ("", "_centred"):
                        name = f"lp_scale{kind}[{order}]@{images}"
                        rows.append((run, step, layer, name, rng.uniform(0.7, 4)))
        for prefix, points in (("", FACTORS), ("relative_", LENGTHS)):
            low, high = np.sort(rng.uniform(0.1, 3, 2))
            measured = {
                "loss_low": low,
                "loss_high": high,
                "predictiveness_low": low,
                "predictiveness_high": high,
                "effective_beta": rng.uniform(1, 50),
                "finite": 1.0,
                "gradient_norm": rng.uniform(1, 5),
                **{f"predictiveness@{at:g}": rng.uniform(0.1, 5) for at in points},
            }
            rows += [(run, step, "", prefix + name, value) for name, value in measured.items()]
    return rows


@pytest.fixture(scope="module")
def record():
    rng = np.random.default_rng(3)
    runs, rows = [], []
    for arm in ARMS:
        for seed in range(SEEDS):
            run = f"{arm}-{seed}"
            about = {"lr": RATE, "steps": STEPS[-1]}
            runs.append({"id": run, "arm": arm, "seed": seed, "diverged_at": None, "settings": about})
            rows += _rows(run, rng)
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def extra():
    return {"real": np.random.default_rng(8).gumbel(0.4, 1.3, explorables.SIZES[-1])}


@pytest.fixture(scope="module")
def page(record, extra):
    figures = {
        "scale": explorables.scale_and_variance(extra),
        "training": explorables.arms_over_training(record),
        "shapes": explorables.final_shapes(record),
        "recorded": explorables.recorded_scales(record, PIXELS),
        "landscape": explorables.over_standard_chart(record),
    }
    with drawn(figures) as page:
        yield page


def words_of(data: list[list[dict]]) -> list[str]:
    return [row["words"] for rows in data for row in rows if isinstance(row.get("words"), str)]


def numbers_in(text: str) -> list[float]:
    return [float(word) for word in text.replace("(", "").replace(")", "").replace("−", "-").split()]


# --- what a norm divides by ---


def test_gaussian_constants_are_those_of_the_book():
    known = {1: 0.797885, 2: 1.0, 4: 3**0.25}
    for p, value in known.items():
        assert explorables.gaussian_scale(p) == pytest.approx(value, abs=1e-6)
    for m, value in ((128, 2.8276), (1024, 3.4419), (131072, 4.5903)):
        assert explorables.gaussian_scale(math.inf, m) == pytest.approx(value, abs=1e-4)
    assert explorables.gaussian_scale(math.inf, 1) == pytest.approx(math.sqrt(2 / math.pi), abs=1e-5)
    with pytest.raises(ValueError, match="pass m"):
        explorables.gaussian_scale(math.inf)


def test_the_scale_of_four_numbers_by_hand():
    y = np.array([1.0, -2.0, 3.0, 6.0])
    found = [explorables.scale(y, p) for p in (1, 2, math.inf)]
    assert found == pytest.approx([3, 3.5355339, 6])


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    "law, p, m",
    [("Gaussian", 1, 16), ("Gaussian with mean 3", 2, 1024), ("uniform", 0, 4096), ("real", 7, 256)],
)
def test_the_page_computes_scale_and_variance_of_the_first_values(view, extra, law, p, m, centred):
    data = view("scale", law=law, p=p, m=m, centred=centred)
    y = explorables.samples(extra)[law][:m]
    u = y - y.mean() if centred else y
    expected = explorables.scale(u, p or math.inf)
    told = words_of(data)
    name = f"{law}, m = {m}, p = {p or '∞'}"
    assert name in told
    (line,) = {text for text in told if text.startswith("scale C = ")}
    number, in_deviations = line.removeprefix("scale C = ").split(" σ")[0].split(" = ")
    assert float(number) == pytest.approx(expected, abs=5.1e-4)
    assert float(in_deviations) == pytest.approx(expected / y.std(), abs=5.1e-4)
    assert ("of y − μ" in line) == centred
    (line,) = {text for text in told if text.startswith("output variance")}
    assert float(line.split()[2]) == pytest.approx(y.var() / expected**2, abs=5.1e-4)

    bars = {rows[0]["which"].split(":")[0]: rows for rows in data if rows and "density" in rows[0]}
    assert {name: sum(row["n"] for row in rows) for name, rows in bars.items()} == {"before": m, "after": m}
    low, high, width = explorables.LOW, explorables.HIGH, explorables.WIDTH
    place = np.clip(np.floor((y - y.mean()) / expected / width), round(low / width), round(high / width) - 1)
    counts = dict(zip(*np.unique(place, return_counts=True), strict=True))
    found = {row["bin"]: row["n"] for row in bars["after"]}
    assert sum(abs(found.get(k, 0) - counts.get(k, 0)) for k in {*found, *counts}) <= 2  # at a bin's edge


@pytest.mark.parametrize("centred", [False, True])
def test_the_curves_agree_with_numpy_and_the_gaussian_line_with_theory(extra, centred):
    drawn_ = explorables.samples(extra)
    rows = [row for row in explorables.scale_rows(drawn_) if row["centred"] == centred]
    assert len(rows) == len(drawn_) * len(explorables.SIZES)
    for row in rows:
        y = drawn_[row["law"]][: row["size"]]
        u = y - y.mean() if centred else y
        expected = [explorables.scale(u, p) / y.std() for p in explorables.ORDERS]
        np.testing.assert_allclose([float(v) for v in row["ratios"].split()], expected, rtol=1e-3)
        gauss = [explorables.gaussian_scale(p, row["size"]) for p in explorables.ORDERS]
        np.testing.assert_allclose([float(v) for v in row["gauss"].split()], gauss, rtol=1e-3)


def test_a_sample_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="'short' has fewer than 4096 values"):
        explorables.scale_and_variance({"short": [1.0, 2.0]})


# --- every arm over training ---


def _expected(record, quantity: str, arm: str, layer: str) -> pd.DataFrame:
    metrics = {"variance": 1, "mean": 1, "wasserstein": 1, "train_accuracy": 100}
    names = {"movement": "wasserstein", "accuracy": "train_accuracy"}
    metric = names.get(quantity, quantity)
    frame = record.frame()
    frame = frame[frame["arm"] == arm]
    if metric in metrics:
        frame = frame[(frame["metric"] == metric) & (frame["layer"] == (layer if metric in LAYERED else ""))]
        return frame.assign(value=frame["value"] * metrics[metric])
    prefix = "relative_" if quantity.startswith("relative") else ""
    table = frame.pivot_table(index=["seed", "step"], columns="metric", values="value")
    value = {
        "range": table[f"{prefix}loss_high"] - table[f"{prefix}loss_low"],
        "predictiveness": table[f"{prefix}predictiveness_high"],
        "beta": table[f"{prefix}effective_beta"],
    }[quantity.removeprefix("relative_")]
    return value.dropna().rename("value").reset_index()


LAYERED = {"variance", "mean", "wasserstein"}


@pytest.mark.parametrize("quantity", [name for name in explorables.QUANTITIES if name != "loss"])
@pytest.mark.parametrize("group", list(explorables.GROUPS))
def test_a_quantity_over_training_and_its_last_value_in_words(view, record, quantity, group):
    data = view("training", quantity=quantity, layer="conv2", group=group)
    points = pd.DataFrame(rows_with(data, "arm", "x", "v", "y"))
    labels = {charts.ARMS[arm].label: arm for arm in ARMS}
    shown = {labels[label] for label in points["arm"].unique()}
    assert shown == {"standard", "bn", *explorables.GROUPS[group]}
    told = words_of(data)
    for label, part in points.groupby("arm"):
        expected = _expected(record, quantity, labels[label], "conv2").sort_values(["seed", "step"])
        own = part.drop_duplicates(["seed", "x"]).sort_values(["seed", "x"])
        np.testing.assert_allclose(own["v"], expected["value"], rtol=6e-3)
        log = explorables.QUANTITIES[quantity].log
        np.testing.assert_allclose(own["y"], np.log10(own["v"]) if log else own["v"], rtol=1e-9)
        ends = expected[expected["step"] == STEPS[-1]]["value"]
        (line,) = {text for text in told if text.startswith(f"{label}: ")}
        low_mid_high = numbers_in(line.split(": ")[1].replace(" to ", " "))
        np.testing.assert_allclose(low_mid_high, [ends.median(), ends.min(), ends.max()], rtol=1.1e-2)


def test_the_layer_matters_for_activations_only(view):
    def heading(**params):
        return {text for text in words_of(view("training", group="all", **params)) if "convolution" in text}

    assert heading(quantity="variance", layer="conv5") == {"Variance of a channel, convolution 5"}
    assert heading(quantity="beta", layer="conv5") == set()


def test_losses_are_averaged_over_windows(record):
    frame = explorables.QUANTITIES["loss"].frame(record)
    plain = record.frame(metric="train_loss")
    assert frame["value"].mean() == pytest.approx(plain["value"].mean())


# --- shapes ---


def test_a_ridge_has_the_mass_of_the_recorded_histogram(view, record):
    data = view("shapes", layer="conv5", step=20)
    points = pd.DataFrame(rows_with(data, "arm", "x", "low", "high", "top"))
    assert points["arm"].nunique() == len(ARMS)
    grid = explorables.REACH * np.linspace(-1, 1, explorables.GRID)
    for place, arm in enumerate(a for a in charts.ARMS if a in ARMS):
        own = points[points["arm"] == charts.ARMS[arm].label].sort_values("x")
        np.testing.assert_allclose(own["x"], grid, atol=1e-3)
        assert set(own["low"]) == {-place}
        frame = record.frame()
        mine = frame[
            (frame["arm"] == arm) & (frame["seed"] == 0) & (frame["layer"] == "conv5") & (frame["step"] == 20)
        ]
        mine = mine[mine["metric"].str.startswith("quantile=")].sort_values("value")
        edges = np.append(grid, grid[-1] + grid[1] - grid[0]) - (grid[1] - grid[0]) / 2
        mass = np.diff(np.interp(edges, mine["value"], LEVELS, left=LEVELS[0], right=LEVELS[-1]))
        heights = (own["high"] - own["low"]).to_numpy() / 0.95
        np.testing.assert_allclose(heights, mass / mass.max(), atol=0.02)


# --- recorded scales ---


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("order", explorables.RECORDED_ORDERS)
def test_recorded_scales_are_medians_and_stand_beside_gaussian_values(view, record, order, centred):
    points = pd.DataFrame(rows_with(view("recorded", p=order, centred=centred), "arm", "layer", "m", "v"))
    frame = record.frame(metric=f"lp_scale{'_centred' if centred else ''}[{order}]@32")
    for arm in ARMS:
        for layer in LAYERS:
            own = points[(points["arm"] == charts.ARMS[arm].label) & (points["layer"] == layer)]
            value = own[own["m"] == 32 * PIXELS[layer]]["v"].iloc[0]
            part = frame[(frame["arm"] == arm) & (frame["layer"] == layer)]
            expected = part.groupby("seed")["value"].median().median()
            assert value == pytest.approx(expected, rel=1e-3)
    line = points[points["arm"] == ""].drop_duplicates("m")
    expected = [explorables.gaussian_scale(float(order), int(m)) for m in line["m"]]
    np.testing.assert_allclose(line["v"], expected, rtol=1e-3)


# --- landscapes ---


@pytest.mark.parametrize("relative", [False, True])
def test_landscapes_are_divided_by_those_of_the_standard_net(record, relative):
    table = explorables.over_standard(record, relative)
    assert len(table) == len(explorables.WALKS) * (len(ARMS) - 1) * SEEDS
    for name, words in explorables.WALKS.items():
        plain = landscape.typical(record, "standard", name, relative)
        own = landscape.typical(record, "linf", name, relative)
        part = table[(table["group"] == words) & (table["arm"] == "linf")].set_index("seed")["value"]
        for seed, value in own.items():
            assert part[seed] == pytest.approx(value / plain[seed])


def test_a_walk_that_left_the_numbers_has_no_ratio(record):
    rows = record.table.to_pandas()
    lost = (rows["arm"] == "l1") & (rows["seed"] == 1) & (rows["metric"] == "finite")
    rows.loc[lost, "value"] = 0.0
    runs = [dict(run) for run in record.runs]
    again = record_of(runs, rows[["run", "step", "layer", "metric", "value"]].itertuples(index=False))
    table = explorables.over_standard(again)
    part = table[(table["arm"] == "l1") & (table["group"] == explorables.WALKS["loss"])].set_index("seed")
    assert np.isnan(part.loc[1, "value"]) and np.isfinite(part.loc[0, "value"])


@pytest.mark.parametrize("relative, points", [(False, FACTORS), (True, LENGTHS)])
def test_beta_for_each_step_is_the_change_over_the_way(record, relative, points):
    table = explorables.betas_by_step(record, relative).set_index(["arm", "seed", "at"])["value"]
    prefix = "relative_" if relative else ""
    frame = record.frame()
    mine = frame[(frame["arm"] == "l2") & (frame["seed"] == 2)].pivot_table(
        index="step", columns="metric", values="value"
    )
    for at in points:
        way = at if relative else at * RATE * mine[f"{prefix}gradient_norm"]
        expected = (mine[f"{prefix}predictiveness@{at:g}"] / way).median()
        assert table["l2", 2, at] == pytest.approx(expected)


# --- all of them ---


def test_every_control_says_what_it_moves_and_the_figures_have_alt_text(record, extra):
    for build in (
        lambda: explorables.scale_and_variance(extra),
        lambda: explorables.arms_over_training(record),
        lambda: explorables.final_shapes(record),
        lambda: explorables.recorded_scales(record, PIXELS),
    ):
        panel, explorer = build().children
        assert isinstance(explorer, Explorer)
        assert len(explorer.description) > 100 and any(c.isdigit() for c in explorer.description)
        assert all(control.description for control in panel.children)
        assert len(panel.children) == len(explorer.params)
        assert build().children[1].spec == explorer.spec  # nothing random between two calls
    for relative in (False, True):
        assert any(c.isdigit() for c in explorables.over_standard_chart(record, relative).description)


@pytest.mark.parametrize("chart", ["scale", "training", "shapes", "recorded", "landscape"])
@pytest.mark.parametrize("width", [390, 900])
def test_a_chart_fits_the_page_and_its_words_stay_inside(page, chart, width):
    assert_fits(page, chart, width)
