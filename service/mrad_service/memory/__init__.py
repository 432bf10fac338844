"""Memory that lives: a bank that learns while it serves and forgets nothing it acknowledged."""

from __future__ import annotations

from mrad.errors import BankLockedError, BaseChangedError, LogCorruptError, LogWriteError
from mrad_service.memory.errors import (
    EntryExistsError,
    EntryNotFoundError,
    IdempotencyConflictError,
    MemoryClosedError,
)
from mrad_service.memory.state import Page
from mrad_service.memory.store import DurableMemory

__all__ = [
    "BankLockedError",
    "BaseChangedError",
    "DurableMemory",
    "EntryExistsError",
    "EntryNotFoundError",
    "IdempotencyConflictError",
    "LogCorruptError",
    "LogWriteError",
    "MemoryClosedError",
    "Page",
]
