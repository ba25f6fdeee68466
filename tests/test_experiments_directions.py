"""Chapter 11: what its claims measure, on records made by hand."""

from __future__ import annotations

import pytest

from bnlib import records
from bnlib.experiments import CLAIMS, directions
from bnlib.specs import Run

SEEDS = range(5)


@pytest.fixture
def save(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))

    def save(runs: list[tuple[str, dict]], rows_of) -> records.Record:
        made = [
            Run(arm, seed, settings, tuple(settings), task="directions")
            for seed in SEEDS
            for arm, settings in runs
        ]
        finished = {run.digest: {"rows": rows_of(run), "seconds": 0.0} for run in made}
        return records.save("toy", "smoke", made, finished, {})

    return save


def _check(record, expected):
    for claim, value in expected.items():
        assert CLAIMS[claim].measure(record) == pytest.approx(
            value if isinstance(value, dict) else dict.fromkeys(SEEDS, value)
        ), claim


def test_what_is_measured_on_least_squares(save):
    """The worst condition number counts; steps are compared seed by seed."""
    problems = [
        (arm, {"problem": "least_squares", "condition": c}) for arm in ("standard", "bn") for c in (10, 100)
    ]
    problems += [(arm, {"problem": "any_rate", "condition": 50}) for arm in ("standard", "bn")]
    problems += [
        ("bn", {"problem": "rayleigh", "condition": c, "step": step})
        for c in (3, 30)
        for step in ("inverse", "euclidean")
    ]

    def rows(run):
        bn, condition = run.arm == "bn", run.settings["condition"]
        if run.settings["problem"] == "any_rate":
            gaps = {rate: 1e-12 * rate for rate in directions.RATES} if bn else {0.01: 1e-12, 0.1: 5e5}
            return [
                (step, "", f"gap@{rate:g}", value if step else 1.0)
                for rate, value in gaps.items()
                for step in (0, 9)
            ]
        if run.settings["problem"] == "rayleigh":
            factor = 0.5 if run.settings["step"] == "inverse" else 0.8
            bound = 0.5 if run.settings["step"] == "inverse" else 0.81
            values = {"largest_factor": factor, "late_factor": factor, "bound": bound, "ideal_bound": 0.5}
        else:
            slack = 0.9 if bn and condition == 10 else 0.95 if bn else 1.0
            values = {
                "largest_factor": 0.8 * slack,
                "late_factor": 0.5,
                "asymptotic_rate": 0.5 + 0.1 * (condition == 100 and bn),
                "bound": 0.8,
                "steps_to": (80 if condition == 10 else 900 + run.seed) if bn else 10 * condition,
            }
        return [(0, "", metric, value) for metric, value in values.items()]

    record = save(problems, rows)
    _check(
        record,
        {
            "ols-linear": 0.95,
            "ols-late-rate": 1 - 0.5 / 0.6,
            "ols-sublinear": 1.0,
            "ols-faster": {seed: (900 + seed) / 1000 for seed in SEEDS},
            "ols-any-rate": 1e-9,
            "rayleigh-plain-step": 1.6,
            "rayleigh-bound": 1.0,
        },
    )
    assert directions.final_gap(record, "standard", 0.1) == dict.fromkeys(SEEDS, 5e5)


def test_what_is_measured_on_halfspaces(save):
    runs = [
        ("standard", {"problem": "halfspace", "loss": "softplus"}),
        ("gdnp", {"problem": "halfspace", "loss": "softplus"}),
        ("gdnp", {"problem": "halfspace", "loss": "sigmoid"}),
        ("gdnp_printed", {"problem": "halfspace", "loss": "softplus", "start": 0.1}),
        ("gdnp_printed", {"problem": "halfspace", "loss": "softplus", "start": 10.0}),
    ]

    def rows(run):
        factor = {"standard": 0.99, "gdnp": 0.79}.get(run.arm, 0.7 + 0.02 * run.settings.get("start", 0))
        length = 100.0 if run.settings["loss"] == "sigmoid" else 3.0
        series = [(step, "", "length", value) for step, value in ((0, 5.0), (9, length))]
        return [*series, (0, "", "largest_factor", factor), (0, "", "bound", 0.8)]

    _check(save(runs, rows), {"gdnp-linear": 0.79 / 0.8, "gdnp-printed": 0.9 / 0.8, "bounded-length": 1.0})


def test_what_is_measured_on_images(save):
    runs = [
        (arm, {"problem": "real_halfspace", "whitened": whitened})
        for arm in ("standard", "gdnp")
        for whitened in (False, True)
    ]

    def rows(run):
        steps = {"standard": 600, "gdnp": 200 + run.seed}[run.arm] * (7 if run.settings["whitened"] else 1)
        sines = [(step, "", "sine", value) for step, value in ((0, 0.9), (9, 0.25))]
        values = {"steps_to": steps, "late_factor": 0.7, "largest_factor": 3.0, "bound": 0.8}
        return [*sines, *((0, "", metric, value) for metric, value in values.items())]

    _check(
        save(runs, rows),
        {
            "real-accelerates": {seed: 600 / (200 + seed) for seed in SEEDS},
            "real-rate": 0.7 / 0.8,
            "real-whitened": 0.25,
        },
    )


def test_what_is_measured_on_one_hidden_layer(save):
    """A start without a critical point and one with a bad quadrature do not count, whatever they say; at the
    square loss b is singular at start 0 and regular at start 1."""
    runs = [
        ("standard", {"problem": "one_hidden_layer", "loss": loss, "units": units})
        for loss in ("square", "softplus")
        for units in ("all", "first")
    ]

    def rows(run):
        softplus, alone = run.settings["loss"] == "softplus", run.settings["units"] == "first"
        table = []
        for start, (off, conditioning) in enumerate(((0.3, 1e-9), (0.1, 0.5), (0.7, 0.5), (0.2, 0.1))):
            values = {
                "found": float(start != 3),
                "off_line": off if softplus or alone or start != 1 else 1e-12,
                "effective_off_line": 0.1 if alone else 1e-9 * (1 + start),
                "conditioning": 1e-12 if softplus else conditioning,
                "stein_gap": 1e-3 if start == 2 else 1e-12,
            }
            table += [
                (start, "", metric, value)
                for metric, value in values.items()
                if start != 3 or metric == "found"
            ]
            table.append((start, "unit1", "along", 2.0))
        return table

    record = save(runs, rows)
    _check(
        record,
        {
            "hidden-line": 0.3,
            "hidden-line-regular": 1e-12,
            "hidden-effective": 2e-9,
            "hidden-frozen": 0.2,
        },
    )
    assert set(directions.critical_points(record)["step"]) == {0, 1}
