"""Memory that lives: a bank that learns while it serves and forgets nothing it acknowledged."""

from __future__ import annotations

from mrad_service.memory.errors import (
    BankLockedError,
    BaseChangedError,
    EntryExistsError,
    EntryNotFoundError,
    IdempotencyConflictError,
    LogCorruptError,
    LogWriteError,
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
