"""What image probability is usual of a good tile, place by place."""

from __future__ import annotations

import numpy as np
import torch

from mrad.heads import Head
from mrad.heads.good_parts.standard import TILE_WEIGHT
from mrad.heads.tf import TFHead
from mrad.memory.bank import MemoryBank
from mrad.retrieval.lessons import judged
from mrad.types import NORMAL, Place

MOST = 20_000
"""Image keys that are compared with each other; of more, so many at random are asked."""


@torch.inference_mode()
def levels_by_place(bank: MemoryBank, head: Head) -> dict[Place | None, float]:
    """How far a good tile's probability at a place lies above that of good tiles in general.

    TF's probability follows the share of defective keys among those that a tile resembles, and tiles
    of one place resemble each other: where defects are often, good tiles have high values too. The
    strongest tile of a picture would then be the one that lies there, whatever it shows.

    From the bank's own good tiles, each without its picture's keys; of `tf`, others need none.
    """
    level = bank.image
    if bank.layout.tiling is None or not isinstance(head, TFHead):
        return {}
    rows = np.flatnonzero(level.labels == NORMAL)
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST, replace=False))
    places = bank.places(zip(level.entry[rows].tolist(), level.tile[rows].tolist()))
    if len(set(places)) < 2:
        return {}
    own = torch.from_numpy(level.entry[rows])
    found = judged(head.image, level, torch.from_numpy(level.keys[rows]), own)
    values = found.cpu().double().numpy()
    overall, by_place = float(values.mean()), dict[Place | None, list[float]]()
    for place, value in zip(places, values.tolist()):
        if place is not None:
            by_place.setdefault(place, []).append(value - overall)
    return {place: sum(own) / (len(own) + TILE_WEIGHT) for place, own in by_place.items()}
