"""What can go wrong with a memory that lives."""

from __future__ import annotations

from mrad.errors import BankCorruptError, BankError


class BankLockedError(BankError):
    """Another process is the writer of this memory; the message names it."""

    code = "bank_locked"


class LogCorruptError(BankCorruptError):
    """The log is damaged where acknowledged entries stand; the message names offset and repair."""

    code = "log_corrupt"


class LogWriteError(BankError):
    """The log cannot be written: nothing was added. After a failed fsync the memory is read-only."""

    code = "log_unwritable"


class BaseChangedError(BankError):
    """The bank folder was rebuilt under a memory that has learnt since."""

    code = "bank_rebuilt"


class MemoryClosedError(BankError):
    """A write to a memory that was closed."""

    code = "memory_closed"


class EntryNotFoundError(BankError):
    """No entry of that id."""

    code = "entry_not_found"


class EntryExistsError(BankError):
    """An entry of that id is there already."""

    code = "entry_exists"


class IdempotencyConflictError(BankError):
    """The same idempotency key came with another image, mask or label."""

    code = "idempotency_conflict"
