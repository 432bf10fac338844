"""Get a memory with a damaged log going again, losing only what is damaged."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mrad.errors import MRADError
from mrad.files import fsync_folder
from mrad_service.memory.folder import Current, LiveFolder
from mrad_service.memory.frames import Segment
from mrad_service.memory.lock import WriterLock
from mrad_service.memory.log import Log, segment_paths
from mrad_service.memory.operations import decode
from mrad_service.memory.state import MemoryState
from mrad_service.memory.store import settle_base


@dataclass(frozen=True)
class Repair:
    """What a repair found, and did unless it only looked."""

    entries: int
    """In the memory afterwards."""
    kept: int
    """Operations of the log that are whole."""
    missing: list[tuple[int, int]]
    """Sequences, first and last, of operations between whole ones that are lost."""
    unreadable: int
    """Operations that are whole but act on an entry that is lost, or are of a newer release."""
    damaged_bytes: int
    """Bytes of the log that belong to no whole record; a torn tail counts too."""
    set_aside: Path | None
    """Where the old log lies now."""


def repair(bank: Path, *, dry_run: bool = False, live: Path | None = None) -> Repair:
    """Keep every whole record of the log as a new generation, set the old log aside.

    Raises `BankLockedError` while a server has the memory, and what `MemoryBank.load` raises: a
    damaged snapshot cannot be repaired from the log, only restored from a copy.
    """
    folder = LiveFolder(bank, live)
    folder.base_digest()
    folder.create()
    lock = WriterLock(folder.lock)
    try:
        current = settle_base(folder)
        loaded, ledger = folder.load(current)
        state = MemoryState(loaded, ledger)
        found = _salvage(folder, state, current.applied)
        last, kept, missing, unreadable, damaged = found
        aside = None if dry_run else _switch(folder, current, state, last)
        return Repair(len(state), kept, missing, unreadable, damaged, aside)
    finally:
        lock.release()


def _salvage(
    folder: LiveFolder, state: MemoryState, applied: int
) -> tuple[int, int, list[tuple[int, int]], int, int]:
    last, kept, unreadable, damaged = applied, 0, 0, 0
    missing: list[tuple[int, int]] = []
    for path in segment_paths(folder.log):
        segment = Segment(path)
        good = _header_bytes(segment)
        for frame in segment.salvage():
            good += frame.end - frame.offset
            if frame.first <= last:
                continue
            if frame.first > last + 1:
                missing.append((last + 1, frame.first - 1))
            for data in frame.operations:
                try:
                    state.apply(decode(data))
                    kept += 1
                except MRADError:
                    unreadable += 1
            last = frame.last
        damaged += max(len(segment.data) - good, 0)
    return last, kept, missing, unreadable, damaged


def _header_bytes(segment: Segment) -> int:
    """Where a readable header ends; a damaged one counts as lost."""
    try:
        return segment.header()[1]
    except Exception:  # any damage: the frames are found by their own marks
        return 0


def _switch(folder: LiveFolder, current: Current, state: MemoryState, last: int) -> Path:
    """A new generation counts first; then the old log goes aside; a crash between is harmless.

    The new pointer reaches past every sequence that was ever given, so what is left of the old log
    is never replayed.
    """
    following = folder.write_generation(current, state.snapshot(), state.ledger, last)
    folder.write_current(following)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = folder.live / "set-aside" / f"{stamp}-before-{following.generation}"
    aside.mkdir(parents=True)
    for path in segment_paths(folder.log):
        shutil.move(path, aside / path.name)
    fsync_folder(folder.log)
    fsync_folder(aside)
    folder.sweep_generations(following)
    Log(folder.log, following.base, following.applied, lambda _: None).close()
    return aside
