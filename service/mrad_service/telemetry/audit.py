"""Who changed what, when: a line for every write, refused ones too."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from starlette.types import Scope

log = structlog.get_logger("mrad_service.telemetry.audit")
WATCHED = ("/v1/memory", "/v1/banks")


class Audit:
    """To the log, and to a file of JSON lines where one is set. Thread-safe."""

    def __init__(self, path: Path | None) -> None:
        """Opens the file now, so that a place that cannot be written stops the start."""
        self._file = path.open("a", encoding="utf-8") if path is not None else None
        self._lock = threading.Lock()

    def note(self, scope: Scope, status: int) -> None:
        """A request was answered. Reads are no concern of this log, but for taking a copy."""
        path: str = scope["path"]
        reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
        if not path.startswith(WATCHED) or (reads and not path.endswith("/export")):
            return
        state: dict[str, Any] = scope["state"]
        facts = {
            "action": f"{scope['method']} {path}",
            "status": status,
            "key": state.get("key_name") or None,
            "client": scope["client"][0] if scope.get("client") else None,
            **state.get("audit", {}),
        }
        log.info("write", **facts)
        if self._file is not None:
            when = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = json.dumps({"time": when, "request_id": state["request_id"], **facts})
            with self._lock:
                self._file.write(line + "\n")
                self._file.flush()
