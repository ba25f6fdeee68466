"""Declarations, claims and what is measured from records."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from bnlib import claims, experiments, identities, records
from bnlib.experiments import CLAIMS, EXPERIMENTS, distributions, effect, gradients, noise, quantities
from bnlib.specs import SCALES, Claim, Criterion, Experiment, Run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", SCALES)
def test_declarations_are_sound(name, scale):
    runs = EXPERIMENTS[name].all_runs(scale)
    assert len({run.digest for run in runs}) == len(runs)
    per_seed = [
        [run.arm for run in runs if run.seed == seed] for seed in range(EXPERIMENTS[name].seeds[scale])
    ]
    assert all(arms == per_seed[0] for arms in per_seed), "every seed has the same arms"
    if scale != "smoke":
        assert EXPERIMENTS[name].seeds[scale] >= 5


PAIRED = [
    "training",
    "mnist",
    "robustness",
    "distributions",
    "distributions_deep",
    "noise",
    "noise_strength",
    "gradient_shift",
    "gradient_shift_linear",
]


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("scale", SCALES)
def test_arms_of_a_seed_differ_in_the_normalization_only(name, scale):
    for seed in (0, 1):
        by_factor: dict[tuple, dict[str, dict]] = {}
        for run in EXPERIMENTS[name].runs(scale, seed):
            rest = {k: v for k, v in run.settings.items() if k not in ("norm", "where", "gamma")}
            key = tuple(str(rest.get(f, rest["model"].get(f))) for f in run.factors)
            by_factor.setdefault(key, {})[run.arm] = rest
        for arms in by_factor.values():
            assert len(arms) >= 2
            assert all(rest == next(iter(arms.values())) for rest in arms.values())


def test_the_arms_of_part_2_are_what_their_names_say():
    said = {
        "standard": ("none", "nowhere"),
        "bn": ("batch", "everywhere"),
        "noisy_bn": ("noisy_batch", "everywhere"),
        "noisy_standard": ("noise", "everywhere"),
        "stationary_bn": ("stationary_noise_batch", "everywhere"),
        "bn_after_4": ("batch", [4]),
    }
    for name in PAIRED[3:]:
        for run in EXPERIMENTS[name].runs("laptop", 0):
            assert (run.settings["norm"], run.settings["where"]) == said[run.arm]


def test_every_claim_names_an_experiment_of_its_chapter_or_of_an_earlier_one():
    for claim in CLAIMS.values():
        assert EXPERIMENTS[claim.experiment].chapter <= claim.chapter
        assert claim.statement.endswith(".")


def test_an_unknown_experiment_suggests_a_near_name():
    with pytest.raises(LookupError, match="did you mean 'training'"):
        experiments.find("trainning")
    with pytest.raises(LookupError, match="choose one of mechanics"):
        experiments.find("xyz")


def test_two_runs_with_one_id_are_refused():
    double = Experiment("d", "", "", "", lambda scale, seed: [Run("bn", seed, {"lr": x}) for x in (1, 2)])
    with pytest.raises(ValueError, match="two runs with the same id"):
        double.all_runs("smoke")
    with pytest.raises(ValueError, match="no scale 'huge'"):
        EXPERIMENTS["training"].all_runs("huge")
    with pytest.raises(ValueError, match="at least one seed"):
        EXPERIMENTS["training"].all_runs("smoke", 0)


def _claim(relation: str = ">", threshold: float = 0.0) -> Claim:
    return Claim(
        "c", "It is so.", "x", "", "ch", "e", "q", "", lambda record: {}, Criterion(relation, threshold)
    )


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1, 2, 3, 4, 5], "holds"),
        ([-1, -2, -3, -4, -5], "fails"),
        ([1, 2, 3, 4, -5], "inconclusive"),
        ([1, 2, 3, 4], "inconclusive"),
        ([], "inconclusive"),
        ([0, 0, 0, 0, 0], "fails"),
    ],
)
def test_verdicts(values, verdict):
    assert _claim().verdict(values) == verdict
    assert _claim("<").verdict([-v for v in values]) == verdict


@pytest.mark.parametrize(
    "threshold, values, digits",
    [
        (1.0, [1.0016], 4),
        (1.0, [1.0016, 1.00001], 6),
        (1.0, [0.9998], 4),
        (1.0, [1.0, 3.14159, math.inf, math.nan], 3),
        (-3.0, [-2.9999], 5),
        (1e-10, [1e-10 + 1e-14], 5),
        (1.0, [1 + 1e-15], 10),
        (0.5, [], 3),
    ],
)
def test_a_rounded_value_stays_on_its_side_of_the_threshold(threshold, values, digits):
    assert Criterion(">", threshold).digits(*values) == digits


def test_a_criterion_compares_one_way_or_the_other():
    with pytest.raises(ValueError, match="compares with > or <"):
        Criterion("=", 1).satisfied(1)


def _record(
    folder, rows_of, arms=("standard", "bn"), rates=(0.1, 0.5), seeds=5, **settings
) -> records.Record:
    runs = [
        Run(arm, seed, {"lr": lr, **settings}, ("lr",))
        for seed in range(seeds)
        for arm in arms
        for lr in rates
    ]
    return _saved(runs, rows_of)


def _saved(runs: list[Run], rows_of) -> records.Record:
    finished = {run.digest: {"rows": rows_of(run), "seconds": 0.0} for run in runs}
    return records.save("toy", "smoke", runs, finished, {})


def test_final_accuracy_and_divergence(folder):
    def rows(run: Run):
        if run.arm == "standard" and run.settings["lr"] == 0.5:
            return [(0, "", "test_accuracy", 0.12), (3, "", "diverged_at", 3.0)]
        return [(0, "", "test_accuracy", 0.1), (10, "", "test_accuracy", 0.6 + 0.01 * run.seed)]

    record = _record(folder, rows)
    assert effect.final_accuracy(record, "bn", 0.1) == pytest.approx({s: 0.6 + 0.01 * s for s in range(5)})
    assert effect.final_accuracy(record, "standard", 0.5) == dict.fromkeys(range(5), 0.1)


def test_steps_to_accuracy(folder):
    def rows(run: Run):
        return [(step, "", "test_accuracy", step / 100) for step in range(0, 101, 10)]

    record = _record(folder, rows)
    reached = effect.steps_to_accuracy(record, "bn", 0.1, {0: 0.35, 1: 0.4, 2: 2.0})
    assert reached == {0: 40.0, 1: 40.0, 2: float("inf")}


def test_steps_stuck_counts_windows(folder):
    def rows(run: Run):
        leaves = 50 if run.arm == "standard" else 25
        return [(step, "", "train_loss", 2.3 if step < leaves else 1.0) for step in range(100)]

    record = _record(folder, rows, steps=100)
    assert effect.steps_stuck(record, "standard", 0.5) == dict.fromkeys(range(5), 75.0)
    assert effect.steps_stuck(record, "bn", 0.5) == dict.fromkeys(range(5), 50.0)
    never = _record(folder, lambda run: [(step, "", "train_loss", 2.3) for step in range(60)], steps=100)
    assert effect.steps_stuck(never, "bn", 0.5) == dict.fromkeys(range(5), 100.0)


def test_trained_share_and_largest_rate(folder):
    def rows(run: Run):
        good = run.settings["lr"] == 0.1 or run.arm == "bn"
        accuracy, last = (0.95, 0.1) if good else (0.1, 3.0)
        return [(0, "", "train_loss", 2.3), (9, "", "train_loss", last), (10, "", "test_accuracy", accuracy)]

    record = _record(folder, rows, gain=1.0, model={"depth": 3})
    assert effect.trained_share(record, "bn") == dict.fromkeys(range(5), 1.0)
    assert effect.trained_share(record, "standard", depth=3) == dict.fromkeys(range(5), 0.5)
    assert effect.largest_rate(record, "bn", 3) == dict.fromkeys(range(5), 0.5)
    assert effect.largest_rate(record, "standard", 3) == dict.fromkeys(range(5), 0.1)


# -- Part II: what its claims measure, on records made by hand -------------------------------------------


def test_quantities_compare_seed_by_seed():
    left, right = {0: 6.0, 1: 8.0, 2: 1.0}, {2: 0.0, 1: 2.0, 0: 3.0, 7: 9.0}
    assert quantities.paired(left, right) == {0: 3.0, 1: 6.0, 2: 1.0}
    assert quantities.paired(left, right, max) == {0: 6.0, 1: 8.0, 2: 1.0}
    assert quantities.ratio(left, right) == {0: 2.0, 1: 4.0}, "no ratio to 0"
    assert quantities.smallest(iter([left, {0: 7.0, 1: 1.0}])) == {0: 6.0, 1: 1.0}
    assert quantities.largest(iter([left, {0: 7.0, 1: 1.0}])) == {0: 7.0, 1: 8.0}
    assert quantities.in_points({0: 0.25}) == {0: 25.0}
    frame = pd.DataFrame({"seed": [0, 0, 0, 1], "value": [1.0, 9.0, 2.0, 5.0]})
    assert quantities.median_by_seed(frame) == {0: 2.0, 1: 5.0}


def test_shift_of_distributions_is_a_ratio_of_medians(folder):
    """Medians over steps and layers: of 1, 2, 3, 100 with BN and twice that without, but for the moments."""

    def rows(run: Run):
        factor = {"bn": 1.0, "standard": 2.0 + run.seed}[run.arm]
        places = [(0, "conv2", 1.0), (0, "conv5", 2.0), (9, "conv2", 3.0), (9, "conv5", 100.0)]
        return [
            row
            for step, layer, value in places
            for row in (
                (step, layer, "wasserstein", factor * value),
                (step, layer, "mean_shift", value),
                (step, layer, "deviation_shift", value / factor),
            )
        ]

    record = _record(folder, rows, rates=(0.1,))
    assert distributions.typical_shift(record, "bn") == dict.fromkeys(range(5), 2.5)
    assert distributions.shift_ratio("wasserstein")(record) == {s: 1 / (2 + s) for s in range(5)}
    assert CLAIMS["stability"].measure(record) == {s: 1 / (2 + s) for s in range(5)}
    # The mean moves as much with BN, the deviation 2 + seed times as much: the larger of the two counts.
    assert CLAIMS["fixed-moments"].measure(record) == pytest.approx({s: 2.0 + s for s in range(5)})
    assert len(distributions.shifts(record, "mean_shift")) == 2 * 5 * 4


def test_late_accuracy_is_the_mean_over_the_last_quarter(folder):
    def rows(run: Run):
        if run.arm == "noisy_standard":
            return [(0, "", "train_accuracy", 0.9), (10, "", "diverged_at", 10.0)]
        base = {"bn": 0.9, "noisy_bn": 0.8, "standard": 0.6, "stationary_bn": 0.7}[run.arm]
        early = [(step, "", metric, 0.2) for step in (0, 50, 75) for metric in ("train_accuracy",)]
        late = [(80, "", "train_accuracy", base - 0.02), (100, "", "train_accuracy", base + 0.02)]
        movement = [(s, "conv2", "wasserstein", 2.0 if "noisy" in run.arm else 0.5) for s in (0, 50, 100)]
        return [*early, *late, (100, "", "test_accuracy", base / 2), *movement]

    record = _record(folder, rows, arms=tuple(noise.ARMS), rates=(0.1,), steps=100)
    assert noise.late_accuracy(record, "bn") == pytest.approx(dict.fromkeys(range(5), 0.9))
    assert noise.late_accuracy(record, "noisy_standard") == dict.fromkeys(range(5), 0.1), (
        "as good as guessing"
    )
    points = {
        "noise-moves": 4.0,
        "noisy-as-good": 10.0,
        "noisy-beats-standard": 20.0,
        "noisy-test-accuracy": 5.0,
        "noise-stops-standard": 10.0,
        "stationary-noise": 10.0,
    }
    for claim, value in points.items():
        assert CLAIMS[claim].measure(record) == pytest.approx(dict.fromkeys(range(5), value))


def test_late_accuracy_of_one_strength_of_noise(folder):
    runs = [Run("noisy_bn", 0, {"noise": k, "steps": 10}, ("noise",)) for k in (0.0, 0.25, 4.0)]
    record = _saved(runs, lambda run: [(10, "", "train_accuracy", 1 / (2 + run.settings["noise"]))])
    for k in (0.0, 0.25, 4.0):
        assert noise.late_accuracy(record, "noisy_bn", noise=k) == {0: pytest.approx(1 / (2 + k))}


def _gradient_record(rows_of, arms=("standard", "bn"), rates=(0.1, 0.01), losses=(None,), seeds=5):
    """`rows_of(arm, lr, loss, seed)` gives the rows."""
    runs = [
        Run(arm, seed, {"lr": lr, **({"loss": loss} if loss else {})}, ("loss", "lr"))
        for seed in range(seeds)
        for arm in arms
        for lr in rates
        for loss in losses
    ]
    return _saved(runs, lambda run: rows_of(run.arm, run.settings["lr"], run.settings.get("loss"), run.seed))


def test_shift_of_gradients_is_the_median_without_the_first_layer(folder):
    def rows(arm: str, lr: float, loss: str | None, seed: int):
        cosine = {("bn", 0.1): 0.5, ("bn", 0.01): 0.2, ("standard", 0.1): 0.6, ("standard", 0.01): 0.8}[
            arm, lr
        ]
        step = {("bn", 0.1): 0.4, ("bn", 0.01): 0.06, ("standard", 0.1): 0.1, ("standard", 0.01): 0.01}[
            arm, lr
        ]
        return [
            row
            for layer, factor in (("conv1", 100.0), ("conv2", 1.0), ("conv3", 0.5), ("classifier", 2.0))
            for row in (
                (0, layer, "shift_cosine", min(1.0, factor * cosine)),
                (0, layer, "relative_step", factor * step),
            )
        ]

    record = _gradient_record(rows)
    assert gradients.typical(record, "bn", 0.01) == dict.fromkeys(range(5), 0.2)
    assert set(gradients.shifts(record)["layer"]) == {"conv2", "conv3", "classifier"}
    assert set(gradients.shifts(record)["loss"]) == {"cross_entropy"}
    # 0.6 - 0.5 at one rate, 0.8 - 0.2 at the other: the smaller gap counts, and the smaller ratio of steps
    for claim in ("gradient-shift", "correlation-vgg"):
        assert CLAIMS[claim].measure(record) == pytest.approx(dict.fromkeys(range(5), 0.1))
    assert CLAIMS["larger-steps"].measure(record) == pytest.approx(dict.fromkeys(range(5), 4.0))


def test_claims_of_the_deep_linear_network_take_the_sum_loss(folder):
    def rows(arm: str, lr: float, loss: str | None, seed: int):
        if loss == "squared_mean":
            return [(0, "linear5", "shift_cosine", -1.0), (0, "linear5", "relative_step", 9.0)]
        cosine = {("bn", 1e-6): 0.5, ("bn", 1e-7): 0.25}.get((arm, lr), 0.75 if lr == 1e-6 else 1.0)
        step = 0.3 if arm == "bn" else 0.1
        return [(0, "linear5", "shift_cosine", cosine), (0, "linear5", "relative_step", step)]

    record = _gradient_record(rows, rates=(1e-6, 1e-7), losses=("squared_sum", "squared_mean"))
    expected = {
        "correlation-linear": 0.25,
        "linear-small-rate": 0.75,
        "linear-standard-steady": 0.75,
        "larger-steps-linear": 3.0,
    }
    for claim, value in expected.items():
        assert CLAIMS[claim].measure(record) == pytest.approx(dict.fromkeys(range(5), value))


def test_cells_where_bn_has_the_larger_covariate_shift(folder):
    """By hand: of the cells that both arms have, BN's cosine is the smaller one in 1 of 2 at the start and in
    1 + seed of 2 later on.  The mean loss, the first layer and a cell of one arm alone do not count."""

    def rows(arm: str, lr: float, loss: str | None, seed: int):
        bn = arm == "bn"
        if loss == "squared_mean":
            return [(0, "linear2", "shift_cosine@0.01", 1.0 if bn else -1.0)]
        start = [
            (0, "linear1", "shift_cosine@0.01", 0.0 if bn else 1.0),
            (0, "linear2", "shift_cosine@0.01", 0.3 if bn else 0.4),
            (0, "linear2", "shift_cosine@0.1", 0.5),
            (0, "linear2", "shift_l2@0.1", 7.0 if bn else 1.0),
            (0, "linear2", "shift_cosine", -1.0 if bn else 1.0),
        ]
        later = [
            (20, f"linear{i}", "shift_cosine@0.01", 0.6 if bn and i - 2 <= seed else 0.7) for i in (2, 3)
        ]
        return start + later + ([] if bn else [(20, "linear4", "shift_cosine@0.01", 0.9)])

    record = _gradient_record(rows, rates=(1e-6, 1e-7), losses=("squared_sum", "squared_mean"), seeds=2)
    assert gradients.cells_where_bn_is_higher(record) == {0: 2 / 4, 1: 3 / 4}
    assert gradients.cells_where_bn_is_higher(record, start_only=True) == {0: 1 / 2, 1: 1 / 2}
    assert CLAIMS["matched-linear-start"].measure(record) == {0: 1 / 2, 1: 1 / 2}
    frame = gradients.matched_shifts(record)
    assert set(frame["length"]) == {0.01, 0.1}
    assert "linear1" not in set(frame["layer"])


def test_one_batch_norm_is_compared_at_the_layer_after_it(folder):
    def rows(arm: str, lr: float, loss: str | None, seed: int):
        higher = {"standard": 1.0, "bn": 9.0}.get(arm)
        return [
            row
            for step in range(4)
            for row in (
                (step, "conv5", "shift_l2", higher or (2.0 if step < seed else 0.5)),
                (step, "conv6", "shift_l2", 3.0 if arm == "standard" else 1.0),
            )
        ]

    record = _gradient_record(rows, arms=("standard", "bn", "bn_after_4"))
    assert CLAIMS["one-layer-shift"].measure(record) == {s: s / 4 for s in range(5)}


def test_the_recorded_deep_linear_network_shows_the_papers_picture():
    """Rate 1e-7, sum loss, medians over time, as in an independent implementation: the standard net keeps its
    gradients' directions in every layer, batch norm turns those of layer 21 round.  In between, at layer 13,
    the runs differ widely from seed to seed, so there only their median is pinned."""
    frame = gradients.shifts(records.load("gradient_shift_linear", "laptop"))
    frame = frame[(frame["lr"] == 1e-7) & (frame["loss"] == "squared_sum")]
    medians = frame.groupby(["arm", "layer", "seed"])["value"].median()
    assert len(medians["standard", "linear13"]) >= 5
    for layer in ("linear5", "linear13", "linear21"):
        assert (medians["standard", layer] >= 0.99).all()
        assert (medians["bn", layer] < medians["standard", layer]).all()
    assert medians["bn", "linear13"].median() < 0.6
    assert (medians["bn", "linear21"] < 0).all()


def test_the_scoreboard_says_what_is_not_recorded(folder):
    rows = claims.scoreboard()
    assert {row["id"] for row in rows} == set(CLAIMS)
    assert {row["verdict"] for row in rows} == {"not recorded"}


def test_the_committed_records_are_the_declared_experiments():
    """Every committed record passes its checksums, and every claim of the book has its verdict from at least
    five seeds."""
    found = records.recorded()
    for name, scale in found:
        assert records.compare(records.load(name, scale), experiments.find(name)) == []
    for row in claims.scoreboard():
        assert row["scale"] in ("laptop", "paper"), f"{row['id']} has no verdict yet"
        assert row["n_seeds"] >= 5 or row["verdict"] == "inconclusive"


def test_identities_against_pencil_and_paper():
    """One channel, values 0 and 2: mean 1, variance 1; the printed gamma shrinks by 1 / sqrt(1 + eps)."""
    import torch

    conv = torch.nn.Conv2d(1, 2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight[:] = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    noise = torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = torch.tensor([0.0, 2.0] * 2, dtype=torch.float64).view(4, 1, 1, 1).expand(4, 1, 3, 3)
    eps = 1e-2
    x = conv(images).detach()
    printed = (x - x.mean((0, 2, 3), keepdim=True)).abs() * (1 - (1 + eps) ** -0.5)
    with pytest.raises(ValueError, match="singular"):  # two channels, one the negative of the other
        identities.measure(conv, images, eps)
    wide = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False, dtype=torch.float64)
    values = identities.measure(wide, images + 0.1 * noise, eps)
    assert values["fold_error"] < 1e-12
    assert values["identity_error_exact"] < 1e-12 < values["identity_error_printed"]
    assert values["coupled_share"] == 1.0
    assert values["correlation_left"] == pytest.approx(1.0)
    assert values["correlation_zca"] < 1e-10
    assert printed.max().item() == pytest.approx(1 - (1 + eps) ** -0.5)
