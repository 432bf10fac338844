"""Annotations as tools export them (labelme, COCO, VOC, YOLO) -> masks and a list that every command reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mrad.errors import DataError
from mrad.files import atomic_write_bytes
from mrad.types import BoolArray
from mrad_indexer.datasets.annotations import coco, labelme, voc, yolo
from mrad_indexer.datasets.annotations.drawn import Annotated, load_json
from mrad_indexer.datasets.annotations.others import WAY_OUT, tool_of
from mrad_indexer.datasets.records import relative
from mrad_indexer.datasets.walk import walk

LIST = "list.csv"
LOOKED_AT = 50
"""Files of a kind that are opened to see whose they are."""


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
    thin: int = 0
    """Defects that are known by a line or a point alone."""
    good_shapes: int = 0
    """Shapes of a class that is no defect, which mark nothing."""
    without_mask: int = 0
    """Defective images of which nobody knows where the defect lies."""


def convert(source: Path, out: Path, kind: str = "auto") -> Converted:
    """Write `out/masks/` and `out/list.csv` for the annotations at `source`.

    `source`: a folder of labelme's .json files beside their images; COCO's .json, whose images lie beside it
    or in a folder `images`, or a folder with several; a folder of VOC (`Annotations/`, `JPEGImages/`, and masks
    in `SegmentationClass/`), or its .xml files beside the images; a folder of YOLO (`images/`, `labels/`).
    `kind`: one of `READERS`, or `auto`.

    Raises `DataError` for what is neither, or where `out` holds a list already.
    """
    if (out / LIST).exists():
        raise DataError(f"{out / LIST} is there already; choose another folder")
    if not source.exists():
        raise DataError(f"{source} does not exist")
    left_out: list[str] = []
    read = READERS[_kind(source) if kind == "auto" else kind]
    rows, names, items = [], set[str](), list[Annotated]()
    for item in read(source, left_out):
        mask = ""
        if item.mask is not None:
            name = _name(item.image, names)
            _save(item.mask, item.ignore, out / "masks" / name)
            mask = f"masks/{name}"
        image = relative(item.image.absolute(), out.absolute())
        label = "anomalous" if item.anomalous else "normal"
        rows.append((image, label, mask, "+".join(sorted(set(item.defects)))))
        items.append(
            Annotated(item.image, item.anomalous, None, (), item.boxes, item.thin, item.good)
        )
    own = f"{relative(out.absolute(), source.absolute())}/"
    left_out = [text for text in left_out if not text.startswith(own)]
    if not rows:
        why = f"; {left_out[0]}" if left_out else ""
        raise DataError(f"{source} holds no image with annotations{why}")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("image", "label", "mask", "defect"))
    writer.writerows(rows)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(out / LIST, text.getvalue().encode())
    return Converted(
        good=sum(not item.anomalous for item in items),
        defective=sum(item.anomalous for item in items),
        list=out / LIST,
        left_out=tuple(left_out),
        boxes=sum(item.boxes for item in items),
        thin=sum(item.thin for item in items),
        good_shapes=sum(item.good for item in items),
        without_mask=sum(label == "anomalous" and not mask for _, label, mask, _ in rows),
    )


def _kind(source: Path) -> str:
    """Which of `READERS`. Raises `DataError`, with the way out where the tool is known."""
    files = [source] if source.is_file() else list(walk(source))
    found, strange = set[str](), list[str]()
    for path in [path for path in files if path.suffix.lower() == ".json"][:LOOKED_AT]:
        content = load_json(path)
        if coco.is_coco(content):
            found.add("coco")
        elif isinstance(content, dict) and "shapes" in content:
            found.add("labelme")
        elif tool := tool_of(content):
            strange.append(f"{path} is of {tool}'s own format, which is not read: {WAY_OUT}")
    for path in [path for path in files if path.suffix.lower() == ".xml"][:LOOKED_AT]:
        root = voc.load_xml(path).tag
        if root == "annotation":
            found.add("voc")
        elif root == "annotations":
            strange.append(f"{path} is of CVAT's own format, which is not read: {WAY_OUT}")
    if source.is_dir() and yolo.label_files(source):
        found.add("yolo")
    if len(found) > 1:
        raise DataError(f"{source} holds annotations of {' and '.join(sorted(found))}: say --from")
    if source.is_file() and found and found != {"coco"}:
        raise DataError(f"{source} is one image's annotation: give the folder that holds all")
    if found:
        return found.pop()
    raise DataError(
        strange[0] if strange else
        f"{source} is neither a folder of labelme's, VOC's or YOLO's files nor COCO's .json"
    )  # fmt: skip


READERS: dict[str, Callable[[Path, list[str]], Iterator[Annotated]]] = {
    "labelme": labelme.read,
    "coco": coco.read,
    "voc": voc.read,
    "yolo": yolo.read,
}


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
