"""What has been scored, safe against a kill at any moment.

JSON lines, each synced to disk before the run goes on. The first says what the run was asked; a
run with other options does not mix its rows in. A torn last line is cut on opening.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mrad_client.errors import MRADClientError

try:
    import fcntl
except ImportError:  # Windows: two runs on one journal are then the user's to avoid
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
Row = dict[str, Any]


class JournalError(MRADClientError):
    """A journal that is another run's, damaged, or in use."""


class Journal:
    """The record of one run; a context manager."""

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        """Open or begin. `asked`: what decides the rows' content. Raises `JournalError`."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            self._lock()
            self._scored = self._read(dict(asked))
        except BaseException:
            self._file.close()
            raise

    def append(self, rows: Iterable[Row]) -> None:
        """Make rows durable."""
        rows = list(rows)
        self._write(rows)
        self._scored.update((row["name"], row["stamp"]) for row in rows)

    def has(self, name: str, stamp: str) -> bool:
        """Whether this very file was scored already."""
        return self._scored.get(name) == stamp

    def __len__(self) -> int:
        return len(self._scored)

    def rows(self) -> Iterator[Row]:
        """The latest row of each file, in the order first scored."""
        latest: dict[str, int] = {}
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                row = json.loads(line)
                if "name" in row:
                    latest[row["name"]] = offset
                offset += len(line)
            for position in latest.values():
                file.seek(position)
                yield json.loads(file.readline())

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(f"{self.path} is in use by another run; wait for it") from error

    def _read(self, asked: Row) -> dict[str, str]:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        lines = data[:whole].splitlines()
        if not lines:
            self._write([{"journal": FORMAT, "asked": asked}])
            return {}
        try:
            head, *rows = (json.loads(line) for line in lines)
            before = head["asked"]
            scored = {row["name"]: row["stamp"] for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(
                f"{self.path} is not a journal of this program; move it away"
            ) from error
        changed = [
            name for name in sorted({*before, *asked}) if before.get(name) != asked.get(name)
        ]
        if changed:
            was = ", ".join(f"{name} {before.get(name)} → {asked.get(name)}" for name in changed)
            raise JournalError(
                f"{self.path} was begun otherwise ({was}), and its rows would not compare. Use "
                "--restart to score all again, or another --out"
            )
        return scored

    def _write(self, rows: Iterable[Row]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._file.write(text.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
