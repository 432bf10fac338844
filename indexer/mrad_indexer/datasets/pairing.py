"""Which mask belongs to which image, by one rule for all layouts; doubt is an error.

A mask is called as its image (`07.png`), as its image's whole name (`07.bmp.png`), or with one of
`ENDINGS` behind either (`07_mask.png`). The same letters win over other capitals, the image's whole
name over its stem, no ending over one. Of two files of one name in one folder (`07.jpg`, `07.png`) the one
that looks like a mask beside one that does not is the mask.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mrad.errors import DataError, ImageError, MaskError
from mrad.images.masks import read_any_size
from mrad.images.reader import load_image
from mrad_indexer.datasets.walk import is_image

ENDINGS = ("", "_mask", "_label", "_gt", "_segmentation", "_groundtruth", "-mask", "_seg")
BESIDE = tuple(ending for ending in ENDINGS if ending and ending != "_label")
"""What marks a mask among the images themselves."""
FEW = 16
"""Colours up to which a picture looks like a mask."""
FLAT = 0.95
"""Share of pixels that a mask's two commonest levels have at least, where its edges are soft."""


def pair(images: Iterable[Path], masks: Iterable[Path]) -> dict[Path, Path]:
    """Image -> its mask, for those that have one.

    Raises `DataError` where two masks fit an image equally well, or one mask fits two images.
    """
    named = _by_name(masks)
    chosen = {image: mask for image in images if (mask := _best(image, named)) is not None}
    owners: dict[Path, list[Path]] = defaultdict(list)
    for image, mask in chosen.items():
        owners[mask].append(image)
    for mask, several in owners.items():
        if len(several) > 1:
            own = [image for image in several if image.name == mask.name]
            if len(own) != 1:
                raise DataError(
                    f"{mask} fits {_list(several)} alike: rename it after the one that it belongs "
                    "to, with the whole name (07.jpg.png for 07.jpg)"
                )
            for image in several:
                if image != own[0]:
                    del chosen[image]
    return chosen


def pair_in_places(
    images: Sequence[Path], places: Mapping[Path, Sequence[Sequence[Path]]]
) -> dict[Path, Path]:
    """As `pair`, where the masks of an image may lie in several places.

    `places`: image -> lists of masks, one list a place. Images with the same places are paired
    together. Raises `DataError` where an image has a mask in two of them too.
    """
    found: dict[Path, set[Path]] = defaultdict(set)
    groups: dict[tuple[Path, ...], list[Path]] = defaultdict(list)
    for image in images:
        for masks in places.get(image, ()):
            if masks:
                groups[tuple(masks)].append(image)
    for masks, several in groups.items():
        for image, mask in pair(several, masks).items():
            found[image].add(mask)
    for image, several_masks in found.items():
        if len(several_masks) > 1:
            raise DataError(f"{image} has several masks, {_list(sorted(several_masks))}: keep one")
    return {image: masks.copy().pop() for image, masks in found.items()}


def apart(files: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Files of one folder of images -> images, masks beside them, and masks without an image."""
    twins = _twins(files)
    files = [file for file in files if file not in twins]
    stems = {name for file in files for name in (file.stem.lower(), file.name.lower())}
    images, masks, lonely = list[Path](), sorted(twins), list[Path]()
    for file in files:
        bases = [
            file.stem.lower()[: -len(ending)]
            for ending in BESIDE
            if file.stem.lower().endswith(ending) and len(file.stem) > len(ending)
        ]
        if not bases:
            images.append(file)
        elif any(base in stems for base in bases):
            masks.append(file)
        else:
            lonely.append(file)
    if lonely and not images and not masks:  # then that is how the images are called
        return lonely, [], []
    return images, masks, lonely


def _twins(files: Sequence[Path]) -> set[Path]:
    """Masks that are called as the image beside them but for the suffix, as Real-IAD's are."""
    same: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        same[file.stem.lower()].append(file)
    found = set()
    for several in same.values():
        if len(several) == 2:
            like = [looks_like_mask(file) for file in several]
            found.update(file for file, is_mask in zip(several, like) if is_mask and not all(like))
    return found


def looks_like_mask(file: Path) -> bool:
    """Whether a picture has a few colours alone, or is of two levels but for soft edges; photographs are not."""
    try:
        levels = np.asarray(load_image(file)).astype(np.uint32)
    except ImageError:
        return False
    colours = (levels[..., 0] << 16) | (levels[..., 1] << 8) | levels[..., 2]
    _, counts = np.unique(colours, return_counts=True)
    return len(counts) <= FEW or bool(np.sort(counts)[-2:].sum() >= FLAT * colours.size)


def marks_something(mask: Path, image: Path) -> bool:
    """Whether the mask of an image marks a pixel; in a folder of masks, whether one does.

    Raises `DataError` for what is no mask: nobody knows, then, what it says of the image.
    """
    files = sorted(file for file in mask.iterdir() if is_image(file)) if mask.is_dir() else [mask]
    try:
        return any(read_any_size(file).anomalous.any() for file in files)
    except MaskError as error:
        raise DataError(
            f"{error}: it is called as the mask of {image}; rename it if it is none"
        ) from error


def require_unmarked(image: Path, mask: Path, where: str = "") -> None:
    """Raises `DataError` where a mask marks a defect on an image that is said to be good."""
    if marks_something(mask, image):
        raise DataError(
            f"{where or image}: said to be good, but its mask {mask} marks a defect: one of the two is wrong; "
            "correct the label, or remove the mask"
        )


def _by_name(masks: Iterable[Path]) -> dict[str, list[tuple[str, int, Path]]]:
    """Lower-case name of an image -> its name as the mask spells it, the ending's rank, the mask."""
    named: dict[str, list[tuple[str, int, Path]]] = defaultdict(list)
    for mask in masks:
        stem = mask.stem
        for rank, ending in enumerate(ENDINGS):
            if stem.lower().endswith(ending) and len(stem) > len(ending):
                base = stem[: len(stem) - len(ending)] if ending else stem
                named[base.lower()].append((base, min(rank, 1), mask))
    return named


def _best(image: Path, named: Mapping[str, list[tuple[str, int, Path]]]) -> Path | None:
    ranked: list[tuple[tuple[bool, bool, int], Path]] = []
    for whole, name in ((True, image.name), (False, image.stem)):
        for base, ending, mask in named.get(name.lower(), ()):
            if mask != image:
                ranked.append(((base != name, not whole, ending), mask))
    if not ranked:
        return None
    first = min(rank for rank, _ in ranked)
    best = sorted({mask for rank, mask in ranked if rank == first})
    if len(best) > 1:
        same = [mask for mask in best if mask.name == image.name]
        if len(same) == 1:
            return same[0]
        raise DataError(f"{image} has several masks, {_list(best)}: keep one")
    return best[0]


def _list(paths: Sequence[Path]) -> str:
    return " and ".join(str(path) for path in paths[:4]) + (" and others" if len(paths) > 4 else "")
