"""Every experiment and every claim of the book, declared once.  Plain data: no torch here.

One module per chapter's question; add a chapter's experiments by adding its module to `MODULES`.
"""

from __future__ import annotations

from difflib import get_close_matches

from bnlib.experiments import (
    alternatives,
    batches,
    directions,
    distributions,
    effect,
    explosion,
    gradients,
    ingredients,
    landscape,
    lp,
    mechanics,
    noise,
    one_layer,
    scale,
    surfaces,
)
from bnlib.specs import Claim, Experiment

MODULES = (
    mechanics,
    effect,
    distributions,
    noise,
    gradients,
    surfaces,
    landscape,
    lp,
    one_layer,
    explosion,
    directions,
    scale,
    batches,
    alternatives,
    ingredients,
)

EXPERIMENTS: dict[str, Experiment] = {item.name: item for module in MODULES for item in module.EXPERIMENTS}
CLAIMS: dict[str, Claim] = {item.id: item for module in MODULES for item in module.CLAIMS}


def find(name: str) -> Experiment:
    """The experiment of that name; LookupError with the nearest names if there is none."""
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    near = get_close_matches(name, EXPERIMENTS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(EXPERIMENTS)}"
    raise LookupError(f"there is no experiment {name!r}: {hint}")
