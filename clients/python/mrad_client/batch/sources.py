"""Which files: images, folders, patterns, manifests."""

from __future__ import annotations

import codecs
import csv
import glob
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrad_client.errors import InputError

SUFFIXES = frozenset(
    """
    .png .apng .jpg .jpeg .jpe .jfif .bmp .dib .tif .tiff .btf .webp .gif .ppm .pgm .pbm
    .pnm .pfm .pam .jp2 .j2k .jpx .avif .heic .heif .tga .pcx .ico .dcm .dicom
    """.split()  # noqa: SIM905
)
"""What the server reads; it looks at content, this list only says what a folder is searched for."""
NO_PICTURES = frozenset(
    """
    .csv .tsv .json .jsonl .ndjson .txt .md .rst .xml .yaml .yml .toml .ini .pdf .html .htm
    .log .py .ipynb .sh .db .npy .npz .pt .pth .safetensors .parquet .xlsx .xls .docx .zip
    .gz .tar .7z .rar .mat .pkl .h5 .faiss .journal .part .partial .filepart .crdownload
    .tmp
    """.split()  # noqa: SIM905
)
"""Files that nobody expects a verdict on, and those that are still being copied."""
MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt")
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
        except (OSError, ValueError):  # ValueError: a NUL in a manifest's path
            return ""
        return f"{facts.st_size}:{facts.st_mtime_ns}"


def is_image(path: Path) -> bool:
    """A file that looks like an image, not a system's leftover."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def images_below(folder: Path) -> list[Path]:
    """Images in `folder` and below, by path; none when it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in walk(folder) if is_image(path) and path.is_file())


def walk(folder: Path) -> Iterator[Path]:
    """Every file below, by path. Linked folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        try:
            facts = Path(place).stat()
        except OSError:  # it has gone meanwhile
            continue
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders.sort()
        yield from (Path(place) / name for name in sorted(files))


def not_taken(folder: Path) -> list[tuple[Path, str]]:
    """Files below a folder that may be pictures and are not taken, and why."""
    found = []
    for path in walk(folder):
        known = path.suffix.lower() in SUFFIXES
        if not path.is_file():
            if is_image(path):
                broken = path.is_symlink() and not path.exists()
                found.append(
                    (path, "a link to nothing" if broken else "no file but a pipe or device")
                )
        elif path.name.startswith("."):
            if known and not path.name.startswith("._"):
                found.append((path, "hidden: its name begins with a dot"))
        elif not known and path.suffix.lower() not in NO_PICTURES:
            found.append((path, f"the suffix {path.suffix or '(none)'} is not one of a picture"))
    return sorted(found)


def find_items(sources: Sequence[str]) -> list[Item]:
    """The files of images, folders (searched through), glob patterns and manifests, in order.

    Manifests: .csv or .tsv with a column `image`, .jsonl with a field `image`, .txt with a path a
    line; relative paths start at the manifest. A source that exists is never read as a pattern, and
    brackets in an existing folder's name stand for themselves. Two files that would share a name go
    by their whole path. Raises `InputError` for a source without an image.
    """
    found: dict[Path, Item] = {}
    for source in sources:
        items = list(_items(source))
        if not items:
            raise InputError(
                f"{source}: no image found. Give an image, a folder, a quoted pattern such as "
                f"'photos/**/*.jpg', or a manifest (.csv or .jsonl with `{COLUMN}`, .txt with a "
                "path a line)"
            )
        for item in items:
            found.setdefault(item.path.absolute(), item)
    names: dict[str, int] = {}
    for item in found.values():
        names[item.name] = names.get(item.name, 0) + 1
    return [
        item if names[item.name] == 1 else Item(path.as_posix(), path)
        for path, item in found.items()
    ]


def _items(source: str) -> Iterator[Item]:
    path = Path(source)
    if path.is_dir():
        for file in images_below(path):
            yield Item(file.relative_to(path).as_posix(), file)
    elif path.is_file() and path.suffix.lower() in MANIFESTS:
        for name in _manifest(path):
            yield Item(name, _file(path.parent, name))
    elif path.is_file():
        yield Item(path.name, path)
    else:
        for match in _matches(path):
            yield Item(match.as_posix(), match)


def _matches(pattern: Path) -> Iterator[Path]:
    """Files that a pattern names; the part of it that exists as a folder is taken literally."""
    folder = next(parent for parent in (*pattern.parents, Path()) if parent.is_dir())
    rest = pattern.relative_to(folder).as_posix()
    for match in sorted(glob.glob(rest, root_dir=folder, recursive=True)):  # noqa: PTH207
        if (folder / match).is_file():
            yield folder / match


def _file(folder: Path, name: str) -> Path:
    """As the list names it; lists of Windows have backslashes."""
    path = folder / name
    return path if "\\" not in name or path.exists() else folder / name.replace("\\", "/")


def _manifest(path: Path) -> Iterator[str]:
    """Names in a list. A table is read as `mrad build` reads it: any usual separator, and any capitals."""
    text = _text(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        head = text.partition("\n")[0]
        between = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=between)
        reader.fieldnames = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        if COLUMN not in reader.fieldnames:
            raise InputError(f"{path} has no column `{COLUMN}`: {reader.fieldnames}")
        yield from (name for row in reader if (name := (row[COLUMN] or "").strip()))
        return
    for number, row in enumerate(io.StringIO(text), start=1):
        line = row.strip()
        if line:
            yield line if path.suffix.lower() == ".txt" else _image_of(path, number, line)


def _text(path: Path) -> str:
    """UTF-16 by its mark, else UTF-8; names of files that are no UTF-8 stand there byte for byte."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "surrogateescape")


def _image_of(path: Path, number: int, text: str) -> str:
    try:
        return str(json.loads(text)[COLUMN])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}, line {number}: no JSON object with `{COLUMN}`") from error
