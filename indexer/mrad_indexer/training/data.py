"""What training reads: cached features, masks at the encoder's size, and the memory's keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrad.encoder.encoder import Encoder
from mrad.errors import DataError
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key
from mrad.memory.keys import Piece, keys_of
from mrad.types import BoolArray
from mrad_indexer.datasets import Record
from mrad_indexer.training.cache import CachedFeatures, FeatureCache


@dataclass(frozen=True)
class TrainingSet:
    """Labelled images as training sees them."""

    features: CachedFeatures
    labels: Tensor
    """int64 [n]."""
    packed: np.ndarray
    """uint8 [n, S * S / 8]: masks cut at 0.5 at the encoder's size, a bit a pixel."""
    masked: Tensor
    """bool [n]: whether the mask is known; a defect without one trains the image level only."""
    image_size: int
    bank: MemoryBank
    """The memory that is retrieved from."""

    def __len__(self) -> int:
        return len(self.labels)

    def masks(self, rows: Sequence[int]) -> Tensor:
        """bool [len(rows), S, S]."""
        side = self.image_size
        bits = np.unpackbits(self.packed[list(rows)], axis=1, count=side * side)
        return torch.from_numpy(bits.view(bool)).view(-1, side, side)


def training_set(
    encoder: Encoder,
    records: Sequence[Record],
    cache: Path,
    *,
    bank: MemoryBank | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingSet:
    """Encode what is not in the cache, read the masks, and take `bank` or build it of the same images.

    Raises `DataError`, `ImageError`, `MaskError`, and what `MemoryBank.check` raises.
    """
    images = [record.image for record in records]
    features = FeatureCache(cache, encoder).features(images, progress=progress)
    entries: list[Entry] = []
    keys: list[Key] = []
    packed, known = [], []
    for row, record in enumerate(records):
        size = features.sizes[row]
        mask = record.read_mask(size)
        packed.append(_packed(mask, encoder.image_size))
        known.append(mask is not None)
        if bank is None:
            entry = Entry.of(record.sample(), size, "train")
            entries.append(entry)
            piece = Piece(0, record.anomalous, mask)
            keys.extend(keys_of(encoder, features.batch([row]), 0, entry, piece))
    bank = bank or MemoryBank.from_keys(
        encoder.identity, entries, keys, dims=(encoder.embed_dim, encoder.width)
    )
    bank.check(encoder)
    if not any(known):
        raise DataError("no image has a known mask, and the patch level trains on masks")
    labels = torch.tensor([int(record.anomalous) for record in records])
    return TrainingSet(
        features, labels, np.stack(packed), torch.tensor(known), encoder.image_size, bank
    )


def _packed(mask: BoolArray | None, side: int) -> np.ndarray:
    if mask is None or not mask.any():
        return np.zeros((side * side + 7) // 8, np.uint8)
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = np.asarray(grey.resize((side, side), Image.Resampling.BILINEAR))
    return np.packbits(resized / 255.0 > 0.5)
