"""Several memories of one encoder -> one, which knows where each image came from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mrad.errors import EncoderMismatchError, MergeError
from mrad.images.guard import InputProfile
from mrad.memory.bank import INPUT, MemoryBank
from mrad.memory.contents import SETTLED
from mrad.memory.coreset import bounded
from mrad.memory.entry import Entry
from mrad.types import NORMAL, FloatArray
from mrad_indexer.known import SAME_IMAGE

ALIKE = 0.999
"""Cosine of class features from which two images may be one picture, perhaps saved again."""
PATCHES = 0.95
"""Cosine that every patch must have then: measured with `mrad-mini`, a picture recompressed or resized
has 0.98 or more, and one that differs by a small defect 0.4 or less where that is."""
BLOCK = 1_024


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A memory that goes into another."""

    name: str
    """What people call it: its folder."""
    bank: MemoryBank


@dataclass(frozen=True)
class Double:
    """The same picture in two memories, or twice in one."""

    one: str
    other: str
    """Memory and source of each."""
    contradict: bool
    """One is said to be good, the other defective."""


@dataclass(frozen=True)
class Merged:
    """What came of it."""

    bank: MemoryBank
    doubles: tuple[Double, ...]
    repeated: int
    """Entries that two memories shared, and that stand once."""
    shared: tuple[str, ...]
    """Products that more than one of the memories names: they are one from now on."""
    without_patches: tuple[str, ...]
    """Good images of these memories are not compared with by `nn`: they kept no patches."""


def merge(parts: Sequence[Part]) -> Merged:
    """Join memories, in their order. Every entry keeps its own facts; calibrations do not carry over.

    Raises `EncoderMismatchError` for memories of two encoders, `MergeError` for those that look at
    pictures, read them, or keep patch keys in two ways.
    """
    first = parts[0]
    for part in parts[1:]:
        _check(first, part)
    bank, repeated = first.bank, 0
    names = [first.name] * len(first.bank.entries)
    for part in parts[1:]:
        known = {entry.entry_id for entry in bank.entries}
        fresh = np.array([entry.entry_id not in known for entry in part.bank.entries], dtype=bool)
        repeated += int((~fresh).sum())
        added = part.bank if fresh.all() else part.bank.select(fresh)
        names += [part.name] * len(added.entries)
        bank = _joined(bank, added)
    lacking = [
        part.name
        for part in parts
        if len(bank.local) and not len(part.bank.local) and part.bank.image.counts[0]
    ]
    if len(bank.local):
        bank = bounded(bank, _cells(bank))
    bank = replace(bank, metadata=_metadata(parts), calibration=None, digest=None, changes=None)
    named = Counter(name for part in parts for name in part.bank.objects)
    shared = tuple(name for name, count in named.items() if count > 1)
    return Merged(bank, tuple(doubles_of(bank, names)), repeated, shared, tuple(lacking))


def _check(one: Part, other: Part) -> None:
    a, b = one.bank, other.bank
    if a.identity != b.identity:
        raise EncoderMismatchError(
            f"{one.name} was built by {a.identity}, {other.name} by {b.identity}: their keys do not "
            "compare. Build one of them again from its images with the other's encoder (mrad build "
            "--encoder, --pretrained, --image-size)"
        )
    if a.layout != b.layout:
        raise MergeError(
            f"{one.name} and {other.name} look at pictures in two ways (tiles, region of interest, "
            "parts), and a query can be looked at in one: build one of them again as the other was"
        )
    if a.patch_keys != b.patch_keys:
        raise MergeError(
            f"{one.name} keeps patch keys by `{a.patch_keys}`, {other.name} by `{b.patch_keys}`: one "
            "would outnumber the other. Build one of them again with the other's --patch-keys"
        )
    depths, others = a.profile.depths, b.profile.depths
    odd = sorted(kind for kind in depths.keys() & others.keys() if depths[kind] != others[kind])
    if odd or a.profile.bit_depth != b.profile.bit_depth:
        what = ", ".join(odd) or "pictures"
        raise MergeError(
            f"{one.name} and {other.name} were read at two bit depths ({what}), and a query can be read "
            "at one: build one of them again with the other's --bit-depth"
        )


def _joined(bank: MemoryBank, other: MemoryBank) -> MemoryBank:
    offset, levels = len(bank.entries), {}
    for name in ("image", "patch", "local"):
        level = getattr(other, name)
        joined = getattr(bank, name).join(replace(level, entry=level.entry + offset))
        levels[name] = replace(joined, folder=None, reference=None)
    return replace(
        bank,
        entries=(*bank.entries, *other.entries),
        thumbnails={**dict(bank.thumbnails.items()), **dict(other.thumbnails.items())},
        pictures={**bank.pictures, **other.pictures},
        **levels,
    )


def _cells(bank: MemoryBank) -> int:
    """Patches of an image or tile: what its first one has."""
    local = bank.local
    return int(((local.entry == local.entry[0]) & (local.tile == local.tile[0])).sum())


def _metadata(parts: Sequence[Part]) -> dict[str, Any]:
    """Of the first, with the build of each."""
    kept = {name: fact for name, fact in parts[0].bank.metadata.items() if name != SETTLED}
    if len(precisions := {part.bank.precision for part in parts} - {None}) > 1:
        logger.warning(
            "the memories were encoded in %s: keys of one compare a little differently with images than "
            "those of the other",
            " and ".join(sorted(map(str, precisions))),
        )
    profile: InputProfile | None = None
    builds = []
    for part in parts:
        own = part.bank.profile
        profile = own if profile is None else profile.joined(own)
        build = part.bank.metadata.get("build") or {}
        builds.append(
            {
                "bank": part.name,
                "digest": part.bank.digest,
                "entries": len(part.bank.entries),
                "composition": part.bank.composition,
                "build": build,
            }
        )
    if profile is not None and profile.images:
        kept[INPUT] = profile.as_json()
    origins = [origin for built in builds if (origin := (built["build"] or {}).get("origin"))]
    kept["build"] = {
        "merged": builds,
        "origin": {"merged": origins} if len(origins) == len(parts) else None,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "mrad": version("mrad"),
        **{
            name: [item for built in builds for item in built["build"].get(name, [])]
            for name in ("skipped", "doubtful", "too_small")
        },
    }
    return kept


def doubles_of(bank: MemoryBank, names: Sequence[str]) -> list[Double]:
    """Pairs of entries that show one picture, by class feature; each entry is named once.

    `names`: the memory that each entry came from. Entries of which tiles alone are held are left out.
    """
    single = np.flatnonzero(np.bincount(bank.image.entry, minlength=len(bank.entries)) == 1)
    rows = np.flatnonzero(np.isin(bank.image.entry, single))
    keys = torch.from_numpy(np.ascontiguousarray(bank.image.keys[rows]))
    places = {entry: np.flatnonzero(bank.local.entry == entry) for entry in single.tolist()}
    found: list[Double] = []
    told: set[int] = set()
    for start in range(0, len(rows), BLOCK):
        close = keys[start : start + BLOCK] @ keys.T
        for one, other in ((close >= ALIKE).nonzero() + torch.tensor([start, 0])).tolist():
            if one >= other or other in told:
                continue
            a, b = (int(bank.image.entry[rows[place]]) for place in (one, other))
            left, right = (bank.local.keys[places[entry]] for entry in (a, b))
            if not _one_picture(left, right, float(close[one - start, other])):
                continue
            told.add(other)
            first, second = bank.entries[a], bank.entries[b]
            pair = _called(names[a], first), _called(names[b], second)
            found.append(Double(*pair, first.label != second.label))
    return found


def _one_picture(one: FloatArray, other: FloatArray, whole: float) -> bool:
    """Whether every patch [N, W] is alike; where patches are not held, by the class feature alone."""
    if not len(one) or len(one) != len(other):
        return whole > SAME_IMAGE
    patches = F.cosine_similarity(torch.from_numpy(one), torch.from_numpy(other))
    return bool((patches >= PATCHES).all())


def _called(name: str, entry: Entry) -> str:
    label = "good" if entry.label == NORMAL else "defective"
    return f"{name}: {entry.source or entry.entry_id} ({label})"
