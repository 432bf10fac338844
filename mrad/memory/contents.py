"""What a memory bank consists of, without what it can do: what the store reads and writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrad.encoder.identity import EncoderIdentity
from mrad.memory.entry import Entry
from mrad.memory.level import LevelMemory


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
    digest: str | None = None
    """SHA-256 of `bank.json`, once the bank lies on disk; of that and of all changes, with them."""
    changes: Changes | None = None
    """None where nothing was learned since it was built, or only the bank itself was read."""
