"""MVTec AD's layout, used by MVTec LOCO and AD 2, MPDD, BTAD (`ok`/`ko`), DTD-Synthetic and others.

<object>/train/good/*, <object>/test/<good or a defect>/*, <object>/ground_truth/<defect>/*; LOCO has
validation/ too, and a folder of masks for each image; AD 2 has test_public/ with its ground_truth/ in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mrad.errors import DataError
from mrad_indexer.datasets.pairing import apart, pair_in_places, require_unmarked
from mrad_indexer.datasets.records import (
    GOOD_NAMES,
    Dataset,
    Record,
    child,
    folders_in,
    images_in,
    objects_in,
    relative,
    require,
)

NAME = "mvtec"
SPLITS = (
    ("train", "train"),
    ("validation", "validation"),
    ("test", "test"),
    ("test_public", "test"),
)
"""Folder, and the split that it is; test_private of AD 2 has no labels."""
NUMBERS = {"0", "1"}
"""Kinds called so: 0 is good."""


def detect(root: Path) -> bool:
    """One object's folder, or a folder of such."""
    return bool(objects_in(root, _is_object))


def read(root: Path) -> Dataset:
    """Every image of every object."""
    objects = objects_in(root, _is_object)
    used: set[Path] = set()
    records = [r for folder in objects for r in _read_object(folder, root, used)]
    return replace(require(NAME, root, records), used=frozenset(used))


def _is_object(folder: Path) -> bool:
    test = child(folder, "test", "test_public")
    if test is None:
        return False
    kinds = {kind.name.lower() for kind in folders_in(test)}
    truth = child(folder, "ground_truth") or child(test, "ground_truth")
    return truth is not None or bool(kinds & GOOD_NAMES) or (bool(kinds) and kinds <= NUMBERS)


def _read_object(folder: Path, root: Path, used: set[Path]) -> Iterator[Record]:
    for name, split in SPLITS:
        place = child(folder, name)
        if place is None:
            continue
        truth = child(place, "ground_truth") or child(folder, "ground_truth")
        kinds = [kind for kind in folders_in(place) if kind.name.lower() != "ground_truth"]
        names = {kind.name.lower() for kind in kinds}
        unnamed = not names & GOOD_NAMES and not names <= NUMBERS
        if unnamed and (split != "test" or (len(kinds) > 1 and truth is None)):
            raise DataError(_no_good(place, kinds))
        for kind in kinds:
            good = kind.name.lower() in GOOD_NAMES or (names <= NUMBERS and kind.name == "0")
            defect = "" if good else kind.name
            like = Record(kind, not good, None, "", folder.name, defect, split)
            yield from _read_kind(kind, good, truth, like, root, used)


def _no_good(place: Path, kinds: list[Path]) -> str:
    names = ", ".join(kind.name for kind in kinds) or "none"
    return (
        f"{place} has no folder of good images (one of {sorted(GOOD_NAMES)}; of 0 and 1, 0); it has "
        f"{names}: rename the folder of the good ones to good"
    )


def _read_kind(
    kind: Path, good: bool, truth: Path | None, like: Record, root: Path, used: set[Path]
) -> Iterator[Record]:
    """The images of one folder; `like`: what is the same for all. `used`: takes up masks of good images."""
    here = child(truth, kind.name) if truth else None
    images, beside, _ = apart(images_in(kind))
    masks = images_in(here) if here else []
    pairs = pair_in_places(images, dict.fromkeys(images, (beside, masks)))
    several = {place.name.lower(): place for place in folders_in(here)} if here else {}
    for image in images:
        mask = pairs.get(image) or several.get(image.stem.lower())
        if good and mask is not None:
            require_unmarked(image, mask)
            used.add(mask)
        yield replace(like, image=image, mask=None if good else mask, source=relative(image, root))
