"""The figures of chapter 14 compute what pandas, torch and the claims compute, read out of running views."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from browser import assert_fits, drawn, rows_with, told
from sample import record_of

from bnlib import charts, invariances, records
from bnlib.alternative_norms import sample_norm
from bnlib.experiments import alternatives
from bnlib.explorables import alternatives as explorables
from bnlib.norms import batch_norm

SEEDS = 3
STEPS = 60
RATES, DEEP_RATES = (0.01, 0.03, 0.1, 0.3), (0.01, 0.03, 0.1)


def _runs(arms, model, depths, rates, metric, seed):
    """Noise, with a loss that is smallest at 0.1; `standard` diverges at 0.3, with seed 1 only at 0.1."""
    rng = np.random.default_rng(seed)
    runs, rows = [], []
    for arm in arms:
        for depth in depths:
            for lr in rates:
                for number in range(SEEDS):
                    name = f"{arm} depth={depth} lr={lr} seed={number}"
                    settings = {"lr": lr, "steps": STEPS, "model": {"name": model}}
                    if depth:
                        settings["model"]["depth"] = depth
                    runs.append({"id": name, "arm": arm, "seed": number, "settings": settings})
                    if arm == "standard" and (lr == 0.3 or (lr == 0.1 and number == 1)):
                        rows.append((name, 5, "", "diverged_at", 5.0))
                        continue
                    loss = 1 + abs(math.log(lr / 0.1)) + rng.uniform(0, 0.1)
                    rows += [(name, step, "", "train_loss", loss + (60 - step) / 60) for step in (0, 30, 54)]
                    rows.append((name, STEPS, "", metric, rng.uniform(0.2, 0.9)))
                    rows.append((name, STEPS, "", "mode_disagreement", rng.uniform(0, 0.2)))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def nets() -> records.Record:
    return _runs(alternatives.NORMS, "vgg", [None], RATES, "test_accuracy_running", 0)


@pytest.fixture(scope="module")
def deep() -> records.Record:
    return _runs(alternatives.DEEP, "mlp", [5, 20], DEEP_RATES, "test_accuracy", 1)


@pytest.fixture(scope="module")
def invariant() -> records.Record:
    """Really measured: two norms, two values of eps."""
    runs, rows = [], []
    for arm, norm in {"bn": "batch", "layer": "layer", "instance": "instance"}.items():
        for seed in range(2):
            settings = {"dataset": "digits", "batch_size": 8, "eps": [0.0, 1e-5], "norm": norm}
            name = f"{arm} seed={seed}"
            runs.append({"id": name, "arm": arm, "seed": seed, "settings": settings})
            rows += [(name, *row) for row in invariances.run(settings, seed=seed)]
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def page(nets, deep, invariant):
    """A page as narrow as a phone with all charts drawn."""
    figures = {
        "averages": explorables.averages(),
        "invariances": explorables.invariances(invariant),
        "comparison": explorables.comparison(nets, deep),
    }
    with drawn(figures, width=390) as page:
        yield page


def shown(data: list[list[dict]]) -> list:
    """The words of data sets of one row: those that are drawn."""
    return [rows[0]["told"] for rows in data if len(rows) == 1 and rows[0].get("told")]


# --- which values a norm averages over ---


def normalised(name: str, values: torch.Tensor) -> torch.Tensor:
    if name == "Batch norm":
        return batch_norm(values).y
    if name == "Weight norm":
        return values
    groups = {"Layer norm": 1, "RMSNorm": 1, "Group norm": 2, "Instance norm": 4}[name]
    # RMSNorm without eps: the figure has none in it.
    return sample_norm(values, groups, centred=name != "RMSNorm", eps=0.0 if name == "RMSNorm" else 1e-5)


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("name", explorables.SHARED)
@pytest.mark.parametrize("sample, channel", [(1, 1), (3, 4)])
def test_what_is_averaged_and_what_comes_out(view, name, sample, channel, images):
    values = torch.tensor(explorables.activations())
    if not images:
        values = values[:, :, 1, 1]
    data = view("averages", norm=name, sample=sample, channel=channel, images=images, after=True)
    cells = rows_with(data, "n", "c", "x", "normed", "among", "shown")
    cells = [row for row in cells if row["x"] is not None]
    assert len(cells) == values.numel()
    counts = {"Batch norm": 4, "Layer norm": 4, "RMSNorm": 4, "Group norm": 2, "Instance norm": 1}
    count = counts.get(name, 0) * (9 if images else 1)
    assert sum(row["among"] for row in cells) == count
    for row in cells:
        n, c = row["n"] == sample, row["c"] == channel
        near = (row["c"] - 1) // 2 == (channel - 1) // 2
        expected = {"Batch norm": c, "Instance norm": n and c, "Group norm": n and near}.get(name, n)
        assert row["among"] == (expected and name != "Weight norm")
        assert row["shown"] == row["normed"]
    words = told(data)
    assert f"{name}: a value of sample {sample}, channel {channel}" in words
    if name == "Weight norm":
        assert "No activation is averaged: it divides the weights." in words
    else:
        assert any(line.startswith(f"{count} value") for line in words)
    if name == "Instance norm" and not images:
        assert "Its own mean is subtracted: nothing is left" in words
        return
    out = normalised(name, values)
    by_place = {(row["n"], row["c"], row["i"]): row["normed"] for row in cells}
    for (n, c, i), value in by_place.items():
        place = (n - 1, c - 1, *(divmod(int(i) - 1, 3) if images else ()))
        assert value == pytest.approx(out[place].item(), abs=1e-9)
    before = values[sample - 1, channel - 1, *((1, 1) if images else ())].item()
    after = out[sample - 1, channel - 1, *((1, 1) if images else ())].item()
    last = next(line for line in words if "becomes" in line or "stays" in line).replace("−", "-")
    numbers = [float(part) for part in last.replace(";", " ").replace(",", " ").split() if part[-1].isdigit()]
    assert numbers[-2:] == pytest.approx([before, after], abs=0.00501)


def test_the_example_has_differences_between_samples_and_between_channels():
    values = explorables.activations()
    assert values.shape == (4, 4, 3, 3)
    assert np.ptp(values.mean((1, 2, 3))) > 0.5
    assert np.ptp(values.mean((0, 2, 3))) > 0.5


# --- what a norm does not see ---


@pytest.mark.parametrize("kind", ["vectors", "images"])
@pytest.mark.parametrize("eps", ["0", "1e-05"])
def test_the_table_has_the_largest_change_of_the_seeds(invariant, view, kind, eps):
    rows = rows_with(view("invariances", kind=kind, eps=eps, norm="layer"), "short", "words", "value", "sign")
    frame = invariant.frame()
    frame = frame[(frame["layer"] == kind) & frame["metric"].str.endswith(f"@{eps}")]
    expected = frame.groupby(["arm", "metric"])["value"].max()
    assert len(rows) == len(expected)
    names = {words: change for change, words in explorables.CHANGES.items()}
    for row in rows:
        value = expected[row["arm"], f"{names[row['words']]}@{eps}"]
        assert row["value"] == pytest.approx(value, rel=0.06)
        assert row["class"] == ("unchanged" if value < 1e-10 else "nearly" if value < 1e-3 else "changed")


def test_the_words_below_the_table(invariant, view):
    blind = explorables.blind_to(invariant, "layer", "vectors")
    assert blind == [
        *("all weights × 3", "all weights / 100", "same vector added to all", "all biases + 1"),
        *("all inputs × 3", "one input × 3", "other neighbours", "order of the batch", "other mode"),
    ]
    (lines,) = shown(view("invariances", norm="layer", kind="vectors", eps="0"))
    assert " ".join(lines) == f"Layer norm, vectors, ε = 0. It does not feel at all: {', '.join(blind)}."
    (lines,) = shown(view("invariances", norm="instance", kind="vectors", eps="0"))
    assert lines == ["Instance norm leaves nothing of vectors."]
    assert "other neighbours" not in explorables.blind_to(invariant, "bn", "images")
    assert "all weights × 3" not in explorables.blind_to(invariant, "bn", "images", 1e-5)


# --- how far they get ---


def test_what_can_be_compared(nets, deep):
    tables = explorables.networks(nets, deep)
    assert list(tables) == ["VGG", "5 layers", "20 layers", "5 blocks with skips", "20 blocks with skips"]
    assert set(tables["20 blocks with skips"]["arm"]) == {"bn_residual", "residual", "skipinit", "fixup"}
    assert len(tables["VGG"]) == len(alternatives.NORMS) * len(RATES) * SEEDS
    for network, table in tables.items():
        best = table[table["best"]]
        assert len(best) == table["arm"].nunique() * SEEDS
        # `standard` at 0.1 loses one seed of three: the median is finite, and the smallest
        assert set(best["lr"]) == {0.1}
        words = [["smallest"], ["second smallest"], ["second largest"], ["largest"]]
        if network != "VGG":
            words[1:3] = [["second smallest", "second largest"]]
        assert dict(zip(table["lr"], table["rates"], strict=True)) == dict(
            zip(RATES if network == "VGG" else DEEP_RATES, words, strict=True)
        )


@pytest.mark.parametrize("quantity, factor", [("accuracy", 100), ("loss", 1)])
@pytest.mark.parametrize("network", ["VGG", "20 layers", "5 blocks with skips"])
@pytest.mark.parametrize("rate", ["best", "smallest", "second largest", "largest"])
def test_a_dot_for_every_run_that_has_not_diverged(nets, deep, view, network, quantity, factor, rate):
    table = explorables.networks(nets, deep)[network]
    table = table[table["best"] if rate == "best" else [rate in rates for rates in table["rates"]]]
    data = view("comparison", network=network, quantity=quantity, rate=rate)
    rows = [row for row in rows_with(data, "arm", "v", "lr", "lost") if math.isfinite(row["v"] or math.nan)]
    there = table[np.isfinite(table["loss"])]
    expected = sorted(
        (explorables.label(row.arm), float(f"{factor * getattr(row, quantity):.4g}"))
        for row in there.itertuples()
    )
    assert sorted((row["arm"], row["v"]) for row in rows) == expected
    beside = {row["arm"]: row["words"] for part in data for row in part if row.get("words")}
    assert len(beside) == table["arm"].nunique()
    for arm, part in table.groupby("arm"):
        lost = int((~np.isfinite(part["loss"])).sum())
        words = beside[explorables.label(arm)]
        if lost:
            assert words == f"{lost} diverged"
        else:
            assert float(words.split()[0]) == pytest.approx(factor * part[quantity].median(), rel=6e-3)
            assert words.endswith(" at 0.1") == (rate == "best")
    words = told(data)
    assert any(line.startswith(f"{network}: ") for line in words)
    at = "each at its best rate" if rate == "best" else f"the {rate} rate, {table['lr'].iloc[0]:g}"
    assert at in words


def test_without_its_best_rate_an_arm_has_the_next(nets):
    rest = explorables.without_rate(nets, 0.1)
    assert set(alternatives.outcomes(rest)["lr"]) == {0.01, 0.03, 0.3}
    chosen = alternatives.at_best_rate(rest)
    assert set(chosen.loc[chosen["arm"] != "standard", "lr"]) <= {0.03, 0.3}
    assert len(alternatives.outcomes(nets)) == len(alternatives.NORMS) * len(RATES) * SEEDS


def test_losses_accuracies_and_modes_are_those_of_the_best_rate(nets, deep):
    losses = explorables.losses(nets, ["bn", "layer"])
    assert set(losses["arm"]) == {"bn", "layer"} and set(losses["step"]) == {0, 30, 54}
    source = nets.frame("lr", metric="train_loss")
    part = source[(source["arm"] == "bn") & (source["lr"] == 0.1) & (source["seed"] == 2)]
    mine = losses[(losses["arm"] == "bn") & (losses["seed"] == 2)]
    assert mine["value"].tolist() == part["value"].tolist()

    frame = pd.concat([explorables.by_depth(deep, ["fixup"]), explorables.by_depth(deep, ["standard"])])
    assert len(frame) == 2 * 2 * SEEDS
    assert list(dict.fromkeys(frame["group"])) == ["5 blocks", "20 blocks", "5 layers", "20 layers"]
    lost = frame[(frame["arm"] == "standard") & (frame["seed"] == 1)]
    assert lost["value"].tolist() == [10.0, 10.0]
    source = deep.frame("lr", "depth", metric="test_accuracy")
    (value,) = source.query("arm == 'fixup' and lr == 0.1 and depth == 20 and seed == 0")["value"]
    (ours,) = frame.query("arm == 'fixup' and group == '20 blocks' and seed == 0")["value"]
    assert ours == pytest.approx(100 * value)

    modes = explorables.disagreement(nets)
    source = nets.frame("lr", metric="mode_disagreement")
    expected = 100 * source.query("arm == 'bn' and lr == 0.1")["value"]
    assert modes["bn"] == pytest.approx(expected.tolist())
    assert len(modes["standard"]) == SEEDS - 1


def test_alt_texts_have_the_medians(nets, deep, invariant):
    text = explorables.comparison(nets, deep).children[-1].description
    for arm in ("bn", "rms"):
        median = 100 * pd.Series(alternatives.best(nets, arm)).median()
        assert f"{explorables.label(arm)} {charts.spell(median)}" in text
    assert "20 blocks with skips: Batch norm" in text
    assert "Layer norm: all weights × 3" in explorables.invariances(invariant).children[-1].description
    assert "the 36 values of a channel" in explorables.averages().children[-1].description


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["averages", "invariances", "comparison"])
def test_the_figures_fit(page, name, width):
    assert_fits(page, name, width)
