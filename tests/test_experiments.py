"""Declarations, claims and what is measured from records."""

from __future__ import annotations

import pytest

from bnlib import claims, experiments, identities, records
from bnlib.experiments import CLAIMS, EXPERIMENTS, effect
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


def test_arms_of_a_seed_differ_in_the_normalization_only():
    for name in ("training", "mnist", "robustness"):
        for seed in (0, 1):
            by_factor: dict[tuple, list[dict]] = {}
            for run in EXPERIMENTS[name].runs("laptop", seed):
                rest = {k: v for k, v in run.settings.items() if k not in ("norm", "where")}
                key = tuple(str(rest.get(f, rest["model"].get(f))) for f in run.factors)
                by_factor.setdefault(key, []).append(rest)
            assert all(pair[0] == pair[1] for pair in by_factor.values())


def test_every_claim_names_an_experiment_of_its_chapter():
    for claim in CLAIMS.values():
        assert EXPERIMENTS[claim.experiment].chapter == claim.chapter
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
