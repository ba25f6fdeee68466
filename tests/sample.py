"""Records that were never on disk, for tests that know every number in them."""

from collections.abc import Iterable

import pyarrow as pa

from bnlib import records


def record_of(runs: list[dict], rows: Iterable[tuple]) -> records.Record:
    """The record of ``runs``, written as in its provenance, and of ``rows``.

    A row is (run, step, layer, metric, value), with the ``id`` of one of the runs, whose arm and seed the
    table repeats; a metric of the whole network has the layer "".
    """
    known = {run["id"]: (run["arm"], run["seed"]) for run in runs}
    table = [(run, *known[run], *rest) for run, *rest in rows]
    columns = dict(zip(records.SCHEMA.names, zip(*table, strict=True), strict=True))
    return records.Record("sample", "smoke", pa.table(columns, schema=records.SCHEMA), {"runs": runs})
