"""A bank and what it learned since it was built: one memory for every reader (docs/memory.md).

BANK/                 as it was built; only its thresholds are ever written
BANK.live/
  LOCK                who writes
  memory.sqlite       what was added and removed since (`mrad.memory.database`)
  HEAD                the number of the last operation
  tmp/                exports on their way out; emptied at every start
  set-aside/          what a repair or an import replaced
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mrad.errors import BankError, BaseChangedError, LogCorruptError, LogWriteError
from mrad.files import fsync_path
from mrad.lock import Head, WriterLock, is_held
from mrad.memory import oldlog
from mrad.memory.contents import Contents
from mrad.memory.database import HEAD, Database
from mrad.memory.growing import GrowingBank
from mrad.memory.operations import Put, Saved
from mrad.memory.store import load_contents, read_manifest
from mrad.memory.store import save_calibration as save_built_calibration

C = TypeVar("C", bound=Contents)
CALIBRATION = "calibration/"
"""Names of values: a head's calibration, made on the memory as it has become."""
PROFILE = "input"
"""Name of the value, as in a bank's metadata: what the images are like, lessons among them."""
TRIES = 5
"""Readings of a memory that another process writes meanwhile."""


@dataclass(frozen=True)
class Stamps:
    """How the writer's files looked, to see whether somebody else changes them."""

    own: dict[Path, os.stat_result]
    bank: dict[Path, os.stat_result]
    held: list[BinaryIO]
    """The bank's files, open: else a new file might get the number of one that was removed."""

    @classmethod
    def of(cls, folder: LivingFolder) -> Stamps:
        """Of the memory's own files, and of those of its bank."""
        journals = [Path(f"{folder.database}{suffix}") for suffix in ("-wal", "-shm")]
        own = (folder.lock, folder.live / HEAD, folder.database, *journals)
        bank = [folder.bank / name for name in read_manifest(folder.bank)["files"]]
        held = [path.open("rb") for path in bank]
        stats = {path: os.fstat(file.fileno()) for path, file in zip(bank, held)}
        return cls({path: path.stat() for path in own}, stats, held)

    def close(self) -> None:
        """Let the files go."""
        for file in self.held:
            file.close()

    def changed(self) -> str:
        """What was removed, replaced or overwritten; empty for nothing.

        A bank that is replaced as a whole is not named: what was read of the old one stays as it is,
        and whoever replaced it activates it (or puts the old one back).
        """
        for paths in (self.own, self.bank):
            for path, before in paths.items():
                try:
                    now = path.stat()
                except OSError:
                    return f"{path} was removed"
                same = os.path.samestat(before, now)
                if paths is self.own and not same:
                    return f"{path} was replaced"
                written = (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns)
                if paths is self.bank and same and written:
                    return f"{path} was overwritten"
        return ""


class LivingFolder:
    """Where a living memory lies."""

    def __init__(self, bank: Path) -> None:
        self.bank = bank.resolve()
        self.live = self.bank.with_name(self.bank.name + ".live")
        self.lock = self.live / "LOCK"
        self.database = self.live / "memory.sqlite"
        self.temporary = self.live / "tmp"

    def create(self) -> None:
        """Make the folders. Raises `BankError` where the place is not writable."""
        try:
            for folder in (self.live, self.temporary):
                folder.mkdir(exist_ok=True)
                fsync_path(folder.parent)
        except OSError as error:
            raise BankError(
                f"{self.live} cannot be made ({error}): a memory that learns needs a writable "
                "place beside its bank; `mrad serve --read-only` serves it as it is"
            ) from error

    def base_digest(self) -> str:
        """What the bank holds: its encoder and the digests of its files.

        Not the digest of `bank.json`: thresholds may be renewed without the memory changing.
        """
        facts = read_manifest(self.bank)
        content = {"encoder": facts.get("encoder"), "files": facts.get("files")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check_base(self, saved: Saved) -> bool:
        """Whether it grew from the bank as it is now; False where nothing was learned on another.

        Raises `BaseChangedError` where something was.
        """
        if saved.base == self.base_digest():
            return True
        if saved.sequence:
            raise BaseChangedError(self.rebuilt())
        return False

    def rebuilt(self) -> str:
        """The message of `BaseChangedError`."""
        name = self.live.name
        return (
            f"{self.bank} is not the bank that {name} was taught on: it was rebuilt. Put the old one "
            f"back and export the memory, or move {name} away to begin again on this one"
        )

    def damaged(self, error: LogCorruptError) -> LogCorruptError:
        """The error with what to do about it."""
        return LogCorruptError(
            f"{error}. Nothing was changed. Copy {self.live}, then `mrad memory repair {self.bank}` "
            "keeps every row that is whole and says what is lost"
        )

    def read(self) -> Saved | None:
        """What was learned, as of now; also while a server writes. None where there is nothing.

        Raises `LogCorruptError`, `BaseChangedError`.
        """
        if not self.live.is_dir():
            return None
        for attempt in range(TRIES):
            try:
                saved = self._read()
                return saved if saved is not None and self.check_base(saved) else None
            except LogCorruptError as error:
                # A copy of the files is torn where a writer's checkpoint came between; damage stays.
                if attempt == TRIES - 1 or not is_held(self.lock):
                    raise self.damaged(error) from error
                time.sleep(0.05 * attempt)
        raise AssertionError

    def _read(self) -> Saved | None:
        if not self.database.exists():
            if oldlog.parts(self.live):
                with tempfile.TemporaryDirectory() as folder:
                    return self.convert(Path(folder) / self.database.name, load_contents(self.bank))
            self.check_nothing_is_missing()
            return None
        try:
            with contextlib.closing(Database.open(self.database, write=False)) as database:
                return database.read()
        except LogWriteError:  # SQLite reads beside a writer only where it may write, too
            with tempfile.TemporaryDirectory() as folder:
                for name in (HEAD, self.database.name, self.database.name + "-wal"):
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(self.live / name, Path(folder) / name)
                with contextlib.closing(Database.open(Path(folder) / self.database.name)) as copy:
                    return copy.read()

    def open(self) -> tuple[Database, Saved]:
        """For the one writer, who holds the lock: made on the first start, read and verified.

        Raises `LogCorruptError`, `BaseChangedError`, `LogWriteError`.
        """
        try:
            if not self.database.exists():
                if oldlog.parts(self.live):
                    self.convert(self.database, load_contents(self.bank))
                else:
                    self.check_nothing_is_missing()
                    Database.create(self.database, self.base_digest()).close()
            if old := oldlog.parts(self.live):
                self.set_aside("log-of-0.1", *old)
            database = Database.open(self.database)
            try:
                saved = database.read(thorough=True)
                if not self.check_base(saved):
                    database.close()
                    database = Database.create(self.database, self.base_digest())
                    saved = database.read()
                return database, saved
            except BaseException:
                database.close()
                raise
        except LogCorruptError as error:
            raise self.damaged(error) from error

    def convert(self, target: Path, base: Contents) -> Saved:
        """Bring what release 0.1 kept into a new database at `target`."""
        old = oldlog.read(self.live, base, load_contents)
        made = Database.create(target, old.base, old.operations, old.requests)
        with contextlib.closing(made):
            return made.read()

    def check_nothing_is_missing(self) -> None:
        """Raise `LogCorruptError` where `HEAD` knows of lessons and there is no database."""
        claim = Head(self.live / HEAD).read()
        if claim is not None and claim[0]:
            raise LogCorruptError(f"{self.database} is gone, with {claim[0]} operations")

    def set_aside(self, why: str, *paths: Path, keep_originals: bool = False) -> Path:
        """Move files out of the way, or copy them; nothing is ever deleted that may be wanted."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = self.live / "set-aside" / f"{stamp}-{why}"
        aside.mkdir(parents=True)
        for path in paths:
            if not keep_originals:
                path.rename(aside / path.name)
            elif path.is_dir():
                shutil.copytree(path, aside / path.name)
            else:
                shutil.copyfile(path, aside / path.name)
        fsync_path(aside)
        fsync_path(self.live)
        return aside


def grown(bank: C, saved: Saved, folder: Path) -> GrowingBank[C]:
    """The bank with what was learned since, ready to learn more."""
    growing = GrowingBank(bank)
    for entry_id in saved.removed:
        growing.remove(entry_id)
    for lesson in saved.lessons.values():
        growing.add(lesson.entry, lesson.keys, lesson.thumbnail)
    growing.sequence, growing.folder = saved.sequence, folder
    growing.calibration = calibration_of(bank.calibration, saved.values)
    growing.metadata = metadata_of(bank.metadata, saved.values)
    return growing


def metadata_of(built: dict[str, Any], values: dict[str, bytes]) -> dict[str, Any]:
    """A bank's metadata, with what its images are like since it learned more of them."""
    seen = values.get(PROFILE)
    return built if seen is None else built | {PROFILE: json.loads(seen)}


def calibration_of(built: dict[str, Any] | None, values: dict[str, bytes]) -> dict[str, Any] | None:
    """Calibrations by head: those of the memory as it has become, before those of the bank."""
    own = {
        name.removeprefix(CALIBRATION): json.loads(value)
        for name, value in values.items()
        if name.startswith(CALIBRATION)
    }
    return {**(built or {}), **own} if own else built


def with_changes(bank: C, path: Path) -> C:
    """The bank at `path` with what was learned since. Raises `LogCorruptError`, `BaseChangedError`."""
    folder = LivingFolder(path)
    saved = folder.read()
    if saved is None or not saved.sequence:
        return bank
    view = grown(bank, saved, folder.live).view()
    state = f"{bank.digest} {saved.sequence} {saved.sum.hex()}"
    return replace(view, digest=hashlib.sha256(state.encode()).hexdigest())


def save_calibration(bank: C, path: Path) -> C:
    """Store this bank's calibrations where its memory lies: in `bank.json`, or with what it learned.

    Raises `BankError` where the memory has changed since `bank` was read, `BankLockedError` while a
    server has it.
    """
    if bank.changes is None:
        return save_built_calibration(bank, path)
    with writing(path) as (database, saved):
        if saved.sequence != bank.changes.sequence:
            raise BankError(f"{path} has learned since it was read; calibrate once more")
        before = calibration_of(load_contents(path).calibration, saved.values) or {}
        database.commit(
            [
                Put(CALIBRATION + head, json.dumps(facts).encode())
                for head, facts in (bank.calibration or {}).items()
                if before.get(head) != facts
            ]
        )
    return bank


@contextlib.contextmanager
def writing(path: Path) -> Iterator[tuple[Database, Saved]]:
    """The database of a living memory, locked. Raises `BankLockedError` and what `open` raises."""
    folder = LivingFolder(path)
    folder.create()
    lock = WriterLock(folder.lock)
    try:
        database, saved = folder.open()
        try:
            yield database, saved
            database.checkpoint()
        finally:
            database.close()
    finally:
        lock.release()
