"""What changes a living memory: an entry added, an entry removed, a named value stored; and the sum."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

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


@dataclass(frozen=True)
class Put:
    """A value kept beside the entries under a name: thresholds, scores of the memory's own images."""

    name: str
    value: bytes | None
    """None takes the name away."""


Operation = Add | Remove | Put


@dataclass(frozen=True)
class Request:
    """What an idempotency key was used for."""

    entry: Entry
    content: str = ""
    """See `Add.content`; empty where an older release wrote it."""


def pack_keys(keys: Sequence[Key]) -> tuple[str, bytes]:
    """Facts of the keys as JSON; their vectors as float32, little endian, one after the other, then pictures."""
    facts = [
        [key.level, key.label, key.region, key.size, key.tile, len(key.vector)]
        + ([len(key.picture)] if key.picture else [])
        for key in keys
    ]
    vectors = (np.ascontiguousarray(key.vector, dtype="<f4").tobytes() for key in keys)
    pictures = (key.picture for key in keys)
    return json.dumps(facts, separators=(",", ":")), b"".join([*vectors, *pictures])


def unpack_keys(entry_id: str, facts: str, vectors: bytes) -> tuple[Key, ...]:
    """The keys that `pack_keys` packed. Raises `ValueError`, `TypeError` for anything else."""
    keys, offset, listed = [], 0, json.loads(facts)
    place = sum(4 * dim for *_, dim in (key[:6] for key in listed))
    for level, label, region, size, tile, dim, *length in listed:
        vector = np.frombuffer(vectors, "<f4", dim, offset).astype(np.float32, copy=False)
        picture = vectors[place : place + sum(length)]
        keys.append(Key(level, label, entry_id, region, size, vector, tile, picture))
        offset, place = offset + 4 * dim, place + sum(length)
    offset = place
    if offset != len(vectors):
        raise ValueError(f"{len(vectors)} bytes of vectors, {offset} are listed")
    return tuple(keys)


def pack_entry(entry: Entry) -> str:
    """An entry as JSON."""
    return json.dumps(asdict(entry), separators=(",", ":"))


def unpack_entry(text: str | dict[str, Any]) -> Entry:
    """The entry of `pack_entry`. Raises `ValueError`, `KeyError`, `TypeError`."""
    facts = json.loads(text) if isinstance(text, str) else text
    return Entry(**facts | {"tags": tuple(facts["tags"])})


@dataclass
class Saved:
    """What a database holds, verified."""

    base: str
    """Content digest of the bank that it belongs to."""
    sequence: int = 0
    """Number of the last operation over the memory's whole life."""
    lessons: dict[int, Add] = field(default_factory=dict)
    """By the number of their operation, rising."""
    removed: list[str] = field(default_factory=list)
    """Entries of the bank that are gone."""
    requests: dict[str, Request] = field(default_factory=dict)
    """By idempotency key, oldest first."""
    values: dict[str, bytes] = field(default_factory=dict)
    sum: bytes = b""
    """Sum of all rows' checksums: names this content."""


def keep(saved: Saved, table: str, row: tuple[Any, ...]) -> None:
    """Sort a verified row into `saved`. Raises `ValueError`, `KeyError`, `TypeError`."""
    if table == "lesson":
        sequence, text, keys, vectors, thumbnail = row
        entry = unpack_entry(text)
        saved.lessons[sequence] = Add(entry, unpack_keys(entry.entry_id, keys, vectors), thumbnail)
    elif table == "removed":
        saved.removed.append(row[1])
    elif table == "request":
        saved.requests[row[1]] = Request(unpack_entry(row[2]), row[3])
    else:
        saved.values[row[0]] = row[1]
