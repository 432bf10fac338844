"""COCO: one .json with all images, whose files lie beside it or in a folder `images`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mrad.errors import DataError, ImageError
from mrad.images.reader import read_size
from mrad.types import BoolArray
from mrad_indexer.datasets.annotations.drawn import (
    Annotated,
    Drawing,
    box,
    load_json,
    same_file,
    whole,
)
from mrad_indexer.datasets.records import relative
from mrad_indexer.datasets.walk import is_image, walk


def is_coco(content: object) -> bool:
    """By the entries that it has."""
    return isinstance(content, dict) and {"images", "annotations"} <= set(content)


def read(source: Path, left_out: list[str]) -> Iterator[Annotated]:
    """One .json, or all below a folder; `left_out` takes up what cannot be taken. Raises `DataError`."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise DataError("COCO needs pycocotools: pip install 'mrad[coco]'") from error
    if source.is_file():
        yield from _list(source, load_json(source), source.parent, left_out, set())
        return
    seen: set[str] = set()
    for path in sorted(p for p in walk(source) if p.suffix.lower() == ".json"):
        content = load_json(path)
        if is_coco(content):
            yield from _list(path, content, source, left_out, seen)
    for image in sorted(path for path in walk(source) if is_image(path)):
        if same_file(image) not in seen:
            left_out.append(f"{relative(image, source)}: in no list of COCO's; is it good? add it")


def _list(
    path: Path, content: dict[str, Any], root: Path, left_out: list[str], seen: set[str]
) -> Iterator[Annotated]:
    """`seen`: takes up the images."""
    try:
        kinds = {str(item["id"]): str(item["name"]) for item in content.get("categories") or []}
        drawn: dict[str, list[dict[str, Any]]] = {}
        for item in content["annotations"]:
            drawn.setdefault(str(item["image_id"]), []).append(item)
        images: dict[str, list[dict[str, Any]]] = {}
        for entry in content["images"]:
            images.setdefault(str(entry["file_name"]), []).append(entry)
        listed = {str(entry["id"]) for entry in content["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not COCO's: {type(error).__name__} {error}") from error
    lost = sum(len(items) for number, items in drawn.items() if number not in listed)
    if lost:
        left_out.append(
            f"{relative(path, root)}: {lost} annotations of images that it does not list"
        )
    for name, entries in images.items():
        image = _find(path, name, root)
        if image is None:
            left_out.append(f"{name}: not beside {path.name} nor in a folder images there or above")
            continue
        seen.add(same_file(image))
        items = [item for entry in entries for item in drawn.get(str(entry["id"]), [])]
        size = (whole(entries[0].get("height")), whole(entries[0].get("width")))
        try:
            drawing = Drawing(size if all(size) else read_size(image)[::-1], name, left_out)
        except ImageError as error:
            left_out.append(str(error))
            continue
        for item in items:
            _add(drawing, item, kinds.get(str(item.get("category_id"))))
        yield drawing.of(image)


def _find(path: Path, name: str, root: Path) -> Path | None:
    """Where the tools put it: beside the list, in `images`, or beside the list's folder, there also by the
    list's own name (`instances_train.json`)."""
    name = name.replace("\\", "/")
    subset = path.stem.rpartition("_")[2]
    folders = [place / below for place in (path.parent, path.parent.parent, root)
               for below in ("", "images", subset, f"images/{subset}")]  # fmt: skip
    return next((place / name for place in folders if (place / name).is_file()), None)


def _add(drawing: Drawing, item: dict[str, Any], kind: str | None) -> None:
    shape, frame = item.get("segmentation"), item.get("bbox") or ()
    why = "an annotation has neither segments nor a box that can be read"
    if shape:
        why = "its segments cannot be read"
        try:
            drawing.add(kind, _pixels(shape, drawing.size), why=why)
            return
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
            if len(frame) == 4:
                drawing.left_out.append(f"{drawing.where}: {why}; the box beside them is taken")
    if len(frame) == 4:
        left, top, wide, high = (float(value) for value in frame)
        drawing.add(kind, box(left, top, left + wide, top + high, drawing.size), box=True)
    else:
        drawing.add(kind, None, why=why)


def _pixels(shape: Any, size: tuple[int, int]) -> BoolArray:
    """Raises what pycocotools does, or `ValueError` for another size."""
    from pycocotools import mask as coco_mask

    height, width = size
    if isinstance(shape, list):
        coded = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
    elif isinstance(shape["counts"], list):
        coded = coco_mask.frPyObjects(shape, *shape["size"])
    else:
        coded = shape
    found = np.asarray(coco_mask.decode(coded), dtype=bool)
    if found.shape != size:
        raise ValueError(f"{found.shape} is not {size}")
    return found
