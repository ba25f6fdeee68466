"""Draw the README's picture from the record: `python tools/picture.py` (with the `book` extra)."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import vl_convert

from bnlib import charts, records

PICTURE = Path(__file__).resolve().parents[1] / "_static" / "training.png"


def chart() -> alt.TopLevelMixin:
    """Test accuracy with and without batch normalization, at both learning rates of the record."""
    record = records.load("training")
    frame = record.frame("lr", metric="test_accuracy")
    frame["value"] *= 100
    words = {lr: f"Learning rate {lr:g}" for lr in frame["lr"].unique()}
    return charts.small_multiples(
        frame, "lr", y_title="Test accuracy (%)", facet_labels=words, panel=340, height=230
    )


def main() -> None:
    """Write the picture, on white, at twice its nominal size."""
    with alt.theme.enable("bnlib"):
        spec = chart().to_dict()
    spec["config"]["background"] = "white"
    spec["padding"] = 12
    version = ".".join(alt.VEGALITE_VERSION.split(".")[:2])
    PICTURE.write_bytes(vl_convert.vegalite_to_png(spec, vl_version=version, scale=2))


if __name__ == "__main__":
    main()
