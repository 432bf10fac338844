"""Get a memory with a damaged log going again, losing only what is damaged."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mrad.errors import MRADError
from mrad.files import fsync_folder
from service.durable.frames import Segment
from service.durable.home import Current, Home
from service.durable.lock import WriterLock
from service.durable.log import Log, segment_paths
from service.durable.operations import decode
from service.durable.state import MemoryState
from service.durable.store import settle_base


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
    home = Home(bank, live)
    home.base_digest()
    home.create()
    lock = WriterLock(home.lock)
    try:
        current = settle_base(home)
        loaded, ledger = home.load(current)
        state = MemoryState(loaded, ledger)
        found = _salvage(home, state, current.applied)
        last, kept, missing, unreadable, damaged = found
        aside = None if dry_run else _switch(home, current, state, last)
        return Repair(len(state), kept, missing, unreadable, damaged, aside)
    finally:
        lock.release()


def _salvage(
    home: Home, state: MemoryState, applied: int
) -> tuple[int, int, list[tuple[int, int]], int, int]:
    last, kept, unreadable, damaged = applied, 0, 0, 0
    missing: list[tuple[int, int]] = []
    for path in segment_paths(home.log):
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


def _switch(home: Home, current: Current, state: MemoryState, last: int) -> Path:
    """A new generation counts first; then the old log goes aside; a crash between is harmless.

    The new pointer reaches past every sequence that was ever given, so what is left of the old log
    is never replayed.
    """
    following = home.write_generation(current, state.snapshot(), state.ledger, last)
    home.write_current(following)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = home.live / "set-aside" / f"{stamp}-before-{following.generation}"
    aside.mkdir(parents=True)
    for path in segment_paths(home.log):
        shutil.move(path, aside / path.name)
    fsync_folder(home.log)
    fsync_folder(aside)
    home.sweep_generations(following)
    Log(home.log, following.base, following.applied, lambda _: None).close()
    return aside
