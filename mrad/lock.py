"""One writer for one memory, also across processes."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from mrad.errors import BankLockedError


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
