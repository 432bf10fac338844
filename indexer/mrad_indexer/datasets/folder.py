"""The plain layout for people: good/ and defect/, masks/ beside them or not.

good/*, defect/* or defect/<kind>/*, or <kind>/* beside good/; masks as pairing.py finds them, in masks/,
there below the same folders or flat, or beside the images; several objects side by side too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from mrad_indexer.datasets.pairing import apart, pair_in_places
from mrad_indexer.datasets.records import (
    GOOD_NAMES,
    Dataset,
    Record,
    child,
    folders_in,
    images_below,
    images_in,
    relative,
    require,
)

NAME = "folder"
BAD_NAMES = ("defect", "defects", "bad", "anomalous", "anomaly", "abnormal", "ng", "ko")
MASK_NAMES = ("masks", "mask", "ground_truth")
NO_KINDS = frozenset({*MASK_NAMES, "train", "test", "validation", "val", "unlabelled", "unlabeled"})
"""Folders beside good/ that hold no kind of defect."""


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
    if bad is not None:
        yield from _defects(bad, folder, root)
        return
    for kind in folders_in(folder):
        if kind != good and kind.name.lower() not in NO_KINDS:
            yield from _defects(kind, folder, root)


def _defects(bad: Path, folder: Path, root: Path) -> Iterator[Record]:
    """Defective images below `bad`: of the kinds that its folders name, or of the one it is."""
    images, beside = _images_and_masks(bad)
    masks = _Masks(child(folder, *MASK_NAMES), beside, bad)
    pairs = pair_in_places(images, {image: masks.places(image) for image in images})
    named = bad.name.lower() in BAD_NAMES
    for image in images:
        below = image.relative_to(bad).parent
        kind = below.parts[0] if below.parts and named else ("defect" if named else bad.name)
        yield Record(
            image=image,
            anomalous=True,
            mask=pairs.get(image),
            source=relative(image, root),
            object_name=folder.name,
            defect=kind,
        )


def _images_and_masks(bad: Path) -> tuple[list[Path], dict[Path, list[Path]]]:
    """Images below `bad`, and folder -> masks that lie among them."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for file in images_below(bad):
        by_folder[file.parent].append(file)
    images, beside = [], {}
    for place, files in by_folder.items():
        own, beside[place], _ = apart(files)
        images += own
    return sorted(images), beside


class _Masks:
    """Where the mask of an image may lie: beside it, mirrored below `root`, or flat in it."""

    def __init__(self, root: Path | None, beside: dict[Path, list[Path]], bad: Path) -> None:
        self.root, self.beside, self.bad = root, beside, bad
        self.known: dict[Path, list[Path]] = {}

    def places(self, image: Path) -> Sequence[Sequence[Path]]:
        found = [self.beside.get(image.parent, [])]
        if self.root is not None:
            below = image.relative_to(self.bad).parent
            folders = [self.root / self.bad.name / below, self.root / below, self.root]
            found += [self._in(folder) for folder in dict.fromkeys(folders)]
        return found

    def _in(self, folder: Path) -> list[Path]:
        if folder not in self.known:
            self.known[folder] = images_in(folder)
        return self.known[folder]
