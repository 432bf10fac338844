"""File names as text. A name may hold bytes that are no UTF-8, newlines, anything but a slash."""

from __future__ import annotations

import base64
import os
import re
from hashlib import sha256
from pathlib import Path

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
BROKEN = re.compile(r"[\ud800-\udfff]")
LONGEST = 255
"""Bytes that file systems take for one name."""


def readable(name: str) -> str:
    """A name as UTF-8: bytes that are none become `\\xNN`. Two names may read alike."""
    return BROKEN.sub(_escaped, name)


def on_one_line(name: str) -> str:
    """The same for a screen: newlines and other controls are escaped, too."""
    return UNPRINTABLE.sub(_escaped, name)


def exact(name: str) -> str | None:
    """Base64 of the bytes of a name that is no UTF-8; None for every other."""
    return base64.b64encode(os.fsencode(name)).decode() if BROKEN.search(name) else None


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return match.group().encode("unicode_escape", "surrogatepass").decode()


def counted(number: int, one: str, many: str = "") -> str:
    """`1 image`, `2,000 images`. `many`: where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def place(folder: Path, name: str, suffix: str) -> Path:
    """Where the picture of `name` goes: below the folder, whatever the name holds.

    The old suffix stays, for a.png and a.jpg are two images. A name that cannot be kept as it is
    (it leads upwards, holds controls or no UTF-8, or is too long) gets a tag of its own.
    """
    whole = Path(name)
    parts = [part for part in whole.parts if part not in ("..", whole.anchor)]
    clean = [UNPRINTABLE.sub("_", part) for part in parts]
    room = LONGEST - len(suffix.encode()) - len("~12345678")
    short = [_cut(part, room) for part in clean]
    same = short == list(whole.parts)
    tag = "" if same else f"~{sha256(os.fsencode(name)).hexdigest()[:8]}"
    return folder.joinpath(*short[:-1], short[-1] + tag + suffix)


def _cut(part: str, room: int) -> str:
    """So much of a name's end as fits; the end tells more apart than the beginning."""
    data = part.encode()
    return part if len(data) <= room else data[-room:].decode("utf-8", "ignore")
