"""The figures of chapter 12 compute what pandas and the claims compute, read out of running Vega views."""

from __future__ import annotations

import itertools
import math
from statistics import median

import numpy as np
import pytest
from browser import assert_fits, drawn, rows_with, told
from sample import record_of

from bnlib import charts, records
from bnlib.experiments import scale
from bnlib.explorables import scale as explorables

SEEDS = 3
STEPS = (0, 20, 40)
LAYERS = ("conv1", "conv2", "conv10")


def _run(name: str, arm: str, seed: int, **settings) -> dict:
    return {"id": name, "arm": arm, "seed": seed, "settings": settings, "diverged_at": None}


@pytest.fixture(scope="module")
def lengths() -> records.Record:
    rng = np.random.default_rng(0)
    runs, rows = [], []
    for kind, seed in itertools.product(explorables.KINDS, range(SEEDS)):
        name = f"{kind} seed={seed}"
        how = {"weight_decay": kind.decay, "decayed": kind.decayed, "hidden_gain": kind.gain}
        runs.append(_run(name, kind.arm, seed, **how))
        for step in STEPS:
            rows.append((name, step, "", "train_loss", rng.uniform(1, 2)))
            if kind.decay:
                rows.append((name, step, "", "equilibrium_angle", math.sqrt(0.2 * kind.decay)))
            for layer, metric in itertools.product(LAYERS, ("effective_rate", "angle")):
                rows.append((name, step, layer, metric, rng.uniform(0.01, 0.1)))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def rates() -> records.Record:
    """The standard run at the largest rate has diverged with seed 1."""
    rng = np.random.default_rng(1)
    runs, rows = [], []
    for arm, rate, seed in itertools.product(explorables.ARMS, (0.01, 1.0, 100.0), range(SEEDS)):
        name = f"{arm} hidden_lr={rate} seed={seed}"
        runs.append(_run(name, arm, seed, hidden_lr=rate))
        rows += [(name, step, "", "train_loss", rng.uniform(1, 2)) for step in STEPS]
        rows += [(name, 40, layer, "effective_rate", rng.uniform(1, 2)) for layer in LAYERS]
        if (arm, rate, seed) == ("standard", 100.0, 1):
            rows.append((name, 20, "", "diverged_at", 20.0))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def spectra() -> records.Record:
    """Twelve nodes per spectrum; one of them counts for nothing."""
    rng = np.random.default_rng(2)
    runs, rows = [], []
    for arm, seed in itertools.product(explorables.ARMS, range(SEEDS)):
        name = f"{arm} seed={seed}"
        runs.append(_run(name, arm, seed))
        for step, prefix in itertools.product(STEPS, ("", "relative_")):
            nodes = np.sort(rng.normal(scale=3, size=12))
            weights = rng.uniform(size=12)
            weights[3] = 1e-12
            weights /= weights.sum()
            values = {f"ritz[0,{k}]": v for k, v in enumerate(nodes)}
            values |= {f"ritz_weight[0,{k}]": v for k, v in enumerate(weights)}
            values |= {f"eigenvalue[{j}]": 20.0 / j + rng.uniform() for j in range(1, 11)}
            values |= {"gradient_share[10]": rng.uniform(), "smallest": nodes[0], "parameters": 1000}
            values["sharpness"] = values["eigenvalue[1]"]
            rows += [(name, step, "", prefix + metric, value) for metric, value in values.items()]
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def descent() -> records.Record:
    rng = np.random.default_rng(3)
    runs, rows = [], []
    for arm, lr, seed in itertools.product(explorables.ARMS, (0.1, 0.4), range(SEEDS)):
        name = f"{arm} lr={lr} seed={seed}"
        runs.append(_run(name, arm, seed, lr=lr, steps=40))
        for step in STEPS:
            rows.append((name, step, "", "edge", rng.uniform(0.5, 2)))
            rows.append((name, step, "", "sharpness@0.5", 2 / lr * rng.uniform(0.5, 2)))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def depths() -> records.Record:
    runs, rows = [], []
    for arm, depth, init in itertools.product(
        ("standard", "bn", "bn_residual"), (2, 20), ("he_normal", "glorot_normal")
    ):
        for seed in range(SEEDS):
            name = f"{arm} depth={depth} init={init} seed={seed}"
            runs.append(_run(name, arm, seed, depth=depth, init=init))
            rows.append((name, 0, "", "sharpness", depth + seed + 100.0 * (init != "he_normal")))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def page(lengths, rates, spectra, descent, depths):
    """A page as narrow as a phone with all charts drawn."""
    kinds = list(explorables.KINDS)
    figures = {
        "toy": explorables.toy(),
        "rates": explorables.kinds_chart(lengths, "effective_rate", kinds, y_title="Effective rate"),
        "loss": explorables.kinds_chart(
            lengths, "train_loss", kinds[:3], y_title="Loss", log_y=False, width=40
        ),
        "angles": explorables.angle_chart(lengths),
        "any": explorables.rates_chart(rates, "train_loss", "Final loss"),
        "spectra": explorables.spectra(spectra, "a sample"),
        "outliers": explorables.outliers_chart(spectra, relative=True),
        "edge": explorables.edge(descent, "a sample"),
        "depth": explorables.depth_chart(depths),
    }
    with drawn(figures, width=390) as page:
        yield page


def number(words: str) -> float:
    return float(words.replace("−", "-"))


# --- lengths and angles ---


def test_the_median_over_the_layers(lengths):
    kind = explorables.Kind("bn", 0.05, "as_rates")
    frame = explorables.by_kind(lengths, "effective_rate", [kind])
    assert set(frame["arm"]) == {explorables.KINDS[kind].label}
    raw = scale.turned(lengths, "bn", "effective_rate", 0.05, "as_rates")
    expected = raw[(raw["seed"] == 1) & (raw["step"] == 20)]["value"].median()
    assert frame[(frame["seed"] == 1) & (frame["step"] == 20)]["value"].tolist() == [expected]


def test_windows_are_means(lengths):
    kind = explorables.Kind("bn", 0.0)
    frame = explorables.by_kind(lengths, "train_loss", [kind])
    wide = explorables.windowed(frame, 40)
    one = frame[frame["seed"] == 0].set_index("step")["value"]
    found = wide[wide["seed"] == 0].set_index("step")["value"]
    assert found[0] == pytest.approx((one[0] + one[20]) / 2)
    assert found[40] == one[40]


def test_every_kind_has_a_run_and_every_run_a_kind():
    declared = {
        explorables.Kind(run.arm, s["weight_decay"], s["decayed"], s["hidden_gain"])
        for run in scale.EXPERIMENTS[0].runs("laptop", 0)
        for s in [run.settings]
    }
    assert declared == set(explorables.KINDS)
    drawn_as = [(arm.colour, arm.dash) for arm in explorables.KINDS.values()]
    assert len(set(drawn_as)) == len(drawn_as)


def test_angles_in_degrees_and_their_prediction(lengths, view):
    data = view("angles")
    rows = [row for rows in data for row in rows if row.get("line") == "conv10 2" and "y" in row]
    lines = [row for row in rows if row["panel"] == "ηλ = 0.01"]  # a page's facets show the last panel's rows
    frame = scale.turned(lengths, "bn", "angle", 0.1)
    frame = frame[(frame["seed"] == 2) & (frame["layer"] == "conv10")]
    expected = dict(zip(frame["step"], np.degrees(frame["value"]), strict=True))
    assert {row["x"]: row["y"] for row in lines} == pytest.approx(expected, rel=6e-3)
    rules = {row["panel"]: row["p"] for row in rows_with(data, "panel", "p")}
    assert rules["ηλ = 0.005"] == pytest.approx(math.degrees(0.1), rel=1e-3)


# --- any learning rate ---


def test_the_end_of_each_run(rates):
    frame = explorables.at_the_end(rates, "effective_rate")
    assert len(frame) == 2 * 3 * SEEDS - 1, "the run that diverged has no end"
    raw = rates.frame("hidden_lr", metric="effective_rate")
    raw = raw[(raw["arm"] == "bn") & (raw["hidden_lr"] == 1.0) & (raw["seed"] == 2)]["value"].median()
    kept = frame[(frame["arm"] == "bn") & (frame["hidden_lr"] == 1.0) & (frame["seed"] == 2)]
    assert kept["value"].tolist() == [raw]
    assert set(explorables.at_the_end(rates, "train_loss")["hidden_lr"]) == {0.01, 1.0, 100.0}


# --- the spectrum ---


def _spectrum_of(record, arm, step, seed, relative):
    prefix = "relative_" if relative else ""
    frame = record.frame()
    frame = frame[(frame["arm"] == arm) & (frame["step"] == step) & (frame["seed"] == seed)]
    values = dict(zip(frame["metric"], frame["value"], strict=True))
    return {
        metric.removeprefix(prefix): value
        for metric, value in values.items()
        if metric.startswith("relative_") == bool(relative)
    }


@pytest.mark.parametrize(
    "moment, relative, seed, sigma, fixed",
    [(40, 0, 0, 1.0, False), (0, 1, 2, 6.0, False), (20, 0, 1, 2.0, True), (20, 1, 1, 0.5, True)],
)
def test_the_density_is_that_of_the_nodes(spectra, view, moment, relative, seed, sigma, fixed):
    data = view(
        "spectra",
        moment=moment,
        relative=relative,
        seed=seed,
        sigma=sigma,
        fixed=fixed,
        standard=True,
        bn=True,
    )
    points = rows_with(data, "arm", "x", "sum")
    assert {row["arm"] for row in points} == set(explorables.LABELS)
    every = [
        _spectrum_of(spectra, arm, step, seed, relative)
        for arm in explorables.ARMS
        for step in (STEPS if fixed else (moment,))
    ]
    nodes = [[s[f"ritz[0,{k}]"] for k in range(12)] for s in every]
    reach = max(map(max, nodes)) - min(map(min, nodes))
    width = sigma / 100 * reach
    for arm in explorables.ARMS:
        values = _spectrum_of(spectra, arm, moment, seed, relative)
        mine = [row for row in points if row["arm"] == charts.ARMS[arm].label]
        assert len(mine) == explorables.POINTS + 1
        for row in mine[::17]:
            expected = sum(
                1000
                * values[f"ritz_weight[0,{k}]"]
                * math.exp(-(((row["x"] - values[f"ritz[0,{k}]"]) / width) ** 2) / 2)
                for k in range(12)
            ) / math.sqrt(2 * math.pi)
            assert row["sum"] == pytest.approx(expected, rel=0.1, abs=1e-2)
    words = told(data)
    (line,) = (w for w in words if w.startswith("Batch norm: λ₁ "))
    first, tenth, quotient = (number(part.split(" ")[-1]) for part in line.split(", "))
    values = _spectrum_of(spectra, "bn", moment, seed, relative)
    assert first == pytest.approx(values["eigenvalue[1]"], rel=6e-3)
    assert tenth == pytest.approx(values["eigenvalue[10]"], rel=6e-3)
    assert quotient == pytest.approx(values["eigenvalue[1]"] / values["eigenvalue[10]"], rel=6e-3)
    shares = [w for w in words if "ten hold" in w]
    assert any(f"ten hold {100 * values['gradient_share[10]']:.0f} %" in w for w in shares)
    assert any(
        w.startswith(f"Step {moment}, seed {seed}, {'relative' if relative else 'raw'}") for w in words
    )


def test_one_arm_alone_and_never_none(view):
    def arms(**shown):
        return {row["arm"] for row in rows_with(view("spectra", **shown), "arm", "x", "sum")}

    assert arms(standard=False, bn=True) == {"Batch norm"}
    assert arms(standard=True, bn=False) == {"Standard"}
    assert arms(standard=False, bn=False) == arms(standard=True, bn=True) == set(explorables.LABELS)


def test_nodes_that_count_for_nothing_are_left_out(spectra):
    rows = explorables.spectrum_rows(spectra)
    assert len(rows) == 2 * 2 * len(STEPS) * SEEDS
    assert all(len(row["nodes"].split()) == len(row["counts"].split()) == 11 for row in rows)


def test_outliers_over_training(spectra):
    frame = explorables.over_training(spectra, relative=True)
    assert len(frame) == 3 * 2 * len(STEPS) * SEEDS
    values = _spectrum_of(spectra, "standard", 20, 1, 1)
    mine = frame[(frame["arm"] == "standard") & (frame["step"] == 20) & (frame["seed"] == 1)]
    found = mine.set_index("quantity")["value"]
    assert found["λ₁ / λ₁₀"] == pytest.approx(values["eigenvalue[1]"] / values["eigenvalue[10]"])
    assert found["λ₁"] == values["eigenvalue[1]"]


def test_a_slider_needs_equal_steps():
    run = _run("bn seed=0", "bn", 0)
    rows = [("bn seed=0", step, "", "sharpness", 1.0) for step in (0, 10, 30)]
    with pytest.raises(ValueError, match="equally spaced"):
        explorables.spectra(record_of([run], rows), "a sample")


def test_depth_is_he_without_residuals(depths):
    chart = explorables.depth_chart(depths)
    assert "glorot" not in str(chart.to_dict())
    assert "Standard" in chart.description
    assert "100" not in chart.description


# --- the edge of stability ---


@pytest.mark.parametrize("halfway, units", [(False, 0), (True, 1), (True, 0), (False, 1)])
@pytest.mark.parametrize("lr", [0.1, 0.4])
def test_sharpness_and_its_edge(descent, view, lr, halfway, units):
    data = view("edge", lr=lr, halfway=halfway, units=units, standard=True, bn=True, fixed=False)
    frame = scale.edges(descent, "bn", halfway)
    frame = frame[frame["lr"] == lr]
    factor = 1 if units else 2 / lr
    points = [
        row
        for row in rows_with(data, "arm", "seed", "x", "y", "lr")
        if row["arm"] == "Batch norm" and row["lr"] == lr
    ]
    found = {(row["seed"], row["x"]): 10 ** row["y"] for row in points}
    expected = {(r.seed, r.step): factor * r.value for r in frame.itertuples()}
    assert found == pytest.approx(expected, rel=1e-3)
    (line,) = (w for w in told(data) if w.startswith("Batch norm: "))
    settled = explorables.settled(descent, "bn", lr, halfway).values()
    assert number(line.removeprefix("Batch norm: ").split(" ")[0]) == pytest.approx(
        factor * median(settled), rel=6e-3
    )
    assert number(line.split(", ")[-1].split(" ")[0]) == pytest.approx(median(settled), rel=6e-3)
    rules = [row["y"] for rows in data for row in rows if set(row) >= {"n", "y"} and "told" not in row]
    assert 10 ** rules[0] == pytest.approx(1 if units else 2 / lr)


def test_one_arm_of_the_descent(view):
    data = view("edge", standard=False, bn=True)
    assert {row["arm"] for row in rows_with(data, "arm", "seed", "x", "y")} == {"Batch norm"}
    data = view("edge", standard=False, bn=False)
    assert {row["arm"] for row in rows_with(data, "arm", "seed", "x", "y")} == set(explorables.LABELS)


# --- the toy ---


@pytest.mark.parametrize(
    "eta, decay, length, noise",
    [(0.1, 0.0, 1.0, 0.5), (10.0, 0.0, 0.1, 0.0), (0.3, 0.1, 1.0, 1.0), (10.0, 0.03, 10.0, 2.0)],
)
def test_the_toy_computes_its_path_in_the_page(view, eta, decay, length, noise):
    data = view("toy", eta=eta, decay=decay, len=length, noise=noise, view="turn")
    rows = sorted(rows_with(data, "k", "r", "theta", "rate", "turn"), key=lambda row: row["k"])
    expected = explorables.toy_path(eta, decay, length, noise)
    assert len(rows) == explorables.STEPS
    for name in ("r", "theta", "rate"):
        assert [row[name] for row in rows] == pytest.approx(expected[name].tolist(), rel=1e-9, abs=1e-12)
    turned = np.degrees(expected["turn"])
    assert [row["turn"] for row in rows] == pytest.approx(turned.tolist(), rel=1e-9, abs=1e-9)
    words = told(data)
    (line,) = (w for w in words if w.startswith("A step of the second half"))
    late = math.sqrt((turned[explorables.STEPS // 2 :] ** 2).mean())
    assert number(line.split(" by ")[1].rstrip("°")) == pytest.approx(late, rel=6e-3)
    (line,) = (w for w in words if "quilibrium" in w)
    if decay:
        expected_angle = math.degrees(math.sqrt(2 * eta * decay))
        assert number(line.split(": ")[1].rstrip("°")) == pytest.approx(expected_angle, rel=6e-3)
    else:
        assert line == "Without weight decay: no equilibrium"


def test_every_view_of_the_toy_has_a_name(view):
    for words, name in explorables.VIEWS.items():
        assert words in told(view("toy", view=name))


def test_the_toy_settles_at_the_equilibrium():
    path = explorables.toy_path(0.3, 0.1, 1.0, 2.0)
    late = path["turn"][explorables.STEPS // 2 :]
    assert math.sqrt((late**2).mean()) == pytest.approx(math.sqrt(2 * 0.03), rel=0.15)


@pytest.mark.parametrize("name", ["toy", "spectra", "edge", "angles", "rates", "outliers", "any", "depth"])
@pytest.mark.parametrize("width", [390, 1000])
def test_figures_fit(page, name, width):
    assert_fits(page, name, width)
