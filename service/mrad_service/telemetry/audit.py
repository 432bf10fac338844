"""Who changed what, when: a line before every write, and one with its outcome; refused ones too."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from starlette.types import Scope

from mrad_service.errors import AuditError

log = structlog.get_logger("mrad_service.telemetry.audit")
WATCHED = ("/v1/memory", "/v1/banks")


class Audit:
    """To the log, and to a file of JSON lines where one is set. Thread-safe.

    The file is opened again when another lies under its name (logrotate), and on `reload`.
    """

    def __init__(self, path: Path | None, closed: bool = True) -> None:
        """Opens the file now, so that a place that cannot be written stops the start.

        `closed`: whether writes are refused while the file cannot be written.
        """
        self._path, self._closed = path, closed
        self._file: io.BufferedWriter | io.FileIO | None = None
        self._lock = threading.Lock()
        self.on_failure: Callable[[], None] = lambda: None
        """Called for every line that could not be written."""
        self.why = ""
        """Why the file cannot be written; empty while it can."""
        if path is not None:
            self._file = path.open("ab", buffering=0)

    def begin(self, scope: Scope) -> None:
        """A request comes; what it is goes to the file before it does anything.

        Raises `AuditError` where that cannot be written down and writes are then refused.
        """
        if self._file is None or not watched(scope):
            return
        self._write(scope, {"action": action_of(scope), "status": None})
        if self.why and self._closed:
            raise AuditError(f"the audit file cannot be written, so nothing is changed: {self.why}")

    def note(self, scope: Scope, status: int) -> None:
        """A request was answered. Reads are no concern of this log, but for taking a copy."""
        if not watched(scope):
            return
        state: dict[str, Any] = scope["state"]
        facts = {
            "action": action_of(scope),
            "status": status,
            "key": state.get("key_name") or None,
            "client": scope["client"][0] if scope.get("client") else None,
            **state.get("audit", {}),
        }
        log.info("write", **facts)
        if self._file is not None:
            self._write(scope, facts)

    def reload(self) -> None:
        """Go on in whatever file lies under the name now."""
        with self._lock:
            self._open()

    def why_not_ready(self) -> str:
        """Why writes are refused; empty while they are not."""
        if self.why and self._closed:
            with self._lock:  # it may be well again: a write of nothing tells nothing, opening does
                self._open()
        return f"the audit file cannot be written: {self.why}" if self.why and self._closed else ""

    def _open(self) -> None:
        if self._path is None:
            return
        try:
            fresh = self._path.open("ab", buffering=0)
        except OSError as error:
            self.why = str(error)
            return
        if self._file is not None:
            self._file.close()
        self._file = fresh

    def _write(self, scope: Scope, facts: dict[str, Any]) -> None:
        when = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": when, "request_id": scope["state"]["request_id"], **facts})
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            try:
                if self._moved():
                    self._open()
                if self._file is None or self._file.write(data) != len(data):
                    raise OSError("only a part of a line was written")
                self.why = ""
            except OSError as error:
                self.on_failure()
                self.why = str(error)
                log.error("the audit file cannot be written", why=self.why, line=line)

    def _moved(self) -> bool:
        """Whether another file, or none, lies under the name."""
        assert self._path is not None
        assert self._file is not None
        try:
            there, here = self._path.stat(), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def watched(scope: Scope) -> bool:
    """Whether a request changes something, or takes a copy."""
    path: str = scope["path"]
    reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
    return path.startswith(WATCHED) and (not reads or path.endswith("/export"))


def action_of(scope: Scope) -> str:
    """`POST /v1/memory/entries`."""
    return f"{scope['method']} {scope['path']}"
