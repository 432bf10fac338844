"""The database of a living memory: what was added and removed since its bank was built.

One SQLite file. Every row has a SHA-256 of its own content; one row, `total`, has the count and the sum
of all of them and the number of the last operation, so a row that is changed, missing, doubled or put
back is found. SQLite itself silently drops the end of a damaged or missing journal (`-wal`): the number
of the last operation is therefore also kept in `HEAD`, a small file beside the database, before anything
is acknowledged.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mrad.errors import LogCorruptError, LogWriteError, MRADError
from mrad.files import fsync_path
from mrad.lock import Head
from mrad.memory.operations import (
    Add,
    Operation,
    Put,
    Remove,
    Request,
    Saved,
    keep,
    pack_entry,
    pack_keys,
)

FORMAT_VERSION = 1
HEAD = "HEAD"
"""Name of the file beside the database; see `Head`."""
PAGE = 4096
CHECKPOINT = 4_000
"""Pages that the journal holds before they are moved into the database, while writes go on."""
REMEMBERED = 10_000
"""Idempotency keys kept, the newest."""
SCHEMA = """
CREATE TABLE total (one INTEGER PRIMARY KEY, format INTEGER, base TEXT, sequence INTEGER,
                    count INTEGER, sum BLOB, checksum BLOB);
CREATE TABLE lesson (sequence INTEGER PRIMARY KEY, entry TEXT, keys TEXT, vectors BLOB,
                     thumbnail BLOB, checksum BLOB);
CREATE TABLE removed (sequence INTEGER PRIMARY KEY, entry_id TEXT, checksum BLOB);
CREATE TABLE request (sequence INTEGER PRIMARY KEY, key TEXT, entry TEXT, content TEXT,
                      checksum BLOB);
CREATE TABLE value (name TEXT PRIMARY KEY, value BLOB, checksum BLOB) WITHOUT ROWID;
"""
TABLES = {
    "lesson": ("sequence", "entry", "keys", "vectors", "thumbnail"),
    "removed": ("sequence", "entry_id"),
    "request": ("sequence", "key", "entry", "content"),
    "value": ("name", "value"),
}
TOTAL = ("format", "base", "sequence", "count", "sum")
Row = tuple[Any, ...]
EMPTY: Mapping[str, Request] = {}


def checksum(table: str, values: Sequence[Any]) -> bytes:
    """SHA-256 of a row: its table, and each value with its type and length."""
    digest = hashlib.sha256(table.encode())
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode()
        digest.update(f"{type(value).__name__}{len(data)}:".encode())
        digest.update(data)
    return digest.digest()


class Database:
    """The rows, in an open connection. Not thread-safe; `commit` is for the one writer."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Use `open` or `create`."""
        self._connection, self.path = connection, path
        self.head = Head(path.with_name(HEAD))
        self.base, self.sequence = "", 0
        self._count, self._sum = 0, 0
        self._lessons: dict[str, int] = {}
        """Sequence of each lesson that stands."""
        self._requests = 0

    @classmethod
    def create(
        cls,
        path: Path,
        base: str,
        operations: Sequence[Operation] = (),
        requests: Mapping[str, Request] | None = None,
    ) -> Database:
        """A new database at `path`, whole or not at all, taking the place of what is there.

        Args:
            base: content digest of the bank.
            operations: what it holds.
            requests: idempotency keys beside those of `operations`, oldest first.

        Raises `LogWriteError`.
        """
        new = path.with_name(path.name + ".new")
        try:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{new}{suffix}").unlink(missing_ok=True)
            with _translated(new), contextlib.closing(_connect(new, "rwc")) as connection:
                connection.execute(f"PRAGMA page_size = {PAGE}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.executescript(SCHEMA)
                made = cls(connection, new)
                made.base = base
                made._transact(operations, requests or EMPTY)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            head = Head(path.with_name(HEAD))
            for _ in range(2):  # it claims nothing until the database is in its place
                head.write(0, bytes(32), sync=True)
            new.replace(path)
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            fsync_path(path.parent)
            for _ in range(2):
                head.write(made.sequence, made._total(), sync=True)
            head.close()
        except OSError as error:
            raise LogWriteError(f"{path.parent} cannot be written: {error}") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, write: bool = True) -> Database:
        """An existing database. `read` comes next. Raises `LogCorruptError`, `LogWriteError`."""
        with _translated(path):
            connection = _connect(path, "rw" if write else "ro")
            connection.execute("PRAGMA trusted_schema = OFF")  # the file may be a stranger's
            if write:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
        return cls(connection, path)

    def read(self, *, thorough: bool = False, claimed: bool = True) -> Saved:
        """Everything, each row verified, then the whole. Raises `LogCorruptError`, `MRADError`.

        Args:
            thorough: look at the tree that finds the rows too, as whoever writes must.
            claimed: hold it against what `HEAD` says was acknowledged.
        """
        claim = self.head.read() if claimed else None
        with _translated(self.path):
            self._connection.execute("BEGIN")
            try:
                saved = self._read(thorough)
            finally:
                self._connection.execute("ROLLBACK")
        if not claimed:
            return saved
        if claim is None:
            raise LogCorruptError(f"{self.head.path} is missing")
        sequence, total = claim
        if sequence > saved.sequence:
            raise LogCorruptError(
                f"{self.path} ends with operation {saved.sequence}, but {sequence} was acknowledged: "
                "the newest are missing"
            )
        if 0 < sequence == saved.sequence and total != self._total():
            raise LogCorruptError(f"{self.path} is not the file that {self.head.path} belongs to")
        return saved

    def commit(self, operations: Sequence[Operation]) -> int:
        """Make all of them durable, or none; returns the number of the last.

        Raises `LogWriteError`, whose `final` says that nothing more can be promised until the memory
        is opened again.
        """
        before = self.sequence, self._count, self._sum, self._requests
        ids = {_entry_id(operation) for operation in operations}
        stood = {entry_id: self._lessons.get(entry_id) for entry_id in ids}
        try:
            with _translated(self.path):
                self._transact(operations)
            self.head.write(self.sequence, self._total())
        except OSError as error:
            raise LogWriteError(
                f"{self.head.path} cannot be written: {error}", final=True
            ) from error
        except BaseException:
            self.sequence, self._count, self._sum, self._requests = before
            for entry_id, sequence in stood.items():
                self._lessons.pop(entry_id, None)
                if sequence is not None:
                    self._lessons[entry_id] = sequence
            raise
        return self.sequence

    def checkpoint(self) -> None:
        """Move the journal into the database, so that a copy of the file alone is whole."""
        with _translated(self.path):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.head.write(self.sequence, self._total(), sync=True)

    def vacuum(self) -> None:
        """Give the room of removed rows back to the disk. Raises `LogWriteError`."""
        with _translated(self.path):
            self._connection.execute("VACUUM")
        self.checkpoint()

    def close(self) -> None:
        """May be called twice."""
        self._connection.close()
        self.head.close()

    def _transact(
        self, operations: Sequence[Operation], requests: Mapping[str, Request] = EMPTY
    ) -> None:
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            for key, request in requests.items():
                self.sequence += 1
                self._note_request(key, pack_entry(request.entry), request.content)
            for operation in operations:
                self.sequence += 1
                if isinstance(operation, Add):
                    self._add(operation)
                elif isinstance(operation, Remove):
                    self._remove(operation.entry_id)
                else:
                    self._put(operation)
            while self._requests > REMEMBERED:
                (oldest,) = run("SELECT min(sequence) FROM request").fetchone()
                self._delete("request", "sequence", oldest)
                self._requests -= 1
            row = (FORMAT_VERSION, self.base, self.sequence, self._count, self._total())
            run(
                "INSERT OR REPLACE INTO total VALUES (0, ?, ?, ?, ?, ?, ?)",
                (*row, checksum("total", row)),
            )
            run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                run("ROLLBACK")
            raise

    def _add(self, operation: Add) -> None:
        entry = pack_entry(operation.entry)
        keys, vectors = pack_keys(operation.keys)
        self._insert("lesson", (self.sequence, entry, keys, vectors, operation.thumbnail))
        self._lessons[operation.entry.entry_id] = self.sequence
        if operation.idempotency_key is not None:
            self._note_request(operation.idempotency_key, entry, operation.content)

    def _note_request(self, key: str, entry: str, content: str) -> None:
        self._insert("request", (self.sequence, key, entry, content))
        self._requests += 1

    def _remove(self, entry_id: str) -> None:
        """Take a lesson away; an entry of the bank, which is never written to, is marked as gone."""
        sequence = self._lessons.pop(entry_id, None)
        if sequence is not None:
            self._delete("lesson", "sequence", sequence)
        else:
            self._insert("removed", (self.sequence, entry_id))

    def _put(self, operation: Put) -> None:
        found = self._connection.execute(
            "SELECT count(*) FROM value WHERE name = ?", (operation.name,)
        ).fetchone()
        if found[0]:
            self._delete("value", "name", operation.name)
        if operation.value is not None:
            self._insert("value", (operation.name, operation.value))

    def _insert(self, table: str, row: Row) -> None:
        digest = checksum(table, row)
        places = ", ".join("?" * (len(row) + 1))
        self._connection.execute(f"INSERT INTO {table} VALUES ({places})", (*row, digest))
        self._count, self._sum = self._count + 1, self._sum + int.from_bytes(digest)

    def _delete(self, table: str, column: str, value: Any) -> None:
        gone = self._connection.execute(
            f"DELETE FROM {table} WHERE {column} = ? RETURNING checksum", (value,)
        ).fetchall()
        if len(gone) != 1:
            raise LogCorruptError(
                f"{self.path}: {table} {value} is not found once, as it should be"
            )
        self._count, self._sum = self._count - 1, self._sum - int.from_bytes(gone[0][0])

    def _total(self) -> bytes:
        return (self._sum % (1 << 256)).to_bytes(32)

    def _read(self, thorough: bool) -> Saved:
        run = self._connection.execute
        made = {(kind, name) for kind, name in run("SELECT type, name FROM sqlite_schema")}
        if made != {("table", name) for name in ("total", *TABLES)}:
            raise LogCorruptError(f"{self.path} has another schema than a memory's")
        totals = run(f"SELECT {', '.join(TOTAL)}, checksum FROM total").fetchall()
        if len(totals) != 1:
            raise LogCorruptError(f"{self.path} has no row of totals")
        *row, digest = totals[0]
        version, self.base, self.sequence, count, total = row
        if thorough and (problem := run("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise LogCorruptError(f"{self.path} is damaged: {problem}")
        if checksum("total", row) != digest:
            raise LogCorruptError(f"{self.path}: the row of totals fails its checksum")
        if version > FORMAT_VERSION:
            raise MRADError(f"{self.path} has format {version}; upgrade mrad")
        saved = Saved(self.base, self.sequence)
        self._count = self._sum = 0
        for table in TABLES:
            for found, sum_ in self.rows(table):
                if checksum(table, found) != sum_:
                    raise LogCorruptError(f"{self.path}: {table} {found[0]} fails its checksum")
                self._count, self._sum = self._count + 1, self._sum + int.from_bytes(sum_)
                keep(saved, table, found)
        if (self._count, self._total()) != (count, total):
            raise LogCorruptError(
                f"{self.path} holds {self._count} rows where {count} were written, or others"
            )
        saved.sum = total
        self._lessons = {add.entry.entry_id: number for number, add in saved.lessons.items()}
        self._requests = len(saved.requests)
        return saved

    def rows(
        self, table: str, *, backwards: bool = False, only: int | None = None
    ) -> Iterator[tuple[Row, bytes]]:
        """Rows of a table in the order of its key, each with its checksum; not verified."""
        columns = TABLES[table]
        asked = f"SELECT {', '.join(columns)}, checksum FROM {table}"
        asked += f" WHERE {columns[0]} = ?" if only is not None else ""
        asked += f" ORDER BY {columns[0]}{' DESC' if backwards else ''}"
        for row in self._connection.execute(asked, () if only is None else (only,)):
            yield row[:-1], row[-1]


def _entry_id(operation: Operation) -> str:
    if isinstance(operation, Add):
        return operation.entry.entry_id
    return operation.entry_id if isinstance(operation, Remove) else ""


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Transactions are begun by hand. SQLite waits up to 10 s for another process's checkpoint."""
    return sqlite3.connect(
        f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=10,
    )


UNREADABLE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_FORMAT", "SQLITE_MISMATCH")
PASSING = ("SQLITE_FULL", "SQLITE_BUSY")


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors, and those of content that no release wrote, as ours."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None)
        if name is None or name.startswith(UNREADABLE):  # None: text that is no UTF-8
            raise LogCorruptError(f"{path} is damaged: {error}") from error
        # After a failed write or sync nobody knows what the disk holds; a full disk is said before.
        cure = "; make room on that disk and try again" if name.startswith("SQLITE_FULL") else ""
        raise LogWriteError(
            f"{path} cannot be used: {error} ({name}){cure}", final=not name.startswith(PASSING)
        ) from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise LogCorruptError(
            f"{path} holds what this release cannot read ({error!r}); was it written by a newer one?"
        ) from error
