"""False-alarm rates asked for, against those that come out on good parts kept aside.

`python -m benchmarks false_alarms`: of each set in ../shared/data some good parts fill the memory, and
the same are all that the calibration knows (head nn, each judged by the others); then the other good
parts are judged. Defects are judged only for the last column: nothing knew them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from mrad_indexer.datasets import Dataset, read_dataset

from benchmarks.good_sets import BATCH, Pictures, present
from benchmarks.tables import DATA, Cell, Table
from mrad.detector import Detector
from mrad.encoder.encoder import Encoder
from mrad.memory.bank import MemoryBank
from mrad.thresholds.calibrate import thresholds_of
from mrad.thresholds.own import score_own
from mrad.types import Prediction

PARTS = 40
TARGET = 0.05
SEEDS = 5
MOST = 60
"""Good parts kept aside that are judged of each set."""
DEFECTS = 20


@dataclass(frozen=True)
class Outcome:
    """One memory of one set."""

    alarms: float
    outlined: float
    """Good parts whose map reaches the pixel threshold anywhere."""
    caught: float
    independent: int
    promised: float


def judged(detector: Detector, pictures: Pictures, rows: np.ndarray) -> Iterator[Prediction]:
    """Some of a set's pictures."""
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        sizes = [(detector.encoder.image_size,) * 2] * len(chosen)
        yield from detector.finish(pictures.take(chosen), sizes)


def outcome(dataset: Dataset, pictures: Pictures, seed: int, parts: int) -> Outcome:
    """One memory: built, calibrated on its own good parts, and asked about the others."""
    records, encoder = dataset.records, pictures.encoder
    order = np.random.default_rng(seed).permutation(len(records))
    good = [row for row in order if not records[row].anomalous]
    bad = np.array([row for row in order if records[row].anomalous])[:DEFECTS]
    kept = tuple(records[row] for row in good[:parts])
    bank = MemoryBank.from_samples(encoder, [record.sample() for record in kept])
    detector = Detector(encoder, bank, "nn")
    cuts = thresholds_of(detector, score_own(detector), target_fpr=TARGET)
    aside = list(judged(detector, pictures, np.array(good[parts:])[:MOST]))
    defects = list(judged(detector, pictures, bad))
    image, pixel, promise = cuts.image.value, cuts.pixel, cuts.image.promise
    if pixel is None or promise is None:
        raise ValueError("thresholds by false alarms have both")
    found = Outcome(
        alarms=_share([p.score >= image for p in aside]),
        outlined=_share([_peak(p) >= pixel.value for p in aside]),
        caught=_share([p.score >= image for p in defects]),
        independent=len(cuts.good),
        promised=promise.rate,
    )
    print(dataset.root.name, seed, found, file=sys.stderr, flush=True)
    return found


def _peak(prediction: Prediction) -> float:
    return 0.0 if prediction.anomaly_map is None else float(prediction.anomaly_map.max())


def _share(flags: list[bool]) -> float:
    return float(np.mean(flags))


def some(dataset: Dataset) -> Dataset:
    """Every good part, and so many defects that some are enough for each seed."""
    good = [record for record in dataset.records if not record.anomalous]
    bad = [record for record in dataset.records if record.anomalous]
    bad = bad[:: max(1, len(bad) // (2 * DEFECTS))]
    good = good[:: max(1, len(good) // (PARTS + 2 * MOST))]
    return replace(dataset, records=(*good, *bad))


def run(quick: bool) -> list[Table]:
    """A line for each set."""
    encoder = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    rows: list[list[Cell]] = []
    for name in present(DATA):
        dataset = read_dataset(DATA / name)
        if quick:
            dataset = replace(dataset, records=dataset.records[:: len(dataset) // 30])
        dataset = some(dataset)
        pictures = Pictures.of(encoder, dataset.records)
        parts = 8 if quick else PARTS
        found = [outcome(dataset, pictures, seed, parts) for seed in range(2 if quick else SEEDS)]
        aside = min(MOST, dataset.counts["normal"] - parts)
        rows.append([name, aside, *_line(found)])
    columns = [
        "set", "good parts aside", "independent in memory", "promised",
        "flagged: mean (lowest to highest)", "outlined", "defects flagged",
    ]  # fmt: skip
    notes = [
        f"{PARTS} good parts in memory and for calibration, no defect, {100 * TARGET:g} % asked for; "
        f"{SEEDS} seeds.",
        "One threshold from 40 parts has a rate that spreads: 95 % of them between 0.6 % and 12.9 %. "
        "The promise is of the mean.",
        "outlined: good parts whose map reaches the pixel threshold anywhere, mean.",
    ]
    return [Table("False alarms on good parts kept aside", columns, rows, notes)]


def _line(found: list[Outcome]) -> list[Cell]:
    alarms = [one.alarms for one in found]
    spread = f"{_percent(np.mean(alarms))} ({_percent(min(alarms))} to {_percent(max(alarms))})"
    return [
        int(np.median([one.independent for one in found])),
        _percent(np.mean([one.promised for one in found])),
        spread,
        _percent(np.mean([one.outlined for one in found])),
        _percent(np.mean([one.caught for one in found])),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
