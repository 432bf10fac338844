"""The depth of a whole set of pictures, where their files do not state it.

One picture's largest value says little (a dark one of 12 bits looks like one of 10), all of them say
much: the memory's images are looked at before they are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mrad.errors import ImageError
from mrad.images.formats import kind_of
from mrad.images.options import ReadOptions
from mrad.images.reader import read_image
from mrad.types import ImageInput

HEAD = 1 << 12
"""Bytes of a file that tell its kind and depth."""


def depth_of(source: ImageInput, options: ReadOptions | None = None) -> tuple[str, int] | None:
    """Kind and smallest usual depth of a picture that does not state it; None for one that does.

    Decodes only where the depth is open. A picture that cannot be read gives None.
    """
    if is_stated(source):
        return None
    try:
        assumed = read_image(source, options=options).assumed
    except ImageError:
        return None
    return None if assumed is None else (assumed.kind, assumed.bits)


def depths_of(sources: Iterable[ImageInput], options: ReadOptions | None = None) -> dict[str, int]:
    """Kind -> the depth that holds every picture's values."""
    return joined(depth_of(source, options) for source in sources)


def joined(found: Iterable[tuple[str, int] | None]) -> dict[str, int]:
    """Kind -> the largest depth."""
    depths: dict[str, int] = {}
    for each in found:
        if each is not None:
            depths[each[0]] = max(depths.get(each[0], 0), each[1])
    return depths


def is_stated(source: ImageInput) -> bool:
    """Whether a look at the first bytes settles the depth: the everyday case of 8 bit."""
    if isinstance(source, np.ndarray):
        return bool(source.dtype != np.uint16)
    if isinstance(source, Image.Image):
        return not source.mode.startswith("I") and source.mode != "F"
    try:
        head = source if isinstance(source, bytes) else _head(Path(source))
    except OSError:
        return True  # reading it will say so
    kind = kind_of(head, "" if isinstance(source, bytes) else str(source))
    if kind == "png":
        return len(head) > 24 and head[24] != 16
    return kind not in ("tiff", "pnm", "jp2")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)
