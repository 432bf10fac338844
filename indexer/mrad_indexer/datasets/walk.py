"""What lies in a folder: pictures, and whatever else, so that nothing goes unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mrad_client.batch.sources import HEAT_MAPS, NO_PICTURES, drawn_below, is_hidden, walk

from mrad.images.formats import SUFFIXES, kind_of

HEAD = 1 << 12
"""Bytes of a file that tell whether it is a picture."""

ANNOTATIONS = (".json", ".xml", ".txt")
"""Where they are called as a picture: labelme's, VOC's, YOLO's and others' drawings."""


@dataclass(frozen=True)
class LeftOut:
    """A file that a reader did not take."""

    path: Path
    why: str


def is_image(path: Path) -> bool:
    """A file that is called like an image, not a system's leftover."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def left_out(root: Path, taken: set[Path]) -> tuple[LeftOut, ...]:
    """Pictures below `root` that are not among `taken`, by name or by content, annotations of those that are,
    and why."""
    return tuple(_left_out(root, taken))


def _left_out(root: Path, taken: set[Path]) -> Iterator[LeftOut]:
    named = {name for path in taken for name in (path.stem, path.name)}
    yield from (LeftOut(path, HEAT_MAPS) for path in drawn_below(root))
    for path in walk(root):
        if path.suffix.lower() in ANNOTATIONS and path.stem in named:
            yield LeftOut(path, "an annotation, which is not read here: see mrad data convert")
            continue
        if path in taken or path.parent in taken:  # a folder of one image's masks is taken whole
            continue
        hidden = is_hidden(path, root)
        if path.suffix.lower() in SUFFIXES:
            if not hidden:
                yield LeftOut(path, "no place in this layout")
            elif not path.name.startswith("._"):
                yield LeftOut(path, "hidden: its name, or its folder's, begins with a dot")
        elif path.suffix.lower() not in NO_PICTURES and not hidden and _is_picture(path):
            yield LeftOut(path, f"a picture whose suffix {path.suffix or '(none)'} is not known")


def _is_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return kind_of(file.read(HEAD)) is not None
    except OSError:
        return False
