"""A memory that grows looks at what is new, and still finds what is not finite."""

from __future__ import annotations

import numpy as np
import pytest

from mrad.memory import level as memory_module
from mrad.memory.entry import Key
from mrad.memory.growing import GrowingLevel
from mrad.memory.level import LevelMemory, all_finite


def level_of(count: int, dim: int = 4) -> LevelMemory:
    """Keys of both classes, an entry each."""
    keys = [
        Key("patch", i % 2, str(i), "normal", 1, np.ones(dim, np.float32)) for i in range(count)
    ]
    return LevelMemory.of(keys, {str(i): i for i in range(count)}, dim)


def lesson(value: float) -> Key:
    """One key of dimension 4."""
    return Key("patch", 1, "new", "anomalous", 1, np.full(4, value, np.float32))


@pytest.fixture
def looked_at(monkeypatch) -> list[int]:
    """How many keys every look took."""
    counts: list[int] = []

    def counted(block: np.ndarray) -> bool:
        counts.append(len(block))
        return all_finite(block)

    monkeypatch.setattr(memory_module, "all_finite", counted)
    return counts


def test_a_lesson_looks_at_its_own_keys_alone(looked_at: list[int]) -> None:
    growing = GrowingLevel(level_of(3_000))
    assert sum(looked_at) == 3_000, "what is there is looked at once"
    for row in range(3_000, 3_020):
        growing.append([lesson(1), lesson(2)], row)
        growing.view().check("patch", 4)
    assert sum(looked_at) == 3_000 + 20 * 2


def test_forgetting_looks_at_nothing_again(looked_at: list[int]) -> None:
    growing = GrowingLevel(level_of(100))
    growing.append([lesson(1)], 100)
    kept = np.arange(101) % 3 > 0
    growing.keep(kept)
    growing.append([lesson(1)], int(kept.sum()))
    view = growing.view()
    assert view.finite
    assert len(view) == kept.sum() + 1
    assert sum(looked_at) == 100 + 1 + 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_key_that_is_not_finite_is_found_until_it_is_gone(bad: float) -> None:
    growing = GrowingLevel(level_of(10))
    growing.append([lesson(bad)], 10)
    for row in (11, 12):
        growing.append([lesson(1)], row)
        assert not growing.view().finite
    growing.keep(np.arange(13) != 10)
    assert growing.view().finite


def test_very_large_numbers_are_finite() -> None:
    block = np.full((3, 5), 3e38, dtype=np.float32)
    assert all_finite(block), "though their squares are not"
    for bad in (np.nan, np.inf, -np.inf):
        block[2, 4] = bad
        assert not all_finite(block)
    raw = np.frombuffer(bytes(1) + np.ones(20, np.float32).tobytes(), np.uint8)[1:]
    assert all_finite(raw.view(np.float32).reshape(4, 5)), "mapped keys need not lie aligned"
