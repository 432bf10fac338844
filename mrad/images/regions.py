"""Regions drawn on a picture: a region of interest, named parts; from a mask or from polygons."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mrad.errors import DataError, LayoutError
from mrad.images.align import Reference
from mrad.images.reader import load_image
from mrad.images.tiles import Size
from mrad.types import BoolArray, Box

Polygon = tuple[tuple[float, float], ...]
"""Points x, y."""
ASPECT = 0.02
"""A picture whose aspect differs by more from that on which a region was drawn is refused."""
OUTSIDE = 0.01
"""Share of the picture's side by which a hand may have drawn over its edge."""
_OF_REGION = {"name", "size", "box", "polygons", "polygon", "holes"}
_OF_PARTS = {"size", "parts", "align"}


@dataclass(frozen=True)
class Area:
    """A region drawn on a picture of `size`: what lies in a polygon and in no hole."""

    polygons: tuple[Polygon, ...]
    """Points x, y in pixels of a picture of `size`."""
    size: Size
    name: str = ""
    holes: tuple[Polygon, ...] = ()

    def __post_init__(self) -> None:
        drawn = (*self.polygons, *self.holes)
        if not self.polygons or any(len(points) < 3 for points in drawn):
            raise DataError(f"{self._called()} needs polygons of at least three points each")
        if not np.isfinite([value for points in drawn for at in points for value in at]).all():
            raise DataError(f"{self._called()} has a point that is no number")
        if min(self.size) < 1:
            raise DataError(f"{self._called()} was drawn on a picture of {self.size} pixels")

    @classmethod
    def of_box(cls, box: tuple[float, float, float, float], size: Size, name: str = "") -> Area:
        """A rectangle [x_min, y_min, x_max, y_max)."""
        left, top, right, bottom = box
        if not (left < right and top < bottom):
            raise DataError(f"region {name!r}: a box is [x_min, y_min, x_max, y_max], not {box}")
        return cls((((left, top), (right, top), (right, bottom), (left, bottom)),), size, name)

    def inside(self, size: Size) -> tuple[Box, BoolArray | None]:
        """Bounding box on a picture of `size`, and which of its pixels [h, w] count; None for all.

        A picture of another size has the region scaled to it. Raises `LayoutError` where the aspect differs, or nothing of the region lies in the picture.
        """
        scale = self._scale(size)
        moved = [np.array(points) * scale for points in self.polygons]
        joined = np.concatenate(moved)
        low = np.floor(joined.min(axis=0) + 1e-6).astype(int).clip(0)
        high = np.ceil(joined.max(axis=0) - 1e-6).astype(int).clip(None, size)
        if (low >= high).any():
            raise LayoutError(f"{self._called()} lies outside the picture of {size[0]} x {size[1]}")
        box = cast(Box, (*low.tolist(), *high.tolist()))
        if not self.holes and _is_box(moved):
            return box, None
        from skimage.draw import polygon

        found = np.zeros((high - low)[::-1], dtype=bool)
        cut = [np.array(points) * scale for points in self.holes]
        outlines = [(True, points) for points in moved] + [(False, points) for points in cut]
        # The larger first: what lies within a hole counts again.
        for counts, points in sorted(outlines, key=lambda item: -np.prod(np.ptp(item[1], axis=0))):
            x, y = (points - low - 0.5).T  # a pixel's centre decides
            found[polygon(y, x, found.shape)] = counts
        if not found.any():
            raise LayoutError(
                f"{self._called()} covers no pixel of a picture of {size[0]} x {size[1]}"
            )
        return box, None if found.all() else found

    def _scale(self, size: Size) -> tuple[float, float]:
        scale = size[0] / self.size[0], size[1] / self.size[1]
        if abs(scale[0] / scale[1] - 1) > ASPECT:
            raise LayoutError(
                f"{self._called()} was drawn on a picture of {self.size[0]} x {self.size[1]} pixels; one "
                f"of {size[0]} x {size[1]} has another aspect, so nobody knows where it lies there"
            )
        return scale

    def _called(self) -> str:
        return f"part {self.name!r}" if self.name else "the region of interest"

    def to_json(self) -> dict[str, Any]:
        """As a bank keeps it."""
        facts = {
            "name": self.name,
            "size": list(self.size),
            "polygons": [[list(at) for at in points] for points in self.polygons],
        }
        holes = [[list(at) for at in points] for points in self.holes]
        return facts | ({"holes": holes} if holes else {})

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Area:
        """Inverse of `to_json`. Raises `DataError`."""
        try:
            width, height = facts["size"]
            return cls(
                _polygons(facts["polygons"]),
                (int(width), int(height)),
                str(facts.get("name", "")),
                _polygons(facts.get("holes", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"a region needs `polygons` and `size`: {error!r}") from error


def _polygons(drawn: Any) -> tuple[Polygon, ...]:
    return tuple(tuple((float(x), float(y)) for x, y in points) for points in drawn)


def _is_box(polygons: list[np.ndarray]) -> bool:
    """Whether it is one upright rectangle on whole pixels' edges, as near as drawing can tell."""
    if len(polygons) != 1 or len(polygons[0]) != 4:
        return False
    xs, ys = polygons[0].T
    return len(np.unique(xs)) == 2 and len(np.unique(ys)) == 2


def read_roi(path: Path, size: Size | None = None) -> Area:
    """A region of interest from a file: a mask (white counts), or JSON with `polygons` or a `box`.

    JSON gives its own `size` ([width, height] of the picture it was drawn on), or `size` says it.
    Raises `DataError`.
    """
    if path.suffix.lower() == ".json":
        return _area(_json(path), size, path)
    return _area_of_mask(path)


def read_parts(path: Path, size: Size | None = None) -> tuple[Area, ...]:
    """Named parts from `parts.json`: {"size": [w, h], "parts": {"name": {"box": [...]}, ...}}.

    A part is `box` [x_min, y_min, x_max, y_max) or `polygons`; `size` as for `read_roi`. Raises
    `DataError`.
    """
    return _parts(_json(path), size, path)


def read_alignment(path: Path, first: Path | None = None) -> Reference | bool:
    """What `parts.json` says of parts that move: "align" is true, or the file of a reference picture.

    With true, that is `first`; without one True comes back: whatever the memory's own pictures are aligned
    with. False where nothing is to be aligned. Raises `DataError`, and `ImageError` for the picture.
    """
    align = _json(path).get("align", False)
    if isinstance(align, bool) and (not align or first is None):
        return align
    if not isinstance(align, bool | str):
        raise DataError(
            f'{path}: "align" is true, or the file of a reference picture, not {align!r:.80}'
        )
    named = path.parent / align if isinstance(align, str) else first
    return Reference.of(load_image(named or path))


def parse_parts(facts: Any, size: Size | None = None) -> tuple[Area, ...]:
    """Named parts as a request gives them, in the form of `parts.json`. Raises `DataError`."""
    return _parts(_object(facts, Path("the parts")), size, Path("the parts"))


def _parts(facts: dict[str, Any], size: Size | None, path: Path) -> tuple[Area, ...]:
    parts = facts.get("parts")
    if not isinstance(parts, dict) or not parts:
        raise DataError(
            f'{path} needs "parts": {{"name": {{"box": [x_min, y_min, x_max, y_max]}}}}'
        )
    _refuse_unknown(facts, _OF_PARTS, str(path))
    shared = {"size": facts["size"]} if "size" in facts else {}
    return tuple(
        _area({**shared, **_object(part, path), "name": name}, size, path)
        for name, part in parts.items()
    )


def parse_area(facts: Any, size: Size | None = None) -> Area:
    """A region as a request gives it: an object with `box` or `polygons`. Raises `DataError`."""
    return _area(_object(facts, Path("the region")), size, Path("the region"))


def _object(facts: Any, path: Path) -> dict[str, Any]:
    if not isinstance(facts, dict):
        raise DataError(
            f'{path}: a region is an object with "box" or "polygons", not {facts!r:.80}'
        )
    return facts


def _json(path: Path) -> dict[str, Any]:
    try:
        return _object(json.loads(path.read_text(encoding="utf-8")), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error


def _area(facts: dict[str, Any], size: Size | None, path: Path) -> Area:
    name = str(facts.get("name", ""))
    drawn_on = facts.get("size") or size
    if drawn_on is None:
        raise DataError(
            f'{path} does not say on a picture of which size it was drawn: add "size": [width, height]'
        )
    whose = f"{path}: part {name!r}" if name else str(path)
    _refuse_unknown(facts, _OF_REGION, whose)
    try:
        if "box" in facts:
            if any(facts.get(other) for other in ("polygons", "polygon", "holes")):
                raise DataError(f"{whose} has a box and polygons: give one of them")
            left, top, right, bottom = map(float, facts["box"])
            width, height = map(int, drawn_on)
            area = Area.of_box((left, top, right, bottom), (width, height), name)
        else:
            polygons = facts.get("polygons") or [facts["polygon"]]
            area = Area.from_json({**facts, "size": drawn_on, "polygons": polygons})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{whose} needs "box": [x_min, y_min, x_max, y_max] or "polygons": '
            f"[[[x, y], ...], ...] ({error!r})"
        ) from error
    _refuse_outside(area, whose)
    return area


def _refuse_unknown(facts: dict[str, Any], known: set[str], whose: str) -> None:
    """A mistyped name would be left out in silence."""
    unknown = ", ".join(map(repr, sorted(facts.keys() - known)))
    if unknown:
        raise DataError(
            f"{whose}: {unknown} is not known here; known are {', '.join(sorted(known))}"
        )


def _refuse_outside(area: Area, whose: str) -> None:
    """What lies outside the picture that it was drawn on would be cut off in silence."""
    points = np.concatenate([np.array(polygon) for polygon in area.polygons])
    size = np.array(area.size)
    low, high = points.min(axis=0), points.max(axis=0)
    if (low < -OUTSIDE * size - 1).any() or (high > (1 + OUTSIDE) * size + 1).any():
        reach = ", ".join(f"{value:g}" for value in (*low, *high))
        raise DataError(
            f"{whose} reaches over the picture of {size[0]} x {size[1]} pixels that it was drawn on: "
            f'[{reach}]; is "size" [width, height] right?'
        )


def _area_of_mask(path: Path) -> Area:
    """The outlines of a mask, as polygons and holes."""
    from skimage import measure

    grey = np.asarray(load_image(path).convert("L")) > 0
    if not grey.any():
        raise DataError(f"{path} marks no pixel as of interest (white counts, black does not)")
    height, width = grey.shape
    if grey.all():
        return Area.of_box((0, 0, width, height), (width, height))
    polygons: list[Polygon] = []
    holes: list[Polygon] = []
    for outline in measure.find_contours(np.pad(grey, 1).astype(np.float32), 0.5):
        points = measure.approximate_polygon(outline, tolerance=0.5)[:-1]
        if len(points) < 3:
            points = outline[:-1]
        # Contours count from the centres of the padded pixels, areas from the edges of the image's.
        polygon = tuple((float(x) - 0.5, float(y) - 0.5) for y, x in points)
        # skimage goes round high values counter-clockwise, round holes clockwise.
        y, x = points.T
        outer = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) > 0
        (polygons if outer else holes).append(polygon)
    return Area(tuple(polygons), (width, height), holes=tuple(holes))
