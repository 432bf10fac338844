"""One level of the memory: its keys, their labels, and the entry of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mrad.errors import DimensionError, EmptyLevelError, NonFiniteError, OneClassError
from mrad.memory.entry import Key
from mrad.types import FloatArray, Level

LEVELS: tuple[Level, ...] = ("image", "patch", "local")
"""Of a memory, in the order of its banks."""
COLUMNS = ("keys", "labels", "entry", "region", "size", "tile")
"""Arrays of a level with a row for each key."""
BLOCK = 512
"""Keys looked at together: they may be mapped and exceed memory, and a block stays in the cache."""


@dataclass(frozen=True)
class LevelMemory:
    """The n keys of one level, in the order they were added."""

    keys: FloatArray
    """[n, d], L2-normalised."""
    labels: npt.NDArray[np.uint8]
    """[n], 0 normal, 1 anomalous."""
    entry: npt.NDArray[np.int64]
    """[n], row of the key's entry in `MemoryBank.entries`."""
    region: npt.NDArray[np.str_]
    """[n]: `image`, `normal` or `anomalous`."""
    size: npt.NDArray[np.int32]
    """[n], grid cells averaged."""
    folder: Path | None = None
    """The bank's folder, in whose `derived/` indexes of these keys may be kept."""
    reference: tuple[int, int] | None = None
    """Keys of each class (normal, anomalous) that scores refer to: those of the memory before it
    learned or forgot. None: those that it holds (`mrad.retrieval.base.at_reference_shares`)."""
    finite_to: int = 0
    """So many first keys are known to be finite: those of a memory that grew by the others."""
    tile: npt.NDArray[np.int32] = None  # type: ignore[assignment]
    """[n], number of the tile of the entry's image; 0 everywhere by default."""

    def __post_init__(self) -> None:
        if self.tile is None:
            object.__setattr__(self, "tile", np.zeros(len(self.labels), dtype=np.int32))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Keys of each class: normal, anomalous."""
        anomalous = int(self.labels.sum(dtype=np.int64))
        return len(self) - anomalous, anomalous

    @property
    def refers_to(self) -> tuple[int, int]:
        """Keys of each class, (normal, anomalous), at whose shares probabilities are given."""
        return self.counts if self.reference is None else self.reference

    @property
    def dim(self) -> int:
        """Width of the keys."""
        return int(self.keys.shape[1])

    @cached_property
    def finite(self) -> bool:
        """Whether every key is: what is not known yet is looked at once."""
        starts = range(self.finite_to, len(self), BLOCK)
        return all(all_finite(self.keys[i : i + BLOCK]) for i in starts)

    @classmethod
    def of(cls, keys: Sequence[Key], rows: dict[str, int], dim: int) -> LevelMemory:
        """Collect keys; `rows` maps an entry's id to its row."""
        vectors = np.stack([key.vector for key in keys]) if keys else np.empty((0, dim))
        return cls(
            np.ascontiguousarray(vectors, dtype=np.float32),
            np.array([key.label for key in keys], dtype=np.uint8),
            np.array([rows[key.entry_id] for key in keys], dtype=np.int64),
            np.array([key.region for key in keys], dtype="U9"),
            np.array([key.size for key in keys], dtype=np.int32),
            tile=np.array([key.tile for key in keys], dtype=np.int32),
        )

    def listed(self, level: Level, entry_id: str) -> list[Key]:
        """Its keys one by one, as a single lesson is handed on; all are of `entry_id`. Inverse of `of`."""
        facts = (self.region, self.size, self.keys, self.tile)
        return [
            Key(level, label, entry_id, str(region), int(size), vector, int(tile))
            for label, region, size, vector, tile in zip(self.labels.tolist(), *facts)
        ]

    def join(self, other: LevelMemory) -> LevelMemory:
        """This level followed by another."""
        if self.dim != other.dim:
            raise DimensionError(
                f"keys of width {other.dim} do not fit a level of width {self.dim}"
            )
        return replace(
            LevelMemory.joined([self, other]), folder=self.folder, reference=self.refers_to
        )

    @classmethod
    def joined(cls, parts: Sequence[LevelMemory]) -> LevelMemory:
        """The keys of levels of one width, one after the other, as if they were all of a memory."""
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS
        }
        return cls(**columns)

    def take(self, rows: npt.NDArray[Any] | slice) -> LevelMemory:
        """Some keys, by number or bool [n], as if they were all of a memory."""
        return LevelMemory(**{name: getattr(self, name)[rows] for name in COLUMNS})

    def without_row(self, row: int) -> LevelMemory:
        """This level without the keys of entry `row`; later rows move up by one."""
        kept = np.ones(max(row, int(self.entry.max(initial=0))) + 1, dtype=bool)
        kept[row] = False
        return replace(self.of_entries(kept), folder=self.folder, reference=self.refers_to)

    def of_entries(self, kept: npt.NDArray[np.bool_]) -> LevelMemory:
        """The keys of some entries, bool [entries], as if they were all; rows move up."""
        mine = kept[self.entry]
        moved = np.cumsum(kept) - 1
        return replace(self.take(mine), entry=moved[self.entry[mine]].astype(np.int64))

    def check(self, level: Level, width: int) -> None:
        """Raise the error of whatever makes its keys unfit for queries of `width`."""
        if len(self) and self.dim != width:
            raise DimensionError(f"{level} keys are {self.dim} wide, the encoder gives {width}")
        if not self.finite:
            raise NonFiniteError(f"the memory's {level} level holds NaN or infinity")

    def check_classes(self, level: Level, head: str) -> None:
        """Raise `EmptyLevelError`, `OneClassError` unless there are keys of both classes for `head`."""
        if len(self) == 0:
            raise EmptyLevelError(
                f"head {head!r} needs keys at the memory's {level} level, and there is none; head nn "
                "needs good images alone"
            )
        if self.labels.min() == self.labels.max():
            only = "anomalous" if self.labels[0] else "normal"
            raise OneClassError(
                f"head {head!r} compares two classes, and the memory's {level} level holds {only} keys "
                f"only: every probability would be {int(self.labels[0])}; add images of the other class "
                "(with masks, for defects), or use head nn, which needs good images alone"
            )


def empty_level(dim: int) -> LevelMemory:
    """No key, of width `dim`."""
    return LevelMemory.of([], {}, dim)


def all_finite(block: FloatArray) -> bool:
    """Whether no number of `block` [m, d] is NaN or infinite.

    One pass of a product is much faster than looking at each number, and a sum of squares that is
    finite has no other terms. One that is not may be that of finite, very large numbers: look then.
    """
    flat = np.require(block, np.float32, ["C", "A"]).ravel()  # mapped keys need not lie aligned
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(flat @ flat) or np.isfinite(flat).all())


def unit(vector: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """L2-normalised float32."""
    norm = max(float(np.linalg.norm(vector)), 1e-12)
    return np.asarray(vector / norm, dtype=np.float32)
