"""Batches of a dataset through detectors that look at images alike: one encoding for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from mrad.detector import Decoded, Detector
from mrad.encoder.stream import encode_tiles
from mrad.images.layout import Layout, Places
from mrad.maps import resize_map
from mrad.types import Prediction
from mrad_indexer.datasets import Dataset
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
    orientations: Sequence[int] = ()
    """The tags that turned the images."""
    warnings: Sequence[tuple[str, ...]] = ()
    """Of the images, as they were read."""


def by_layout(detectors: Detectors) -> list[dict[str, Detector]]:
    """The detectors in groups that look at images alike."""
    groups: dict[Layout, dict[str, Detector]] = {}
    for name, detector in detectors.items():
        groups.setdefault(detector.layout, {})[name] = detector
    return list(groups.values())


def judged(
    detectors: Detectors,
    dataset: Dataset,
    rows: Sequence[int],
    batch_size: int,
    resolution: int | None,
) -> Iterator[Batch]:
    """Batches of `rows`; the next is decoded in threads while this one is used.

    `resolution`: side of every map; None for each image's own size. Images that are cut come one at a
    time, their tiles in batches.
    """
    first = next(iter(detectors.values()))
    together = batch_size if first.layout.plain else 1
    chunks = [rows[start : start + together] for start in range(0, len(rows), together)]

    def decode(chunk: Sequence[int]) -> list[Decoded]:
        return [first.decode(dataset.records[row].image) for row in chunk]

    with ThreadPoolExecutor(max_workers=2) as pool:
        pending = pool.submit(decode, chunks[0])
        for position, chunk in enumerate(chunks):
            decoded = pending.result()
            if position + 1 < len(chunks):
                pending = pool.submit(decode, chunks[position + 1])
            if first.layout.plain:
                batch = _whole(detectors, chunk, decoded, resolution)
            else:
                batch = _cut(detectors, chunk, decoded, batch_size, resolution)
            yield replace(
                batch,
                orientations=[item.orientation for item in decoded],
                warnings=[item.warnings for item in decoded],
            )


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
    decoded: list[Decoded],
    batch_size: int,
    resolution: int | None,
) -> Batch:
    places = [item.places for item in decoded]
    canvases = {name: [d.canvas(item) for item in places] for name, d in detectors.items()}
    finish = dict.fromkeys(detectors, 0.0)
    number = {id(item): place for place, item in enumerate(decoded)}
    began = time.perf_counter()
    encoder = next(iter(detectors.values())).encoder
    for tiles, features in encode_tiles(encoder, decoded, batch_size):
        for name, detector in detectors.items():
            start = time.perf_counter()
            own = canvases[name]
            detector.draw([(own[number[id(item)]], tile) for item, tile in tiles], features)
            finish[name] += time.perf_counter() - start
    batch = Batch(rows, places, {}, {}, time.perf_counter() - began - sum(finish.values()), finish)
    for name, detector in detectors.items():
        start = time.perf_counter()
        found = [detector.conclude(canvas, map_pixels=None) for canvas in canvases[name]]
        batch.predictions[name] = [_at(item, resolution) for item in found]
        finish[name] += time.perf_counter() - start
        batch.known[name] = [row >= 0 for row in rows_by_tiles(detector, decoded)]
    return batch


def _at(prediction: Prediction, resolution: int | None) -> Prediction:
    if resolution is None or prediction.anomaly_map is None:
        return prediction
    values = torch.from_numpy(prediction.anomaly_map)
    return replace(prediction, anomaly_map=resize_map(values, (resolution, resolution)))
