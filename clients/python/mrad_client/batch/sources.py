"""Which files: a folder, a pattern, or a manifest."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mrad_client.errors import InputError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tif", ".tiff", ".webp"}
COLUMN = "image"


@dataclass(frozen=True)
class Item:
    """One file to score."""

    name: str
    """Unique in the run: the path below the folder, or as the manifest or pattern gives it."""
    path: Path

    def stamp(self) -> str:
        """Changes when the file does; empty when it cannot be read."""
        try:
            facts = self.path.stat()
        except OSError:
            return ""
        return f"{facts.st_size}:{facts.st_mtime_ns}"


def find_items(source: str) -> list[Item]:
    """The files of a folder (images, recursively), a glob pattern, or a manifest.

    Manifests: .csv with a column `image`, .jsonl with a field `image`, .txt with a path a line;
    relative paths start at the manifest. Raises `InputError` when there is nothing.
    """
    path = Path(source)
    if path.is_dir():
        found = (item for item in sorted(path.rglob("*")) if item.suffix.lower() in SUFFIXES)
        items = [Item(file.relative_to(path).as_posix(), file) for file in found if file.is_file()]
    elif path.is_file() and path.suffix.lower() in (".csv", ".jsonl", ".txt"):
        items = [Item(name, path.parent / name) for name in _manifest(path)]
    else:
        files = sorted(Path(name) for name in glob.glob(source, recursive=True))  # noqa: PTH207
        items = [Item(file.as_posix(), file) for file in files if file.is_file()]
    unique = list({item.name: item for item in items}.values())
    if not unique:
        raise InputError(
            f"{source}: no image found. Give a folder, a quoted pattern such as 'photos/**/*.jpg', "
            f"or a manifest (.csv or .jsonl with `{COLUMN}`, .txt with a path a line)"
        )
    return unique


def _manifest(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(file)
            if COLUMN not in (reader.fieldnames or []):
                raise InputError(f"{path} has no column `{COLUMN}`: {reader.fieldnames}")
            yield from (row[COLUMN] for row in reader if row[COLUMN])
            return
        for number, line in enumerate(file, start=1):
            text = line.strip()
            if not text:
                continue
            yield text if path.suffix.lower() == ".txt" else _image_of(path, number, text)


def _image_of(path: Path, number: int, text: str) -> str:
    try:
        return str(json.loads(text)[COLUMN])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}, line {number}: no JSON object with `{COLUMN}`") from error
