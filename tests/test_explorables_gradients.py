"""The explorables of chapter 5 compute what pandas and the claims compute, read out of running Vega views."""

import itertools

import numpy as np
import pandas as pd
import pytest
from browser import assert_fits, drawn, rows_with
from sample import record_of

from bnlib import charts, records
from bnlib.experiments import gradients
from bnlib.explorables import gradients as explorables
from bnlib.widgets import Explorer

SEEDS, STEPS, EVERY = 3, 50, 20
LENGTHS = (1e-3, 1e-2, 1e-1)
VGG, LINEAR = ["conv1", "conv2", "conv3", "classifier"], ["linear2", "linear4"]


def networks(arms: list[tuple], layers: list[str], seed: int, drop: tuple = ()) -> records.Record:
    """A record that was never on disk: `arms` are (arm, rate, loss); runs in `drop` stop after step 20."""
    rng = np.random.default_rng(seed)
    runs, rows = [], []
    for (arm, lr, loss), number in itertools.product(arms, range(SEEDS)):
        name = f"{arm} {loss} {lr} {number}"
        probes = {"covariate_shift": {"every": EVERY}, "matched_covariate_shift": {"every": 25}}
        settings = {"lr": lr, "steps": STEPS, "probes": probes}
        if loss:
            settings["loss"] = loss
        diverged = 21 if (arm, lr, number) in drop else None
        runs.append({"id": name, "arm": arm, "seed": number, "settings": settings, "diverged_at": diverged})
        for step in range(STEPS if diverged is None else diverged):
            rows.append((name, step, "", "train_loss", rng.uniform(0.5, 2)))
        for step, layer in itertools.product((0, 20, 40, 50), layers):
            if diverged is not None and step > 20:
                continue
            first = layer == "conv1"
            values = {
                "shift_cosine": 1.0 if first else rng.uniform(-1, 1),
                "shift_l2": 0.0 if first else rng.uniform(1, 100),
                "gradient_norm": rng.uniform(1, 50),
                "relative_step": rng.uniform(1e-5, 1e-2),
            }
            rows += [(name, step, layer, metric, value) for metric, value in values.items()]
        # The networks of different rates are the same at step 0.
        start = np.random.default_rng([seed, number, len(arm)])
        for step, layer, length in itertools.product((0, 25, 50), layers, LENGTHS):
            if diverged is not None and step > 20:
                continue
            cosine = 1 - 10 ** (start if step == 0 else rng).uniform(-12, 0.3)
            metric = f"shift_cosine@{length:g}"
            rows.append((name, step, layer, metric, 1.0 if layer == "conv1" else cosine))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def vgg() -> records.Record:
    """Three arms at the lower rate; there one seed of the standard network diverges."""
    arms = [(arm, lr, "") for arm in ("standard", "bn") for lr in (0.1, 0.01)] + [("bn_after_4", 0.01, "")]
    return networks(arms, VGG, 0, drop=(("standard", 0.01, 2),))


@pytest.fixture(scope="module")
def linear() -> records.Record:
    losses = ("squared_sum", "squared_mean")
    return networks(list(itertools.product(("standard", "bn"), (1e-6, 1e-7), losses)), LINEAR, 1)


@pytest.fixture(scope="module")
def grids(vgg, linear) -> list[explorables.Grid]:
    return [explorables.Grid("VGG", vgg), explorables.Grid("Linear", linear)]


@pytest.fixture(scope="module")
def page(vgg, linear, grids):
    """A page with the charts drawn."""
    both = {"VGG": vgg, "Linear": linear}
    figures = {
        "vgg": explorables.equal_rate(vgg, "a VGG"),
        "linear": explorables.equal_rate(linear, "a linear network"),
        "sensitivity": explorables.sensitivity(grids),
        "ratio": explorables.step_ratio_chart(both),
        "grid": explorables.grid_chart(vgg, "a VGG"),
        "loss": explorables.shift_and_loss_chart(both),
    }
    with drawn(figures) as page:
        yield page


def words_of(data: list[list[dict]]) -> set[str]:
    return {row["words"] for rows in data for row in rows if row.get("words")}


def said(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}".replace("-", "−")


# --- equal learning rates ---


@pytest.mark.parametrize("quantity", explorables.TITLES)
@pytest.mark.parametrize(
    "name, number, loss, lr, layer",
    [
        ("vgg", 0, "cross_entropy", 0.1, "conv3"),
        ("vgg", 1, "cross_entropy", 0.01, "classifier"),
        ("linear", 1, "squared_sum", 1e-7, "linear4"),
        ("linear", 2, "squared_mean", 1e-6, "linear2"),
    ],
)
def test_the_chart_shows_what_was_probed(view, request, quantity, name, number, loss, lr, layer):
    source = request.getfixturevalue(name)
    data = view(name, setting=number, layer=layer, quantity=quantity, whole=True)
    found = pd.DataFrame(rows_with(data, "x", "v", "arm"))
    metrics = {"cosine": "shift_cosine", "l2": "shift_l2", "relative": "shift_l2", "step": "relative_step"}
    keys = ["arm", "seed", "step"]

    def series(metric: str) -> pd.Series:
        frame = gradients.shifts(source, metric)
        frame = frame[(frame["lr"] == lr) & (frame["loss"] == loss) & (frame["layer"] == layer)]
        return frame.set_index(keys)["value"]

    expected = series(metrics[quantity])
    if quantity == "relative":
        expected = expected / series("gradient_norm")
    labels = {charts.ARMS[arm].label: arm for arm in charts.ARMS}
    found["arm"] = found["arm"].map(labels)
    found = found.drop_duplicates(["arm", "seed", "x"]).set_index(["arm", "seed", "x"])["v"]
    assert set(found.index) == set(expected.index)
    # The page gets three significant digits.
    np.testing.assert_allclose(found.loc[list(expected.index)], expected, rtol=6e-3)
    middle = expected.groupby(["arm", "seed"]).median().groupby("arm").agg(["median", "min", "max"])
    told = words_of(data)
    for arm, row in middle.iterrows():
        (line,) = (text for text in told if text.startswith(f"{charts.ARMS[arm].label}: "))
        numbers = line.split(": ")[1].replace("(", "").replace(")", "").replace("to ", "").replace("−", "-")
        np.testing.assert_allclose([float(word) for word in numbers.split()], row, rtol=2e-2)


def test_a_run_that_diverged_ends_and_the_first_layer_is_left_out(vgg):
    rows = pd.DataFrame(explorables.shift_rows(vgg))
    assert set(rows["layer"]) == {"conv2", "conv3", "classifier"}
    lengths = rows["cosine"].str.split().str.len()
    short = (rows["arm"] == "Standard") & (rows["seed"] == 2) & (rows["setting"] == 1)
    assert set(lengths[short]) == {2} and set(lengths[~short]) == {4}


def test_settings_and_layers_are_in_the_order_of_a_reader(vgg, linear):
    assert [item.words for item in explorables.settings_of(vgg)] == ["rate 0.1", "rate 0.01"]
    assert [item.words for item in explorables.settings_of(linear)] == [
        "sum loss, rate 1e−6",
        "sum loss, rate 1e−7",
        "mean loss, rate 1e−6",
        "mean loss, rate 1e−7",
    ]
    assert explorables.layers_of(vgg) == ["conv2", "conv3", "classifier"]
    words = [explorables.layer_words(name) for name in ("conv2", "linear13", "classifier")]
    assert words == ["convolution 2", "layer 13", "classifier"]


# --- how far they moved ---


def test_step_ratios_are_those_of_the_claims(vgg, linear):
    table = explorables.step_ratios({"VGG": vgg, "Linear": linear})
    part = table[(table["network"] == "Linear") & (table["lr"] == 1e-7)].set_index("seed")["value"]
    expected = gradients._step_ratio("squared_sum", 1e-7)(linear)
    assert part.to_dict() == pytest.approx(expected)
    assert set(zip(table["network"], table["lr"], strict=True)) == {
        ("VGG", 0.1),
        ("VGG", 0.01),
        ("Linear", 1e-6),
        ("Linear", 1e-7),
    }


# --- the grid ---


def test_the_cells_are_those_of_the_claims_but_count_the_start_once(linear):
    table = explorables.cells(linear)
    assert [place.words for place in explorables.places_of(linear)] == [
        "at the start",
        "rate 1e−6, step 25",
        "rate 1e−6, step 50",
        "rate 1e−7, step 25",
        "rate 1e−7, step 50",
    ]
    lower = (table["bn"] < table["standard"]).reset_index()
    by_claim = gradients.cells_where_bn_is_higher(linear)
    for seed, part in lower.groupby("seed"):
        twice = pd.concat([part, part[part["place"] == 0]])
        assert twice[0].mean() == pytest.approx(by_claim[seed])
        start = gradients.cells_where_bn_is_higher(linear, start_only=True)[seed]
        assert part[part["place"] == 0][0].mean() == pytest.approx(start)


def test_the_heatmap_shows_median_gaps_and_where_the_seeds_agree(view, vgg):
    data = pd.DataFrame(rows_with(view("grid"), "shown", "panel"))
    frame = gradients.matched_shifts(vgg)
    places = {place.words: place for place in explorables.places_of(vgg)}
    assert len(data) == len(places) * 3 * len(LENGTHS)
    layers = {"conv 2": "conv2", "conv 3": "conv3", "classifier": "classifier"}
    for row in data.to_dict("records"):
        place = places[row["panel"]]
        part = frame[
            (frame["lr"] == place.lr)
            & (frame["step"] == place.step)
            & (frame["layer"] == layers[row["row"]])
            & (frame["length"] == row["length"])
        ].pivot_table(index="seed", columns="arm", values="value")
        gaps = (part["standard"] - part["bn"]).dropna()
        assert float(row["shown"].replace("−", "-")) == pytest.approx(gaps.median(), abs=0.00501)
        assert row["shift"] == ("Batch norm" if gaps.median() > 0 else "Standard")
        same = (gaps > 0).all() or (gaps <= 0).all()
        assert row["agree"] == (same and abs(gaps.median()) >= 0.005)


def test_the_two_cells_that_contradict_each_other_do(vgg):
    more, less = explorables.contradiction(vgg)
    for text, sign in ((more, 1), (less, -1)):
        numbers = text.split("cosine ")[1].replace("−", "-").replace(" with it", "").split(" without BN, ")
        without, with_bn = (float(number) for number in numbers)
        assert sign * (without - with_bn) > 0


# --- one cell and its seeds ---


@pytest.mark.parametrize("show", ["cosine", "distance"])
@pytest.mark.parametrize("place, depth, exponent", [(0, 1, -1), (2, 3, -2), (5, 9, -3), (7, 1, -1)])
def test_sensitivity_states_the_chosen_cell_and_counts_the_others(view, grids, show, place, depth, exponent):
    data = view("sensitivity", place=place, depth=depth, exponent=exponent, show=show)
    own = len(explorables.places_of(grids[0].record))
    grid, number = (grids[0], place) if place < own else (grids[1], place - own)
    layers = explorables.layers_of(grid.record)
    layer = layers[min(depth, len(layers)) - 1]
    table = explorables.cells(grid.record).loc[number]
    chosen = table.loc[(layer, 10.0**exponent)]
    lower = int((chosen["bn"] < chosen["standard"]).sum())
    everywhere = int((table["bn"] < table["standard"]).sum())
    told = words_of(data)
    assert f"Batch norm shifts more in {lower} of {len(chosen)} seeds here," in told
    assert f"and in {everywhere} of {len(table)} cells (layer, length, seed) then." in told
    where = f"{grid.words}, {explorables.places_of(grid.record)[number].words}"
    short = explorables.layer_words(layer).replace("convolution", "conv")
    assert f"{where}, {short}, length 1e−{-exponent}:" in told
    for arm, label in (("standard", "Standard"), ("bn", "Batch norm")):
        (line,) = (text for text in told if text.startswith(f"{label}: cosine "))
        numbers = line.split("cosine ")[1].replace("(", "").replace(")", "").replace("to ", "")
        values = chosen[arm]
        np.testing.assert_allclose(
            [float(word) for word in numbers.replace("−", "-").split()],
            [values.median(), values.min(), values.max()],
            atol=2e-4,
        )
    points = pd.DataFrame(rows_with(data, "which", "y"))
    expected = table.loc[layer]
    for arm, which in (("standard", "a"), ("bn", "b")):
        part = points[points["which"] == which].drop_duplicates(["seed", "x"])
        found = {(round(10.0**x, 9), seed): y for x, seed, y in part[["x", "seed", "y"]].to_numpy()}
        values = {(round(length, 9), seed): value for (length, seed), value in expected[arm].items()}
        assert found.keys() == values.keys()
        for key, value in values.items():
            right = value if show == "cosine" else np.log10(max(1 - value, 1e-16))
            assert found[key] == pytest.approx(right, abs=1e-3)


def test_lengths_that_a_slider_cannot_name_are_refused(grids, monkeypatch):
    monkeypatch.setattr(explorables, "lengths_of", lambda record: [1e-3, 5e-3, 1e-2])
    with pytest.raises(ValueError, match="powers of ten"):
        explorables.sensitivity(grids)


# --- shift and training ---


def test_pairs_with_more_shift_and_a_lower_loss_are_counted(vgg, linear):
    table = explorables.shift_and_loss({"VGG": vgg, "Linear": linear})
    counts = explorables.lower_loss_more_shift(table)
    assert {name: n for name, (_, n) in counts.items()} == {
        "VGG, rate 0.1": 3,
        "VGG, rate 0.01": 2,  # one run diverged
        "Linear, rate 1e−6": 3,
        "Linear, rate 1e−7": 3,
    }
    part = table[table["setting"] == "VGG, rate 0.1"].set_index(["arm", "seed"])
    losses = vgg.frame("lr", metric="train_loss")
    losses = losses[(losses["lr"] == 0.1) & (losses["step"] >= 45)]
    pairs = 0
    for seed in range(SEEDS):
        ends, shift = {}, {}
        for arm in ("standard", "bn"):
            own = losses[(losses["arm"] == arm) & (losses["seed"] == seed)]
            ends[arm] = own["value"].mean()
            shift[arm] = 1 - gradients.typical(vgg, arm, 0.1)[seed]
            assert part.loc[(arm, seed), "loss"] == pytest.approx(ends[arm])
            assert part.loc[(arm, seed), "shift"] == pytest.approx(shift[arm])
        pairs += (ends["bn"] < ends["standard"]) == (shift["bn"] > shift["standard"])
    assert counts["VGG, rate 0.1"][0] == pairs


# --- all of them ---


def test_every_control_says_what_it_moves_and_the_figures_have_alt_text(vgg, linear, grids):
    for build in (
        lambda: explorables.equal_rate(vgg, "a VGG"),
        lambda: explorables.equal_rate(linear, "a linear network"),
        lambda: explorables.sensitivity(grids),
    ):
        panel, explorer = build().children
        assert isinstance(explorer, Explorer)
        assert len(explorer.description) > 100 and any(c.isdigit() for c in explorer.description)
        assert all(control.description for control in panel.children)
        assert len(panel.children) == len(explorer.params)
        assert build().children[1].spec == explorer.spec  # nothing random between two calls
    both = {"VGG": vgg, "Linear": linear}
    for chart in (
        explorables.step_ratio_chart(both),
        explorables.grid_chart(vgg, "a VGG"),
        explorables.shift_and_loss_chart(both),
    ):
        assert any(c.isdigit() for c in chart.description)


@pytest.mark.parametrize("chart", ["vgg", "linear", "sensitivity", "ratio", "grid", "loss"])
@pytest.mark.parametrize("width", [390, 900])
def test_a_chart_fits_the_page_and_its_words_stay_inside(page, chart, width):
    assert_fits(page, chart, width)
