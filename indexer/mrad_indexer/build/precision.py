"""`mrad build --precision auto`: what bf16 gains here and what it changes, on a sample of the user's images.

The sample is encoded both ways, each a small memory whose images are judged with themselves left out. bf16
is taken only where it is faster on this machine and keeps the bound; the figures go into the bank.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from mrad.detector import Detector
from mrad.encoder.encoder import Encoder
from mrad.encoder.kernels import has_bf16
from mrad.errors import MRADError
from mrad.files import atomic_write_bytes
from mrad.images.layout import Layout
from mrad.images.options import ReadOptions
from mrad.memory.bank import TRIAL, MemoryBank
from mrad.memory.store import MANIFEST
from mrad.types import FloatArray, Prediction
from mrad_indexer.build.build import work_folder
from mrad_indexer.build.encode import Skipped, decode_record
from mrad_indexer.build.plan import data_fingerprint
from mrad_indexer.cutting import spread
from mrad_indexer.datasets import Dataset, Record

AUTO = "auto"
RANKS = 0.999
"""Spearman's correlation of each map in both precisions, at least."""
POINTS = 0.1
"""Percentage points that the AUROC of the scores may change."""
FASTER = 1.1
"""Times that bf16 has to be faster here."""
MOST, LEAST = 32, 6
"""Images of each class in the sample: as many as take about `SECONDS`."""
SECONDS = 60.0
RUNS = 3
EVERY = 7
"""Of a map's pixels, one in so many is ranked: neighbours say the same again."""
KEPT = "precision.json"
"""In the work folder of a build: what it decided, for a later run that goes on."""


@dataclass(frozen=True)
class Trial:
    """What was measured, and what follows. None: not measured, `why` says the reason."""

    key: str
    """SHA-256 of the images, the encoder, how images are looked at, and the device."""
    chosen: str
    """`fp32` or `bf16`."""
    why: str
    faster: float | None = None
    """Images a second in bf16 over those in float32, median of pairs."""
    normal: int | None = None
    anomalous: int | None = None
    """Images of the sample."""
    spearman: float | None = None
    """The smallest of all maps."""
    spearman_median: float | None = None
    largest_score_change: float | None = None
    auroc: float | None = None
    """Of the float32 scores, percent; None where the sample has one class."""
    auroc_change: float | None = None
    """Percentage points from float32 to bf16."""

    @classmethod
    def of(cls, facts: Any) -> Trial | None:
        """From JSON; None for anything else than a trial's."""
        names = {field.name for field in fields(cls)}
        known = isinstance(facts, dict) and {"key", "chosen", "why"} <= facts.keys() <= names
        return cls(**facts) if known else None


def choose_precision(
    load: Callable[[str], Encoder],
    dataset: Dataset,
    out: Path,
    *,
    layout: Layout,
    reading: ReadOptions,
    batch_size: int = 8,
) -> tuple[Encoder, Trial]:
    """The encoder in the precision that suits these images here, and what says so.

    What an earlier run of the same build decided stands.

    Args:
        load: makes the encoder in `fp32` or `bf16`.
        dataset: what the memory is built of.
        out: where it will stand.
        layout: how images are looked at.
        reading: how they are read.
        batch_size: images encoded at once.

    Raises what `load` and reading the dataset raise.
    """
    exact = load("fp32")
    key = _key(exact, dataset, layout)
    trial = _known(out, key)
    if trial is None:
        trial = _tried(key, exact, load, dataset, layout, reading, batch_size)
        work = work_folder(out)
        work.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(work / KEPT, json.dumps(asdict(trial)).encode())
    return (exact if trial.chosen == "fp32" else load(trial.chosen)), trial


def _key(encoder: Encoder, dataset: Dataset, layout: Layout) -> str:
    facts = [
        data_fingerprint(dataset.records),
        str(encoder.identity),
        encoder.identity.digest,
        layout.to_json(),
        str(encoder.device),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _known(out: Path, key: str) -> Trial | None:
    """From a build that was cut off, or from the bank that stands."""
    for file, names in ((work_folder(out) / KEPT, ()), (out / MANIFEST, ("metadata", TRIAL))):
        try:
            facts = json.loads(file.read_bytes())
            for name in names:
                facts = facts[name]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found = Trial.of(facts)
        if found is not None and found.key == key:
            return found
    return None


def _tried(
    key: str,
    exact: Encoder,
    load: Callable[[str], Encoder],
    dataset: Dataset,
    layout: Layout,
    reading: ReadOptions,
    batch_size: int,
) -> Trial:
    if not has_bf16(exact.device):
        return Trial(key, "fp32", f"this {exact.device.type} has no instructions for bf16")
    fast = load("bf16")
    seconds, faster = speeds(exact, fast, batch_size)
    if faster < FASTER:
        return Trial(key, "fp32", f"bf16 is hardly faster here: {faster:.2f} times", faster)
    each = int(np.clip(SECONDS / (8 * seconds), LEAST, MOST))  # of two classes, encoded four times
    sample = sample_of(dataset, each, exact, layout, reading)
    defects = sum(record.anomalous for record in sample)
    try:
        one, other = (
            judged(encoder, sample, layout, reading, batch_size) for encoder in (exact, fast)
        )
    except MRADError as error:
        why = f"a sample of the images cannot be judged, so nothing says what bf16 changes: {error}"
        return Trial(key, "fp32", why, faster, len(sample) - defects, defects)
    return verdict(key, faster, [record.anomalous for record in sample], one, other)


def speeds(exact: Encoder, fast: Encoder, batch: int) -> tuple[float, float]:
    """Seconds of an image in float32, and how many times faster the other is: pairs, in turn."""
    side = exact.image_size
    pixels = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))

    def timed(encoder: Encoder) -> float:
        began = time.perf_counter()
        encoder.encode_pixels(pixels).class_feature.cpu()  # waits for a GPU
        return time.perf_counter() - began

    for encoder in (exact, fast):
        timed(encoder)
    pairs = [(timed(exact), timed(fast)) for _ in range(RUNS)]
    return median(a for a, _ in pairs) / batch, median(a / b for a, b in pairs)


def sample_of(
    dataset: Dataset, each: int, encoder: Encoder, layout: Layout, reading: ReadOptions
) -> list[Record]:
    """Up to `each` readable images of each class, spread over the dataset.

    Defects with a mask come first; fewer than two of a class are left out: one that is left out of
    its own memory leaves none.
    """
    found: list[Record] = []
    for anomalous in (False, True):
        records = [record for record in dataset.records if record.anomalous == anomalous]
        masked = [record for record in records if record.mask is not None]
        own = list(_readable(spread(masked or records, each), encoder, layout, reading))
        found += own if len(own) > 1 else []
    return found


def _readable(
    records: Sequence[Record], encoder: Encoder, layout: Layout, reading: ReadOptions
) -> Iterator[Record]:
    for record in records:
        found = decode_record(record, encoder.prepare, layout=layout, reading=reading)
        if not isinstance(found, Skipped):
            yield record


def judged(
    encoder: Encoder,
    sample: Sequence[Record],
    layout: Layout,
    reading: ReadOptions,
    batch_size: int,
) -> list[Prediction]:
    """The sample as a memory of its own, each image judged with itself left out. Raises `MRADError`."""
    samples = [record.sample() for record in sample]
    bank = MemoryBank.from_samples(
        encoder, samples, batch_size=batch_size, layout=layout, reading=reading
    )
    detector = Detector(encoder, bank, reading=reading)
    decoded = (detector.decode(record.image) for record in sample)
    own = range(len(samples))
    return list(detector.judge(decoded, batch_size=batch_size, exclude=own))


def verdict(
    key: str,
    faster: float,
    labels: Sequence[bool],
    exact: Sequence[Prediction],
    fast: Sequence[Prediction],
) -> Trial:
    """What follows from both answers to the same images."""
    ranks = [_spearman(a.anomaly_map, b.anomaly_map) for a, b in zip(exact, fast, strict=True)]
    scores = [[p.score for p in found] for found in (exact, fast)]
    change = max(abs(a - b) for a, b in zip(*scores))
    areas: list[float | None] = [None, None]
    if len(set(labels)) == 2:
        from mrad_indexer.evaluation.metrics import image_metrics

        areas = [image_metrics(found, labels).auroc for found in scores]
    area, moved = None, None
    if areas[0] is not None and areas[1] is not None:
        area, moved = 100 * areas[0], 100 * (areas[1] - areas[0])
    kept = min(ranks) >= RANKS and abs(moved or 0.0) <= POINTS
    text = f"{faster:.2f} times faster; Spearman of {len(ranks)} maps at least {min(ranks):.5f}"
    text += ", one class" if moved is None else f", AUROC changes by {moved:+.2f} points"
    if not kept:
        text += f": beyond the bound ({RANKS}, {POINTS} points)"
    defects = sum(labels)
    return Trial(
        key, "bf16" if kept else "fp32", text, faster, len(labels) - defects, defects,
        min(ranks), median(ranks), change, area, moved,
    )  # fmt: skip


def _spearman(one: FloatArray | None, other: FloatArray | None) -> float:
    """Rank correlation of two maps; 1 where both are flat, 0 where one is."""
    from scipy.stats import rankdata

    assert one is not None
    assert other is not None
    ranks = [rankdata(values.ravel()[::EVERY]) for values in (one, other)]
    flat = [float(np.ptp(found)) == 0 for found in ranks]
    return float(all(flat)) if any(flat) else float(np.corrcoef(*ranks)[0, 1])
