"""The paper's own figures (arXiv 2602.00522), as far as they are known here. None is made up."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from mrad.errors import DataError
from mrad_indexer.reproduction.sets import BY_KEY

METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro")
"""What the paper tables: percent."""
HEADS = ("tf", "ft", "clip")
Figures = Mapping[tuple[str, str, str], float]
"""Set, head, metric -> percent."""

SECOND_HAND = "a published summary of the paper's ablation table, not checked against the paper"
KNOWN: Figures = {
    ("mvtec", "clip", "image_auroc"): 94.0,
    ("mvtec", "clip", "image_ap"): 97.4,
    ("mvtec", "clip", "pixel_auroc"): 93.0,
    ("mvtec", "clip", "pixel_aupro"): 86.8,
    ("kvasir", "clip", "pixel_auroc"): 84.3,
    ("kvasir", "clip", "pixel_aupro"): 52.7,
    ("head_ct", "clip", "image_auroc"): 97.1,
    ("head_ct", "clip", "image_ap"): 97.6,
}
"""From `SECOND_HAND`. The paper's other tables were not at hand; `--paper` reads them from a file."""


def read_figures(path: Path) -> Figures:
    """A CSV of the paper's figures: `set,head,metric,value`, percent. Raises `DataError`."""
    figures: dict[tuple[str, str, str], float] = {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, row in enumerate(rows, start=2):
        try:
            place = row["set"].strip(), row["head"].strip(), row["metric"].strip()
            value = float(row["value"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}, line {number}: set,head,metric,value are needed") from error
        for part, known in zip(place, (BY_KEY, HEADS, METRICS)):
            if part not in known:
                raise DataError(f"{path}, line {number}: {part!r} is none of {', '.join(known)}")
        if not 0 <= value <= 100:
            raise DataError(f"{path}, line {number}: {value} is no percentage")
        figures[place] = value
    return figures
