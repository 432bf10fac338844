"""VOC: an .xml for each image, and masks in `SegmentationClass/`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mrad.errors import DataError, ImageError
from mrad.images.masks import read_mask
from mrad.images.reader import read_size
from mrad_indexer.datasets.annotations.drawn import (
    Annotated,
    Drawing,
    box,
    is_good,
    nearest,
    polygon,
    whole,
)
from mrad_indexer.datasets.records import relative
from mrad_indexer.datasets.walk import is_image, walk

APART = {"segmentationclass", "segmentationobject"}


def read(source: Path, left_out: list[str]) -> Iterator[Annotated]:
    """Every .xml below `source`; `left_out` takes up what cannot be taken. Raises `DataError`."""
    images = [path for path in sorted(walk(source)) if is_image(path)]
    pictures = [path for path in images if path.parent.name.lower() not in APART]
    masks = defaultdict(list)
    for path in images:
        if path.parent.name.lower() == "segmentationclass":
            masks[path.stem].append(path)
    for path in images:  # instances say the same where there are no classes
        if path.parent.name.lower() == "segmentationobject" and path.stem not in masks:
            masks[path.stem].append(path)
    named, stems = defaultdict(list), defaultdict(list)
    for path in pictures:
        named[path.name].append(path)
        stems[path.stem].append(path)
    annotated = set()
    for path in sorted(p for p in walk(source) if p.suffix.lower() == ".xml"):
        root, where = load_xml(path), relative(path, source)
        if root.tag != "annotation":
            left_out.append(f"{where}: not VOC's")
            continue
        said = root.findtext("filename", "").replace("\\", "/").rpartition("/")[2]
        found = nearest(path, stems[path.stem] or named[said])
        exact = [image for image in found if image.name == said]
        found = exact or found
        other = [image for image in nearest(path, named[said]) if image not in found]
        if len(found) != 1 or other:
            both = sorted({*found, *other})
            why = f"fits {' and '.join(relative(p, source) for p in both)} alike" if both else (
                "its image is not there"
            )  # fmt: skip
            left_out.append(f"{where}: {why}")
            continue
        annotated.add(found[0])
        drawn = nearest(found[0], masks[path.stem])
        try:
            yield _image(found[0], root, drawn[0] if drawn else None, where, left_out)
        except ImageError as error:
            left_out.append(f"{where}: {error}")
    for image in sorted(set(pictures) - annotated):
        left_out.append(
            f"{relative(image, source)}: no .xml of VOC; is it good? add one without objects"
        )


def _image(
    image: Path, root: ElementTree.Element, mask: Path | None, where: str, left_out: list[str]
) -> Annotated:
    objects = root.findall("object")
    names = [item.findtext("name", "defect") for item in objects]
    if mask is not None and names and not any(is_good(name) for name in names):
        found = read_mask(mask, read_size(image))
        return Annotated(image, True, found.anomalous, tuple(names), ignore=found.ignore)
    size = (whole(root.findtext("size/height")), whole(root.findtext("size/width")))
    drawing = Drawing(size if all(size) else read_size(image)[::-1], where, left_out)
    for item in objects:
        _add(drawing, item)
    return drawing.of(image)


def _add(drawing: Drawing, item: Any) -> None:
    """By its outline where it has one, by its box else."""
    kind, outline, frame = item.findtext("name"), item.find("polygon"), item.find("bndbox")
    try:
        if outline is not None:
            flat = [float(part.text) for part in outline if part.tag[:1] in "xy"]
            drawing.add(kind, polygon(np.array(flat), drawing.size), why="an outline of two points")
        elif frame is not None:
            left, top, right, bottom = (
                float(frame.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            shape = box(left - 1, top - 1, right, bottom, drawing.size)  # counted from 1
            drawing.add(kind, shape, box=True)
        else:
            drawing.add(kind, None, why="an object has neither an outline nor a box")
    except (TypeError, ValueError):
        drawing.add(kind, None, why="an object's coordinates are no numbers")


def load_xml(path: Path) -> ElementTree.Element:
    """Raises `DataError`."""
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:  # which may blow up to any size
        raise DataError(f"{path} declares a document type or entities, which VOC's files do not")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is not XML: {error}") from error
