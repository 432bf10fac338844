"""What a precision of the encoder changes in maps, scores and metrics, against its accuracy bound.

A set is split into two halves that each serve as the other's memory, so every image is judged once
with a mask to judge it by. float32 is the reference; a precision is asked on the memory that
float32 built, and on one that it built itself. A precision that misses the bound is not to be
offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.records import Record
from mrad_indexer.evaluation.metrics import PixelScores, image_metrics
from scipy.stats import rankdata

from benchmarks.features import DEMO
from benchmarks.tables import DATA, Table, hardware
from mrad import Detector, Encoder, MemoryBank
from mrad.encoder.encoder import PRECISIONS
from mrad.images.reader import load_image
from mrad.types import FloatArray

SETS = ("magnetic_tile", "deep_pcb")
RANKS, AREA = 0.999, 0.1
"""The bound: Spearman of the maps at least, AUROC in points of a percent at most apart."""
COLUMNS = (
    "set", "queries in", "memory built in", "Spearman of maps, smallest", "median",
    "image AUROC, % (change)", "pixel AUROC, % (change)", "within the bound",
)  # fmt: skip
EVERY = 7
"""Of a map's pixels, one in so many is ranked: neighbours say the same again."""


@dataclass
class Judged:
    """One precision's answers on one set."""

    ranks: list[FloatArray] = field(default_factory=list)
    """Of each map's sampled pixels."""
    scores: list[float] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)

    def areas(self, labels: Sequence[bool]) -> tuple[float, float]:
        """Image and pixel AUROC, percent."""
        image, pixel = image_metrics(self.scores, labels).auroc, self.pixels.metrics().auroc
        if image is None or pixel is None:
            raise SystemExit("a set needs images of both classes, with masks")
        return 100 * image, 100 * pixel


def judge(encoder: Encoder, bank: MemoryBank, records: Sequence[Record], into: Judged) -> None:
    """Maps and scores of images by MRAD-TF, as the product computes them."""
    detector = Detector(encoder, bank)
    for record in records:
        image = load_image(record.image)
        (found,) = detector.predict([image])
        assert found.anomaly_map is not None
        into.scores.append(found.score)
        into.ranks.append(rankdata(found.anomaly_map.ravel()[::EVERY]).astype(np.float32))
        mask = record.read_mask(image.size)
        if mask is not None:
            into.pixels.add(found.anomaly_map.clip(0, 1), mask)


def spearman(one: Judged, other: Judged) -> list[float]:
    """Rank correlation of two precisions' maps, image by image."""
    return [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(one.ranks, other.ranks, strict=True)]


def compare(name: str, records: Sequence[Record], encoders: dict[str, Encoder]) -> list[list[str]]:
    """Rows of one set: every precision on both memories."""
    halves = [records[::2], records[1::2]]
    answers: dict[tuple[str, str], Judged] = {}
    labels = [record.anomalous for half in halves[::-1] for record in half]
    for memory, queries in (halves, halves[::-1]):
        samples = [record.sample() for record in memory]
        banks = {p: MemoryBank.from_samples(e, samples) for p, e in encoders.items()}
        for precision, encoder in encoders.items():
            for built in sorted({"fp32", precision}):
                judged = answers.setdefault((precision, built), Judged())
                judge(encoder, banks[built], queries, judged)
    exact = answers["fp32", "fp32"]
    areas = exact.areas(labels)
    rows = []
    for (precision, built), judged in answers.items():
        found = judged.areas(labels)
        rows.append([name, precision, built, *verdict(spearman(exact, judged), areas, found)])
    return rows


def verdict(ranks: list[float], exact: Sequence[float], found: Sequence[float]) -> list[str]:
    """Smallest and median Spearman, both AUROC with their change in points, and whether it holds."""
    changes = [one - other for one, other in zip(found, exact)]
    kept = float(np.min(ranks)) >= RANKS and max(map(abs, changes)) <= AREA
    areas = [f"{area:.2f} ({change:+.3f})" for area, change in zip(found, changes)]
    return [f"{np.min(ranks):.5f}", f"{np.median(ranks):.5f}", *areas, "yes" if kept else "NO"]


def datasets(quick: bool) -> dict[str, list[Record]]:
    """Labelled images by set; a clone without the larger sets has the bundled ones."""
    folders = {n: DATA / n for n in SETS if (DATA / n).is_dir()} or {"bundled": DEMO / "query"}
    found = {}
    for name, folder in folders.items():
        records = [r for r in read_dataset(folder).records if not r.anomalous or r.mask]
        records.sort(key=lambda record: record.anomalous)  # so that halves share both classes
        found[name] = records[:: max(1, len(records) // 24)] if quick else records
    return found


def mini(precision: str) -> Encoder:
    """mrad-mini in any precision."""
    return Encoder.load("mrad-mini", device="cpu", precision=precision)


def run(quick: bool) -> list[Table]:
    """mrad-mini in every precision on every set at hand."""
    encoders = {precision: mini(precision) for precision in PRECISIONS}
    sets = datasets(quick)
    rows = [row for name, records in sets.items() for row in compare(name, records, encoders)]
    return [
        Table(
            "What the encoder's precision changes: mrad-mini, MRAD-TF", COLUMNS, rows, bound(sets)
        )
    ]


def bound(sets: dict[str, list[Record]]) -> list[str]:
    """Notes: on what, and what was asked."""
    counts = ", ".join(f"{len(records)} of {name}" for name, records in sets.items())
    return [
        hardware(),
        f"Images: {counts}; each half is the other half's memory.",
        f"The bound: Spearman of every map at least {RANKS}, both AUROC at most {AREA} points apart.",
    ]
