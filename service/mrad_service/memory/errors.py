"""What can go wrong with a memory that lives; what its readers meet too is in `mrad.errors`."""

from __future__ import annotations

from mrad.errors import BankError


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
