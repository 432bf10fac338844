"""Memory that lives: a bank that learns while it serves and forgets nothing it acknowledged."""

from __future__ import annotations

from mrad_service.memory.errors import EntryNotFoundError
from mrad_service.memory.store import DurableMemory

__all__ = ["DurableMemory", "EntryNotFoundError"]
