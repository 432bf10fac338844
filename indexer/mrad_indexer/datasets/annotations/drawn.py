"""What is drawn on an image, whatever tool wrote it down."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from skimage import draw

from mrad.errors import DataError
from mrad.types import BoolArray

GOOD_CLASSES = frozenset({"good", "ok", "normal", "background", "nodefect", "defectfree"})
"""Classes of what is no defect, without blanks, dashes and underlines."""


@dataclass(frozen=True)
class Annotated:
    """One image, and what is drawn on it."""

    image: Path
    anomalous: bool
    """Whether anything is drawn that is a defect."""
    mask: BoolArray | None = None
    """[height, width]; None for a good image, and for a defect of which nobody knows where it lies."""
    defects: tuple[str, ...] = ()
    boxes: int = 0
    """How many of them are known by a box alone, which marks more than the defect."""
    thin: int = 0
    """How many of them are known by a line or a point, which marks less."""
    good: int = 0
    """Shapes of a class that is no defect; they mark nothing."""
    ignore: BoolArray | None = None
    """A border that belongs to neither class."""


class Drawing:
    """The shapes of one image, taken together."""

    def __init__(self, size: tuple[int, int], where: str, left_out: list[str]) -> None:
        """`size`: height, width; `where`: the file, for what is said of it in `left_out`."""
        self.where, self.left_out = where, left_out
        self.mask = np.zeros(size, bool)
        self.names: list[str] = []
        self.boxes = self.thin = self.good = self.lost = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height, width."""
        return int(self.mask.shape[0]), int(self.mask.shape[1])

    def add(
        self,
        kind: object,
        shape: BoolArray | None,
        *,
        box: bool = False,
        thin: bool = False,
        why: str = "a shape is of a kind that is not read",
    ) -> None:
        """One shape.

        Args:
            kind: its class.
            shape: the pixels that it marks; None where that cannot be told.
            box: whether it is a box, thin: a line or a point.
            why: what is said where `shape` is None.
        """
        name = str(kind or "defect").strip() or "defect"
        if is_good(name):
            self.good += 1
            return
        self.names.append(name)
        if shape is None or not shape.any():
            self.lost += 1
            text = why if shape is None else "a shape marks no pixel of the image"
            self.left_out.append(f"{self.where}: {text}; the image is defective, without a mask")
            return
        self.mask |= shape
        self.boxes += box
        self.thin += thin

    def of(self, image: Path, ignore: BoolArray | None = None) -> Annotated:
        """All of them; without a mask where one is lost, for what it marks would count as good."""
        known = bool(self.names) and not self.lost
        return Annotated(
            image, bool(self.names), self.mask if known else None, tuple(self.names),
            self.boxes * known, self.thin * known, self.good, ignore if known else None,
        )  # fmt: skip


def is_good(name: str) -> bool:
    """Whether a class is no defect by its name."""
    return re.sub(r"[\s_-]", "", name).lower() in GOOD_CLASSES


def box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> BoolArray:
    """A box's pixels; `size`: height, width."""
    mask = np.zeros(size, bool)
    rows = slice(max(0, round(top)), max(0, round(bottom)))
    mask[rows, max(0, round(left)) : max(0, round(right))] = True
    return mask


def polygon(points: Any, size: tuple[int, int]) -> BoolArray | None:
    """An outline's pixels; `points`: [N, 2] of x, y. None below three."""
    outline = np.asarray(points, dtype=float).reshape(-1, 2)[:, ::-1]
    if len(outline) < 3:
        return None
    return np.asarray(draw.polygon2mask(size, outline), dtype=bool)


def line(points: Any, size: tuple[int, int]) -> BoolArray | None:
    """The pixels of a line through `points` ([N, 2] of x, y), or of one point."""
    path = np.floor(np.asarray(points, dtype=float).reshape(-1, 2)).astype(int)
    mask = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(path, path[1:] if len(path) > 1 else path):
        rows, columns = draw.line(y0, x0, y1, x1)
        inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        mask[rows[inside], columns[inside]] = True
    return mask if len(path) else None


def nearest(file: Path, candidates: Iterable[Path]) -> list[Path]:
    """Those of several files of one name whose folders have most names in common with the file's; one, if all
    is clear."""
    own = set(file.parent.parts)
    shared = [(len(own & set(path.parent.parts)), path) for path in candidates]
    most = max((count for count, _ in shared), default=0)
    found = sorted({path for count, path in shared if count == most})
    beside = [path for path in found if path.parent == file.parent]
    return beside if len(beside) == 1 else found


def load_json(path: Path) -> Any:
    """Raises `DataError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def whole(value: object) -> int:
    """A size as files hold it; 0 where they hold none."""
    try:
        return max(0, int(float(str(value))))
    except ValueError:
        return 0


def same_file(path: Path) -> str:
    """What two names of one file have in common."""
    return os.path.realpath(path)
