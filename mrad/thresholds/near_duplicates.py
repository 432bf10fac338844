"""Photographs of the very same thing, as in a burst: together they say no more than one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mrad.encoder.encoder import Features
from mrad.heads.nn import NEAR_DUPLICATE

WIDTH = 512
"""Of a sketch: the distance of two images is kept within a few percent of itself."""
BLOCK = 1_024


@torch.inference_mode()
def sketches(features: Features) -> Tensor:
    """The patches of B images, place by place, as float32 [B, WIDTH]; cosines are kept closely.

    Every number is added, with a random sign, to one of `WIDTH` places: always the same.
    """
    sheets = F.normalize(features.local_query().flatten(1).cpu(), dim=1)
    drawn = torch.Generator().manual_seed(0)
    place = torch.randint(WIDTH, (sheets.shape[1],), generator=drawn)
    sign = torch.randint(2, (sheets.shape[1],), generator=drawn) * 2.0 - 1
    return torch.zeros(len(sheets), WIDTH).index_add_(1, place, sheets * sign)


def groups_of(
    found: Sequence[Tensor | None], known: Sequence[int] | None = None
) -> npt.NDArray[np.int64]:
    """A number for each image [n]: doubles share it, and doubles of doubles. None: alone.

    `known`: of each image the group that it is known to be of, -1 for none.
    """
    group = np.arange(len(found))
    if known is not None:
        first: dict[int, int] = {}
        for row, number in enumerate(known):
            group[row] = first.setdefault(number, row) if number >= 0 else row
    rows = np.array([i for i, sketch in enumerate(found) if sketch is not None], dtype=np.int64)
    if not len(rows):
        return group
    sheets = F.normalize(torch.stack([sketch for sketch in found if sketch is not None]), dim=1)
    for start in range(0, len(sheets), BLOCK):
        close = sheets[start : start + BLOCK] @ sheets.T >= NEAR_DUPLICATE
        for one, other in close.nonzero().tolist():
            one += start
            if one < other and group[rows[one]] != group[rows[other]]:
                group[group == group[rows[other]]] = group[rows[one]]
    return group
