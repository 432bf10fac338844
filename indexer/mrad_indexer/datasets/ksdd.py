"""Kolektor surface defects: kos01/Part0.jpg with kos01/Part0_label.bmp, empty where good."""

from __future__ import annotations

from pathlib import Path

from mrad.errors import DataError, MaskError
from mrad.images.masks import read_any_size
from mrad_indexer.datasets.records import Dataset, Record, folders_in, images_in, relative, require

NAME = "ksdd"
ENDING = "_label"


def detect(root: Path) -> bool:
    """Folders of parts with their labels beside them."""
    return any(_pairs(folder) for folder in folders_in(root)[:5])


def read(root: Path) -> Dataset:
    """A part is defective when its label image marks a pixel, so every label is opened."""
    records = []
    for folder in folders_in(root):
        for image, mask in _pairs(folder):
            try:
                anomalous = bool(read_any_size(mask).anomalous.any())
            except MaskError as error:
                raise DataError(
                    f"{error}: without it nobody knows whether the part is good"
                ) from error
            source = relative(image, root)
            defect = "defect" if anomalous else ""
            truth = mask if anomalous else None
            records.append(Record(image, anomalous, truth, source, "commutator", defect))
    return require(NAME, root, records)


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    images = images_in(folder)
    labels = {path.stem.lower(): path for path in images if path.stem.lower().endswith(ENDING)}
    parts = [path for path in images if not path.stem.lower().endswith(ENDING)]
    found = [(part, labels.get(part.stem.lower() + ENDING)) for part in parts]
    return [(part, label) for part, label in found if label is not None]
