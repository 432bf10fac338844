"""A process that teaches a memory from several threads until it is killed, writing what it knows.

`acknowledged` gets a line only after the store has answered, in one write each: what stands there
was promised.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from mrad_service.memory import DurableMemory

from mrad.memory import database
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key, new_entry_id
from mrad.memory.level import unit

DIMS = (6, 9)


def lesson(rng: np.random.Generator, source: str) -> tuple[Entry, list[Key]]:
    """A labelled entry with two random keys."""
    label = int(rng.integers(2))
    entry = Entry(new_entry_id(), label, source=source)
    vectors = [unit(rng.normal(size=dim)) for dim in DIMS]
    return entry, [
        Key("image", label, entry.entry_id, "image", 4, vectors[0]),
        Key("patch", label, entry.entry_id, "normal", 4, vectors[1]),
    ]


def save_base(path: Path) -> None:
    """A bank with eight entries."""
    from mrad.encoder.identity import EncoderIdentity

    rng = np.random.default_rng(0)
    entries, keys = [], []
    for number in range(8):
        entry, own = lesson(rng, f"base {number}")
        entries.append(entry)
        keys += own
    MemoryBank.from_keys(EncoderIdentity("none", 64, "0" * 64), entries, keys).save(path)


def teach(base: str, acknowledged: str, round_: int, threads: int, ready) -> None:
    """Open, check against what was promised, then add, repeat and remove until killed."""
    database.CHECKPOINT = 20  # pages: kills meet the moving of the journal, too
    memory = DurableMemory.open(base)
    check(memory, Path(acknowledged))
    out = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(threads):
        mine = [] if round_ % 8 == 0 else _left_behind(memory, f"{round_ - 1}-{number}-")
        args = (memory, out, f"{round_}-{number}", mine)
        threading.Thread(target=_teach, args=args, daemon=True).start()
    ready.set()
    while True:  # and compactions
        threading.Event().wait(0.02)
        memory.compact()


def _left_behind(memory: DurableMemory, prefix: str) -> list[str]:
    """What a killed thread had added: its successor removes it, so that the memory stays small."""
    return [entry.entry_id for entry in memory.bank.entries if entry.source.startswith(prefix)]


def _teach(memory: DurableMemory, out: int, name: str, mine: list[str]) -> None:
    rng = np.random.default_rng([ord(letter) for letter in name])
    count = 0
    while True:
        count += 1
        source = f"{name}-{count}"
        entry, keys = lesson(rng, source)
        key = source if count % 2 else None
        for _ in range(2 if key else 1):  # a client that did not hear the answer asks again
            entry = memory.add(entry, keys, thumbnail=b"jpeg", idempotency_key=key)
        os.write(out, f"added {source} {entry.entry_id}\n".encode())
        mine.append(entry.entry_id)
        if len(mine) > 4:
            victim = mine.pop(0)
            os.write(out, f"removing {victim}\n".encode())
            memory.remove(victim)
            os.write(out, f"removed {victim}\n".encode())


def check(memory: DurableMemory, acknowledged: Path) -> int:
    """Compare with every promise so far; returns how many there were. Raises `AssertionError`."""
    lines = acknowledged.read_text().splitlines() if acknowledged.exists() else []
    added, removing, removed = {}, set(), set()
    for what, *rest in map(str.split, lines):
        if what == "added":
            assert rest[1] not in added, f"{rest[1]} was given out twice"
            added[rest[1]] = rest[0]
        else:
            {"removing": removing, "removed": removed}[what].add(rest[0])
    ids = [entry.entry_id for entry in memory.bank.entries]
    sources = [entry.source for entry in memory.bank.entries]
    assert len(ids) == len(set(ids)), "an entry stands twice"
    assert len(sources) == len(set(sources)), "an addition was doubled under another id"
    lost = added.keys() - removing - set(ids)
    assert not lost, f"acknowledged and lost: {[added[entry_id] for entry_id in lost]}"
    back = removed & set(ids)
    assert not back, f"removed and back again: {back}"
    assert len(memory.bank.image) == len(memory.bank.patch) == len(ids)
    np.testing.assert_array_equal(memory.bank.image.entry, np.arange(len(ids)))
    np.testing.assert_array_equal(memory.bank.patch.entry, np.arange(len(ids)))
    for entry in memory.bank.entries[8:]:
        assert memory.thumbnail(entry.entry_id) == b"jpeg"
    return len(added) + len(removed)
