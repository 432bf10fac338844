"""YOLO: a .txt for each image, in `labels/` beside `images/` or beside the image; boxes or outlines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mrad.errors import DataError, ImageError
from mrad.images.reader import read_size
from mrad_indexer.datasets.annotations.drawn import Annotated, Drawing, box, polygon
from mrad_indexer.datasets.records import relative
from mrad_indexer.datasets.walk import is_image, walk

LISTS = ("classes.txt", "obj.names", "_darknet.labels")
"""One class a line."""


def label_files(source: Path) -> dict[Path, Path]:
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


def read(source: Path, left_out: list[str]) -> Iterator[Annotated]:
    """Every image with a .txt; `left_out` takes up what cannot be taken. Raises `DataError`."""
    kinds = _kinds(source, left_out)
    labels = label_files(source)
    owners: dict[Path, list[Path]] = {}
    for image, path in sorted(labels.items()):
        owners.setdefault(path, []).append(image)
    for path, images in owners.items():
        if len(images) > 1:
            names = " and ".join(relative(image, source) for image in images)
            left_out.append(f"{relative(path, source)}: fits {names} alike; give each its own")
            continue
        try:
            yield _image(images[0], path, kinds, relative(path, source), left_out)
        except ImageError as error:
            left_out.append(str(error))
    for path in sorted(walk(source)):
        if is_image(path) and path not in labels:
            left_out.append(
                f"{relative(path, source)}: no .txt of YOLO; is it good? add an empty one"
            )
        elif path.suffix.lower() == ".txt" and path not in owners and _is_label(path):
            left_out.append(f"{relative(path, source)}: its image is not there")


def _image(
    image: Path, path: Path, kinds: dict[int, str], where: str, left_out: list[str]
) -> Annotated:
    width, height = read_size(image)
    drawing = Drawing((height, width), where, left_out)
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            kind, *shape = (float(part) for part in line.split())
        except ValueError:
            raise DataError(f"{path}, line {number}: {line[:60]!r} is not YOLO's") from None
        name = kinds.get(int(kind), f"class {int(kind)}")
        if len(shape) == 4:
            x, y, wide, high = (v * side for v, side in zip(shape, (width, height) * 2))
            pixels = box(x - wide / 2, y - high / 2, x + wide / 2, y + high / 2, drawing.size)
            drawing.add(name, pixels, box=True)
        elif len(shape) >= 6 and len(shape) % 2 == 0 and max(shape) <= 1.001:
            points = np.array(shape).reshape(-1, 2) * (width, height)
            drawing.add(name, polygon(points, drawing.size))
        else:
            raise DataError(f"{path}, line {number}: neither a box nor an outline of YOLO's")
    return drawing.of(image)


def _is_label(path: Path) -> bool:
    """Lines of numbers: a text of another kind is not missed."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return any(lines) and all(len([float(v) for v in line.split()]) != 1 for line in lines)
    except (OSError, ValueError):
        return False


def _kinds(source: Path, left_out: list[str]) -> dict[int, str]:
    """Number -> class, by the lists of classes that lie there; Ultralytics' .yaml may lie one folder above."""
    found: list[dict[int, str]] = []
    for path in sorted([*walk(source), *source.absolute().parent.glob("data.y*ml")]):
        if path.name in LISTS:
            names = path.read_text(encoding="utf-8-sig").splitlines()
            found.append({n: name.strip() for n, name in enumerate(names) if name.strip()})
        elif path.suffix.lower() in (".yaml", ".yml") and (named := _names(path)):
            found.append(named)
    if any(each != found[0] for each in found):
        left_out.append(
            "several lists of classes, which differ: classes are called by their numbers"
        )
        return {}
    return found[0] if found else {}


def _names(path: Path) -> dict[int, str]:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        return {number: str(name) for number, name in enumerate(names)}
    if isinstance(names, dict):
        return {int(number): str(name) for number, name in names.items() if str(number).isdigit()}
    return {}
