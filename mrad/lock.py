"""One writer for one memory, also across processes; and the number of what it wrote last."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path

from mrad.errors import BankLockedError, LogCorruptError


class WriterLock:
    """An exclusive `flock` that the kernel releases when its process dies, however it dies.

    The file's content names the holder, for the message to the one that comes second; it is
    never what decides.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock or raise `BankLockedError` naming the holder."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 4096, 0)
            os.close(self._descriptor)
            self._descriptor = -1
            raise BankLockedError(
                f"{path.parent} has a writer already: {describe(holder)}; stop it first, or export "
                "from it: one memory has one writer"
            ) from error
        facts = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(facts).encode(), 0)

    def release(self) -> None:
        """Let the next writer in. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Head:
    """The number of the last operation, kept twice in turn, so that a torn write spares the other.

    It never runs ahead of the database: what it names and the database lacks was lost.
    """

    SLOT = struct.Struct("<8sQ32sI")
    MAGIC = b"MRADHEAD"
    DISTANCE = 512

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._next = 0

    def read(self) -> tuple[int, bytes] | None:
        """The newest sequence and the sum then; None where there is no file. Raises `LogCorruptError`."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        found = [slot for number in (0, 1) if (slot := self._slot(data, number)) is not None]
        if not found:
            raise LogCorruptError(f"{self.path} is damaged")
        sequence, total, number = max(found)
        self._next = 1 - number
        return sequence, total

    def write(self, sequence: int, total: bytes, *, sync: bool = False) -> None:
        """Put it in the place of the older one. Raises `OSError`."""
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        data = self.SLOT.pack(self.MAGIC, sequence, total, 0)
        data = data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))
        os.pwrite(self._descriptor, data, self._next * self.DISTANCE)
        self._next = 1 - self._next
        if sync:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _slot(self, data: bytes, number: int) -> tuple[int, bytes, int] | None:
        part = data[number * self.DISTANCE :][: self.SLOT.size]
        if len(part) < self.SLOT.size:
            return None
        magic, sequence, total, crc = self.SLOT.unpack(part)
        if magic != self.MAGIC or crc != zlib.crc32(part[:-4]):
            return None
        return sequence, total, number


def is_held(path: Path) -> bool:
    """Whether a process holds the lock; True too where this user may not know."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)


def describe(holder: bytes) -> str:
    """The lock file's content as words."""
    try:
        facts = json.loads(holder)
        return f"process {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
