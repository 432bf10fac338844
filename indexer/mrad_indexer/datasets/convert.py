"""Annotations as tools export them (labelme, COCO) -> masks and a list that every command reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import draw

from mrad.errors import DataError
from mrad.files import atomic_write_bytes
from mrad.types import BoolArray
from mrad_indexer.datasets.records import relative
from mrad_indexer.datasets.walk import is_image, walk

LIST = "list.csv"


@dataclass(frozen=True)
class Annotated:
    """One image, and what is drawn on it."""

    image: Path
    mask: BoolArray | None
    """None where nothing is drawn: a good image."""
    defects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """What a conversion gave."""

    good: int
    defective: int
    list: Path
    left_out: tuple[str, ...]
    """What could not be taken, and why."""


def convert(source: Path, out: Path, kind: str = "auto") -> Converted:
    """Write `out/masks/` and `out/list.csv` for the annotations at `source`.

    `source`: a folder of labelme's .json files beside their images, or COCO's one .json, whose images
    lie beside it or in a folder `images`. `kind`: `labelme`, `coco`, or `auto`.

    Raises `DataError` for what is neither, or where `out` holds a list already.
    """
    if (out / LIST).exists():
        raise DataError(f"{out / LIST} is there already; choose another folder")
    left_out: list[str] = []
    read = READERS[_kind(source) if kind == "auto" else kind]
    rows, names, counts = [], set[str](), [0, 0]
    for item in read(source, left_out):
        counts[item.mask is not None] += 1
        mask = ""
        if item.mask is not None:
            name = _name(item.image, names)
            _save(item.mask, out / "masks" / name)
            mask = f"masks/{name}"
        image = _from(item.image, out)
        label = "normal" if item.mask is None else "anomalous"
        rows.append((image, label, mask, "+".join(sorted(set(item.defects)))))
    if not rows:
        raise DataError(f"{source} holds no image with annotations")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("image", "label", "mask", "defect"))
    writer.writerows(rows)
    atomic_write_bytes(out / LIST, text.getvalue().encode())
    return Converted(counts[0], counts[1], out / LIST, tuple(left_out))


def _kind(source: Path) -> str:
    if source.is_dir():
        return "labelme"
    if source.suffix.lower() == ".json":
        content = _json(source)
        if isinstance(content, dict) and {"images", "annotations"} <= set(content):
            return "coco"
    raise DataError(f"{source} is neither a folder of labelme's files nor COCO's .json")


def _labelme(source: Path, left_out: list[str]) -> Iterator[Annotated]:
    annotated = set()
    for path in sorted(p for p in walk(source) if p.suffix.lower() == ".json"):
        content = _json(path)
        if not isinstance(content, dict) or "shapes" not in content:
            left_out.append(f"{relative(path, source)}: not labelme's")
            continue
        image = path.parent / str(content.get("imagePath", "")).replace("\\", "/")
        if not image.is_file():
            left_out.append(f"{relative(path, source)}: its image {image.name} is not there")
            continue
        annotated.add(image.resolve())
        size = (int(content["imageHeight"]), int(content["imageWidth"]))
        mask, names = np.zeros(size, bool), []
        for shape in content["shapes"]:
            drawn = _drawn(shape, size)
            if drawn is None:
                kind = shape.get("shape_type")
                left_out.append(f"{relative(path, source)}: a {kind} marks no area")
                continue
            mask |= drawn
            names.append(str(shape.get("label", "defect")))
        yield Annotated(image, mask if names else None, tuple(names))
    for image in sorted(p for p in walk(source) if is_image(p)):
        if image.resolve() not in annotated:
            left_out.append(f"{relative(image, source)}: no .json of labelme; is it good? add it")


def _drawn(shape: dict[str, Any], size: tuple[int, int]) -> BoolArray | None:
    points = np.array(shape.get("points", []), dtype=float).reshape(-1, 2)[:, ::-1]  # rows first
    kind = shape.get("shape_type", "polygon")
    if kind == "rectangle" and len(points) == 2:
        (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0)
        points = np.array([[top, left], [top, right], [bottom, right], [bottom, left]])
        kind = "polygon"
    if kind == "circle" and len(points) == 2:
        mask = np.zeros(size, bool)
        radius = float(np.hypot(*(points[1] - points[0])))
        mask[draw.disk(tuple(points[0]), radius, shape=size)] = True
        return mask
    if kind == "polygon" and len(points) >= 3:
        return np.asarray(draw.polygon2mask(size, points), dtype=bool)
    return None


def _coco(source: Path, left_out: list[str]) -> Iterator[Annotated]:
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise DataError("COCO needs pycocotools: pip install 'mrad[coco]'") from error
    content = _json(source)
    kinds = {item["id"]: str(item["name"]) for item in content.get("categories", [])}
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for item in content["annotations"]:
        by_image.setdefault(item["image_id"], []).append(item)
    for entry in content["images"]:
        places = [source.parent / entry["file_name"], source.parent / "images" / entry["file_name"]]
        image = next((place for place in places if place.is_file()), None)
        if image is None:
            left_out.append(f"{entry['file_name']}: not beside {source.name} nor in images/")
            continue
        height, width = int(entry["height"]), int(entry["width"])
        mask, names = np.zeros((height, width), bool), []
        for item in by_image.get(entry["id"], []):
            shape = item.get("segmentation")
            if not shape:
                left_out.append(f"{entry['file_name']}: an annotation has a box only, no segments")
                continue
            if isinstance(shape, list):
                coded = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
            elif isinstance(shape["counts"], list):
                coded = coco_mask.frPyObjects(shape, height, width)
            else:
                coded = shape
            mask |= np.asarray(coco_mask.decode(coded), dtype=bool)
            names.append(kinds.get(item.get("category_id"), "defect"))
        if by_image.get(entry["id"]) and not names:
            continue  # said above; nobody knows where its defect is
        yield Annotated(image, mask if names else None, tuple(names))


READERS: dict[str, Callable[[Path, list[str]], Iterator[Annotated]]] = {
    "labelme": _labelme,
    "coco": _coco,
}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def _name(image: Path, names: set[str]) -> str:
    """A mask's name that no other image's has."""
    name, number = f"{image.name}.png", 1
    while name.lower() in names:
        number += 1
        name = f"{image.name}~{number}.png"
    names.add(name.lower())
    return name


def _save(mask: BoolArray, path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())


def _from(image: Path, out: Path) -> str:
    """The image as the list names it: below `out`, or by its whole path."""
    return relative(image.absolute(), out.absolute())
