"""Get a damaged memory going again, losing only what is damaged; what it replaces is set aside."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mrad.errors import LogCorruptError, LogWriteError
from mrad.lock import Head, WriterLock
from mrad.memory import oldlog
from mrad.memory.bank import MemoryBank
from mrad.memory.database import PAGE, TABLES, Database, Row, checksum
from mrad.memory.living import LivingFolder
from mrad.memory.operations import Operation, Put, Remove, Request, Saved, keep
from mrad.memory.store import reseal


@dataclass
class Repair:
    """What a repair found, and did unless it only looked."""

    lost: list[str] = field(default_factory=list)
    """What is gone, for people; empty where nothing is."""
    entries: int = 0
    """In the memory afterwards."""
    set_aside: Path | None = None
    """Where the replaced files lie now; None where nothing was replaced."""


def repair(bank: Path, *, dry_run: bool = False) -> Repair:
    """Make `bank` and what it learned whole again, from every file and row that still is.

    Raises `BankLockedError` while a server has the memory, `BankCorruptError` where a file of the bank
    itself is damaged: that can only be restored from a copy, or built again; and `BaseChangedError` where
    it was rebuilt, so that what was learned is of another.
    """
    folder, found = LivingFolder(bank), Repair()
    if lost := reseal(folder.bank, dry_run=dry_run):
        found.lost.append(lost)
    base = MemoryBank.load(folder.bank, living=False)
    found.entries = len(base.entries)
    if not folder.live.is_dir():
        return found
    folder.create()
    lock = WriterLock(folder.lock)
    try:
        with tempfile.TemporaryDirectory(dir=folder.temporary) as work:
            _repair_changes(folder, base, Path(work), found, dry_run=dry_run)
        return found
    finally:
        lock.release()


def _repair_changes(
    folder: LivingFolder, base: MemoryBank, work: Path, found: Repair, *, dry_run: bool
) -> None:
    files = [path for path in _files(folder) if path.exists()]
    if not folder.database.exists() and oldlog.parts(folder.live):
        old = oldlog.read(folder.live, base, _load, salvage=True)
        found.lost += old.lost
        saved = _made(work / "old", old.base, old.operations, old.requests)
        files = oldlog.parts(folder.live)
    elif not files:
        return
    else:
        try:
            with contextlib.closing(Database.open(_copied(folder, work / "as-it-is"))) as copy:
                saved = copy.read(thorough=True)
                folder.check_base(saved)
                found.entries += len(saved.lessons) - len(saved.removed)
                return
        except (LogCorruptError, LogWriteError):
            saved, lost = salvage(folder, work)
            found.lost += lost
    if saved.base:
        folder.check_base(saved)
    found.entries += len(saved.lessons) - len(saved.removed)
    if dry_run:
        return
    found.set_aside = folder.set_aside("repaired", *files, keep_originals=True)
    values = [Put(name, value) for name, value in saved.values.items()]
    operations = [*map(Remove, saved.removed), *saved.lessons.values(), *values]
    base_digest = saved.base or folder.base_digest()
    Database.create(folder.database, base_digest, operations, saved.requests).close()
    for path in oldlog.parts(folder.live):
        shutil.rmtree(path) if path.is_dir() else path.unlink()  # a copy was set aside


def _load(path: Path) -> MemoryBank:
    return MemoryBank.load(path, living=False)


def _made(
    work: Path, base: str, operations: list[Operation], requests: dict[str, Request]
) -> Saved:
    work.mkdir()
    with contextlib.closing(Database.create(work / "memory", base, operations, requests)) as made:
        return made.read()


def _files(folder: LivingFolder) -> list[Path]:
    return [folder.live / "HEAD", folder.database, Path(f"{folder.database}-wal")]


def _copied(folder: LivingFolder, work: Path, *, journal: bool = True) -> Path:
    """The database's files somewhere else, so that looking at them changes none."""
    work.mkdir()
    for path in _files(folder):
        if path.exists() and (journal or not path.name.endswith("-wal")):
            shutil.copyfile(path, work / path.name)
    return work / folder.database.name


def salvage(folder: LivingFolder, work: Path) -> tuple[Saved, list[str]]:
    """Every row that is whole, of the better of two readings: with SQLite's journal, and without.

    A journal that is damaged in the middle puts old pages over newer ones; without it the database may
    be whole. Returns the rows, and what is lost.
    """
    best: tuple[bool, int, Saved, int] | None = None
    for journal in (True, False):
        for first_page_replaced in (False, True):
            path = _copied(folder, work / f"{journal}-{first_page_replaced}", journal=journal)
            if not path.exists():
                continue
            if first_page_replaced:
                _replace_first_page(path, work)
            whole, saved, damaged = _rows_of(path)
            reading = (whole, saved.sequence if whole else _count(saved), saved, damaged)
            if best is None or reading[:2] > best[:2]:
                best = reading
    if best is None:
        return Saved(""), [f"{folder.database} is gone: everything that was learned"]
    whole, _, saved, damaged = best
    lost = [f"{damaged} rows fail their checksum"] if damaged else []
    try:
        claim = Head(folder.live / "HEAD").read()
    except LogCorruptError:
        claim, _ = None, lost.append("HEAD: whether the newest operations are there is not known")
    if claim is not None and claim[0] > saved.sequence:
        lost.append(f"operations {saved.sequence + 1} to {claim[0]}, the newest")
    return saved, lost


def _count(saved: Saved) -> int:
    return len(saved.lessons) + len(saved.removed) + len(saved.requests) + len(saved.values)


def _rows_of(path: Path) -> tuple[bool, Saved, int]:
    """Whether the whole verifies, its good rows, and how many are seen to be bad."""
    saved, damaged = Saved(""), 0
    try:
        database = Database.open(path)
    except (LogCorruptError, LogWriteError):
        return False, saved, 0
    with contextlib.closing(database):
        with contextlib.suppress(LogCorruptError, LogWriteError):
            return True, database.read(claimed=False), 0
        for table in TABLES:
            for row, digest in _readable(database, table):
                try:
                    if checksum(table, row) != digest:
                        raise ValueError("its checksum")
                    keep(saved, table, row)
                    if isinstance(row[0], int):
                        saved.sequence = max(saved.sequence, row[0])
                except (ValueError, KeyError, TypeError):
                    damaged += 1
    return False, saved, damaged


def _readable(database: Database, table: str) -> Iterator[tuple[Row, bytes]]:
    """Rows from the front up to damage, then from the back, then between them one by one."""
    seen: dict[object, tuple[Row, bytes]] = {}
    for backwards in (False, True):
        with contextlib.suppress(sqlite3.Error):
            for row, digest in database.rows(table, backwards=backwards):
                if row[0] in seen:
                    break
                seen[row[0]] = row, digest
    numbers = [number for number in seen if isinstance(number, int)]
    if numbers and table != "value":
        for number in range(1, min(max(numbers), 10_000_000)):
            if number not in seen:
                with contextlib.suppress(sqlite3.Error):
                    for row, digest in database.rows(table, only=number):
                        seen[number] = row, digest
    yield from (seen[key] for key in sorted(seen, key=lambda key: (str(type(key)), key)))


def _replace_first_page(path: Path, work: Path) -> None:
    """Put an empty database's first page, which says where each table begins, over a damaged one."""
    empty = Path(tempfile.mkdtemp(dir=work)) / "empty"
    Database.create(empty, "").close()
    page = bytearray(empty.read_bytes()[:PAGE])
    size = path.stat().st_size
    page[28:32] = (size // PAGE).to_bytes(4, "big")
    page[32:40] = bytes(8)  # no list of free pages: nothing is written here
    with path.open("r+b") as file:
        file.write(page)
