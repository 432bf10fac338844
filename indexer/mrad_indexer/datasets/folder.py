"""The plain layout for people: good/ and defect/, masks/ beside them or not.

good/*, defect/* or defect/<kind>/*, or <kind>/* beside good/; masks as pairing.py finds them, in masks/,
there below the same folders or flat, or beside the images, of good ones too; several objects side by side too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mrad.errors import DataError
from mrad_indexer.datasets.pairing import (
    apart,
    looks_like_mask,
    pair_in_places,
    require_unmarked,
)
from mrad_indexer.datasets.records import (
    GOOD_NAMES,
    Dataset,
    Record,
    child,
    folders_in,
    images_below,
    images_in,
    objects_in,
    relative,
    require,
)

NAME = "folder"
BAD_NAMES = ("defect", "defects", "bad", "anomalous", "anomaly", "abnormal", "ng", "ko")
MASK_NAMES = ("masks", "mask", "ground_truth", "groundtruth", "gt")
PERHAPS_MASKS = (
    "labels",
    "label",
    "annotations",
    "annotation",
    "segmentation",
    "segmentations",
    "seg",
)
"""Masks beside defect/; without it a kind of defects as well, unless they look like masks."""
NO_KINDS = frozenset({*MASK_NAMES, "train", "test", "validation", "val", "unlabelled", "unlabeled"})
"""Folders beside good/ that hold no kind of defect."""
LOOKED_AT = 3
"""Pictures of a folder that are opened to see whether they are masks."""


def detect(root: Path) -> bool:
    """Good or defect folders here, or in every folder of a set of objects."""
    return bool(objects_in(root, _is_object))


def read(root: Path) -> Dataset:
    """Every image; the name of a folder of objects' member becomes the object.

    Raises `DataError` where it cannot be told what a folder or a mask is.
    """
    used: set[Path] = set()
    records = [
        record
        for folder in objects_in(root, _is_object)
        for record in _read_object(folder, root, used)
    ]
    return replace(require(NAME, root, records), used=frozenset(used))


def _is_object(folder: Path) -> bool:
    return child(folder, *GOOD_NAMES) is not None or child(folder, *BAD_NAMES) is not None


def _read_object(folder: Path, root: Path, used: set[Path]) -> Iterator[Record]:
    """`used`: takes up the masks of good images, which mark nothing."""
    good, bad = child(folder, *GOOD_NAMES), child(folder, *BAD_NAMES)
    masks = child(folder, *MASK_NAMES)
    if good is not None:
        images, beside = _images_and_masks(good)
        known = _Masks(masks, beside, good, flat=False)
        for image, mask in pair_in_places(images, {i: known.places(i) for i in images}).items():
            require_unmarked(image, mask)
            used.add(mask)
        for image in images:
            yield Record(image, False, None, relative(image, root), folder.name)
    if bad is not None:
        yield from _defects(bad, masks or child(folder, *PERHAPS_MASKS), folder, root)
        return
    kinds = [k for k in folders_in(folder) if k != good and k.name.lower() not in NO_KINDS]
    like = [kind for kind in kinds if _is_of_masks(kind)]
    if like and not (good is not None and _is_of_masks(good)):
        odd = [place for place in like if place.name.lower() not in PERHAPS_MASKS]
        if odd or masks or len(like) > 1:
            raise DataError(
                f"{(odd or like)[0]} holds pictures that look like masks: if they are, call the folder "
                f"{MASK_NAMES[0]}; if they show defects, put them into {BAD_NAMES[0]}/{(odd or like)[0].name}"
            )
        masks = like[0]
    for kind in kinds:
        if kind != masks:
            yield from _defects(kind, masks, folder, root)


def _is_of_masks(place: Path) -> bool:
    """Whether the first pictures of a folder look like masks."""
    first = images_below(place)[:LOOKED_AT]
    return bool(first) and all(looks_like_mask(image) for image in first)


def _defects(bad: Path, truth: Path | None, folder: Path, root: Path) -> Iterator[Record]:
    """Defective images below `bad`: of the kinds that its folders name, or of the one it is."""
    images, beside = _images_and_masks(bad)
    masks = _Masks(truth, beside, bad)
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
    """Where the mask of an image may lie: beside it, mirrored below `root`, or flat in it.

    `flat`: not so for good ones, whose names defective ones may have too.
    """

    def __init__(
        self, root: Path | None, beside: dict[Path, list[Path]], bad: Path, flat: bool = True
    ) -> None:
        self.root, self.beside, self.bad, self.flat = root, beside, bad, flat
        self.known: dict[Path, list[Path]] = {}

    def places(self, image: Path) -> Sequence[Sequence[Path]]:
        found = [self.beside.get(image.parent, [])]
        if self.root is not None:
            below = image.relative_to(self.bad).parent
            folders = [self.root / self.bad.name / below]
            folders += [self.root / below, self.root] if self.flat else []
            found += [self._in(folder) for folder in dict.fromkeys(folders)]
        return found

    def _in(self, folder: Path) -> list[Path]:
        if folder not in self.known:
            self.known[folder] = images_in(folder)
        return self.known[folder]
