"""Annotations as tools export them (labelme, COCO, VOC, YOLO) -> masks and a list that every command reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from skimage import draw

from mrad.errors import DataError
from mrad.files import atomic_write_bytes
from mrad.images.masks import read_mask
from mrad.images.reader import read_size
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
    boxes: int = 0
    """How many of them are known by a box alone, which marks more than the defect."""
    ignore: BoolArray | None = None
    """A border that belongs to neither class."""


@dataclass(frozen=True)
class Converted:
    """What a conversion gave."""

    good: int
    defective: int
    list: Path
    left_out: tuple[str, ...]
    """What could not be taken, and why."""
    boxes: int = 0
    """Defects that are known by a box alone."""


def convert(source: Path, out: Path, kind: str = "auto") -> Converted:
    """Write `out/masks/` and `out/list.csv` for the annotations at `source`.

    `source`: a folder of labelme's .json files beside their images; COCO's one .json, whose images lie
    beside it or in a folder `images`; a folder of VOC (`Annotations/`, `JPEGImages/`, and masks in
    `SegmentationClass/`), or its .xml files beside the images; a folder of YOLO (`images/`, `labels/`).
    `kind`: one of `READERS`, or `auto`.

    Raises `DataError` for what is neither, or where `out` holds a list already.
    """
    if (out / LIST).exists():
        raise DataError(f"{out / LIST} is there already; choose another folder")
    left_out: list[str] = []
    read = READERS[_kind(source) if kind == "auto" else kind]
    rows, names, counts, boxes = [], set[str](), [0, 0], 0
    for item in read(source, left_out):
        counts[item.mask is not None] += 1
        boxes += item.boxes
        mask = ""
        if item.mask is not None:
            name = _name(item.image, names)
            _save(item.mask, item.ignore, out / "masks" / name)
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
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(out / LIST, text.getvalue().encode())
    return Converted(counts[0], counts[1], out / LIST, tuple(left_out), boxes)


def _kind(source: Path) -> str:
    if source.is_dir():
        found = {
            _KINDS[path.suffix.lower()] for path in walk(source) if path.suffix.lower() in _KINDS
        }
        if "yolo" in found and not _label_files(source):
            found.remove("yolo")  # a text of another kind
        if len(found) > 1:
            raise DataError(
                f"{source} holds annotations of {' and '.join(sorted(found))}: say --from"
            )
        return found.pop() if found else "labelme"
    if source.suffix.lower() == ".json":
        content = _json(source)
        if isinstance(content, dict) and {"images", "annotations"} <= set(content):
            return "coco"
    raise DataError(
        f"{source} is neither a folder of labelme's, VOC's or YOLO's files nor COCO's .json"
    )


_KINDS = {".json": "labelme", ".xml": "voc", ".txt": "yolo"}


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
        mask, names, boxes = np.zeros((height, width), bool), list[str](), 0
        for item in by_image.get(entry["id"], []):
            shape = item.get("segmentation")
            if not shape and len(item.get("bbox", ())) == 4:
                left, top, wide, high = item["bbox"]
                mask |= _box(left, top, left + wide, top + high, (height, width))
                names.append(kinds.get(item.get("category_id"), "defect"))
                boxes += 1
                continue
            if not shape:
                left_out.append(
                    f"{entry['file_name']}: an annotation has neither segments nor a box"
                )
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
        yield Annotated(image, mask if names else None, tuple(names), boxes)


def _box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> BoolArray:
    mask = np.zeros(size, bool)
    rows = slice(max(0, round(top)), max(0, round(bottom)))
    mask[rows, max(0, round(left)) : max(0, round(right))] = True
    return mask


def _voc(source: Path, left_out: list[str]) -> Iterator[Annotated]:
    apart = {"segmentationclass", "segmentationobject"}
    images = [path for path in sorted(walk(source)) if is_image(path)]
    pictures = {path.name: path for path in images if path.parent.name.lower() not in apart}
    masks = {path.stem: path for path in images[::-1] if path.parent.name.lower() in apart}
    annotated = set()
    for path in sorted(p for p in walk(source) if p.suffix.lower() == ".xml"):
        root = _xml(path)
        image = pictures.get(root.findtext("filename", "")) or next(
            (p for p in pictures.values() if p.stem == path.stem), None
        )
        if root.tag != "annotation" or image is None:
            why = "its image is not there" if root.tag == "annotation" else "not VOC's"
            left_out.append(f"{relative(path, source)}: {why}")
            continue
        annotated.add(image)
        objects = root.findall("object")
        names = tuple(item.findtext("name", "defect") for item in objects)
        width, height = read_size(image)
        drawn = masks.get(image.stem)
        if not objects:
            yield Annotated(image, None)
        elif drawn is not None:
            found = read_mask(drawn, (width, height))
            yield Annotated(image, found.anomalous, names, ignore=found.ignore)
        else:
            mask, boxes = _voc_objects(objects, (height, width))
            yield Annotated(image, mask, names, boxes)
    for image in sorted(set(pictures.values()) - annotated):
        left_out.append(
            f"{relative(image, source)}: no .xml of VOC; is it good? add one without objects"
        )


def _voc_objects(objects: list[Any], size: tuple[int, int]) -> tuple[BoolArray, int]:
    """Outlines where there are some, boxes else."""
    mask, boxes = np.zeros(size, bool), 0
    for item in objects:
        outline, box = item.find("polygon"), item.find("bndbox")
        if outline is not None:
            flat = [float(part.text) for part in outline if part.tag[:1] in "xy"]
            mask |= draw.polygon2mask(size, np.array(flat).reshape(-1, 2)[:, ::-1])
        elif box is not None:
            sides = [float(box.findtext(side, "0")) for side in ("xmin", "ymin", "xmax", "ymax")]
            mask |= _box(sides[0] - 1, sides[1] - 1, sides[2], sides[3], size)  # counted from 1
            boxes += 1
    return mask, boxes


def _xml(path: Path) -> ElementTree.Element:
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:  # which may blow up to any size
        raise DataError(f"{path} declares a document type or entities, which VOC's files do not")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is not XML: {error}") from error


def _label_files(source: Path) -> dict[Path, Path]:
    """Image -> its .txt: in `labels/` where the image lies in `images/`, or beside it."""
    found = {}
    for image in (path for path in walk(source) if is_image(path)):
        parts = list(image.relative_to(source).parts)
        if "images" in parts:
            parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        for label in (source.joinpath(*parts).with_suffix(".txt"), image.with_suffix(".txt")):
            if label.is_file():
                found[image] = label
                break
    return found


def _yolo(source: Path, left_out: list[str]) -> Iterator[Annotated]:
    listed = source / "classes.txt"
    kinds = listed.read_text(encoding="utf-8").split("\n") if listed.is_file() else []
    labels = _label_files(source)
    for image, path in sorted(labels.items()):
        width, height = read_size(image)
        mask, names, boxes = np.zeros((height, width), bool), list[str](), 0
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            try:
                kind, *shape = (float(part) for part in line.split())
            except ValueError:
                if line.strip():
                    raise DataError(f"{path}, line {number}: {line[:60]!r} is not YOLO's") from None
                continue
            if len(shape) == 4:
                x, y, wide, high = (v * side for v, side in zip(shape, (width, height) * 2))
                mask |= _box(x - wide / 2, y - high / 2, x + wide / 2, y + high / 2, mask.shape)
                boxes += 1
            elif len(shape) >= 6 and len(shape) % 2 == 0 and max(shape) <= 1.001:
                points = np.array(shape).reshape(-1, 2)[:, ::-1] * (height, width)
                mask |= draw.polygon2mask(mask.shape, points)
            else:
                raise DataError(f"{path}, line {number}: neither a box nor an outline of YOLO's")
            known = int(kind) < len(kinds) and kinds[int(kind)].strip()
            names.append(known or f"class {int(kind)}")
        yield Annotated(image, mask if names else None, tuple(names), boxes)
    for image in sorted(path for path in walk(source) if is_image(path) and path not in labels):
        left_out.append(f"{relative(image, source)}: no .txt of YOLO; is it good? add an empty one")


READERS: dict[str, Callable[[Path, list[str]], Iterator[Annotated]]] = {
    "labelme": _labelme,
    "coco": _coco,
    "voc": _voc,
    "yolo": _yolo,
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


def _save(mask: BoolArray, ignore: BoolArray | None, path: Path) -> None:
    buffer = io.BytesIO()
    levels = mask.astype(np.uint8)
    if ignore is not None and ignore.any():
        levels[ignore] = 255  # beside 1: a border that belongs to neither
    else:
        levels *= 255
    Image.fromarray(levels).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())


def _from(image: Path, out: Path) -> str:
    """The image as the list names it: below `out`, or by its whole path."""
    return relative(image.absolute(), out.absolute())
