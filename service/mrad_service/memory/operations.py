"""What the log holds: an entry added, an entry removed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mrad.errors import BankCorruptError
from mrad.memory.entry import Entry, Key


@dataclass(frozen=True)
class Add:
    """A new entry with its keys."""

    entry: Entry
    keys: tuple[Key, ...]
    thumbnail: bytes | None = None
    idempotency_key: str | None = None
    content: str = ""
    """Digest of what was uploaded: a repeat under the same idempotency key brings the same."""


@dataclass(frozen=True)
class Remove:
    """An entry that is gone, with its keys."""

    entry_id: str


Operation = Add | Remove


def encode(operation: Operation) -> bytes:
    """JSON, a zero byte, then the vectors (float32, little endian) and the thumbnail as they are."""
    if isinstance(operation, Remove):
        return json.dumps({"op": "remove", "entry_id": operation.entry_id}).encode() + b"\0"
    vectors = [np.ascontiguousarray(key.vector, dtype="<f4").tobytes() for key in operation.keys]
    facts = {
        "op": "add",
        "entry": asdict(operation.entry),
        "keys": [
            {
                "level": key.level,
                "label": key.label,
                "region": key.region,
                "size": key.size,
                "tile": key.tile,
                "dim": len(key.vector),
            }
            for key in operation.keys
        ],
        "thumbnail": operation.thumbnail is not None,
        "idempotency_key": operation.idempotency_key,
        "content": operation.content,
    }
    tail = operation.thumbnail or b""
    return b"".join([json.dumps(facts).encode(), b"\0", *vectors, tail])


def decode(data: bytes) -> Operation:
    """The operation behind the bytes. Raises `BankCorruptError` for what `encode` never wrote."""
    try:
        text, _, blob = data.partition(b"\0")
        facts = json.loads(text)
        if facts["op"] == "remove":
            return Remove(facts["entry_id"])
        if facts["op"] == "add":
            return _decode_add(facts, blob)
        raise ValueError(f"unknown operation {facts['op']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise BankCorruptError(
            f"the log holds an operation that this release cannot read ({error!r}); was it written "
            "by a newer one?"
        ) from error


def _decode_add(facts: dict[str, Any], blob: bytes) -> Add:
    entry = decode_entry(facts["entry"])
    keys, offset = [], 0
    for key in facts["keys"]:
        vector = np.frombuffer(blob, "<f4", key["dim"], offset).astype(np.float32)
        offset += 4 * key["dim"]
        facts_of_key = key["level"], key["label"], entry.entry_id, key["region"], key["size"]
        keys.append(Key(*facts_of_key, vector, key.get("tile", 0)))  # 0.1.0 wrote no tile
    thumbnail = blob[offset:] if facts["thumbnail"] else None
    return Add(entry, tuple(keys), thumbnail, facts["idempotency_key"], facts.get("content", ""))


def decode_entry(facts: dict[str, Any]) -> Entry:
    """An `Entry` from its JSON object."""
    return Entry(**facts | {"tags": tuple(facts["tags"])})
