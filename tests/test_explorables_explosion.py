"""The figures of chapter 10 compute what the theory and pandas compute, read out of running Vega views."""

import itertools
import math

import numpy as np
import pytest
from browser import assert_fits, drawn, rows_with, told
from sample import record_of

from bnlib import charts, records, signal_propagation
from bnlib.experiments.explosion import HE, RATES
from bnlib.explorables import explosion as explorables
from bnlib.theory import mean_field

SEEDS, DEPTH, BLOCKS = 3, 12, 9
BATCHES = (8, 32)
DEPTHS = (2, 5, 50)
PREDICTIONS = [
    signal_propagation.predict(norm, activation, batch)
    for norm in ("batch", "layer")
    for activation in explorables.ACTIVATIONS
    for batch in (4, 8, 32, math.inf)
]


@pytest.fixture(scope="module")
def wide() -> records.Record:
    """Random networks of every kind that the experiment has; gradients are powers times noise."""
    rng = np.random.default_rng(0)
    nets = [("bn", phi) for phi in explorables.ACTIVATIONS]
    nets += [("layer", "relu"), ("standard", "relu"), ("bn_residual", "relu"), ("residual", "relu")]
    runs, rows = [], []
    for (arm, activation), batch, seed in itertools.product(nets, BATCHES, range(SEEDS)):
        for variance in (HE, 9.0) if (arm, activation, batch) == ("bn", "relu", 32) else (HE,):
            residual = "residual" in arm
            depth = BLOCKS if residual else DEPTH
            name = f"{arm} {activation} {batch} {variance} {seed}"
            settings = {"activation": activation, "batch_size": batch, "weight_variance": variance}
            settings["depth"] = depth
            runs.append({"id": name, "arm": arm, "seed": seed, "settings": settings, "diverged_at": None})
            count = depth + 1 if residual else depth
            for place in range(count):
                layer = f"x{place}" if residual else f"h{place + 1}"
                rows.append((name, 0, layer, "gradient", 1.5 ** (count - place) * rng.uniform(0.9, 1.1)))
            if not residual:
                rows.append((name, 0, "", "rate", rng.uniform(1.4, 1.6)))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def deep() -> records.Record:
    """Training at three depths and rates; one network diverges, one gradient is lost."""
    rng = np.random.default_rng(1)
    runs, rows = [], []
    arms = ("standard", "bn", "layer", "bn_residual", "residual")
    for arm, depth, lr, seed in itertools.product(arms, DEPTHS, RATES, range(SEEDS)):
        name = f"{arm} {depth} {lr} {seed}"
        settings = {"model": {"depth": depth}, "lr": lr, "steps": 20}
        lost = arm == "residual" and lr == RATES[-1]
        runs.append({"id": name, "arm": arm, "seed": seed, "settings": settings, "diverged_at": 3})
        if not lost:
            rows.append((name, 20, "", "train_accuracy", rng.uniform(0.1, 1)))
        layers = [f"linear{k}" for k in range(2, depth + 1)]
        if "residual" in arm:
            layers = [f"block{k}.linear{i}" for k in range(1, depth + 1) for i in (1, 2)]
        for step, layer in itertools.product((0, 1, 10), layers):
            rows.append((name, step, layer, "squared_gradient", 10 ** rng.uniform(-3, 3)))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def page(wide, deep):
    """A page as narrow as a phone with all charts drawn."""
    figures = {
        "signal": explorables.signal(wide, PREDICTIONS),
        "rates": explorables.rates_chart(wide, PREDICTIONS),
        "training": explorables.training(deep, "samples"),
        "first_steps": explorables.first_steps(deep, "samples"),
    }
    with drawn(figures, width=390) as page:
        yield page


def number(words: str) -> float:
    """A number as the figures spell it."""
    mantissa, _, power = words.replace("−", "-").partition("·10^")
    return float(mantissa) * 10.0 ** float(power or 0)


# --- random networks ---


@pytest.mark.parametrize(
    ("net", "act", "skips", "batch", "depth", "power"),
    [
        ("batch", "relu", False, 32, 12, 1.0),
        ("batch", "relu", True, 8, 9, 1.0),
        ("batch", "relu", True, 8, 60, 0.5),
        ("batch", "tanh", False, 8, 7, 0.5),
        ("layer", "relu", False, 32, 30, 1.0),
        ("layer", "gelu", True, 8, 30, 1.0),
        ("batch", "sigmoid", True, explorables.INFINITE, 100, 1.0),
    ],
)
def test_lines_are_measured_and_predicted(wide, view, net, act, skips, batch, depth, power):
    data = view("signal", net=net, act=act, skips=skips, batch=batch, depth=depth, power=power)
    curve = {row["x"]: row["y"] for row in rows_with(data, "x", "y", "step")}
    found = signal_propagation.predict(net, act, math.inf if batch >= explorables.INFINITE else batch)
    for place in (0, 1, depth // 2, depth):
        growth = mean_field.residual_growth(found.rate, place, found.start) if skips else found.rate**place
        assert 10 ** curve[place] == pytest.approx(growth**power, rel=1e-4)
    assert len(curve) == depth + 1
    words = told(data)
    arm = {("batch", False): "bn", ("batch", True): "bn_residual", ("layer", False): "layer"}.get(
        (net, skips)
    )
    table = explorables.growth(wide)
    mine = table[(table["arm"] == arm) & (table["activation"] == act) & (table["batch_size"] == batch)]
    mine = mine[mine["place"] <= depth]
    lines = [row for rows in data for row in rows if row.get("seed", -1) >= 0 and "x" in row]
    if mine.empty:
        assert not any("Measured" in line for line in words)
        return
    shown = {(row["seed"], row["x"]): row["y"] for row in lines}
    assert len(shown) == len(mine)
    for row in mine.itertuples():
        assert shown[row.seed, row.place] == pytest.approx(power * math.log10(row.value), abs=2e-3)
    (line,) = (line for line in words if line.startswith("Measured"))
    last = mine[mine["place"] == mine["place"].max()]["value"] ** power
    assert f"over {mine['place'].max()}:" in line
    assert number(line.split("× ")[1].split(" ")[0]) == pytest.approx(last.median(), rel=4e-2)
    assert number(line.split("(")[1].split(" ")[0]) == pytest.approx(last.min(), rel=4e-2)


def test_growth_starts_at_the_second_layer_or_the_first_block(wide):
    table = explorables.growth(wide).set_index(["arm", "activation", "batch_size", "seed", "place"])["value"]
    frame = wide.frame("activation", "batch_size", "weight_variance", metric="gradient")
    frame = frame[(frame["weight_variance"] == HE) & (frame["batch_size"] == 32) & (frame["seed"] == 1)]
    for arm, start, later in (("bn", "h2", "h7"), ("bn_residual", "x0", "x5")):
        part = frame[(frame["arm"] == arm) & (frame["activation"] == "relu")].set_index("layer")["value"]
        assert table[arm, "relu", 32, 1, 5] == pytest.approx(part[start] / part[later])


def test_the_readout_has_the_rate(view):
    words = told(view("signal", net="batch", act="relu", skips=False, batch=32, depth=10, power=1.0))
    rate = mean_field.relu_growth_rate(32)
    assert "Batch norm, ReLU, batch of 32, no skips" in words
    assert f"λ = {rate:.4f} per layer, √λ = {math.sqrt(rate):.4f} for the norm" in words
    (line,) = (line for line in words if line.startswith("Predicted"))
    assert number(line.split("× ")[1]) == pytest.approx(rate**10, rel=6e-3), words
    words = told(view("signal", act="linear", batch=explorables.INFINITE, skips=True))
    assert "Batch norm, none (linear), batch of ∞, with skips" in words
    assert "λ = 1.0000 is the exponent of a power of the depth" in words


def test_wikipedias_norm_is_drawn_where_it_applies(view):
    def dotted(**params):
        words = told(view("signal", **params))
        return any(line.startswith("Dotted") for line in words)

    assert dotted(net="batch", act="relu", skips=False, batch=8, depth=20, power=0.5)
    assert not dotted(power=1.0)
    assert not dotted(power=0.5, skips=True)
    assert not dotted(skips=False, net="layer")


def test_dots_of_the_rates(wide, view):
    data = view("rates")
    dots = [row for rows in data for row in rows if "values" in row and "y" in row]
    frame = wide.frame("activation", "batch_size", "weight_variance", metric="rate")
    frame = frame[(frame["arm"] == "bn") & (frame["weight_variance"] == HE)]
    expected = sorted(
        (explorables.ACTIVATIONS[row.activation].label, row.batch_size, float(f"{row.value:.5g}"))
        for row in frame.itertuples()
    )
    assert sorted((row["arm"], row["x"], row["y"]) for row in dots) == expected
    lines = [row for rows in data for row in rows if {"arm", "x", "y"} <= row.keys() and "values" not in row]
    seen = {(row["arm"], row["x"]): row["y"] for row in lines}
    assert seen["ReLU", 8] == pytest.approx(1.78819, abs=1e-4)


# --- training ---


@pytest.mark.parametrize("quantity", explorables.QUANTITIES.values())
@pytest.mark.parametrize("rate", [RATES[0], RATES[-1], explorables.BEST])
def test_curves_over_the_depth(deep, view, quantity, rate):
    data = view("training", quantity=quantity, rate=rate, at=50)
    table = explorables.trained(deep)
    table = table[(table["lr"] == rate) & np.isfinite(table[quantity])]
    labels = {arm.label: name for name, arm in explorables.ARMS.items()}
    shown = {
        (labels[row["arm"]], row["x"], row["seed"]): row["y"]
        for row in rows_with(data, "arm", "x", "y", "seed")
    }
    assert len(shown) == len(table)
    for row in table.itertuples():
        assert shown[row.arm, row.depth, row.seed] == pytest.approx(
            getattr(row, quantity), rel=1e-3, abs=1e-3
        )
    median = table[(table["arm"] == "bn") & (table["depth"] == 50)][quantity].median()
    (line,) = (line for line in told(data) if line.startswith("Batch norm:"))
    word = line.split(": ")[1].split(" ")[0].replace("−", "-")
    if quantity == "accuracy":
        assert float(word) == pytest.approx(median, abs=6e-3)
    else:
        assert float(word.removeprefix("10^")) == pytest.approx(median, abs=0.06)


def test_the_best_rate_is_that_of_the_highest_accuracy(deep):
    table = explorables.trained(deep)
    best = table[table["lr"] == explorables.BEST].set_index(["arm", "depth", "seed"])["accuracy"]
    rest = table[table["lr"] > 0].groupby(["arm", "depth", "seed"])["accuracy"].max()
    assert best.to_dict() == rest.to_dict()
    lost = table[(table["arm"] == "residual") & (table["lr"] == RATES[-1])]
    assert set(lost["accuracy"]) == {0.1}


@pytest.mark.parametrize(
    ("net", "layers", "rate"), [("bn", 50, 0.1), ("bn_residual", 5, 0.01), ("standard", 5, 0.1)]
)
def test_gradients_by_layer_in_the_first_steps(deep, view, net, layers, rate):
    data = view("first_steps", net=net, layers=layers, rate=rate)
    frame = deep.frame("depth", "lr", metric="squared_gradient")
    mine = frame[(frame["arm"] == net) & (frame["depth"] == layers) & (frame["lr"] == rate)]
    moments = {words: step for step, (words, _) in explorables.MOMENTS.items()}
    shown = {
        (moments[row["arm"]], row["x"], row["seed"]): row["y"]
        for row in rows_with(data, "arm", "x", "y", "seed")
    }
    assert len(shown) == len(mine)
    for seed, step in itertools.product(range(SEEDS), moments.values()):
        part = mine[(mine["seed"] == seed) & (mine["step"] == step)]
        for x, value in enumerate(part["value"], start=1):  # the sample is written in the layers' order
            assert shown[step, x, seed] == pytest.approx(math.log10(value), abs=6e-3)
    spread = mine.groupby(["seed", "step"])["value"].agg(lambda v: math.log10(v.max() / v.min()))
    (line,) = (line for line in told(data) if line.startswith("after one step"))
    assert float(line.split("10^")[1]) == pytest.approx(spread.xs(1, level="step").median(), abs=0.06)


@pytest.mark.parametrize("name", ["signal", "training", "first_steps", "rates"])
@pytest.mark.parametrize("width", [390, 1000])
def test_figures_fit_their_page(page, name, width):
    assert_fits(page, name, width)


def test_alt_texts_have_the_medians(wide, deep):
    table = explorables.growth(wide)
    last = table[(table["arm"] == "bn") & (table["activation"] == "tanh") & (table["batch_size"] == 32)]
    median = last[last["place"] == DEPTH - 2]["value"].median()
    assert f"tanh {charts.spell(median)}" in explorables.signal(wide, PREDICTIONS).children[1].description
    best = explorables.trained(deep).query("lr == -1 and arm == 'bn' and depth == 50")["accuracy"].median()
    words = explorables.training(deep, "samples").children[1].description
    assert f"{charts.spell(best)} at 50; Layer norm" in words
