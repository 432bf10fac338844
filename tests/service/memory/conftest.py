"""A small bank of random keys; nothing here needs an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mrad.encoder.identity import EncoderIdentity
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key, new_entry_id
from mrad.memory.level import unit

DIMS = (6, 9)
Lesson = Callable[..., tuple[Entry, list[Key]]]


def make_lesson(
    seed: int, label: int | None = None, entry_id: str | None = None
) -> tuple[Entry, list[Key]]:
    """A labelled entry with an image key and a region key, the same for the same seed."""
    rng = np.random.default_rng(seed)
    label = seed % 2 if label is None else label
    entry = Entry(
        entry_id or new_entry_id(), label, source=f"{seed}.png", defect="dent" * label,
        tags=("line 1",), width=80, height=64, added_at="2026-01-02T03:04:05Z", added_by="tester",
    )  # fmt: skip
    region = "anomalous" if label else "normal"
    keys = [
        Key("image", label, entry.entry_id, "image", 16, unit(rng.normal(size=DIMS[0]))),
        Key("patch", label, entry.entry_id, region, 5, unit(rng.normal(size=DIMS[1]))),
    ]
    return entry, keys


def save_base(path: Path, count: int = 4) -> Path:
    """A bank of `count` entries, both classes."""
    lessons = [make_lesson(-1 - i + 10_000) for i in range(count)]
    identity = EncoderIdentity("none", 64, "0" * 64)
    entries = [entry for entry, _ in lessons]
    keys = [key for _, own in lessons for key in own]
    MemoryBank.from_keys(identity, entries, keys, metadata={"line": 1}).save(path)
    return path


@pytest.fixture(scope="session")
def lesson() -> Lesson:
    """`lesson(seed, label=None, entry_id=None)` -> entry, keys."""
    return make_lesson


@pytest.fixture(scope="session", name="save_base")
def save_base_fixture() -> Callable[..., Path]:
    """`save_base(path, count=4)` writes a bank."""
    return save_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A bank's folder."""
    return save_base(tmp_path / "bank")
