"""Which mask belongs to which image, by one rule for all layouts; doubt is an error.

A mask is called as its image (`07.png`), as its image's whole name (`07.bmp.png`), or with one of
`ENDINGS` behind either (`07_mask.png`). The same letters win over other capitals, the image's whole
name over its stem, no ending over one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mrad.errors import DataError

ENDINGS = ("", "_mask", "_label", "_gt", "_segmentation", "_groundtruth", "-mask", "_seg")
BESIDE = tuple(ending for ending in ENDINGS if ending and ending != "_label")
"""What marks a mask among the images themselves."""


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
    stems = {name for file in files for name in (file.stem.lower(), file.name.lower())}
    images, masks, lonely = [], [], []
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
