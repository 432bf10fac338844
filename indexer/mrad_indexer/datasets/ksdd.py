"""Kolektor surface defects: kos01/Part0.jpg with kos01/Part0_label.bmp, empty where good.

KSDD2: train/10000.png with train/10000_GT.png, and test/ alike.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mrad.errors import DataError, MaskError
from mrad.images.masks import read_any_size
from mrad_indexer.datasets.records import (
    Dataset,
    Record,
    child,
    folders_in,
    images_in,
    relative,
    require,
)

NAME = "ksdd"
NAME_2 = "ksdd2"
ENDING, ENDING_2 = "_label", "_gt"


def detect(root: Path) -> bool:
    """Folders of parts with their labels beside them."""
    return any(_pairs(folder, ENDING) for folder in folders_in(root)[:5])


def read(root: Path) -> Dataset:
    """A part is defective when its label image marks a pixel, so every label is opened."""
    pairs = [("", pair) for folder in folders_in(root) for pair in _pairs(folder, ENDING)]
    return _read(NAME, root, "commutator", pairs)


def detect_2(root: Path) -> bool:
    """train/ and test/ with a _GT image for each."""
    return any(_pairs(place, ENDING_2) for _, place in _splits(root))


def read_2(root: Path) -> Dataset:
    """As KSDD, with splits."""
    pairs = [(split, pair) for split, at in _splits(root) for pair in _pairs(at, ENDING_2)]
    return _read(NAME_2, root, "surface", pairs)


def _read(
    name: str, root: Path, object_name: str, pairs: list[tuple[str, tuple[Path, Path]]]
) -> Dataset:
    """`pairs`: the split, and an image with its label."""
    records = [_record(*pair, root, object_name, split) for split, pair in pairs]
    labels = frozenset(label for _, (_, label) in pairs)
    return replace(require(name, root, records), used=labels)


def _splits(root: Path) -> list[tuple[str, Path]]:
    return [(name, place) for name in ("train", "test") if (place := child(root, name))]


def _record(image: Path, mask: Path, root: Path, object_name: str, split: str) -> Record:
    try:
        anomalous = bool(read_any_size(mask).anomalous.any())
    except MaskError as error:
        raise DataError(f"{error}: without it nobody knows whether the part is good") from error
    defect, truth = ("defect", mask) if anomalous else ("", None)
    return Record(image, anomalous, truth, relative(image, root), object_name, defect, split)


def _pairs(folder: Path, ending: str) -> list[tuple[Path, Path]]:
    images = images_in(folder)
    labels = {path.stem.lower(): path for path in images if path.stem.lower().endswith(ending)}
    parts = [path for path in images if not path.stem.lower().endswith(ending)]
    found = [(part, labels.get(part.stem.lower() + ending)) for part in parts]
    return [(part, label) for part, label in found if label is not None]
