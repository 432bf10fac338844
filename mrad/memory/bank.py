"""The two-level memory: labelled features of auxiliary images (docs/method.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from mrad.errors import (
    BankError,
    DimensionError,
    EmptyLevelError,
    EncoderMismatchError,
    LayoutError,
    UnknownObjectError,
)
from mrad.images.guard import InputProfile
from mrad.images.layout import PLAIN, Layout, Places
from mrad.images.options import ReadOptions
from mrad.memory.contents import SETTLED, Contents, add_picture
from mrad.memory.entry import REGIONS, Entry, Key, PatchKeys
from mrad.memory.level import LEVELS, LevelMemory
from mrad.types import WHOLE, Box, Place, Sample
from mrad.words import counted

if TYPE_CHECKING:
    from mrad.encoder.encoder import Encoder
    from mrad.encoder.identity import EncoderIdentity
    from mrad.images.reader import Picture


LAYOUT = "layout"
"""In a bank's metadata."""
INPUT = "input"
"""There too: what its pictures are like."""
PRECISION, TRIAL = "precision", "precision_trial"
"""There too: what its keys were encoded in, and what `mrad build --precision auto` measured."""


def layout_metadata(layout: Layout) -> dict[str, Any]:
    """What a bank's metadata hold of its layout: nothing where images are looked at whole."""
    return {} if layout.plain else {LAYOUT: layout.to_json()}


@dataclass(frozen=True)
class MemoryBank(Contents):
    """Labelled features of auxiliary images. Immutable: `add` and `remove` give new banks."""

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
        layout: Layout = PLAIN,
        reading: ReadOptions | None = None,
    ) -> MemoryBank:
        """Encode labelled samples in memory; the indexer streams the same thing to disk.

        Args:
            encoder: makes the keys, and those of every query.
            samples: labelled images, each read when its turn comes.
            batch_size: images, or tiles, encoded at once.
            progress: called with the number of samples done so far.
            added_by: kept with each entry.
            patch_keys: what a region adds to the patch level (`mrad.memory.keys.levels_of`).
            layout: tiles, region of interest and parts of every image; the bank keeps it, and every
                query is looked at in the same way.
            reading: how pictures are read. A depth that they do not state is found over all of
                them where `samples` is a sequence, else for each alone.

        Raises `ImageError`, `MaskError`, `DataError` where a region does not fit an image.
        """
        from mrad.images.survey import depths_of
        from mrad.memory.keys import encode_samples

        reading = reading or ReadOptions()
        if reading.bit_depth is None and isinstance(samples, Sequence):
            found = depths_of((sample.image for sample in samples), reading)
            reading = replace(reading, assume={**found, **reading.assume})
        profile = InputProfile(depths=dict(reading.assume), bit_depth=reading.bit_depth)

        def seen(picture: Picture) -> None:
            nonlocal profile
            profile = profile.seen(picture)

        entries: list[Entry] = []
        keys: list[Key] = []
        encoded = encode_samples(
            encoder,
            samples,
            batch_size=batch_size,
            added_by=added_by,
            patch_keys=patch_keys,
            layout=layout,
            reading=reading,
            seen=seen,
            lessons=False,
        )
        with closing(encoded):
            for done, (entry, entry_keys) in enumerate(encoded, start=1):
                entries.append(entry)
                keys.extend(entry_keys)
                if progress is not None:
                    progress(done)
        bank = cls.from_keys(
            encoder.identity,
            entries,
            keys,
            dims=(encoder.embed_dim, encoder.width),
            metadata={
                "patch_keys": patch_keys,
                INPUT: profile.as_json(),
                PRECISION: encoder.precision,
            }
            | layout_metadata(layout),
        )
        from mrad.memory.coreset import bounded

        return bounded(bank, encoder.grid**2)

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
        for level, dim in zip(LEVELS, (*(dims or (0, 0)), None)):
            chosen = [key for key in keys if key.level == level]
            dim = levels[1].dim if dim is None else dim
            dim = len(chosen[0].vector) if chosen else dim
            if any(len(key.vector) != dim for key in chosen):
                raise DimensionError(f"{level} keys differ in width")
            levels.append(LevelMemory.of(chosen, rows, dim))
        return cls(identity, tuple(entries), levels[0], levels[1], metadata or {}, local=levels[2])

    def add(self, entry: Entry, keys: Sequence[Key], thumbnail: bytes | None = None) -> MemoryBank:
        """A bank with one more entry. Calibration stays, for the operator to renew."""
        if not self.keeps_local:
            keys = [key for key in keys if key.level != "local"]
        pictures = dict(self.pictures)
        if self.keeps_local:
            add_picture(pictures, keys)
        dims = self.image.dim, self.patch.dim
        addition = MemoryBank.from_keys(self.identity, [entry], keys, dims=dims)
        levels = {}
        for name in LEVELS:
            new: LevelMemory = getattr(addition, name)
            new = replace(new, entry=new.entry + len(self.entries))
            levels[name] = getattr(self, name).join(new)
        return replace(
            self,
            **levels,
            entries=(*self.entries, entry),
            thumbnails=self.thumbnails | ({entry.entry_id: thumbnail} if thumbnail else {}),
            pictures=pictures,
            metadata={**self.metadata, SETTLED: self.settled},
            digest=None,
            changes=None,
        )

    def remove(self, entry_id: str) -> MemoryBank:
        """A bank without one entry. Raises `BankError` when there is no such entry."""
        row = self.row_of(entry_id)
        return replace(
            self,
            entries=self.entries[:row] + self.entries[row + 1 :],
            **{name: getattr(self, name).without_row(row) for name in LEVELS},
            thumbnails={key: jpeg for key, jpeg in self.thumbnails.items() if key != entry_id},
            pictures={key: one for key, one in self.pictures.items() if key != entry_id},
            metadata={**self.metadata, SETTLED: self.settled - (row < self.settled)},
            digest=None,
            changes=None,
        )

    def select(self, kept: npt.NDArray[np.bool_]) -> MemoryBank:
        """The bank of some entries, bool [entries], as if it had been built and taught with them alone.

        It is not calibrated: what is usual of the others may be unusual here.
        """
        entries = tuple(entry for entry, keep in zip(self.entries, kept) if keep)
        ids = [entry.entry_id for entry in entries]
        taught = {SETTLED: int(kept[: self.settled].sum())} if SETTLED in self.metadata else {}
        return replace(
            self,
            entries=entries,
            **{name: getattr(self, name).of_entries(kept) for name in LEVELS},
            calibration=None,
            thumbnails={i: self.thumbnails[i] for i in ids if i in self.thumbnails},
            pictures={i: self.pictures[i] for i in ids if i in self.pictures},
            metadata=self.metadata | taught,
            digest=None,
            changes=None,
        )

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """The products whose images it holds, by name; images of which nobody said are left out."""
        return tuple(sorted({entry.object_name for entry in self.entries} - {""}))

    def of_object(self, name: str) -> MemoryBank:
        """What it holds of one product. Raises `UnknownObjectError`, which names those held."""
        if name not in self.objects:
            raise UnknownObjectError(
                f"the memory holds no image of {name!r}; it holds {', '.join(self.objects)}"
                if self.objects
                else f"the memory holds no image of {name!r}: nobody said of any image which product it "
                "shows. Build it with a folder, or a column `object`, for each"
            )
        return self.select(np.array([entry.object_name == name for entry in self.entries]))

    @property
    def settled(self) -> int:
        """How many of the first entries heads take what is usual from: those it was built of.

        So a lesson adds a neighbour, and moves no scale that every image is judged on.
        """
        return min(int(self.metadata.get(SETTLED, len(self.entries))), len(self.entries))

    @property
    def composition(self) -> str:
        """How many images it holds, and which of them it learned after it was built."""
        if self.changes is None:
            return counted(len(self.entries), "image")
        built = len(self.entries) - self.changes.added + self.changes.removed
        return (
            f"{counted(len(self.entries), 'image')}: {built} as built, {self.changes.added} added and "
            f"{self.changes.removed} removed since ({self.changes.folder.name})"
        )

    @cached_property
    def profile(self) -> InputProfile:
        """What its pictures are like; empty for a bank that was built before this was stored."""
        return InputProfile.of(self.metadata.get(INPUT))

    @property
    def patch_keys(self) -> PatchKeys:
        """What a region of an image adds to this memory, so that later lessons add the same."""
        return cast(PatchKeys, self.metadata.get("patch_keys", REGIONS))

    @cached_property
    def layout(self) -> Layout:
        """Tiles, region of interest and parts of its images and of every query. Raises `DataError`."""
        return Layout.from_json(self.metadata.get(LAYOUT) or {})

    def tile_box(self, entry: Entry, tile: int) -> Box | None:
        """Where in an entry's image a tile lies, pixels; None where it is the whole image."""
        places = None if self.layout.plain else self._places_in(entry)
        return None if places is None else places.box_of(tile)

    def _places_in(self, entry: Entry) -> Places | None:
        """What is looked at in an entry's image; None for one that came from elsewhere: nobody knows."""
        try:
            size = entry.width, entry.height
            return self.layout.places(size) if all(size) else None
        except LayoutError:
            return None

    def places(self, pairs: Iterable[tuple[int, int]]) -> tuple[Place | None, ...]:
        """Where in their pictures tiles lie, each an entry's row and a number; None: nobody knows."""
        if self.layout.plain:
            return tuple(WHOLE for _ in pairs)
        by_size: dict[tuple[int, int], Places | None] = {}
        found = []
        for row, tile in pairs:
            entry = self.entries[row]
            size = entry.width, entry.height
            if size not in by_size:
                by_size[size] = self._places_in(entry)
            places = by_size[size]
            found.append(None if places is None else places.place_of(tile))
        return tuple(found)

    def row_of(self, entry_id: str) -> int:
        """Row of an entry. Raises `BankError` when there is no such entry."""
        for row, entry in enumerate(self.entries):
            if entry.entry_id == entry_id:
                return row
        raise BankError(f"the bank has no entry {entry_id}")

    def with_calibration(self, calibration: dict[str, Any] | None) -> MemoryBank:
        """The same memory with other thresholds and probabilities."""
        return replace(self, calibration=calibration, digest=None)

    @property
    def precision(self) -> str | None:
        """What the keys were encoded in, `fp32` or `bf16`; None where the bank does not say."""
        build = self.metadata.get("build") or {}
        named = {"float32": "fp32", "bfloat16": "bf16"}.get(build.get("precision", ""))
        found = self.metadata.get(PRECISION, named)
        return found if found in ("fp32", "bf16") else None

    def check(self, encoder: Encoder) -> None:
        """Raise the first thing that keeps `encoder` from querying this bank.

        `EncoderMismatchError`, `EmptyLevelError`, `DimensionError`, `NonFiniteError`. What a head
        needs of the memory beyond that, it checks itself (`mrad.heads.choose.problem`).
        """
        if self.identity != encoder.identity:
            raise EncoderMismatchError(
                f"the bank was built by {self.identity}, the encoder is {encoder.identity}; "
                "load that encoder, or build the bank again"
            )
        if not len(self.image):
            raise EmptyLevelError("the memory holds no image key; add images")
        self.image.check("image", encoder.embed_dim)
        self.patch.check("patch", encoder.width)
        self.local.check("local", encoder.width)

    def save(self, path: str | Path, *, replace: bool = False) -> MemoryBank:
        """Write the bank's folder, whole or not at all. Returns the bank with its digest.

        Raises `BankError` when `path` is a non-empty folder, unless `replace`.
        """
        from mrad.memory.store import save_bank

        return save_bank(self, Path(path), replace=replace)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        encoder: Encoder | None = None,
        verify: bool = True,
        living: bool = True,
    ) -> MemoryBank:
        """Read a bank's folder, and what a server taught it since, which lies beside it.

        Every file's digest is verified before it is parsed.

        Args:
            path: the bank's folder.
            encoder: refuse a bank of another one.
            verify: False skips the digests of the bank's files (a bank just written).
            living: with what was learned since it was built (`changes` says what); False: as built.

        Raises `BankNotFoundError`, `BankCorruptError`, `BankVersionError`, `BaseChangedError`; with
        `encoder` also whatever `check` raises.
        """
        from mrad.memory.living import with_changes
        from mrad.memory.store import load_contents

        bank = cls(**vars(load_contents(Path(path), verify=verify)))
        if living:
            bank = with_changes(bank, Path(path))
        if encoder is not None:
            bank.check(encoder)
        return bank
