"""Batches of a dataset through detectors that look at images alike: one encoding for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image

from mrad.detector import Decoded, Detector
from mrad.encoder.stream import encode_tiles
from mrad.errors import ImageError, MaskError
from mrad.images.layout import Layout, Places
from mrad.images.masks import Mask
from mrad.maps import resize_map
from mrad.types import BoolArray, Prediction
from mrad_indexer.ahead import ahead
from mrad_indexer.cutting import NOT_ALIGNED
from mrad_indexer.datasets import Dataset, Record
from mrad_indexer.known import rows_by_features, rows_by_tiles

Detectors = Mapping[str, Detector]


@dataclass(frozen=True)
class Batch:
    """Some images of a dataset, judged by every detector."""

    rows: Sequence[int]
    """Of the dataset's records."""
    places: list[Places]
    predictions: dict[str, list[Prediction]]
    known: dict[str, list[bool]]
    """Whether the detector's bank holds the image."""
    encode_seconds: float
    finish_seconds: dict[str, float]
    warnings: Sequence[tuple[str, ...]] = ()
    """Of the images, as they were read."""
    masks: Sequence[Mask | None] = ()
    """Brought to the size of the maps; None where unknown."""
    skipped: Mapping[int, str] = field(default_factory=dict)
    """Rows whose image or mask cannot be read, or that cannot be aligned, and why; they are in none of the
    others."""


def by_layout(detectors: Detectors) -> list[dict[str, Detector]]:
    """The detectors in groups that look at images alike."""
    groups: dict[Layout, dict[str, Detector]] = {}
    for name, detector in detectors.items():
        groups.setdefault(detector.layout, {})[name] = detector
    return list(groups.values())


def refused(
    groups: Sequence[Detectors],
    dataset: Dataset,
    rows: Sequence[int],
    resolution: int | None,
    progress: Callable[[], None],
) -> dict[int, str]:
    """Those of `rows` that not every group can look at, and why: found without encoding anything.

    `progress`: called once for each row and group.
    """
    found: dict[int, str] = {}

    def look(row: int) -> str | None:
        why = None
        for group in groups:
            if why is None:
                opened = _opened(next(iter(group.values())), dataset, [row], resolution)
                why = opened.skipped.get(row)
        return why

    with ThreadPoolExecutor(max_workers=2) as pool:
        for row, why in zip(rows, pool.map(look, rows)):
            if why is not None:
                found[row] = why
            for _ in groups:
                progress()
    return found


def judged(
    detectors: Detectors,
    dataset: Dataset,
    rows: Sequence[int],
    batch_size: int,
    resolution: int | None,
) -> Generator[Batch, None, None]:
    """Batches of `rows`; the next is decoded in threads while this one is used.

    `resolution`: side of every map; None for each image's own size. What cannot be read, or not be aligned,
    is left out, as from a build, and named. Images that are cut come one at a time, their tiles in batches.
    """
    first = next(iter(detectors.values()))
    together = batch_size if first.layout.plain else 1
    chunks = [rows[start : start + together] for start in range(0, len(rows), together)]

    def decode(chunk: Sequence[int]) -> _Opened:
        return _opened(first, dataset, chunk, resolution)

    with closing(ahead(decode, chunks, depth=2)) as every:
        for opened in every:
            decoded = opened.decoded
            if not decoded:
                nothing = [{name: [] for name in detectors} for _ in range(2)]
                batch = Batch([], [], *nothing, 0, dict.fromkeys(detectors, 0.0))
            elif first.layout.plain:
                batch = _whole(detectors, opened.rows, decoded, resolution)
            else:
                batch = _cut(detectors, opened.rows, decoded[0], batch_size, resolution)
            yield replace(
                batch,
                warnings=[item.warnings for item in decoded],
                masks=opened.masks,
                skipped=opened.skipped,
            )


@dataclass
class _Opened:
    """What of a batch could be read."""

    rows: list[int] = field(default_factory=list)
    decoded: list[Decoded] = field(default_factory=list)
    masks: list[Mask | None] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)


def _opened(
    detector: Detector, dataset: Dataset, rows: Sequence[int], resolution: int | None
) -> _Opened:
    found = _Opened()
    for row in rows:
        record = dataset.records[row]
        try:
            decoded = detector.decode(record.image)
            if detector.layout.align is not None and decoded.move is None:
                found.skipped[row] = f"{record.source}: {NOT_ALIGNED}"
                continue  # build, calibrate and the server's lessons leave it out, too
            mask = mask_at(record, decoded.places.size, resolution, decoded.orientation)
        except (ImageError, MaskError) as error:
            found.skipped[row] = f"{record.source}: {error}"
            continue
        found.rows.append(row)
        found.decoded.append(decoded)
        found.masks.append(mask)
    return found


def mask_at(
    record: Record, size: tuple[int, int], resolution: int | None, orientation: int = 1
) -> Mask | None:
    """An image's mask, brought to `resolution`; None if unknown. Raises `MaskError`.

    `orientation`: the tag that turned the image.
    """
    mask = record.truth(size, orientation)
    if mask is None or resolution is None:
        return mask
    side = (resolution, resolution)
    return Mask(_resized(mask.anomalous, side), _resized(mask.ignore, side), mask.warnings)


def _resized(marked: BoolArray, side: tuple[int, int]) -> BoolArray:
    grey = Image.fromarray(marked.astype(np.uint8) * 255)
    return np.asarray(grey.resize(side, Image.Resampling.BILINEAR)) > 127


def _whole(
    detectors: Detectors, rows: Sequence[int], decoded: list[Decoded], resolution: int | None
) -> Batch:
    start = time.perf_counter()
    features = next(iter(detectors.values())).encode(decoded)
    places = [item.places for item in decoded]
    batch = Batch(rows, places, {}, {}, time.perf_counter() - start, {})
    sizes = [item.size if resolution is None else (resolution, resolution) for item in decoded]
    for name, detector in detectors.items():
        start = time.perf_counter()
        batch.predictions[name] = detector.finish(features, sizes)
        batch.finish_seconds[name] = time.perf_counter() - start
        batch.known[name] = [row >= 0 for row in rows_by_features(features, detector.bank)]
    return batch


def _cut(
    detectors: Detectors,
    rows: Sequence[int],
    item: Decoded,
    batch_size: int,
    resolution: int | None,
) -> Batch:
    """One image, cut. Where a coarse look comes first, each detector chooses the tiles that it looks at
    closely: encoding is a part of its time then."""
    canvases = {}
    finish, encode_seconds = dict.fromkeys(detectors, 0.0), 0.0
    coarse = item.places.coarse is not None
    if not coarse:
        canvases = {name: detector.canvas(item.places) for name, detector in detectors.items()}
        began = time.perf_counter()
        encoder = next(iter(detectors.values())).encoder
        with closing(encode_tiles(encoder, [item], batch_size)) as batches:
            for tiles, features in batches:
                for name, detector in detectors.items():
                    start = time.perf_counter()
                    detector.draw([(canvases[name], tile) for _, tile in tiles], features)
                    finish[name] += time.perf_counter() - start
        encode_seconds = time.perf_counter() - began - sum(finish.values())
    batch = Batch(rows, [item.shown], {}, {}, encode_seconds, finish)
    for name, detector in detectors.items():
        start = time.perf_counter()
        if coarse:
            (found,) = detector.judge([item], batch_size=batch_size, map_pixels=None)
        else:
            found = item.finished(detector.conclude(canvases[name], map_pixels=None))
        batch.predictions[name] = [_at(found, resolution)]
        finish[name] += time.perf_counter() - start
        batch.known[name] = [row >= 0 for row in rows_by_tiles(detector, [item])]
    return batch


def _at(prediction: Prediction, resolution: int | None) -> Prediction:
    if resolution is None or prediction.anomaly_map is None:
        return prediction
    values = torch.from_numpy(prediction.anomaly_map)
    return replace(prediction, anomaly_map=resize_map(values, (resolution, resolution)))
