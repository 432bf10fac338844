"""JSON from outside, whose cost is known before it is parsed.

A megabyte of `[],[],…` becomes a hundred megabytes of objects, and its validation ten times that.
What a text will become is bounded by its commas and opening brackets, which are counted as it
arrives; a body with too many is refused while it is still coming in.
"""

from __future__ import annotations

import json
from typing import Any

from mrad_service.errors import InvalidRequestError

MEMBERS = 64
"""Of one object, at most."""


class JsonBody:
    """Collects a JSON text chunk by chunk."""

    def __init__(self, values: int, what: str = "body") -> None:
        """`values`: most values, at any depth; `what`: its name in messages."""
        self._most, self._what = values, what
        self._values = 1
        self._data = bytearray()

    def feed(self, chunk: bytes) -> None:
        """More of it. Raises `InvalidRequestError` once it holds too many values."""
        self._values += chunk.count(b",") + chunk.count(b"[") + chunk.count(b"{")
        if self._values > self._most:
            raise InvalidRequestError(
                f"the {self._what} has more than {self._most} JSON values; send files or binary data"
            )
        self._data += chunk

    def value(self) -> Any:
        """What it says. Raises `InvalidRequestError`."""
        try:
            return json.loads(self._data, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"the {self._what} is not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MEMBERS:
        raise ValueError(f"an object has more than {MEMBERS} members")
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:  # one of the two would be lost in silence
            raise InvalidRequestError(f"an object of the JSON says {name!r} twice")
        found[name] = value
    return found
