"""The fault campaign at a small size, and that it sees what is wrong.

`python benchmarks/faults.py` does all of it.
"""

from __future__ import annotations

import random
from pathlib import Path

import faults
import pytest

from bnlib import records


@pytest.fixture(scope="module")
def undisturbed() -> dict:
    """Recordings that are the same for every campaign."""
    return {}


@pytest.fixture
def campaign(tmp_path, monkeypatch, undisturbed) -> faults.Campaign:
    monkeypatch.setitem(faults.experiments.EXPERIMENTS, faults.TOY.name, faults.TOY)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return faults.Campaign(tmp_path, quick=True, chance=random.Random(1), recorded=undisturbed)


def test_whatever_goes_wrong_is_said_and_nothing_is_lost(campaign):
    faults.run(campaign, seed=1)
    assert [fault.wrong for fault in campaign.faults if fault.wrong] == []
    assert sum(fault.times for fault in campaign.faults) > 100
    assert "**no**" not in faults.summary(campaign, 1, 2.0)


def test_a_loader_that_is_not_careful_is_found_out(campaign, monkeypatch):
    """What the campaign would print if records were not checked."""

    def careless(kind: str, path: Path) -> dict:
        body = records.json.loads(path.read_bytes())
        return {key: value for key, value in body.items() if key not in ("format", "version", "sha256")}

    monkeypatch.setattr(records, "_unseal", careless)
    faults.damaged_records(campaign)
    found = {fault.what.split(",")[0]: fault.wrong for fault in campaign.faults}
    assert any("JSONDecodeError" in wrong for wrong in found["a file of a record is cut off"])
    assert "another content" in found["one bit of a file is another"]
    said = faults.summary(campaign, 1, 2.0)
    assert "times not**" in said and "**no**" in said
