"""Contact sheets: which images a detector judged best and worst, with masks and maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mrad_client.batch.pictures import data_uri, shrink
from PIL import Image

from mrad.detector import Detector
from mrad.images.reader import load_image
from mrad.maps import outline, overlay
from mrad_indexer.datasets import Dataset, Record
from mrad_indexer.evaluation.runner import ImageScore, ObjectResult

OUTLINE = (40, 220, 90)


@dataclass(frozen=True)
class Card:
    """One image of a sheet; pictures are data URIs."""

    of: ImageScore
    picture: str
    """The image with the mask's outline."""
    heat: str
    """The map over the image."""


@dataclass(frozen=True)
class Sheet:
    """A titled row of cards."""

    title: str
    about: str
    cards: tuple[Card, ...]


def sheets_of(
    detector: Detector, dataset: Dataset, result: ObjectResult, *, count: int = 4
) -> tuple[Sheet, ...]:
    """Up to four rows: misses, false alarms, clearest finds, quietest good images of one object.

    Maps are computed again for the few images shown, so that an evaluation keeps none. All maps of
    one object share one colour scale (`result.low` to `result.high`).
    """
    bad = sorted((s for s in result.scores if s.anomalous), key=lambda s: s.score)
    good = sorted((s for s in result.scores if not s.anomalous), key=lambda s: -s.score)
    rows: list[tuple[str, str, Sequence[ImageScore]]] = [
        ("Defects scored lowest", "what a threshold would miss first", bad[:count]),
        ("Good images scored highest", "the first false alarms", good[:count]),
        ("Defects scored highest", "the clearest finds", bad[::-1][:count]),
        ("Good images scored lowest", "the quietest", good[::-1][:count]),
    ]
    sheets = []
    for title, about, scores in rows:
        cards = tuple(_card(detector, dataset, score, result) for score in scores)
        if cards:
            sheets.append(Sheet(title, about, cards))
    return tuple(sheets)


def _card(detector: Detector, dataset: Dataset, score: ImageScore, result: ObjectResult) -> Card:
    record = dataset.records[score.record]
    image = load_image(record.image)
    anomaly_map = detector.predict([image])[0].anomaly_map
    if anomaly_map is None:
        raise AssertionError("predict gives maps unless told otherwise")
    heat = overlay(image, anomaly_map, low=result.low, high=result.high, alpha=0.7)
    return Card(
        of=score,
        picture=data_uri(outlined(image, record)),
        heat=data_uri(shrink(heat)),
    )


def outlined(image: Image.Image, record: Record) -> Image.Image:
    """A small copy of the image with its mask's outline."""
    small = shrink(image)
    mask = record.read_mask(image.size)
    if mask is None or not mask.any():
        return small
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(small.size, Image.Resampling.BOX)
    pixels = np.asarray(small).copy()
    pixels[outline(np.asarray(grey) <= 0)] = OUTLINE
    return Image.fromarray(pixels)
