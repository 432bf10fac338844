"""Sets of real parts, encoded once, and memories made of some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.records import Record
from PIL import Image

from benchmarks.mini import resized
from mrad.encoder.encoder import Encoder, Features
from mrad.images.reader import load_image
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key
from mrad.memory.keys import Piece, keys_of
from mrad.types import Sample

SETS = ("elpv", "bsdata", "textile", "magnetic_tile", "deep_pcb")
BATCH = 8
Move = Callable[[Image.Image, Image.Resampling], Image.Image]
"""What is done to a picture, or to its mask, and how it is resampled."""


def present(data: Path) -> list[str]:
    """Those of `SETS` that are in a folder. Raises `FileNotFoundError`."""
    if not data.is_dir():
        raise FileNotFoundError(f"{data} holds the sets, and is not there")
    return [name for name in SETS if (data / name).is_dir()]


@dataclass(frozen=True)
class Pictures:
    """n pictures of one set and what is true of them."""

    encoder: Encoder
    features: Features
    labels: np.ndarray
    """bool [n], True for defective."""
    masks: np.ndarray
    """bool [n, S, S]."""
    masked: bool
    """Whether its defects have masks."""
    _kept: dict[tuple[int, bool], tuple[Entry, list[Key]]] = field(default_factory=dict)

    @classmethod
    def read(cls, encoder: Encoder, folder: Path, good: int, bad: int) -> Pictures:
        """At most so many good and so many defective pictures of a set, the same at each call."""
        return cls.of(encoder, _some(read_dataset(folder).records, good, bad))

    @classmethod
    def of(cls, encoder: Encoder, records: Sequence[Record], move: Move | None = None) -> Pictures:
        """Pictures of one set; `move`: done to each of them, and to its mask."""
        features, masks = [], []
        for start in range(0, len(records), BATCH):
            prepared = []
            for record in records[start : start + BATCH]:
                picture = load_image(record.image)
                mask = record.read_mask(picture.size)
                mask = np.zeros(picture.size[::-1], bool) if mask is None else mask
                if move is not None:
                    picture = move(picture, Image.Resampling.BICUBIC)
                    shown = Image.fromarray(mask.astype(np.uint8) * 255)
                    mask = np.asarray(move(shown, Image.Resampling.NEAREST)) > 0
                masks.append(resized(mask, encoder.image_size))
                prepared.append(encoder.prepare(picture))
            features.append(encoder.encode_prepared(prepared))
        labels = np.array([record.anomalous for record in records])
        known = all(record.mask is not None for record in records if record.anomalous)
        return cls(encoder, Features.cat(features), labels, np.stack(masks), known)

    def take(self, rows: Sequence[int]) -> Features:
        """Their features, in that order."""
        chosen, found = torch.as_tensor(rows), self.features
        raw = None if found.patch_raw is None else found.patch_raw[chosen]
        return Features(found.class_feature[chosen], found.patch[chosen], raw)

    def bank(self, rows: Sequence[int], masks: bool) -> MemoryBank:
        """A memory of these pictures, its defects with or without their masks."""
        pieces = [self._piece(int(row), masks and bool(self.labels[row])) for row in rows]
        keys = [key for _, own in pieces for key in own]
        dims = (self.encoder.embed_dim, self.encoder.width)
        entries = [entry for entry, _ in pieces]
        return MemoryBank.from_keys(self.encoder.identity, entries, keys, dims=dims)

    def _piece(self, row: int, mask: bool) -> tuple[Entry, list[Key]]:
        if (row, mask) not in self._kept:
            bad, side = bool(self.labels[row]), self.encoder.image_size
            blank = np.zeros((1, 1), np.uint8)
            entry = Entry.of(Sample(blank, bad, source=str(row)), (side, side))
            piece = Piece(0, bad, self.masks[row] if mask else None)
            keys = keys_of(self.encoder, self.take([row]), 0, entry, piece)
            self._kept[row, mask] = entry, keys
        return self._kept[row, mask]

    def drawn(self, seed: int, good: int, bad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of `good` good parts, of `bad` defects, and of all others, by a seed."""
        rng = np.random.default_rng(seed)
        fine = rng.permutation(np.flatnonzero(~self.labels))
        broken = rng.permutation(np.flatnonzero(self.labels))
        return fine[:good], broken[:bad], np.concatenate([fine[good:], broken[bad:]])


def _some(records: Sequence[Record], good: int, bad: int) -> list[Record]:
    rng, found = np.random.default_rng(0), []
    for wanted, anomalous in ((good, False), (bad, True)):
        own = [record for record in records if record.anomalous == anomalous]
        found += [own[i] for i in np.sort(rng.permutation(len(own))[:wanted])]
    return found
