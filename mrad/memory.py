"""The two-level memory: keys, labels and where each came from (METHOD.md, Memory)."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from mrad.errors import (
    BankError,
    DimensionError,
    EmptyLevelError,
    EncoderMismatchError,
    NonFiniteError,
    OneClassError,
)
from mrad.types import ANOMALOUS, NORMAL, BoolArray, FloatArray, Level, Sample

if TYPE_CHECKING:
    from mrad.encoder import Encoder, EncoderIdentity

REGIONS: Final = "regions"
BLOCK = 512
"""Keys looked at together: they may be mapped and exceed memory, and a block stays in the cache."""
PatchKeys = Literal["regions", "all"] | int
"""What a region of an image adds to the patch level: its mean, every patch, or so many of them."""


def new_entry_id() -> str:
    """A UUIDv7: unique, and sortable by the time it was made."""
    stamp = time.time_ns() // 1_000_000
    value = (stamp & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


@dataclass(frozen=True)
class Entry:
    """One labelled image of the memory; its keys refer to it."""

    entry_id: str
    label: int
    source: str = ""
    object_name: str = ""
    defect: str = ""
    tags: tuple[str, ...] = ()
    width: int = 0
    height: int = 0
    added_at: str = ""
    """RFC 3339, UTC."""
    added_by: str = ""

    @classmethod
    def of(cls, sample: Sample, size: tuple[int, int], added_by: str = "") -> Entry:
        """The entry of a sample whose image is `size` (width, height), made now."""
        return cls(
            entry_id=new_entry_id(),
            label=ANOMALOUS if sample.anomalous else NORMAL,
            source=sample.source,
            object_name=sample.object_name,
            defect=sample.defect,
            tags=sample.tags,
            width=size[0],
            height=size[1],
            added_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            added_by=added_by,
        )


@dataclass(frozen=True)
class Key:
    """One key of one entry. `size` is the number of grid cells that it averages."""

    level: Level
    label: int
    entry_id: str
    region: str
    size: int
    vector: FloatArray


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
    home: Path | None = None
    """The bank's folder, in whose `derived/` indexes of these keys may be kept."""
    finite_to: int = 0
    """So many first keys are known to be finite: those of a memory that grew by the others."""

    def __len__(self) -> int:
        return len(self.labels)

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
        )

    def join(self, other: LevelMemory) -> LevelMemory:
        """This level followed by another."""
        if self.dim != other.dim:
            raise DimensionError(
                f"keys of width {other.dim} do not fit a level of width {self.dim}"
            )
        return LevelMemory(
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.entry, other.entry]),
            np.concatenate([self.region, other.region]),
            np.concatenate([self.size, other.size]),
            self.home,
        )

    def without_row(self, row: int) -> LevelMemory:
        """This level without the keys of entry `row`; later rows move up by one."""
        keep = self.entry != row
        entry = self.entry[keep]
        return LevelMemory(
            self.keys[keep],
            self.labels[keep],
            entry - (entry > row),
            self.region[keep],
            self.size[keep],
            self.home,
        )

    def check(self, level: Level, width: int) -> None:
        """Raise the error of whatever makes this level unusable for queries of `width`."""
        if len(self) == 0:
            raise EmptyLevelError(f"the memory's {level} level holds no key")
        if self.dim != width:
            raise DimensionError(f"{level} keys are {self.dim} wide, the encoder gives {width}")
        if not self.finite:
            raise NonFiniteError(f"the memory's {level} level holds NaN or infinity")
        if self.labels.min() == self.labels.max():
            only = "anomalous" if self.labels[0] else "normal"
            raise OneClassError(
                f"the memory's {level} level holds {only} keys only, so every probability would be "
                f"{int(self.labels[0])}; add images of the other class (with masks, for defects)"
            )


@dataclass(frozen=True)
class MemoryBank:
    """Labelled features of auxiliary images. Immutable: `add` and `remove` give new banks."""

    identity: EncoderIdentity
    entries: tuple[Entry, ...]
    image: LevelMemory
    patch: LevelMemory
    metadata: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    """Thresholds and probabilities, one object per head's name (mrad.calibration)."""
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    """entry_id -> JPEG."""
    digest: str | None = None
    """SHA-256 of `bank.json`, once the bank lies on disk."""

    @classmethod
    def from_samples(
        cls,
        encoder: Encoder,
        samples: Iterable[Sample],
        *,
        batch_size: int = 8,
        progress: Callable[[int], None] | None = None,
        added_by: str = "",
        patch_keys: PatchKeys = REGIONS,
    ) -> MemoryBank:
        """Encode labelled samples in memory. `progress` is called with the number done so far.

        `patch_keys`: what a region adds to the patch level (`mrad.keys.keys_of`).

        Raises `ImageError`, `MaskError`; the indexer streams the same thing to disk.
        """
        from mrad.keys import encode_samples

        entries: list[Entry] = []
        keys: list[Key] = []
        encoded = encode_samples(
            encoder, samples, batch_size=batch_size, added_by=added_by, patch_keys=patch_keys
        )
        for done, (entry, entry_keys) in enumerate(encoded, start=1):
            entries.append(entry)
            keys.extend(entry_keys)
            if progress is not None:
                progress(done)
        return cls.from_keys(
            encoder.identity,
            entries,
            keys,
            dims=(encoder.embed_dim, encoder.width),
            metadata={"patch_keys": patch_keys},
        )

    @classmethod
    def from_keys(
        cls,
        identity: EncoderIdentity,
        entries: Sequence[Entry],
        keys: Sequence[Key],
        *,
        dims: tuple[int, int] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> MemoryBank:
        """Assemble a bank. `dims` (image, patch) is needed where a level has no key."""
        rows = {entry.entry_id: row for row, entry in enumerate(entries)}
        if len(rows) != len(entries):
            raise BankError("two entries share an entry_id")
        strangers = {key.entry_id for key in keys} - rows.keys()
        if strangers:
            raise BankError(f"keys refer to unknown entries: {sorted(strangers)[:3]}")
        levels: list[LevelMemory] = []
        for position, level in enumerate(("image", "patch")):
            chosen = [key for key in keys if key.level == level]
            dim = len(chosen[0].vector) if chosen else (dims[position] if dims else 0)
            if any(len(key.vector) != dim for key in chosen):
                raise DimensionError(f"{level} keys differ in width")
            levels.append(LevelMemory.of(chosen, rows, dim))
        return cls(identity, tuple(entries), levels[0], levels[1], metadata or {})

    def add(self, entry: Entry, keys: Sequence[Key], thumbnail: bytes | None = None) -> MemoryBank:
        """A bank with one more entry. Calibration stays, for the operator to renew."""
        addition = MemoryBank.from_keys(
            self.identity, [entry], keys, dims=(self.image.dim, self.patch.dim)
        )
        offset = len(self.entries)
        image = replace(addition.image, entry=addition.image.entry + offset)
        patch = replace(addition.patch, entry=addition.patch.entry + offset)
        thumbnails = self.thumbnails | ({entry.entry_id: thumbnail} if thumbnail else {})
        return replace(
            self,
            entries=(*self.entries, entry),
            image=self.image.join(image),
            patch=self.patch.join(patch),
            thumbnails=thumbnails,
            digest=None,
        )

    def remove(self, entry_id: str) -> MemoryBank:
        """A bank without one entry. Raises `BankError` when there is no such entry."""
        row = self.row_of(entry_id)
        return replace(
            self,
            entries=self.entries[:row] + self.entries[row + 1 :],
            image=self.image.without_row(row),
            patch=self.patch.without_row(row),
            thumbnails={key: jpeg for key, jpeg in self.thumbnails.items() if key != entry_id},
            digest=None,
        )

    @property
    def patch_keys(self) -> PatchKeys:
        """What a region of an image adds to this memory, so that later lessons add the same."""
        from mrad.keys import parse_patch_keys

        return parse_patch_keys(self.metadata.get("patch_keys", REGIONS))

    def row_of(self, entry_id: str) -> int:
        """Row of an entry. Raises `BankError` when there is no such entry."""
        for row, entry in enumerate(self.entries):
            if entry.entry_id == entry_id:
                return row
        raise BankError(f"the bank has no entry {entry_id}")

    def with_calibration(self, calibration: dict[str, Any] | None) -> MemoryBank:
        """The same memory with other thresholds and probabilities."""
        return replace(self, calibration=calibration, digest=None)

    def check(self, encoder: Encoder) -> None:
        """Raise the first thing that keeps `encoder` from querying this bank.

        `EncoderMismatchError`, `EmptyLevelError`, `DimensionError`, `NonFiniteError`,
        `OneClassError`.
        """
        if self.identity != encoder.identity:
            raise EncoderMismatchError(
                f"the bank was built by {self.identity}, the encoder is {encoder.identity}; "
                "load that encoder, or build the bank anew"
            )
        self.image.check("image", encoder.embed_dim)
        self.patch.check("patch", encoder.width)

    def save(self, path: str | Path, *, replace: bool = False) -> MemoryBank:
        """Write the bank's folder, whole or not at all. Returns the bank with its digest.

        Raises `BankError` when `path` is a non-empty folder, unless `replace`.
        """
        from mrad.bank_io import save_bank

        return save_bank(self, Path(path), replace=replace)

    @classmethod
    def load(
        cls, path: str | Path, *, encoder: Encoder | None = None, verify: bool = True
    ) -> MemoryBank:
        """Read a bank's folder; every file's digest is verified before it is parsed.

        Raises `BankNotFoundError`, `BankCorruptError`, `BankVersionError`; with `encoder` also
        whatever `check` raises. `verify=False` skips the digests (a bank just written).
        """
        from mrad.bank_io import load_bank

        bank = load_bank(Path(path), verify=verify)
        if encoder is not None:
            bank.check(encoder)
        return bank


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


__all__ = ["BoolArray", "Entry", "Key", "LevelMemory", "MemoryBank", "new_entry_id"]
