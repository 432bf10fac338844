"""Images of a dataset -> their scores, none of which retrieves itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from mrad.detector import Decoded, Detector
from mrad.errors import ImageError, MaskError
from mrad.images.guard import code_of
from mrad.maps import at_shape
from mrad.memory.bank import MemoryBank
from mrad.thresholds.calibrate import PIXELS_KEPT, Scored
from mrad.thresholds.near_duplicates import sketches
from mrad.thresholds.own import score_own
from mrad.types import BoolArray, Prediction
from mrad_indexer.cutting import NOT_ALIGNED
from mrad_indexer.datasets import Dataset, Record
from mrad_indexer.known import rows_by_features, rows_by_tiles

Opened = tuple[Record, Decoded, BoolArray | None]


def score_without_self(
    detector: Detector,
    dataset: Dataset,
    *,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """Score every image; one that the bank holds does not retrieve its own keys.

    An image is the bank's own when an entry has its source and object, or its class feature. What
    cannot be read is left out, as it was from the bank.
    """
    scored, rng = Scored(), np.random.default_rng(seed)
    rows = {(e.source, e.object_name): row for row, e in enumerate(detector.bank.entries)}
    records = dataset.records
    together = batch_size if detector.layout.plain else 1  # pictures that are cut are large
    for start in range(0, len(records), together):
        chunk = records[start : start + together]
        if opened := _open(detector, chunk, scored):
            _score_batch(detector, opened, rows, scored, rng, batch_size)
        if progress is not None:
            progress(start + len(chunk))
    return scored


def without_a_file(bank: MemoryBank, files: Dataset) -> list[int]:
    """Rows of the images that the memory holds and its files do not bring: taught, or gone since."""
    there = {(record.object_name, record.source) for record in files.records}
    return [
        row
        for row, entry in enumerate(bank.entries)
        if row >= bank.settled or (entry.object_name, entry.source) not in there
    ]


def judge_held(detector: Detector, scored: Scored, rows: Sequence[int], seed: int = 0) -> int:
    """Add images of the memory from what it holds of them, each left out, as the others.

    Returns how many there were to judge; those that are not held whole are left out. Raises
    `CalibrationError` where the head cannot judge stored images.
    """
    own, wanted = score_own(detector, thorough=True, seed=seed), set(rows)
    chosen = [i for i, row in enumerate(own.own_row) if row in wanted]
    scored.join(own.some(chosen))
    return len(chosen)


def _open(detector: Detector, records: Sequence[Record], scored: Scored) -> list[Opened]:
    """Those of the images that can be read, with their masks."""
    opened = []
    for record in records:
        try:
            decoded = detector.decode(record.image)
            if detector.layout.align is not None and decoded.move is None:
                scored.skipped.append(f"{record.source}: {NOT_ALIGNED}")
                continue  # a build leaves it out, too
            truth = record.truth(decoded.size, decoded.orientation)
            opened.append((record, decoded, None if truth is None else truth.anomalous))
            warnings = (*decoded.warnings, *(truth.warnings if truth is not None else ()))
            scored.warnings.update({code_of(text) for text in warnings})
        except (ImageError, MaskError) as error:
            scored.skipped.append(f"{record.source}: {error}")
    return opened


def _score_batch(
    detector: Detector,
    opened: Sequence[Opened],
    rows: dict[tuple[str, str], int],
    scored: Scored,
    rng: np.random.Generator,
    batch_size: int,
) -> None:
    decoded = [item for _, item, _ in opened]
    seen: list[torch.Tensor | None] = [None] * len(opened)
    by_source = [rows.get((record.source, record.object_name), -1) for record, _, _ in opened]
    if detector.layout.plain:
        features = detector.encode(decoded)
        seen = list(sketches(features))
        own = _either(rows_by_features(features, detector.bank), by_source)
        sizes = [item.size for item in decoded]
        exclude = torch.tensor(own, dtype=torch.int64)
        predictions = detector.finish(features, sizes, exclude=exclude, evidence=1)
    else:
        own = _either(rows_by_tiles(detector, decoded), by_source)
        judged = detector.judge(decoded, exclude=own, evidence=1, batch_size=batch_size)
        predictions = list(judged)
    for (record, item, mask), prediction, row, sketch in zip(opened, predictions, own, seen):
        scored.sketch.append(sketch)
        _keep(scored, record, mask, prediction, row, rng, item.shown.counted())


def _either(by_features: list[int], by_source: list[int]) -> list[int]:
    return [row if row >= 0 else other for row, other in zip(by_features, by_source)]


def _keep(
    scored: Scored,
    record: Record,
    mask: BoolArray | None,
    prediction: Prediction,
    row: int,
    rng: np.random.Generator,
    counted: BoolArray | None,
) -> None:
    image = len(scored.score)
    scored.score.append(prediction.score)
    scored.whole.append(prediction.class_score)
    scored.top.append(prediction.top_score)
    scored.anomalous.append(record.anomalous)
    scored.own_row.append(row)
    scored.source.append(record.source)
    for evidence in prediction.evidence:
        kept = scored.similarity_image if evidence.level == "image" else scored.similarity_patch
        kept.append(evidence.similarity)
    shown = prediction.anomaly_map
    inside = None if counted is None or shown is None else at_shape(counted, shown.shape)
    whole = shown if shown is None or inside is None else shown[inside]
    scored.peak.append(float(whole.max()) if whole is not None and whole.size else None)
    if mask is None or shown is None:
        return
    mask = at_shape(mask, shown.shape)
    for truth in (False, True):
        values = shown[mask == truth if inside is None else (mask == truth) & inside]
        scored.sample(image, truth, values, rng, PIXELS_KEPT)
