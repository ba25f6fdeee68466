"""The figures of chapter 9 compute what pandas and the claims compute, read out of running Vega views."""

import itertools
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from browser import drawn, rows_with, told
from sample import record_of
from scene import drawn_rows

from bnlib import charts, records, theory
from bnlib.experiments import one_layer
from bnlib.explorables import one_layer as explorables

SEEDS, STEPS, EVERY = 3, 50, 20  # the last step is no multiple
LAYERS = ["conv2", "conv10"]  # in this order, which is not that of the alphabet
GROUPS = {"same": "pairs_same_ratio", "matched": "pairs_matched_ratio"}


@pytest.fixture(scope="module")
def sample() -> records.Record:
    """Two layers with two channels; at step 20 no gradient reaches channel 1 of the first, with seed 0."""
    rng = np.random.default_rng(0)
    probes = {"batch_norm_terms": {"every": EVERY}}
    runs, rows = [], []
    for seed in range(SEEDS):
        name = f"bn seed={seed}"
        settings = {"steps": STEPS, "probes": probes}
        runs.append({"id": name, "arm": "bn", "seed": seed, "settings": settings, "diverged_at": None})
        for step, layer in itertools.product((0, 20, 40, 50), LAYERS):
            for end in ("", "[0]", "[1]"):
                dead = (end, step, layer, seed) == ("[1]", 20, "conv2", 0)
                gradient, factor = (0.0 if dead else rng.uniform(0.1, 1)), rng.uniform(0.1, 10)
                mean, scale = rng.uniform(0, 0.3, 2)
                values = {
                    "output": factor * gradient,
                    "mean": mean * factor * gradient,
                    "scale": scale * factor * gradient,
                    "printed": (1 - mean - 7 * scale) * factor * gradient,
                    "gradient": gradient,
                    "lhs": (1 - mean - scale) * factor * gradient,
                }
                values |= {"inner": rng.normal()} if end else {"aligned": rng.uniform(), "factor": factor}
                rows += [(name, step, layer, f"thm41_{key}{end}", value) for key, value in values.items()]
            for channel in range(2):
                for term in ("curvature", "bending"):
                    rows.append((name, step, layer, f"thm42_{term}[{channel}]", rng.normal()))
            for metric in GROUPS.values():
                rows.append((name, step, layer, metric, rng.uniform(0.5, 2)))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def surfaces() -> records.Record:
    rng = np.random.default_rng(1)
    runs, rows = [], []
    for arm, gain, seed in itertools.product(("standard", "bn"), (0.5, 1.0), range(SEEDS)):
        name = f"{arm} gain={gain} seed={seed}"
        runs.append({"id": name, "arm": arm, "seed": seed, "settings": {"gain": gain}, "diverged_at": None})
        for layer, metric in itertools.product([*LAYERS, "classifier"], ("moved", "ray", "start_norm")):
            rows.append((name, 400, layer, f"{metric}[sgd]", rng.uniform(1, 2)))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def page(sample, surfaces):
    """A page as narrow as a phone with all charts drawn."""
    own = explorables.bending(sample)
    figures = {
        "terms": explorables.terms(sample, "a sample"),
        "removed": explorables.removed_chart(sample),
        "by_layer": explorables.by_layer_chart(
            explorables.removed(sample),
            {"bn": charts.ARMS["bn"]},
            y_title="Removed (%)",
            log_y=True,
            expected={"conv2": 3.0, "conv10": 30.0},
        ),
        "pairs": explorables.by_layer_chart(
            explorables.pairs(sample, GROUPS), explorables.PAIRS, y_title="Ratio", rule=1
        ),
        "bending": explorables.by_layer_chart(
            own, explorables.moments([0, 20, 40, 50]), y_title="Own term (%)", y_domain=(-100, 100)
        ),
        "ways": explorables.by_layer_chart(
            explorables.ways(surfaces), explorables.WAYS, y_title="Distance / ‖W₀‖"
        ),
        "ray": explorables.ray(),
    }
    with drawn(figures, width=390) as page:
        yield page


def value_of(record: records.Record, metric: str, layer: str, step: int, seed: int) -> float:
    frame = record.frame(metric=metric)
    (value,) = frame[(frame["layer"] == layer) & (frame["step"] == step) & (frame["seed"] == seed)]["value"]
    return value


# --- the terms of Theorem 4.1 ---


@pytest.mark.parametrize("zoom", [False, True])
@pytest.mark.parametrize(
    "layer, channel, step, seed", [(1, -1, 0, 0), (0, -1, 40, 2), (0, 1, 20, 1), (1, 0, 60, 2)]
)
def test_the_bars_are_the_terms_of_the_theorem(sample, view, layer, channel, step, seed, zoom):
    data = view("terms", layer=layer, channel=channel, step=step, seed=seed, zoom=zoom)
    bars = {row["bar"]: (row["low"], row["high"]) for row in rows_with(data, "bar", "low", "high")}
    end = "" if channel < 0 else f"[{channel}]"
    at = {
        name: value_of(sample, f"thm41_{name}{end}", LAYERS[layer], min(step, STEPS), seed)
        for name in ("output", "mean", "scale", "lhs", "printed", "gradient")
    }
    per_cent = {name: 100 * value / at["output"] for name, value in at.items()}
    first, mean, scale, left = bars.values()
    close = partial(pytest.approx, rel=6e-3)
    assert first[1] == mean[1] == 100
    assert mean[1] - mean[0] == close(per_cent["mean"])
    assert scale[1] - scale[0] == close(per_cent["scale"])
    assert scale[1] == mean[0] and left[1] == scale[0] == close(per_cent["lhs"])
    base = per_cent["lhs"] - 0.5 * (per_cent["mean"] + per_cent["scale"]) if zoom else 0
    assert first[0] == left[0] == pytest.approx(base, rel=2e-2)
    words = told(data)
    (printed,) = (line for line in words if line.startswith("Printed bound"))
    number, verdict = printed.removeprefix("Printed bound (dashed): ").replace("−", "-").split(" %: ")
    assert float(number) == pytest.approx(per_cent["printed"], rel=1e-3)
    assert verdict == ("violated" if at["printed"] < at["lhs"] else "holds")
    (factor,) = (line for line in words if line.startswith("‖g‖²"))
    numbers = [float(word.strip(":,")) for word in factor.split() if word.strip(":,")[0].isdigit()]
    assert numbers == pytest.approx([at["gradient"], at["output"] / at["gradient"], 100], rel=6e-3)
    place = "all channels" if channel < 0 else f"channel {channel}"
    where = f"{explorables.layer_words(LAYERS[layer])}, step {step}, seed {seed}, {place}:"
    assert where in words


def test_where_no_gradient_arrives_the_figure_says_so(view):
    words = told(view("terms", layer=0, channel=1, step=20, seed=0, zoom=False))
    assert "No gradient reaches it." in words
    assert not any(line.startswith("Left") for line in words)


def test_the_shares_removed_are_those_of_the_claim(sample):
    ours = explorables.shares(sample)
    value = (ours["mean"] + ours["scale"]).groupby("seed").median()
    assert value.to_dict() == pytest.approx(one_layer.removed(sample))
    assert explorables.layers_of(sample) == LAYERS
    assert explorables.channels_of(sample) == [0, 1]


# --- over training, and by layer ---


def test_the_panels_show_every_probed_step(sample, page):
    rows = drawn_rows(page, "removed")
    found = pd.DataFrame([row for row in rows if {"panel", "x", "y", "seed"} <= row.keys()])
    table = explorables.shares(sample)
    names = {arm.label: name for name, arm in explorables.REMOVED.items()}
    layers = {explorables.layer_words(name): name for name in LAYERS}
    assert len(found) == 2 * len(table)
    for row in found.itertuples():
        expected = 100 * table.loc[(row.seed, layers[row.panel], row.x), names[row.arm]]
        assert row.y == pytest.approx(expected, rel=6e-3)


@pytest.mark.parametrize("name", ["by_layer", "pairs", "bending", "ways"])
def test_a_dot_for_every_value(sample, surfaces, view, name):
    frame, groups = {
        "by_layer": lambda: (explorables.removed(sample), {"bn": charts.ARMS["bn"]}),
        "pairs": lambda: (explorables.pairs(sample, GROUPS), explorables.PAIRS),
        "bending": lambda: (explorables.bending(sample), explorables.moments([0, 20, 40, 50])),
        "ways": lambda: (explorables.ways(surfaces), explorables.WAYS),
    }[name]()
    words = {"conv2": "2", "conv10": "10", "classifier": "last"}
    expected = sorted(
        (words[row.layer], groups[row.group].label, float(f"{row.value:.4g}")) for row in frame.itertuples()
    )
    found = rows_with(view(name), "layer", "arm", "v", "values")
    assert sorted((row["layer"], row["arm"], row["v"]) for row in found) == expected


def test_pairs_are_averaged_over_the_steps(sample):
    frame = explorables.pairs(sample, GROUPS, scale=100)
    source = sample.frame(metric="pairs_matched_ratio")
    part = source[(source["layer"] == "conv10") & (source["seed"] == 2)]
    (value,) = frame[(frame["group"] == "matched") & (frame["layer"] == "conv10") & (frame["seed"] == 2)][
        "value"
    ]
    assert value == pytest.approx(100 * part["value"].mean())


def test_the_layers_own_term_keeps_its_sign(sample):
    own = explorables.bending(sample).set_index(["layer", "step", "seed", "channel"])["value"]
    bending, curvature = (value_of(sample, f"thm42_{n}[1]", "conv2", 40, 2) for n in ("bending", "curvature"))
    expected = 100 * bending / (abs(bending) + abs(curvature))
    assert own["conv2", 40, 2, "1"] == pytest.approx(expected)
    assert own.abs().max() <= 100 and own.min() < 0 < own.max()


def test_the_ways_start_at_one_scale(surfaces):
    frame = explorables.ways(surfaces)
    source = surfaces.frame("gain")
    part = source[(source["arm"] == "standard") & (source["gain"] == 1.0) & (source["seed"] == 1)]
    part = part[part["layer"] == "conv2"].set_index("metric")["value"]
    (value,) = frame[(frame["group"] == "ray") & (frame["layer"] == "conv2") & (frame["seed"] == 1)]["value"]
    assert value == pytest.approx(part["ray[sgd]"] / part["start_norm[sgd]"])


def test_alt_texts_have_the_medians(sample):
    frame = explorables.removed(sample)
    chart = explorables.by_layer_chart(
        frame, {"bn": charts.ARMS["bn"]}, y_title="Removed (%)", expected={"conv2": 0.5}
    )
    median = frame[frame["layer"] == "conv10"]["value"].median()
    assert f"10 {charts.spell(median)}" in chart.description
    assert "Diamonds: 2 0.5." in chart.description


# --- Lemma 4.5 ---


@pytest.mark.parametrize("length", [0.2, 1.6])
@pytest.mark.parametrize("angle", [0, 35, 80, 90, 140])
def test_the_ray_is_the_lemma(view, angle, length):
    turn = math.radians(angle)
    start = torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
    lemma = theory.lemma_4_5(start, torch.tensor([length, 0], dtype=torch.float64))
    words = told(view("ray", angle=angle, length=length))
    assert f"To W*: {lemma.vanilla:.3f} (squared, dashed)" in words
    if angle < 90:
        assert f"To the ray: {lemma.lhs:.3f} (solid), k = {lemma.multiple:.3f}" in words
        assert f"The lemma subtracts {lemma.vanilla - lemma.lhs:.3f}" in words
    else:
        assert "The angle is not acute: the lemma is silent" in words
