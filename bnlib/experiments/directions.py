"""Chapter 11: length and direction.  Least squares, Rayleigh quotients, halfspaces, one hidden layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bnlib.experiments.quantities import BySeed, largest, ratio
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

if TYPE_CHECKING:
    import pandas as pd

CHAPTER = "11-length-and-direction"

#: pairs of digits that are often mistaken for each other; each seed takes one
PAIRS = [[4, 9], [3, 5], [7, 9], [3, 8], [5, 8]]
#: pairs of the small digits that four components do not separate
SMALL_PAIRS = [[3, 8], [8, 9]]
#: learning rates of the weights, from a quarter of plain gradient descent's limit upwards
RATES = [10.0**k for k in range(-2, 6)]
#: a critical point counts if the quadrature's error there is below this
GOOD_QUADRATURE = 1e-8
#: b counts as regular if all its eigenvalues are further from 0 than this
REGULAR = 1e-4


def _run(arm: str, seed: int, problem: str, factors: tuple[str, ...], **settings: Any) -> Run:
    return Run(arm, seed, {"problem": problem, **settings}, ("problem", *factors), task="directions")


def _least_squares(scale: str, seed: int) -> list[Run]:
    d, conditions, steps, quotients = {
        "smoke": (10, [10, 100], 500, [10]),
        "laptop": (10, [10, 50, 100, 1000], 20_000, [3, 10, 30]),
        "paper": (100, [10, 50, 100, 1000, 10_000], 200_000, [3, 10, 30, 100]),
    }[scale]
    runs = []
    for arm in ("standard", "bn"):
        for condition in conditions:
            settings = {"method": arm, "d": d, "condition": condition, "steps": min(steps, 30 * condition)}
            runs.append(_run(arm, seed, "least_squares", ("condition",), **settings))
        settings = {"method": arm, "d": d, "condition": 50, "steps": steps, "rates": RATES}
        runs.append(_run(arm, seed, "any_rate", (), **settings))
    for step in ("inverse", "euclidean"):
        for condition in quotients:
            settings = {"step": step, "d": 8, "condition": condition, "steps": min(steps, 5000)}
            runs.append(_run("bn", seed, "rayleigh", ("condition", "step"), **settings))
    return runs


def _halfspaces(scale: str, seed: int) -> list[Run]:
    d, steps = {"smoke": (10, 20), "laptop": (10, 200), "paper": (100, 1000)}[scale]
    common = {"d": d, "condition": 10, "distance": 1.0, "steps": steps}

    def run(arm: str, loss: str, *factors: str, **settings: Any) -> Run:
        chosen = {"method": arm, "loss": loss, **common, **settings}
        return _run(arm, seed, "halfspace", ("loss", *factors), **chosen)

    runs = [
        *(run("standard", "softplus", steps=10 * steps), run("bn", "softplus", lr=1.0)),
        *(run("gdnp", loss, bracket=[0.0, 100.0]) for loss in ("softplus", "sigmoid", "square")),
        *(run("gdnp", "softplus", "halvings", halvings=halvings) for halvings in (8, 16)),
    ]
    for arm in ("gdnp", "gdnp_printed"):
        runs += [run(arm, "softplus", "start", start=start) for start in (0.1, 1.0, 10.0)]
    return runs


def _halfspaces_real(scale: str, seed: int) -> list[Run]:
    common, steps = {
        "smoke": ({"dataset": "digits", "classes": SMALL_PAIRS, "d": 4}, 50),
        "laptop": ({"dataset": "mnist", "classes": PAIRS, "d": 50}, 1000),
        "paper": ({"dataset": "mnist", "classes": PAIRS, "d": 200}, 10_000),
    }[scale]
    runs = []
    for whitened in (False, True):
        for arm, factor, options in (
            ("standard", 10, {}),
            ("bn", 3, {"lr": 1.0}),
            ("bn", 3, {"lr": 10.0}),
            ("gdnp", 1, {"bracket": [0.0, 100.0]}),
        ):
            settings = {"method": arm, **common, "whitened": whitened, "steps": factor * steps, **options}
            factors = ("whitened", "lr") if "lr" in options else ("whitened",)
            runs.append(_run(arm, seed, "real_halfspace", factors, **settings))
    return runs


def _one_hidden_layer(scale: str, seed: int) -> list[Run]:
    starts, nodes = {"smoke": (5, 256), "laptop": (20, 256), "paper": (100, 512)}[scale]
    runs = []
    for loss, tolerance in (("square", 1e-12), ("softplus", 1e-9)):
        for units in ("all", "first"):
            settings = {"loss": loss, "units": units, "starts": starts, "theta": [1.0, 0.7, -0.5]}
            settings |= {"d": 2, "nodes": nodes, "tolerance": tolerance}
            runs.append(_run("standard", seed, "one_hidden_layer", ("loss", "units"), **settings))
    return runs


EXPERIMENTS = [
    Experiment(
        name="least_squares",
        title="Random least-squares problems and Rayleigh quotients, by gradient descent",
        chapter=CHAPTER,
        question="How fast does gradient descent converge with and without the normalised parametrisation?",
        runs=_least_squares,
    ),
    Experiment(
        name="halfspaces",
        title="Halfspaces with Gaussian inputs, by GDNP and by gradient descent",
        chapter=CHAPTER,
        question="Do direction and length converge linearly, and what does it take?",
        runs=_halfspaces,
    ),
    Experiment(
        name="halfspaces_real",
        title="Two classes of MNIST in 50 principal components, by GDNP and by gradient descent",
        chapter=CHAPTER,
        question="What is left of it without the Gaussian assumption?",
        runs=_halfspaces_real,
    ),
    Experiment(
        name="one_hidden_layer",
        title="Critical points of networks with one hidden layer and Gaussian inputs",
        chapter=CHAPTER,
        question="Do the hidden units of a critical point lie on one line?",
        runs=_one_hidden_layer,
    ),
]


# -- measured quantities ---------------------------------------------------------------------------------


def values(record: Record, metric: str, *settings: str, **chosen: Any) -> pd.DataFrame:
    """The rows of a metric in the runs whose settings (or arm) are those `chosen`, with the columns
    `settings`."""
    wanted = {name: value for name, value in chosen.items() if name != "arm"}
    frame = record.frame(*{*settings, *wanted}, metric=metric)
    for name, value in chosen.items():
        frame = frame[frame[name] == value]
    return frame


def largest_by_seed(frame: pd.DataFrame) -> BySeed:
    """The largest `value` of each seed."""
    return {int(seed): float(value) for seed, value in frame.groupby("seed")["value"].max().items()}


def compared(
    record: Record, one: str, other: str, combine: Callable[[Any, Any], Any], **chosen: Any
) -> BySeed:
    """`combine` of two values that every chosen run has once, `one` and `other`; the largest, by seed."""
    left, right = (values(record, metric, **chosen).set_index("run") for metric in (one, other))
    frame = left.assign(value=combine(left["value"], right["value"].reindex(left.index)))
    return largest_by_seed(frame)


def relative_factor(bound: str = "bound", factor: str = "largest_factor", **chosen: Any) -> Callable:
    """The largest factor of one step over the bound for it, by seed; 1 is the bound."""
    return lambda record: compared(record, factor, bound, lambda a, b: a / b, **chosen)


def _late_error(record: Record) -> BySeed:
    chosen = {"arm": "bn", "problem": "least_squares"}
    return compared(record, "late_factor", "asymptotic_rate", lambda a, b: (a / b - 1).abs(), **chosen)


def _fewer_steps(record: Record) -> BySeed:
    """Steps with the layer over steps without, the condition number where this is largest."""
    tables = []
    for arm in ("bn", "standard"):
        frame = values(record, "steps_to", "condition", arm=arm, problem="least_squares")
        tables.append(
            {c: dict(zip(f["seed"], f["value"], strict=True)) for c, f in frame.groupby("condition")}
        )
    return largest(ratio(with_layer, tables[1][c]) for c, with_layer in tables[0].items())


def final_gap(record: Record, arm: str, rate: float) -> BySeed:
    """The gap at the last measured step of a fixed learning rate; a run that diverged has its last one."""
    frame = values(record, f"gap@{rate:g}", arm=arm, problem="any_rate")
    return {int(seed): float(f.loc[f["step"].idxmax(), "value"]) for seed, f in frame.groupby("seed")}


def _any_rate(record: Record) -> BySeed:
    return largest(final_gap(record, "bn", rate) for rate in RATES if rate <= 1000)


def _gdnp(record: Record) -> BySeed:
    return relative_factor(arm="gdnp")(record)


def _length_share(record: Record) -> BySeed:
    """Where in its bracket the bisection ends for the sigmoid loss: 1 is the far end."""
    frame = values(record, "length", arm="gdnp", loss="sigmoid")
    return largest_by_seed(
        frame[frame["step"] == frame["step"].max()].assign(value=lambda f: f["value"] / 100)
    )


def _real_steps(record: Record) -> BySeed:
    """Steps of plain gradient descent over those of GDNP, components not whitened."""
    without, gdnp = (
        largest_by_seed(values(record, "steps_to", arm=arm, whitened=False)) for arm in ("standard", "gdnp")
    )
    return ratio(without, gdnp)


def _real_whitened(record: Record) -> BySeed:
    frame = values(record, "sine", arm="gdnp", whitened=True)
    return largest_by_seed(frame[frame["step"] == frame["step"].max()])


def critical_points(record: Record) -> pd.DataFrame:
    """One row per critical point found with a good quadrature: loss, units, seed, step (the start) and what
    `bnlib.directions.one_hidden_layer` measures there."""
    frame = record.frame("loss", "units")
    frame = frame[frame["layer"] == ""]
    table = frame.pivot_table(index=["loss", "units", "seed", "step"], columns="metric", values="value")
    return table[(table["found"] == 1) & (table["stein_gap"] < GOOD_QUADRATURE)].reset_index()


def _points(measure: str, how: str = "max", regular: bool = False, **chosen: str) -> Callable:
    def by_seed(record: Record) -> BySeed:
        table = critical_points(record)
        for name, value in chosen.items():
            table = table[table[name] == value]
        if regular:
            table = table[table["conditioning"] > REGULAR]
        return {int(s): float(v) for s, v in table.groupby("seed")[measure].agg(how).items()}

    return by_seed


_WITHIN = Criterion("<", 1.00001)
_STEP = "largest factor by which one step multiplies the gap ρ - ρ*, divided by (1 - μ/L)²"
_OFF = "distance of a unit's weights from the line, divided by the length of the longest unit"
_POINTS = "critical points found from random starts in random networks of three units"

CLAIMS = [
    Claim(
        id="ols-linear",
        statement="With batch normalization least squares converges linearly, by (1 - μ/L)² a step.",
        source="kohler2019",
        where="least squares: linear convergence of gradient descent",
        chapter=CHAPTER,
        experiment="least_squares",
        quantity=f"{_STEP}, over all steps and condition numbers",
        unit="",
        measure=relative_factor(arm="bn", problem="least_squares"),
        criterion=_WITHIN,
    ),
    Claim(
        id="ols-late-rate",
        statement="Its late rate is the squared largest eigenvalue of Π(I - S/L)Π.",
        source="kohler2019",
        where="not claimed there: derived in this chapter",
        chapter=CHAPTER,
        experiment="least_squares",
        quantity="relative difference of the last resolved step's factor, largest over condition numbers",
        unit="",
        measure=_late_error,
        criterion=Criterion("<", 1e-3),
    ),
    Claim(
        id="ols-sublinear",
        statement="Without it gradient descent on least squares converges sub-linearly only.",
        source="wikipedia_bn",
        where="«Least-square problem»: «regular gradient descent with only sub-linear convergence»",
        chapter=CHAPTER,
        experiment="least_squares",
        quantity=f"{_STEP}, plain gradient descent with the step 1/L; sub-linear needs more than 1",
        unit="",
        measure=relative_factor(arm="standard", problem="least_squares"),
        criterion=Criterion(">", 1.00001),
        note="For S that is positive definite, as the article assumes.",
    ),
    Claim(
        id="ols-faster",
        statement="With batch normalization gradient descent on least squares needs fewer steps.",
        source="wikipedia_bn",
        where="«Least-square problem»: «faster than the regular gradient descent»",
        chapter=CHAPTER,
        experiment="least_squares",
        quantity=(
            "steps to 1e-10 of the first gap from the same weights, BN divided by plain, the condition "
            "number where this is largest"
        ),
        unit="times",
        measure=_fewer_steps,
        criterion=Criterion("<", 1.0),
        note="Each with the step for which its rate is proved; the other's is not the best one for either.",
    ),
    Claim(
        id="ols-any-rate",
        statement="With batch normalization least squares converges at any learning rate of the weights.",
        source="cai2019",
        where="convergence for arbitrary learning rates of the weights",
        chapter=CHAPTER,
        experiment="least_squares",
        quantity=(
            "gap after all steps, relative to |ρ*|, largest over learning rates from 0.01 to 1000, condition "
            "number 50"
        ),
        unit="",
        measure=_any_rate,
        criterion=Criterion("<", 1e-8),
        note="Rates beyond 1000 are recorded too: they take longer than the steps that were run.",
    ),
    Claim(
        id="rayleigh-plain-step",
        statement="Gradient descent on a generalised Rayleigh quotient has the rate q₀².",
        source="wikipedia_bn",
        where="«Least-square problem»: the rate of the generalised Rayleigh quotient",
        chapter=CHAPTER,
        experiment="least_squares",
        quantity=(
            "largest factor by which one step of size 1/L multiplies (λ₁ - ρ)/(ρ - λ₂), divided by q₀², over "
            "condition numbers"
        ),
        unit="",
        measure=relative_factor("ideal_bound", problem="rayleigh", step="euclidean"),
        criterion=_WITHIN,
        note="q₀ is the rate of the step preconditioned with the inverse of A.",
    ),
    Claim(
        id="rayleigh-bound",
        statement="With the step's preconditioning in q the theorem on Rayleigh quotients holds.",
        source="knyazev2003",
        where="main theorem",
        chapter=CHAPTER,
        experiment="least_squares",
        quantity="the same divided by q², over condition numbers, with and without preconditioning",
        unit="",
        measure=relative_factor(problem="rayleigh"),
        criterion=_WITHIN,
    ),
    Claim(
        id="gdnp-linear",
        statement="With Gaussian inputs GDNP's direction converges linearly, whatever the loss.",
        source="kohler2019",
        where="learning halfspaces: convergence of GDNP",
        chapter=CHAPTER,
        experiment="halfspaces",
        quantity=f"{_STEP}, over three losses and three lengths of the first weights; h as derived here",
        unit="",
        measure=_gdnp,
        criterion=_WITHIN,
    ),
    Claim(
        id="gdnp-printed",
        statement="GDNP has that rate with its stopping criterion h as it is often printed.",
        source="wikipedia_bn",
        where="«Learning halfspace problem»: the stopping criterion",
        chapter=CHAPTER,
        experiment="halfspaces",
        quantity=f"{_STEP}, softplus, over three lengths of the first weights; h with (uᵀw)²",
        unit="",
        measure=relative_factor(arm="gdnp_printed"),
        criterion=_WITHIN,
        note="The printed formula is quoted from memory: our copy of the page has no formulas.",
    ),
    Claim(
        id="bounded-length",
        statement="GDNP's bounded solution exists for losses like the sigmoid.",
        source="wikipedia_bn",
        where="«Learning halfspace problem»: «a solution exists and is bounded», for «any» loss",
        chapter=CHAPTER,
        experiment="halfspaces",
        quantity="length that bisection finds in (0, 100) after all steps, over 100; sigmoid loss",
        unit="",
        measure=_length_share,
        criterion=Criterion("<", 0.99),
    ),
    Claim(
        id="real-accelerates",
        statement="GDNP accelerates optimisation also where the inputs are not Gaussian.",
        source="wikipedia_bn",
        where="«Learning halfspace problem»: «could accelerate optimization without this constraint»",
        chapter=CHAPTER,
        experiment="halfspaces_real",
        quantity="steps to 1e-4 of the first gradient, plain gradient descent divided by GDNP, not whitened",
        unit="times",
        measure=_real_steps,
        criterion=Criterion(">", 1.0),
        note="Plain steps are 4/L; a GDNP step costs a bisection more. A run that never gets there counts "
        "with its number of steps.",
    ),
    Claim(
        id="real-rate",
        statement="On images, too, GDNP's direction converges at the rate that Gaussian inputs guarantee.",
        source="kohler2019",
        where="learning halfspaces, without the Gaussian assumption; not claimed there",
        chapter=CHAPTER,
        experiment="halfspaces_real",
        quantity="factor of the last resolved step on sin² to the minimiser, over (1 - μ/L)², not whitened",
        unit="",
        measure=relative_factor(factor="late_factor", arm="gdnp", whitened=False),
        criterion=_WITHIN,
    ),
    Claim(
        id="real-whitened",
        statement="On whitened images, where the guaranteed rate is 0, GDNP finds the minimiser.",
        source="kohler2019",
        where="learning halfspaces, without the Gaussian assumption; not claimed there",
        chapter=CHAPTER,
        experiment="halfspaces_real",
        quantity="squared sine of the angle between the direction and the minimiser after all steps",
        unit="",
        measure=_real_whitened,
        criterion=Criterion("<", 1e-6),
        note="Declared after trials on small digits: in 4 components it did, in 8 it went round in circles.",
    ),
    Claim(
        id="hidden-line",
        statement="At critical points every hidden unit lies on one line.",
        source="wikipedia_bn",
        where="«Neural networks»: critical points «all align along one line»",
        chapter=CHAPTER,
        experiment="one_hidden_layer",
        quantity=f"{_OFF}, largest over {_POINTS}, logistic loss, gradient below 1e-9",
        unit="",
        measure=_points("off_line", loss="softplus", units="all"),
        criterion=Criterion("<", 1e-6),
        note="Declared after trials: the starts, the networks and the size of the grid were tried out.",
    ),
    Claim(
        id="hidden-line-regular",
        statement="They do where the matrix b is far from singular.",
        source="kohler2019",
        where="multilayer perceptrons, with the condition made explicit",
        chapter=CHAPTER,
        experiment="one_hidden_layer",
        quantity=f"{_OFF}, largest over those {_POINTS} with |eigenvalues| of b above 1e-4, square loss",
        unit="",
        measure=_points("off_line", regular=True, loss="square", units="all"),
        criterion=Criterion("<", 1e-6),
    ),
    Claim(
        id="hidden-effective",
        statement="The rows of bW lie on the line, singular or not.",
        source="kohler2019",
        where="not claimed there: derived in this chapter",
        chapter=CHAPTER,
        experiment="one_hidden_layer",
        quantity=f"the same of the rows of bW, both losses, largest over {_POINTS}",
        unit="",
        measure=_points("effective_off_line", units="all"),
        criterion=Criterion("<", 1e-6),
    ),
    Claim(
        id="hidden-frozen",
        statement="A hidden unit's critical points lie on the line beside any other units.",
        source="wikipedia_bn",
        where="«Neural networks»: «the critical points of a particular hidden unit»",
        chapter=CHAPTER,
        experiment="one_hidden_layer",
        quantity=f"{_OFF}, the first unit beside two frozen at random, square loss, median over starts",
        unit="",
        measure=_points("off_line", "median", loss="square", units="first"),
        criterion=Criterion("<", 1e-6),
    ),
]
