"""Lists of images: CSV, JSON Lines, and the `meta.json` of the paper's code.

Columns image,label[,mask,object,defect,split]; paths relative to the list's own folder.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mrad.errors import DataError
from mrad_indexer.datasets.pairing import require_unmarked
from mrad_indexer.datasets.records import Dataset, Record, label_of, relative, require

SPLITS = {"train", "test", "val", "validation"}


def detect_csv(path: Path) -> bool:
    """A .csv or .tsv file."""
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


def read_csv(path: Path) -> Dataset:
    """A table with a header. Raises `DataError` naming the line that cannot be used."""
    with io.StringIO(table_text(path), newline="") as file:
        rows = csv.DictReader(file, delimiter=separator(path, file))
        rows.fieldnames = [(name or "").strip().lower() for name in rows.fieldnames or ()]
        missing = {"image", "label"} - set(rows.fieldnames)
        if missing:
            raise DataError(
                f"{path} lacks the columns {sorted(missing)}; needed: image,label; "
                f"optional: mask,object,defect,split; it has {rows.fieldnames}"
            )
        return require("csv", path.parent, list(_records(path, enumerate(rows, start=2))))


def table_text(path: Path) -> str:
    """A table's text: UTF-8 or UTF-16 by its mark, else as Windows programs of the West write it (cp1252)."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def separator(path: Path, file: io.StringIO) -> str:
    """What stands between the columns of the first line: spreadsheets of many tongues take `;`."""
    head = file.readline()
    file.seek(0)
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(",;\t|", key=head.count)


def detect_jsonl(path: Path) -> bool:
    """A .jsonl or .ndjson file."""
    return path.is_file() and path.suffix.lower() in (".jsonl", ".ndjson")


def read_jsonl(path: Path) -> Dataset:
    """One JSON object a line. Raises `DataError` naming the line that cannot be used."""
    return require("jsonl", path.parent, list(_records(path, _lines(path))))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number} is not a JSON object")
            yield number, row


def _records(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Record]:
    for number, row in rows:
        where = f"{path}, line {number}"
        text = {
            str(key).strip().lower(): "" if value is None else str(value).strip()
            for key, value in row.items()
        }
        if not text.get("image"):
            raise DataError(f"{where} names no image")
        yield _record(path.parent, where, text)


def _record(root: Path, where: str, row: dict[str, str]) -> Record:
    image = _file(root, row["image"])
    anomalous = label_of(row.get("label", ""), where)
    mask = _file(root, row["mask"]) if row.get("mask") else None
    for file in (image, mask):
        if file is not None and not file.is_file():
            raise DataError(f"{where}: {file} does not exist")
    if mask is not None and not anomalous:
        require_unmarked(image, mask, where)
        mask = None
    return Record(
        image=image,
        anomalous=anomalous,
        mask=mask,
        source=relative(image, root),
        object_name=row.get("object", "") or root.name,
        defect=(row.get("defect") or "defect") if anomalous else "",
        split=row.get("split", "").lower(),
    )


def _file(root: Path, name: str) -> Path:
    """As the list names it; lists of Windows have backslashes."""
    path = root / name
    return path if path.is_file() or "\\" not in name else root / name.replace("\\", "/")


def detect_meta(path: Path) -> bool:
    """The file itself, or a folder that holds it; other tools have files of that name, too."""
    file = _meta(path)
    if not file.is_file() or path.is_file():
        return file.is_file()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and all(isinstance(below, dict) for below in content.values())


def read_meta(path: Path) -> Dataset:
    """{split: {object: [{img_path, mask_path, cls_name, specie_name, anomaly}]}}, or by object first."""
    file = _meta(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            _meta_record(file.parent, f"{file}, {split}/{name}, item {i}", split, item)
            for split, name, items in _by_split(content)
            for i, item in enumerate(items)
        ]
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file} is not a meta.json of the paper's code: {error}") from error
    return require("meta", file.parent, rows)


def _by_split(content: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """Split, object and its items, whichever of the two comes first."""
    outer, inner = set(content), {name for value in content.values() for name in value}
    swapped = bool(inner & SPLITS) and not outer & SPLITS
    for first, below in content.items():
        for second, items in below.items():
            yield (second, first, items) if swapped else (first, second, items)


def _meta(path: Path) -> Path:
    return path / "meta.json" if path.is_dir() else path if path.name == "meta.json" else Path()


def _meta_record(root: Path, where: str, split: str, item: dict[str, Any]) -> Record:
    missing = {"img_path", "anomaly"} - item.keys()
    if missing:
        raise DataError(f"{where} lacks {sorted(missing)}")
    row = {
        "image": str(item["img_path"]),
        "label": str(int(item["anomaly"])),
        "mask": str(item.get("mask_path") or ""),
        "object": str(item.get("cls_name") or ""),
        "defect": str(item.get("specie_name") or ""),
        "split": split,
    }
    return _record(root, where, row)
