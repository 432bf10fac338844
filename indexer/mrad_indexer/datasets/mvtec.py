"""MVTec AD's layout, used by MPDD, BTAD (`ok`/`ko`), DTD-Synthetic and many others.

<object>/train/good/*, <object>/test/<good or a defect>/*, <object>/ground_truth/<defect>/*
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mrad_indexer.datasets.records import (
    GOOD_NAMES,
    Dataset,
    Record,
    child,
    folders_in,
    images_in,
    masks_by_stem,
    relative,
    require,
)

NAME = "mvtec"


def detect(root: Path) -> bool:
    """One object's folder, or a folder of such."""
    return _is_object(root) or any(_is_object(folder) for folder in folders_in(root))


def read(root: Path) -> Dataset:
    """Every image of every object."""
    objects = [root] if _is_object(root) else [f for f in folders_in(root) if _is_object(f)]
    return require(NAME, root, [r for folder in objects for r in _read_object(folder, root)])


def _is_object(folder: Path) -> bool:
    test = child(folder, "test")
    if test is None:
        return False
    kinds = {kind.name.lower() for kind in folders_in(test)}
    return child(folder, "ground_truth") is not None or bool(kinds & GOOD_NAMES)


def _read_object(folder: Path, root: Path) -> Iterator[Record]:
    truth = child(folder, "ground_truth")
    for split in ("train", "test"):
        for kind in folders_in(child(folder, split) or folder / split):
            good = kind.name.lower() in GOOD_NAMES
            here = child(truth, kind.name) if truth and not good else None
            masks = masks_by_stem(images_in(here)) if here else {}
            for image in images_in(kind):
                yield Record(
                    image=image,
                    anomalous=not good,
                    mask=masks.get(image.stem.lower()),
                    source=relative(image, root),
                    object_name=folder.name,
                    defect="" if good else kind.name,
                    split=split,
                )
