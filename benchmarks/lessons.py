"""Lessons a second that a living memory makes durable, beside what the disk alone allows."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mrad_service.memory import DurableMemory

from benchmarks import taught
from benchmarks.tables import Cell, Table, hardware
from mrad.encoder.identity import EncoderIdentity
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key, new_entry_id
from mrad.memory.level import unit

DIMS = (768, 1024)
"""Width of the paper's image and patch keys."""
WRITERS = (1, 8, 64)
Lesson = tuple[Entry, list[Key]]


def _lesson(rng: np.random.Generator, label: int) -> Lesson:
    """An entry with an image key and one or two region keys."""
    entry = Entry(new_entry_id(), label, source="board.png", tags=("line 1",), width=80, height=64)
    keys = [Key("image", label, entry.entry_id, "image", 1369, unit(rng.normal(size=DIMS[0])))]
    for region in ("normal", "anomalous")[: 1 + label]:
        vector = unit(rng.normal(size=DIMS[1]))
        keys.append(Key("patch", label, entry.entry_id, region, 600, vector))
    return entry, keys


def _taught(folder: Path, lessons: list[Lesson], writers: int) -> tuple[float, list[float], float]:
    """Seconds for all, seconds of each, seconds to open the memory again."""
    rng = np.random.default_rng(1)
    built = [_lesson(rng, number % 2) for number in range(60)]
    keys = [key for _, own in built for key in own]
    identity = EncoderIdentity("none", 518, "0" * 64)
    MemoryBank.from_keys(identity, [entry for entry, _ in built], keys).save(folder / "bank")
    jpeg, each = os.urandom(5_000), []

    def teach(lesson: Lesson) -> None:
        began = time.perf_counter()
        memory.add(*lesson, thumbnail=jpeg, idempotency_key=lesson[0].entry_id)
        each.append(time.perf_counter() - began)

    with DurableMemory.open(folder / "bank") as memory, ThreadPoolExecutor(writers) as pool:
        began = time.perf_counter()
        list(pool.map(teach, lessons))
        whole = time.perf_counter() - began
    began = time.perf_counter()
    DurableMemory.open(folder / "bank").close()
    return whole, each, time.perf_counter() - began


def _appended(path: Path, sizes: list[int]) -> float:
    """Seconds to append and sync so many bytes, one lesson after the other."""
    with path.open("wb", buffering=0) as file:
        began = time.perf_counter()
        for size in sizes:
            file.write(bytes(size))
            os.fdatasync(file.fileno())
        return time.perf_counter() - began


def run(quick: bool) -> list[Table]:
    """By number of writers."""
    count = 50 if quick else 2_000
    rng = np.random.default_rng(0)
    rows: list[list[Cell]] = []
    for writers in WRITERS:
        lessons = [_lesson(rng, number % 2) for number in range(count)]
        sizes = [5_800 + sum(key.vector.nbytes for key in keys) for _, keys in lessons]
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            floor = _appended(Path(folder) / "log", sizes)
            whole, each, opened = _taught(Path(folder), lessons, writers)
        each.sort()
        median, tail = each[len(each) // 2], each[int(len(each) * 0.99)]
        rows.append(
            [
                writers,
                round(count / whole),
                f"{1e3 * median:.2f} ms",
                f"{1e3 * tail:.1f} ms",
                round(count / floor),
                f"{opened:.2f} s",
            ]
        )
    return [
        Table(
            "Lessons a second, durable when answered",
            ["writers", "lessons/s", "median", "99 %", "append + sync alone/s", "opened again in"],
            rows,
            [
                hardware(),
                f"{count} lessons of about {np.mean(sizes) / 1e3:.0f} kB on 60 images. `append + sync "
                "alone` writes the same bytes to a file, one sync a lesson, in the same minute: what the "
                "disk allows a single writer. Several writers share a sync.",
            ],
        ),
        taught.verdicts(quick),
        taught.seconds(quick),
    ]
