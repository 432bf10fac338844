"""Medical sets: labels without masks (HeadCT, BrainMRI, Br35H) and masks without normal images
(CVC-ClinicDB, CVC-ColonDB, Kvasir, Endo, ISIC, TN3K)."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from mrad.errors import DataError
from mrad_indexer.datasets.pairing import marks_something, pair
from mrad_indexer.datasets.records import (
    Dataset,
    Record,
    child,
    folders_in,
    images_below,
    images_in,
    relative,
    require,
)


def _yes_no(root: Path) -> tuple[Path, Path] | None:
    """BrainMRI nests the two folders once more in a folder of the same name."""
    for place in (root, *folders_in(root)):
        yes, no = child(place, "yes"), child(place, "no")
        if yes and no:
            return yes, no
    return None


def detect_yes_no(root: Path) -> bool:
    """BrainMRI, Br35H: folders `yes` (tumour) and `no`."""
    return _yes_no(root) is not None


def read_yes_no(root: Path) -> Dataset:
    """Labels only."""
    found = _yes_no(root)
    if found is None:
        raise DataError(f"{root} has no folders yes and no")
    records = [
        Record(image, anomalous, None, relative(image, root), "brain", "tumour" * anomalous)
        for folder, anomalous in zip(found, (True, False))
        for image in images_in(folder)
    ]
    return require("yes_no", root, records)


def detect_head_ct(root: Path) -> bool:
    """HeadCT: labels.csv beside head_ct/."""
    return (root / "labels.csv").is_file() and child(root, "head_ct") is not None


def read_head_ct(root: Path) -> Dataset:
    """labels.csv: `id, hemorrhage`; id 7 is the image 007.png."""
    folder = child(root, "head_ct")
    if folder is None or not (root / "labels.csv").is_file():
        raise DataError(f"{root} lacks labels.csv or head_ct/")
    images = {int(path.stem): path for path in images_below(folder) if path.stem.isdigit()}
    records = []
    with (root / "labels.csv").open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number == 1 or not row:
                continue
            try:
                image, anomalous = images[int(row[0])], bool(int(row[1]))
            except (ValueError, KeyError, IndexError) as error:
                raise DataError(
                    f"{root / 'labels.csv'}, line {number}: {row} names no image in {folder}"
                ) from error
            source = relative(image, root)
            defect = "haemorrhage" if anomalous else ""
            records.append(Record(image, anomalous, None, source, "head", defect))
    return require("head_ct", root, records)


PAIRS: tuple[tuple[str, str, str], ...] = (
    ("images", "masks", ""),  # Kvasir-SEG, CVC-ColonDB, Endo
    ("image", "mask", ""),
    ("Original", "Ground Truth", ""),  # CVC-ClinicDB
    ("Original", "GroundTruth", ""),
    ("trainval-image", "trainval-mask", "train"),  # TN3K
    ("test-image", "test-mask", "test"),
    ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth", "train"),
    ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth", "test"),
    ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth", "test"),
    ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", "train"),
    ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth", "test"),
)
"""Folder of images, folder of masks, split."""


def _pairs(root: Path) -> list[tuple[Path, Path, str]]:
    """CVC-ClinicDB also comes as PNG/ and TIF/ side by side: the first that fits is read."""
    for place in (root, *folders_in(root)):
        found = [(child(place, a), child(place, b), split) for a, b, split in PAIRS]
        pairs = [(a, b, split) for a, b, split in found if a and b]
        if pairs:
            return pairs
    return []


def detect_segmentation(root: Path) -> bool:
    """A folder of images and a folder of masks, by the names those sets use."""
    return bool(_pairs(root))


def read_segmentation(root: Path) -> Dataset:
    """An image whose mask marks nothing is good, so every mask is opened. The sets themselves hold lesions
    alone, so only pixels can be evaluated. Raises `DataError` for an image without a mask: nobody knows what
    it shows."""
    records, used = [], set()
    for images, truth, split in _pairs(root):
        # ISIC keeps pictures of superpixels beside the images.
        found = [p for p in images_below(images) if not p.stem.lower().endswith("_superpixels")]
        masks = pair(found, images_below(truth))
        lacking = [image for image in found if image not in masks]
        if lacking:
            raise DataError(
                f"{len(lacking)} of {len(found)} images in {images} have no mask in {truth} ({lacking[0].name}): "
                "nobody knows whether they are good. Put good images into good/, others into defect/, beside "
                "masks/, or give each good one a mask that marks nothing"
            )
        for image, mask in masks.items():
            source = relative(image, root)
            marked = marks_something(mask, image)
            used.add(mask)
            defect, kept = ("lesion", mask) if marked else ("", None)
            records.append(Record(image, marked, kept, source, root.name, defect, split))
    return replace(require("segmentation", root, records), used=frozenset(used))
