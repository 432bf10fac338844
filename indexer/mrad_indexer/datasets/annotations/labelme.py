"""labelme: a .json beside each image."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from skimage import draw

from mrad.errors import ImageError, MaskError
from mrad.images.masks import read_any_size
from mrad.images.reader import read_size
from mrad.types import BoolArray
from mrad_indexer.datasets.annotations.drawn import (
    Annotated,
    Drawing,
    is_good,
    line,
    load_json,
    polygon,
    same_file,
    whole,
)
from mrad_indexer.datasets.folder import BAD_NAMES
from mrad_indexer.datasets.records import relative
from mrad_indexer.datasets.walk import is_image, walk

THIN = ("line", "linestrip", "point", "points")


def read(source: Path, left_out: list[str]) -> Iterator[Annotated]:
    """Every .json below `source`; `left_out` takes up what cannot be taken."""
    annotated = set()
    for path in sorted(p for p in walk(source) if p.suffix.lower() == ".json"):
        content, where = load_json(path), relative(path, source)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            left_out.append(f"{where}: not labelme's")
            continue
        image = path.parent / str(content.get("imagePath") or "").replace("\\", "/")
        if not image.is_file():
            left_out.append(f"{where}: its image {image.name} is not there")
            continue
        annotated.add(same_file(image))
        yield from _image(image, content, where, left_out)
    for image in sorted(p for p in walk(source) if is_image(p)):
        if same_file(image) not in annotated:
            left_out.append(f"{relative(image, source)}: no .json of labelme; is it good? add it")


def _image(
    image: Path, content: dict[str, Any], where: str, left_out: list[str]
) -> Iterator[Annotated]:
    size = (whole(content.get("imageHeight")), whole(content.get("imageWidth")))
    try:
        drawing = Drawing(size if all(size) else read_size(image)[::-1], where, left_out)
    except ImageError as error:
        left_out.append(str(error))
        return
    for shape in content["shapes"]:
        kind = shape.get("shape_type") or "polygon"
        drawing.add(
            shape.get("label"), _drawn(shape, drawing.size), thin=kind in THIN,
            why=f"a {kind} is not read",
        )  # fmt: skip
    if drawing.names or drawing.good:
        yield drawing.of(image)
        return
    raised = [str(name) for name, value in (content.get("flags") or {}).items() if value]
    bad = [name for name in raised if name.lower() in BAD_NAMES]
    if bad and not any(is_good(name) for name in raised):
        yield Annotated(image, True, defects=tuple(bad))
    elif bad or not all(is_good(name) for name in raised):
        left_out.append(
            f"{where}: nothing is drawn, but it has the flags {', '.join(raised)}; is it good? draw the "
            "defect, or remove the flags"
        )
    else:
        yield Annotated(image, False)


def _drawn(shape: dict[str, Any], size: tuple[int, int]) -> BoolArray | None:
    points = np.array(shape.get("points") or [], dtype=float).reshape(-1, 2)
    kind = shape.get("shape_type") or "polygon"
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        return polygon([(left, top), (right, top), (right, bottom), (left, bottom)], size)
    if kind == "circle" and len(points) == 2:
        mask = np.zeros(size, bool)
        radius = float(np.hypot(*(points[1] - points[0])))
        mask[draw.disk(tuple(points[0][::-1]), radius, shape=size)] = True
        return mask
    if kind in THIN:
        return line(points, size)
    if kind == "mask" and len(points):
        return _painted(str(shape.get("mask") or ""), points[0], size)
    return polygon(points, size) if kind in ("polygon", "oriented_rectangle") else None


def _painted(code: str, corner: Any, size: tuple[int, int]) -> BoolArray | None:
    """A small picture that lies at a corner, as base64."""
    try:
        small = read_any_size(base64.b64decode(code)).anomalous
    except (ValueError, MaskError):
        return None
    left, top = round(float(corner[0])), round(float(corner[1]))
    mask = np.zeros(size, bool)
    part = small[max(0, -top) : size[0] - top, max(0, -left) : size[1] - left]
    top, left = max(0, top), max(0, left)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask
