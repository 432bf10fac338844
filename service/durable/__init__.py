"""Memory that lives: a bank that learns while it serves and forgets nothing it acknowledged."""

from __future__ import annotations

from service.durable.errors import (
    BankLockedError,
    BaseChangedError,
    EntryExistsError,
    EntryNotFoundError,
    IdempotencyConflictError,
    LogCorruptError,
    LogWriteError,
    MemoryClosedError,
)
from service.durable.state import Page
from service.durable.store import DurableMemory

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
