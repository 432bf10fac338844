"""Which pictures a bank holds already: they must not retrieve themselves, and figures with them flatter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mrad.detector import Decoded, Detector
from mrad.encoder.encoder import Features
from mrad.encoder.stream import prepare_tile
from mrad.memory.bank import MemoryBank

SAME_IMAGE = 0.99999
"""Cosine of class features from which an image is taken for the bank's own copy of it."""


def rows_by_features(features: Features, bank: MemoryBank) -> list[int]:
    """For each image that is looked at whole: the row of the entry with its class feature, or -1."""
    keys = torch.from_numpy(bank.image.keys).to(features.class_feature.device)
    best = (features.class_query() @ keys.T).max(dim=1)
    return [
        int(bank.image.entry[key]) if value > SAME_IMAGE else -1
        for value, key in zip(best.values.tolist(), best.indices.tolist())
    ]


def rows_by_tiles(detector: Detector, decoded: Sequence[Decoded]) -> list[int]:
    """The same for images that are cut: by the tile in the middle, of entries of the same size.

    One tile more is encoded for each image. Corners are often empty, and alike in every image.
    """
    bank, encoder = detector.bank, detector.encoder
    sizes = np.array([(entry.width, entry.height) for entry in bank.entries]).reshape(-1, 2)
    found = []
    for item in decoded:
        tile = item.places.tiles[len(item.places.tiles) // 2]
        query = encoder.encode_prepared([prepare_tile(encoder, item.looked_at, tile)]).class_query()
        same = (sizes == item.size).all(axis=1)[bank.image.entry] & (bank.image.tile == tile.number)
        places = np.flatnonzero(same)
        row = -1
        if len(places):
            cosine = bank.image.keys[places] @ query[0].cpu().numpy()
            best = int(cosine.argmax())
            row = int(bank.image.entry[places[best]]) if cosine[best] > SAME_IMAGE else -1
        found.append(row)
    return found
