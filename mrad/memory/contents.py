"""What a memory bank consists of, without what it can do: what the store reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrad.encoder.identity import EncoderIdentity
from mrad.memory.entry import Entry, Key
from mrad.memory.level import LevelMemory, empty_level

SETTLED = "settled"
"""In a bank's metadata: how many of the first entries heads take what is usual from; all where it is
missing. The others were taught later: they are neighbours, and move no scale."""
LOCAL_KEYS = 131_072
"""Single patches that a memory holds at most."""
PICTURES = 1 << 26
"""Bytes of lessons' pictures that it holds at most: those of the newest."""


@dataclass(frozen=True)
class Changes:
    """What a memory learned since its bank was built."""

    added: int
    """Entries that stand."""
    removed: int
    """Entries of the bank that are gone."""
    sequence: int
    """Number of the last operation."""
    folder: Path


@dataclass(frozen=True)
class Contents:
    """The data of a bank; `mrad.memory.bank.MemoryBank` adds the operations."""

    identity: EncoderIdentity
    entries: tuple[Entry, ...]
    image: LevelMemory
    patch: LevelMemory
    metadata: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    """Thresholds and probabilities, one object per head's name (mrad.calibration)."""
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    """entry_id -> JPEG."""
    pictures: dict[str, bytes] = field(default_factory=dict)
    """entry_id -> what of a lesson was encoded, uint8 [S, S, C] (`Key.picture`)."""
    digest: str | None = None
    """SHA-256 of `bank.json`, once the bank lies on disk; of that and of all changes, with them."""
    changes: Changes | None = None
    """None where nothing was learned since it was built, or only the bank itself was read."""
    local: LevelMemory = None  # type: ignore[assignment]
    """Every patch of labelled images, not averaged and not normalised: an image's, or a tile's, rows
    lie together, in the grid's order. What `nn` compares with; empty in banks before format 2."""

    def __post_init__(self) -> None:
        if self.local is None:
            object.__setattr__(self, "local", empty_level(self.patch.dim))

    @property
    def keeps_local(self) -> bool:
        """Whether new images bring their patches: not to a memory whose earlier images have none, or
        that holds as many as it should. `nn` would then compare with the new images alone."""
        return 0 < len(self.local) < LOCAL_KEYS or not len(self.entries)


def add_picture(pictures: dict[str, bytes], keys: Sequence[Key]) -> None:
    """Add what was encoded of a lesson, where its keys bring it; the oldest make room."""
    pictures.update({key.entry_id: key.picture for key in keys if key.picture})
    held = sum(map(len, pictures.values()))
    for entry_id in list(pictures):
        if held <= PICTURES:
            break
        held -= len(pictures.pop(entry_id))
