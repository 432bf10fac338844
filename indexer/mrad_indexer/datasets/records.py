"""What every reader gives: records of images that exist, with what is known about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mrad.errors import DataError, ImageError, MaskError
from mrad.files import utf8
from mrad.images.masks import Mask, Orientation, read_mask
from mrad.images.reader import read_image, read_orientation
from mrad.types import BoolArray, Sample
from mrad_indexer.datasets.walk import LeftOut, is_hidden, is_image, walk

GOOD_NAMES = frozenset({"good", "ok", "normal"})
LABELS = {
    **dict.fromkeys(("0", "false", "no", "negative", *GOOD_NAMES), False),
    **dict.fromkeys(
        ("1", "true", "yes", "positive", "anomalous", "anomaly", "abnormal", "defect", "bad", "ng"),
        True,
    ),
}


@dataclass(frozen=True)
class Record:
    """One labelled image of a dataset."""

    image: Path
    anomalous: bool
    mask: Path | None = None
    """Read by `mrad.images.masks`, whatever it is called; a folder of masks counts as their sum."""
    source: str = ""
    """Path relative to the dataset's root, with forward slashes."""
    object_name: str = ""
    defect: str = ""
    split: str = ""
    """`train`, `test` or unknown."""
    mask_orientation: Orientation = "auto"
    """How the mask lies where the image has an orientation tag (`mrad.images.masks.read_mask`)."""

    def __post_init__(self) -> None:
        # Folders' names become text that tables, reports and memories can hold.
        for field in ("source", "object_name", "defect", "split"):
            object.__setattr__(self, field, utf8(getattr(self, field)))

    def truth(self, size: tuple[int, int], orientation: int | None = None) -> Mask | None:
        """What the mask says of each pixel; nothing marked for a normal image; None if unknown.

        `size`: width, height of the upright image; `orientation`: the tag that turned it, None to look
        it up. Raises `MaskError`.
        """
        if not self.anomalous:
            nothing = np.zeros(size[::-1], dtype=bool)
            return Mask(nothing, nothing)
        if self.mask is None:
            return None
        if orientation is None:
            orientation = _orientation(self.image)
        parts = images_in(self.mask) if self.mask.is_dir() else [self.mask]
        if not parts:
            raise MaskError(f"{self.mask} holds no mask")
        masks = [
            read_mask(part, size, image_orientation=orientation, orientation=self.mask_orientation)
            for part in parts
        ]
        return masks[0] if len(masks) == 1 else _joined(masks)

    def read_mask(self, size: tuple[int, int], orientation: int | None = None) -> BoolArray | None:
        """`truth`'s anomalous pixels, bool [height, width]."""
        truth = self.truth(size, orientation)
        return None if truth is None else truth.anomalous

    def sample(self) -> Sample:
        """The same image for the memory. Raises `MaskError`, `ImageError` for a folder of masks."""
        mask: Path | BoolArray | None = self.mask if self.anomalous else None
        if isinstance(mask, Path) and mask.is_dir():
            picture = read_image(self.image)
            mask = self.read_mask(picture.size, picture.orientation)
        return Sample(self.image, self.anomalous, mask, self.source, self.object_name, self.defect)


def _orientation(image: Path) -> int:
    try:
        return read_orientation(image)
    except ImageError:  # whoever reads the image says so
        return 1


def _joined(masks: Sequence[Mask]) -> Mask:
    marked = np.logical_or.reduce([mask.anomalous for mask in masks])
    ignore = np.logical_or.reduce([mask.ignore for mask in masks]) & ~marked
    return Mask(marked, ignore, tuple(dict.fromkeys(w for mask in masks for w in mask.warnings)))


@dataclass(frozen=True)
class Dataset:
    """What a reader recognised under `root`."""

    name: str
    """The reader's name."""
    root: Path
    records: tuple[Record, ...]
    left_out: tuple[LeftOut, ...] = ()
    """Pictures below the root that are neither an image nor a mask of these records."""
    used: frozenset[Path] = frozenset()
    """Other files that the reader has looked at: the empty labels of good images."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the inspected products, in order."""
        return tuple(dict.fromkeys(record.object_name for record in self.records))

    @property
    def counts(self) -> Counter[str]:
        """Images, `normal`, `anomalous`, `masks` and `unmasked` (anomalous without a mask)."""
        counts = Counter(images=len(self.records), normal=0, anomalous=0, masks=0, unmasked=0)
        for record in self.records:
            counts["anomalous" if record.anomalous else "normal"] += 1
            if record.anomalous:
                counts["masks" if record.mask else "unmasked"] += 1
        return counts

    def select(self, *, split: str | None = None, object_name: str | None = None) -> Dataset:
        """Only one split or one object. Raises `DataError` when nothing is left."""
        kept = tuple(
            record
            for record in self.records
            if (split is None or record.split == split)
            and (object_name is None or record.object_name == object_name)
        )
        if not kept:
            splits = sorted({record.split or "(none)" for record in self.records})
            raise DataError(
                f"{self.root} has no image with split {split!r}, object {object_name!r}; "
                f"it has splits {splits} and objects {list(self.objects)}"
            )
        return replace(self, records=kept)


def images_in(folder: Path) -> list[Path]:
    """Images directly in `folder`, by name; none when it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_image(path) and path.is_file())


def images_below(folder: Path) -> list[Path]:
    """Images in `folder` and below, by path; linked folders are followed."""
    if not folder.is_dir():
        return []
    return sorted(path for path in walk(folder) if is_image(path) and not is_hidden(path, folder))


def folders_in(folder: Path) -> list[Path]:
    """Visible folders directly in `folder`, by name."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def objects_in(root: Path, is_object: Callable[[Path], bool]) -> list[Path]:
    """The folders of objects: `root` itself, where it is one, or those directly in it."""
    return [root] if is_object(root) else [f for f in folders_in(root) if is_object(f)]


def child(folder: Path, *names: str) -> Path | None:
    """The first folder directly inside whose name, in any case, is one of `names`."""
    found = {path.name.lower(): path for path in folders_in(folder)}
    return next((found[name.lower()] for name in names if name.lower() in found), None)


def relative(path: Path, root: Path) -> str:
    """`path` below `root`, with forward slashes; the whole path if it lies elsewhere."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def require(name: str, root: Path, records: Sequence[Record]) -> Dataset:
    """The dataset, or `DataError` when it would be empty."""
    if not records:
        raise DataError(f"{root} has the folders of a {name} dataset but no image in them")
    return Dataset(name, root, tuple(records))


def label_of(text: str, where: str) -> bool:
    """Whether a list's word says defective. Raises `DataError` for one that says neither; `where`: its line."""
    if text.lower() not in LABELS:
        raise DataError(f"{where}: label {text!r} is neither normal nor anomalous: {list(LABELS)}")
    return LABELS[text.lower()]
