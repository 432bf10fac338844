"""What a long job has done, safe against a kill at any moment.

JSON lines, each synced to disk before the job goes on. The first says what the job was asked; a job
asked otherwise does not mix its rows in. A torn last line is cut on opening. One process at a time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from mrad_client.errors import MRADClientError

try:
    import fcntl
except ImportError:  # Windows: two jobs on one journal are then the user's to avoid
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
DIGEST = re.compile(r"[0-9a-f]{64}")
Row = dict[str, Any]


class JournalError(MRADClientError):
    """A journal that is another job's, damaged, or in use."""

    code = "journal_error"


class Journal:
    """The record of one job; a context manager. A row has a `name` and a `stamp` at least."""

    def __init__(
        self,
        path: Path,
        asked: Mapping[str, Any],
        *,
        hint: str = "",
        follow: bool = False,
        restart: bool = False,
    ) -> None:
        """Open or begin.

        Args:
            path: the journal's file; folders are made.
            asked: what decides the rows' content; plain JSON values.
            hint: what to do when the journal was begun otherwise.
            follow: take a change of `asked` as a new chapter instead of refusing it.
            restart: forget every row, once nobody else is found to be writing here.

        Raises `JournalError`.
        """
        self.path, self.hint, self.follow = path, hint, follow
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._where: dict[str, tuple[str, int]] = {}
        self._end = 0
        try:
            self._lock()
            if restart:
                self._file.truncate(0)
            self._read(json.loads(_line(dict(asked))))
        except BaseException:
            self._file.close()
            raise

    def append(self, rows: Iterable[Row]) -> None:
        """Make rows durable, all with one sync."""
        rows = list(rows)
        if rows:
            self._write(rows)

    def has(self, name: str, stamp: str) -> bool:
        """Whether the latest row of `name` has this stamp."""
        return name in self and self._where[name][0] == stamp

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __len__(self) -> int:
        return len(self._where)

    def row(self, name: str) -> Row:
        """The latest row of `name`. Raises `KeyError`."""
        with self.path.open("rb") as file:
            file.seek(self._where[name][1])
            return dict(json.loads(file.readline()))

    def rows(self, names: Iterable[str] | None = None) -> Iterator[Row]:
        """The latest row of each of `names` that has one; of all, in the order first written."""
        with self.path.open("rb") as file:
            for name in self._where if names is None else names:
                if name in self._where:
                    file.seek(self._where[name][1])
                    yield json.loads(file.readline())

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(f"{self.path} is in use by another process; wait for it") from error

    def _read(self, asked: Row) -> None:
        before: Row | None = None
        self._file.seek(0)
        try:
            for line in self._file:
                if not line.endswith(b"\n"):
                    break
                content = json.loads(line)
                if "asked" in content:
                    before = content["asked"]
                else:
                    self._where[content["name"]] = (content["stamp"], self._end)
                self._end += len(line)
            if self._end and before is None:
                raise ValueError("no header")
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(
                f"{self.path} is not a journal of this program, or is damaged ({error}); move it away"
            ) from error
        self._file.truncate(self._end)
        if before is not None and before != asked and not self.follow:
            self._refuse(before, asked)
        if before != asked:
            self._write([{"journal": FORMAT, "asked": asked}])

    def _refuse(self, before: Row, asked: Row) -> None:
        names = [name for name in sorted({*before, *asked}) if before.get(name) != asked.get(name)]
        was = ", ".join(
            f"{name} {_short(before.get(name))} → {_short(asked.get(name))}" for name in names
        )
        raise JournalError(f"{self.path} was begun otherwise ({was}). {self.hint}".rstrip())

    def _write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            line = _line(row)
            self._file.write(line)
            if "name" in row:
                self._where[row["name"]] = (row["stamp"], self._end)
            self._end += len(line)
        self._file.flush()
        os.fsync(self._file.fileno())


def _short(value: Any) -> Any:
    """A digest's beginning tells as much as all of it."""
    return value[:8] if isinstance(value, str) and DIGEST.fullmatch(value) else value


def _line(row: Row) -> bytes:
    """One JSON line. A file name's bytes that are no UTF-8 become `\\udcXX`, which JSON reads back."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
