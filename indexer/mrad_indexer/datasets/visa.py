"""VisA: <object>/Data/Images/{Normal,Anomaly}, Data/Masks/Anomaly, and split_csv/*.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from mrad.errors import DataError
from mrad_indexer.datasets.pairing import pair
from mrad_indexer.datasets.records import (
    Dataset,
    Record,
    child,
    folders_in,
    images_in,
    label_of,
    relative,
    require,
)

NAME = "visa"
SPLIT = "split_csv/1cls.csv"


def detect(root: Path) -> bool:
    """The set with its splits, or objects in its layout."""
    return (root / SPLIT).is_file() or any(_is_object(folder) for folder in folders_in(root))


def read(root: Path) -> Dataset:
    """By `1cls.csv` (object,split,label,image,mask); without it, every image with no split."""
    if (root / SPLIT).is_file():
        return require(NAME, root, _read_csv(root))
    objects = [folder for folder in folders_in(root) if _is_object(folder)]
    return require(NAME, root, [r for folder in objects for r in _read_object(folder, root)])


def _is_object(folder: Path) -> bool:
    return (folder / "Data" / "Images").is_dir()


def _read_csv(root: Path) -> list[Record]:
    records = []
    with (root / SPLIT).open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                label, image = row["label"], root / row["image"]
                mask = root / row["mask"] if row["mask"] else None
                name, split = row["object"], row["split"]
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{root / SPLIT}, line {number} lacks object, split, label, image or mask"
                ) from error
            anomalous = label_of(label, f"{root / SPLIT}, line {number}")
            mask = mask if anomalous else None
            for file in (image, mask):
                if file is not None and not file.is_file():
                    raise DataError(f"{root / SPLIT}, line {number}: {file} does not exist")
            defect = "anomaly" if anomalous else ""
            source = relative(image, root)
            records.append(Record(image, anomalous, mask, source, name, defect, split))
    return records


def _read_object(folder: Path, root: Path) -> list[Record]:
    images, masks = folder / "Data" / "Images", folder / "Data" / "Masks" / "Anomaly"
    records = []
    for kind, anomalous in (("Normal", False), ("Anomaly", True)):
        found = images_in(child(images, kind) or images / kind)
        truth = pair(found, images_in(masks)) if anomalous else {}
        for image in found:
            mask = truth.get(image)
            defect = "anomaly" if anomalous else ""
            source = relative(image, root)
            records.append(Record(image, anomalous, mask, source, folder.name, defect))
    return records
