"""The plain layout for people: good/ and defect/, masks/ beside them or not.

good/*, defect/* or defect/<kind>/*, masks/<the same below>; several objects side by side too.
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
    images_below,
    masks_by_stem,
    relative,
    require,
)

NAME = "folder"
BAD_NAMES = ("defect", "defects", "bad", "anomalous", "anomaly", "abnormal", "ng", "ko")
MASK_NAMES = ("masks", "mask", "ground_truth")


def detect(root: Path) -> bool:
    """Good or defect folders here, or in every folder of a set of objects."""
    return _is_object(root) or any(_is_object(folder) for folder in folders_in(root))


def read(root: Path) -> Dataset:
    """Every image; the name of a folder of objects' member becomes the object."""
    if _is_object(root):
        return require(NAME, root, list(_read_object(root, root)))
    objects = [folder for folder in folders_in(root) if _is_object(folder)]
    return require(NAME, root, [r for folder in objects for r in _read_object(folder, root)])


def _is_object(folder: Path) -> bool:
    return child(folder, *GOOD_NAMES) is not None or child(folder, *BAD_NAMES) is not None


def _read_object(folder: Path, root: Path) -> Iterator[Record]:
    good, bad = child(folder, *GOOD_NAMES), child(folder, *BAD_NAMES)
    for image in images_below(good) if good else []:
        yield Record(image, False, None, relative(image, root), folder.name)
    if bad is None:
        return
    finder = _Masks(child(folder, *MASK_NAMES))
    for image in images_below(bad):
        below = image.relative_to(bad).parent
        kind = below.parts[0] if below.parts else ""
        yield Record(
            image=image,
            anomalous=True,
            mask=finder.of(bad.name, below, image.stem),
            source=relative(image, root),
            object_name=folder.name,
            defect=kind or "defect",
        )


class _Masks:
    """Masks below `root`, found where they mirror the images: with or without the defect folder."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.known: dict[Path, dict[str, Path]] = {}

    def of(self, bad: str, below: Path, stem: str) -> Path | None:
        if self.root is None:
            return None
        for folder in (self.root / below, self.root / bad / below, self.root / bad):
            if folder not in self.known:
                found = images_below(folder) if folder == self.root / bad else []
                direct = [p for p in images_below(folder) if p.parent == folder]
                self.known[folder] = masks_by_stem(direct or found)
            if mask := self.known[folder].get(stem.lower()):
                return mask
        return None
