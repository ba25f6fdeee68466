"""The scoreboard: every declared claim against the best record there is."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from bnlib import records
from bnlib.experiments import CLAIMS


def scoreboard(chapter: str | None = None, only: Container[str] = CLAIMS) -> list[dict[str, Any]]:
    """One row per claim (of one chapter, or of all; of those with the ids in `only`), in the order of the
    book.

    Keys: id, statement, source, where, chapter, experiment, scale, n_seeds, quantity, unit, value (median
    over the seeds), low and high (their range), digits (how many to show, so that none of them crosses the
    criterion's threshold by rounding), criterion, verdict, note.  A claim whose experiment has no record has
    the verdict "not recorded" and no value.  Raises RecordError if a record is damaged.
    """
    rows = []
    loaded: dict[str, records.Record] = {}
    for claim in CLAIMS.values():
        if (chapter is not None and claim.chapter != chapter) or claim.id not in only:
            continue
        scale = records.best_scale(claim.experiment)
        if scale is None:
            rows.append(_unrecorded(claim.id))
            continue
        if claim.experiment not in loaded:
            loaded[claim.experiment] = records.load(claim.experiment, scale)
        rows.append(claim.judge(loaded[claim.experiment]))
    return rows


def _unrecorded(claim_id: str) -> dict[str, Any]:
    claim = CLAIMS[claim_id]
    fields = ("id", "statement", "source", "where", "chapter", "experiment", "quantity", "unit", "note")
    return {
        **{name: getattr(claim, name) for name in fields},
        "scale": None,
        "n_seeds": 0,
        "value": None,
        "low": None,
        "high": None,
        "digits": claim.criterion.digits(),
        "criterion": str(claim.criterion),
        "verdict": "not recorded",
    }
