"""DAGM 2007: Class<n>/{Train,Test}/*.PNG with Label/<name>_label.PNG for the defective ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mrad_indexer.datasets.pairing import pair
from mrad_indexer.datasets.records import (
    Dataset,
    Record,
    child,
    images_in,
    objects_in,
    relative,
    require,
)

NAME = "dagm"


def detect(root: Path) -> bool:
    """One class's folder, or a folder of such."""
    return bool(objects_in(root, _is_object))


def read(root: Path) -> Dataset:
    """An image is defective when it has a label image."""
    objects = objects_in(root, _is_object)
    objects.sort(key=lambda folder: (len(folder.name), folder.name))  # Class2 before Class10
    return require(NAME, root, [r for folder in objects for r in _read_object(folder, root)])


def _is_object(folder: Path) -> bool:
    return any(child(p, "Label") for p in (child(folder, "Train"), child(folder, "Test")) if p)


def _read_object(folder: Path, root: Path) -> Iterator[Record]:
    for split in ("train", "test"):
        place = child(folder, split)
        if place is None:
            continue
        masks = pair(images_in(place), images_in(child(place, "Label") or place / "Label"))
        for image in images_in(place):
            mask = masks.get(image)
            defect = "defect" if mask else ""
            source = relative(image, root)
            yield Record(image, mask is not None, mask, source, folder.name, defect, split)
