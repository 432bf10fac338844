"""What the memory holds of one image: its entry, and the keys that refer to it."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple

from mrad.files import utf8
from mrad.types import ANOMALOUS, NORMAL, FloatArray, ImageInput, Level, Sample

REGIONS: Final = "regions"
PatchKeys = Literal["regions", "all"] | int
"""What a region of an image adds to the patch level: its mean, every patch, or so many of them."""


def new_entry_id() -> str:
    """A UUIDv7: unique, and sortable by the time it was made."""
    stamp = time.time_ns() // 1_000_000
    value = (stamp & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


@dataclass(frozen=True)
class Entry:
    """One labelled image of the memory; its keys refer to it."""

    entry_id: str
    label: int
    source: str = ""
    object_name: str = ""
    defect: str = ""
    tags: tuple[str, ...] = ()
    width: int = 0
    height: int = 0
    added_at: str = ""
    """RFC 3339, UTC."""
    added_by: str = ""

    @classmethod
    def of(cls, sample: Sample, size: tuple[int, int], added_by: str = "") -> Entry:
        """The entry of a sample whose image is `size` (width, height), made now."""
        return cls(
            entry_id=new_entry_id(),
            label=ANOMALOUS if sample.anomalous else NORMAL,
            source=utf8(sample.source or _file_of(sample.image)),
            object_name=utf8(sample.object_name),
            defect=utf8(sample.defect),
            tags=sample.tags,
            width=size[0],
            height=size[1],
            added_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            added_by=added_by,
        )


def _file_of(image: ImageInput) -> str:
    return Path(image).name if isinstance(image, str | Path) else ""


class Key(NamedTuple):
    """One key of one entry. `size` is the number of grid cells that it averages."""

    level: Level
    label: int
    entry_id: str
    region: str
    size: int
    vector: FloatArray
    tile: int = 0
    """Number of the tile of its image that it describes (`mrad.images.tiles.Tiling.plan`)."""
    picture: bytes = b""
    """Of the image key of a lesson: what was encoded, uint8 [S, S, C], to know it again where it moved."""
