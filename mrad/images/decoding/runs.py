"""Zeros, or ones, where no decoder expects them: parts of a file that were never copied."""

from __future__ import annotations

import re

TAIL = 0.1
"""Share of zeros at a file's end from which it is said."""
RUN = re.compile(rb"\0{64,}|\xff{64,}")
"""Coded data hold no such run but for a picture of one level."""
LONG_RUN = re.compile(rb"\0{256,}|\xff{256,}")
"""The same where descriptions, which may be padded, stand between."""


def zero_tail(data: bytes) -> list[str]:
    """Of formats without compression only the end tells that a copy was cut short."""
    zeros = len(data) - len(data.rstrip(b"\0"))
    if zeros < 512 or zeros < TAIL * len(data):
        return []
    return [
        f"zero_tail: the last {zeros / len(data):.0%} of the file are zeros: it is black there, or "
        "was not copied whole"
    ]


def zero_run(data: bytes, what: str, run: re.Pattern[bytes] = RUN) -> tuple[str, ...]:
    """Of formats with compression, a run of zeros anywhere."""
    found = run.search(data)
    if found is None:
        return ()
    return (
        f"zero_run: {found.end() - found.start()} bytes of {found[0][0]} in a row lie in the coded data of the {what} "
        "picture: it may not have been copied whole; compare it with the original",
    )
