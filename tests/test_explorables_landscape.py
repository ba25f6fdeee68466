"""The explorables of chapter 7 compute what pandas and the claims compute, read out of running Vega views."""

import itertools
import math
from statistics import median

import numpy as np
import pandas as pd
import pytest
from browser import assert_fits, drawn, rows_with, spec_of
from sample import record_of

from bnlib import charts, records
from bnlib.experiments import landscape
from bnlib.explorables import landscape as explorables
from bnlib.widgets import Explorer

SEEDS, STEPS, EVERY = 3, 60, 20
RATE = {"vgg": 0.1, "linear": 1e-6}
FACTORS = {"vgg": [0.5, 1.0, 2.0, 4.0], "linear": [0.01, 1.0, 30.0]}
LENGTHS = [0.001, 0.01, 0.1]
LABELS = {charts.ARMS[arm].label: arm for arm in explorables.ARMS}


def scanned(labels, losses, changes, start, norm, pattern="{}", beta=0.0):
    """Rows (metric, value) as a scan gives them; what is not finite is left out."""
    values = {"loss": start, "gradient_norm": norm, "effective_beta": beta}
    for label, loss, change in zip(labels, losses, changes, strict=True):
        values |= {f"loss@{label:g}": loss, f"predictiveness@{label:g}": change}
    values |= {"loss_low": min(losses), "loss_high": max(losses)}
    values |= {"predictiveness_low": min(changes), "predictiveness_high": max(changes)}
    values["finite"] = float(
        np.mean([math.isfinite(v) and math.isfinite(c) for v, c in zip(losses, changes, strict=True)])
    )
    return [(pattern.format(name), value) for name, value in values.items() if math.isfinite(value)]


def network(name: str, seed: int) -> records.Record:
    """A record that was never on disk. In the linear network one walk of the standard net leaves the numbers,
    and losses span many decades."""
    rng = np.random.default_rng(seed)
    runs, rows = [], []
    for arm, number in itertools.product(explorables.ARMS, range(SEEDS)):
        run = f"{arm} {number}"
        settings = {"lr": RATE[name], "steps": STEPS}
        runs.append({"id": run, "arm": arm, "seed": number, "settings": settings, "diverged_at": None})
        for step in range(0, STEPS + 1, EVERY):
            start, norm = rng.uniform(1, 3), rng.uniform(0.5, 4)
            for labels, pattern in ((FACTORS[name], "{}"), (LENGTHS, "relative_{}")):
                size = 10 ** rng.uniform(0, 9 if name == "linear" else 1, len(labels))
                losses, changes = list(start * size), list(norm * rng.uniform(0.1, 5, len(labels)))
                if (name, arm, number, step, pattern) == ("linear", "standard", 1, 20, "{}"):
                    losses[-1] = changes[-1] = math.inf
                unit = 1 if pattern != "{}" else RATE[name] * norm
                beta = max(c / (at * unit) for c, at in zip(changes, labels, strict=True))
                found = scanned(labels, losses, changes, start, norm, pattern, beta)
                rows += [(run, step, "", metric, value) for metric, value in found]
            for version in list(explorables.VERSIONS)[1:]:
                labels = landscape.MISTAKE_FACTORS
                changes = list(rng.uniform(0.1, 9, len(labels)))
                if (version, arm, number, step) == ("logits_for_loss", "standard", 2, 40):
                    changes[-1] = math.inf
                found = scanned(labels, changes, changes, start, norm, f"{{}}[{version}]", max(changes))
                rows += [(run, step, "", metric, value) for metric, value in found]
            for layer in ("conv2", "conv10"):
                rows.append((run, step, layer, "activation_effective_beta", rng.uniform(0.01, 1)))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def vgg() -> records.Record:
    return network("vgg", 0)


@pytest.fixture(scope="module")
def linear() -> records.Record:
    return network("linear", 1)


@pytest.fixture(scope="module")
def both(vgg, linear) -> dict[str, records.Record]:
    return {"VGG": vgg, "Linear": linear}


@pytest.fixture(scope="module")
def figures(vgg, linear, both) -> dict:
    return {
        "vgg": explorables.profile(vgg, "a VGG"),
        "linear": explorables.profile(linear, "a linear network"),
        "training": explorables.over_training(both),
        "side": explorables.side_by_side(vgg, "a VGG"),
        "beta": explorables.beta_chart(both),
        "ratio": explorables.beta_ratio_chart(both),
        "scatter": explorables.loss_scatter(vgg, "a VGG"),
        "activations": explorables.activation_chart(vgg),
        "versions": explorables.version_chart(vgg),
    }


@pytest.fixture(scope="module")
def page(figures):
    """A page with the charts drawn."""
    with drawn(figures) as page:
        yield page


def words_of(data: list[list[dict]]) -> set[str]:
    return {row["words"] for rows in data for row in rows if row.get("words")}


def numbers_of(text: str) -> list[float]:
    """The numbers of a line of words, after its colon."""
    text = text.split(": ", 1)[1].replace("−", "-")
    for character in "(),":
        text = text.replace(character, " ")
    return [float(word) for word in text.split() if word[0] in "-0123456789"]


# --- one walk ---


@pytest.mark.parametrize("quantity", ["loss", "change", "beta"])
@pytest.mark.parametrize("relative", [0, 1])
@pytest.mark.parametrize("name, moment", [("vgg", 20), ("linear", 60), ("linear", 0)])
def test_the_profile_shows_what_was_walked(view, request, name, moment, relative, quantity):
    record = request.getfixturevalue(name)
    params = {"moment": moment, "relative": relative, "quantity": quantity}
    data = view(name, standard=True, bn=True, fixed=False, **params)
    table = explorables.walks(record, bool(relative))
    table = table[table["step"] == moment]
    points = pd.DataFrame(rows_with(data, "x", "v", "k", "seed"))
    points = points[points["k"] == points["chosen"]]
    assert set(points["step"]) == {moment}
    labels = explorables.labels_of(record, bool(relative))
    to_scale = name == "vgg" and not relative
    places = labels if to_scale else range(1, len(labels) + 1)
    at = dict(zip(map(float, places), labels, strict=True))
    found = points[points["x"] > 0]
    found = found.assign(arm=found["arm"].map(LABELS), at=[at[x] for x in found["x"]])
    found = found.drop_duplicates(["arm", "seed", "at"]).set_index(["arm", "seed", "at"])["v"]
    expected = table.set_index(["arm", "seed", "at"])[quantity]
    expected = expected[np.isfinite(expected)]
    assert set(found.index) == set(expected.index)
    np.testing.assert_allclose(found.loc[list(expected.index)], expected, rtol=6e-3)
    start = points[points["x"] == 0]
    if quantity == "loss":  # the walk begins where training stands
        start = start.assign(arm=start["arm"].map(LABELS)).drop_duplicates(["arm", "seed"])
        expected = table.groupby(["arm", "seed"])["start"].first()
        start = start.set_index(["arm", "seed"])["v"].loc[list(expected.index)]
        np.testing.assert_allclose(start, expected, rtol=6e-3)
    told = words_of(data)
    assert f"Step {moment} of training (medians over the seeds):" in told
    for label, arm in LABELS.items():
        (line,) = (text for text in told if text.startswith(f"{label}: "))
        ends = table[table["arm"] == arm].groupby("seed")[quantity].agg(["min", "max"]).median()
        right = [ends["min"], ends["max"]]
        if quantity == "loss":
            right.insert(0, table[table["arm"] == arm].groupby("seed")["start"].first().median())
        np.testing.assert_allclose(numbers_of(line), right, rtol=1.2e-2)


def test_a_walk_that_leaves_the_numbers_has_no_point_there_and_is_infinite_in_the_table(view, linear):
    table = explorables.walks(linear)
    gone = table[(table["arm"] == "standard") & (table["seed"] == 1) & (table["step"] == 20)]
    assert list(np.isfinite(gone["loss"])) == [True, True, False]
    assert gone["beta"].iloc[-1] == math.inf
    data = view("linear", moment=20, relative=0, quantity="loss", standard=True, bn=True)
    points = pd.DataFrame(rows_with(data, "x", "v", "k", "seed"))
    points = points[(points["k"] == points["chosen"]) & (points["arm"] == "Standard") & (points["seed"] == 1)]
    assert set(points["x"]) == {0, 1, 2}


@pytest.mark.parametrize("standard, bn, shown", [(True, False, 1), (False, True, 1), (False, False, 2)])
def test_an_arm_can_be_hidden_but_not_both(view, standard, bn, shown):
    data = view("vgg", standard=standard, bn=bn, moment=20, relative=0, quantity="loss")
    arms = {row["arm"] for row in rows_with(data, "x", "v", "k", "seed")}
    assert len(arms) == shown
    if shown == 1:
        assert arms == {"Standard" if standard else "Batch norm"}


def test_a_moment_that_was_not_probed_shows_the_nearest_one(view):
    data = view("vgg", moment=33, standard=True, bn=True)
    assert any(text.startswith("Step 40 of training") for text in words_of(data))


def test_steps_that_a_slider_cannot_name_are_refused(vgg, monkeypatch):
    monkeypatch.setattr(explorables, "steps_of", lambda record: [0, 20, 30])
    with pytest.raises(ValueError, match="equally spaced"):
        explorables.profile(vgg, "a VGG")


# --- over training ---


@pytest.mark.parametrize("quantity", ["loss", "predictiveness", "effective_beta", "norm"])
@pytest.mark.parametrize("relative", [0, 1])
@pytest.mark.parametrize("number", [0, 1])
def test_over_training_says_what_the_claims_measure(view, both, quantity, relative, number):
    record = list(both.values())[number]
    told = words_of(view("training", quantity=quantity, network=number, relative=relative))
    if quantity == "norm":
        metric = "relative_gradient_norm" if relative else "gradient_norm"
        frame = record.frame(metric=metric)
        typical = {
            arm: frame[frame["arm"] == arm].groupby("seed")["value"].median() for arm in explorables.ARMS
        }
        ratios = list(typical["bn"] / typical["standard"])
        typical = {arm: dict(values) for arm, values in typical.items()}
    else:
        typical = {arm: landscape.typical(record, arm, quantity, bool(relative)) for arm in explorables.ARMS}
        ratios = list(landscape.bn_over_standard(quantity, bool(relative))(record).values())
    for label, arm in LABELS.items():
        (line,) = (text for text in told if text.startswith(f"{label}: "))
        values = typical[arm].values()
        np.testing.assert_allclose(numbers_of(line), [median(values), min(values), max(values)], rtol=2e-2)
    (line,) = (text for text in told if text.startswith("Batch norm / standard: "))
    np.testing.assert_allclose(numbers_of(line), [median(ratios), min(ratios), max(ratios)], rtol=3e-2)
    if quantity != "norm":
        (line,) = (text for text in told if text.startswith("Its median by thirds"))
        parts = explorables.thirds(record, quantity, bool(relative))
        np.testing.assert_allclose(numbers_of(line), [median(p.values()) for p in parts], rtol=3e-2)


def test_thirds_are_parts_of_the_training(vgg):
    assert list(explorables.third_of(pd.Series([0, 20, 40, 60]))) == [0, 0, 1, 2]
    table = landscape.ranges(vgg, "predictiveness").query("step <= 20")
    by_hand = table.groupby(["arm", "seed"])["high"].median()
    assert explorables.thirds(vgg, "predictiveness")[0] == pytest.approx(
        dict(by_hand["bn"] / by_hand["standard"])
    )


def test_the_six_panels_show_the_medians_of_the_ranges(view, vgg):
    data = pd.DataFrame(rows_with(view("side"), "x", "median_top", "median_bottom", "panel"))
    data = data.assign(arm=data["arm"].map(LABELS)).set_index(["panel", "arm", "x"])
    for quantity, relative, words in explorables._panels():
        expected = (
            landscape.ranges(vgg, quantity, relative).groupby(["arm", "step"])[["low", "high"]].median()
        )
        found = 10 ** data.loc[words].loc[list(expected.index), ["median_bottom", "median_top"]]
        np.testing.assert_allclose(found, expected, rtol=6e-3)
        assert len(data.loc[words]) == len(expected)


# --- single step sizes, and equal losses ---


def test_the_largest_beta_of_a_walk_is_the_effective_beta(vgg, linear):
    for record, relative in itertools.product((vgg, linear), (False, True)):
        largest = explorables.walks(record, relative).groupby(["arm", "seed", "step"])["beta"].max()
        expected = landscape.ranges(record, "effective_beta", relative).set_index(["arm", "seed", "step"])
        np.testing.assert_allclose(largest, expected.loc[largest.index, "high"])


def test_betas_and_their_ratios_are_medians_of_the_walks(vgg):
    table = explorables.walks(vgg)
    part = table[(table["arm"] == "bn") & (table["seed"] == 1) & (table["at"] == 2) & (table["step"] <= 20)]
    found = explorables.betas(vgg).set_index(["third", "arm", "seed", "at"])["value"]
    assert found[0, "bn", 1, 2.0] == pytest.approx(part["beta"].median())
    assert set(found.index.get_level_values("third")) == {0, 2}
    ratios = explorables.beta_ratios(vgg)
    one, two = (
        table[(table["arm"] == arm) & (table["seed"] == 1) & (table["at"] == 2)]["beta"].median()
        for arm in ("bn", "standard")
    )
    assert ratios.loc[1, 2.0] == pytest.approx(one / two)


def test_at_equal_loss_pairs_the_closest_walks():
    runs, rows = [], []
    starts = {"standard": [4.0, 2.0, 1.0], "bn": [2.1, 0.99, 0.5]}
    for arm, losses in starts.items():
        runs.append({"id": arm, "arm": arm, "seed": 0, "settings": {"lr": 0.1}, "diverged_at": None})
        for step, loss in enumerate(losses):
            change = loss**2 * (3 if arm == "bn" else 1)
            found = scanned([1.0], [loss], [change], loss, 1.0)
            rows += [(arm, step, "", metric, value) for metric, value in found]
    record = record_of(runs, rows)
    value, pairs = explorables.at_equal_loss(record, "predictiveness")[0]
    assert pairs == 2  # nothing of the standard network comes near 0.5
    assert value == pytest.approx(median([3 * 2.1**2 / 2**2, 3 * 0.99**2 / 1]))
    assert explorables.at_equal_loss(record, "predictiveness", within=0.001) == {}


# --- activations and the wrong versions ---


def test_activations_are_compared_layer_by_layer_in_the_order_of_the_network(vgg):
    ratios = explorables.activation_ratios(vgg)
    table = vgg.frame(metric="activation_effective_beta")
    table = table[(table["layer"] == "conv10") & (table["seed"] == 2)]
    medians = table.groupby("arm")["value"].median()
    assert ratios["conv10"][2] == pytest.approx(medians["bn"] / medians["standard"])
    chart = explorables.activation_chart(vgg)
    assert spec_of(chart)["facet"]["sort"] == ["Convolution 2", "Convolution 10"]


def test_versions_stand_beside_the_right_measurement_of_the_same_steps(vgg):
    table = explorables.versions(vgg)
    assert list(dict.fromkeys(table["version"])) == list(explorables.VERSIONS)
    right = table[table["version"] == ""].set_index(["arm", "seed", "step"])["value"]
    expected = landscape.ranges(vgg, "predictiveness").set_index(["arm", "seed", "step"])["high"]
    np.testing.assert_allclose(right, expected.loc[right.index])  # the same step sizes here
    betas = explorables.versions(vgg, "effective_beta")
    betas = betas[betas["version"] == ""].set_index(["arm", "seed", "step"])["value"]
    expected = landscape.ranges(vgg, "effective_beta").set_index(["arm", "seed", "step"])["high"]
    np.testing.assert_allclose(betas, expected.loc[betas.index])


def test_a_version_that_left_the_numbers_counts_as_infinite(vgg):
    table = explorables.versions(vgg).set_index(["version", "arm", "seed", "step"])["value"]
    assert table["logits_for_loss", "standard", 2, 40] == math.inf
    assert np.isfinite(table.drop(("logits_for_loss", "standard", 2, 40))).all()


def test_ratios_are_put_into_one_word():
    assert explorables.says([0.5, 0.9]) == "smaller"
    assert explorables.says([1.5, 0.9]) == "mixed"
    assert explorables.says([1.5, 2]) == "larger"


# --- all of them ---


def test_every_control_says_what_it_moves_and_the_figures_have_alt_text(figures, vgg):
    for name in ("vgg", "linear", "training"):
        panel, explorer = figures[name].children
        assert isinstance(explorer, Explorer)
        assert len(explorer.description) > 100 and any(c.isdigit() for c in explorer.description)
        assert all(control.description for control in panel.children)
        assert len(panel.children) == len(explorer.params)
    again = explorables.profile(vgg, "a VGG").children[1].spec
    assert again == figures["vgg"].children[1].spec  # nothing random between two calls
    for name in ("side", "beta", "ratio", "scatter", "activations", "versions"):
        assert any(c.isdigit() for c in figures[name].description)


CHARTS = ["vgg", "linear", "training", "side", "beta", "ratio", "scatter", "activations", "versions"]


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("width", [390, 900])
def test_a_chart_fits_the_page_and_its_words_stay_inside(page, chart, width):
    assert_fits(page, chart, width)
