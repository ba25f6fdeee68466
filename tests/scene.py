"""What the marks of a ``browser.drawn`` figure stand for: the rows that a facet's panels draw are in none of
its data sets."""

import json
from typing import Any


def drawn_rows(page: Any, name: str) -> list[dict]:
    """The row behind every item of the figure ``name`` that is neither axis nor legend; numbers, strings and
    nulls."""
    text = page.evaluate(
        """(name) => {
            const rows = [];
            const plain = ([, value]) => value === null || ["number", "string"].includes(typeof value);
            const walk = (mark) => {
                for (const item of mark.items) {
                    if (item.items) item.items.forEach(walk);
                    else if (mark.role !== "mark") continue;
                    else rows.push(Object.fromEntries(Object.entries(item.datum).filter(plain)));
                }
            };
            walk(document.getElementById(name).view.scenegraph().root);
            return JSON.stringify(rows);
        }""",
        name,
    )
    return json.loads(text)
