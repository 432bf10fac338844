"""Which files: images, folders, patterns, manifests."""

from __future__ import annotations

import codecs
import csv
import glob
import io
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
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
WRITTEN = ("overlays", "maps")
RECORDS = (".journal", "verdicts.jsonl")
"""Folders of drawn pictures, and how the record of the run beside them ends."""
HEAT_MAPS = "heat maps that a run wrote"


@dataclass(frozen=True)
class Item:
    """One file to score."""

    name: str
    """Unique in the run: the path below the folder, or as the manifest or pattern gives it."""
    path: Path

    def stamp(self) -> str:
        """Changes when the file does; empty when it cannot be read.

        Copies keep the time of the last write, and pictures of one camera are of one size: only the
        time at which the file came here tells two of one name apart.
        """
        try:
            facts = self.path.stat()
        except (OSError, ValueError):  # ValueError: a NUL in a manifest's path
            return ""
        return f"{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ctime_ns}"


def is_image(path: Path) -> bool:
    """A file that looks like an image, not a system's leftover."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def images_below(folder: Path, own: Collection[Path] = ()) -> list[Path]:
    """Images in `folder` and visible folders below, by path; none when it does not exist.

    `own`: folders that take the run's pictures, which are left out.
    """
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in walk(folder, own)
        if is_image(path) and not is_hidden(path, folder) and path.is_file()
    )


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether its name, or that of a folder between, begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def walk(folder: Path, own: Collection[Path] = ()) -> Iterator[Path]:
    """Every file below, by path. Linked folders are followed, each folder once; those that a run
    drew its heat maps into are left out, as are those of `own`."""
    for _, files, _ in _places(folder, own):
        yield from files


def _places(folder: Path, own: Collection[Path]) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """Each folder, its files, and the heat maps' folders in it that are left out, those of `own` aside."""
    seen: set[tuple[int, int]] = set()
    mine = {path.resolve() for path in own}
    for name, folders, files in os.walk(folder, followlinks=True):
        place = Path(name)
        try:
            facts = place.stat()
        except OSError:  # it has gone meanwhile
            continue
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        drawn = WRITTEN if any(file.endswith(RECORDS) for file in files) else ()
        if mine:
            folders[:] = [one for one in folders if (place / one).resolve() not in mine]
        left = [place / one for one in sorted(folders) if one in drawn]
        folders[:] = sorted(one for one in folders if one not in drawn)
        yield place, [place / file for file in sorted(files)], left


def drawn_below(folder: Path) -> list[Path]:
    """Folders of heat maps that some run wrote: nobody's pictures."""
    return [path for _, _, left in _places(folder, ()) for path in left]


def not_taken(folder: Path, own: Collection[Path] = ()) -> list[tuple[Path, str]]:
    """What lies below a folder, may be a picture and is not taken, and why."""
    found = []
    for _, files, left in _places(folder, own):
        found += [(path, HEAT_MAPS) for path in left]
        found += [(path, why) for path in files if (why := _why_not(path, folder))]
    return sorted(found)


def _why_not(path: Path, folder: Path) -> str:
    """Empty for files that are taken, and for those that nobody expects a verdict on."""
    known = path.suffix.lower() in SUFFIXES
    if not path.is_file():
        if not is_image(path):
            return ""
        broken = path.is_symlink() and not path.exists()
        return "a link to nothing" if broken else "no file but a pipe or device"
    if is_hidden(path, folder):
        hidden = known and not path.name.startswith("._")
        return "hidden: its name, or its folder's, begins with a dot" if hidden else ""
    if known or path.suffix.lower() in NO_PICTURES:
        return ""
    return f"the suffix {path.suffix or '(none)'} is not one of a picture"


def find_items(sources: Sequence[str], own: Collection[Path] = ()) -> list[Item]:
    """The files of images, folders (searched through), glob patterns and manifests, in order.

    Manifests: .csv or .tsv with a column `image`, .jsonl with a field `image`, .txt with a path a
    line; relative paths start at the manifest. A source that exists is never read as a pattern, and
    brackets in an existing folder's name stand for themselves. Two files that would share a name go
    by their whole path. `own`: folders that take the run's pictures, which no folder is searched
    for. Raises `InputError` for a source without an image.
    """
    found: dict[Path, Item] = {}
    for source in sources:
        items = list(_items(source, own))
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


def _items(source: str, own: Collection[Path]) -> Iterator[Item]:
    path = Path(source)
    if path.is_dir():
        for file in images_below(path, own):
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
    with suppress(ValueError, KeyError, TypeError):
        name = json.loads(text)[COLUMN]
        if name and isinstance(name, str):
            return name
    raise InputError(f"{path}, line {number}: no JSON object with a path in `{COLUMN}`")
