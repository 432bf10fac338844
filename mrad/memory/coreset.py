"""Few keys that cover many: the greedy choice, and a level of the memory reduced by it."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.errors import DimensionError, MRADError, NonFiniteError
from mrad.memory.contents import LOCAL_KEYS, Contents
from mrad.memory.level import LevelMemory
from mrad.types import ANOMALOUS, NORMAL

B = TypeVar("B", bound=Contents)
PROJECTED = 128


@torch.inference_mode()
def greedy_coreset(
    vectors: Tensor, size: int, *, projected: int = PROJECTED, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Rows of `size` of the `vectors` [n, d] that cover the others best, in the order picked.

    Farthest-point greedy choice (Roth et al., PatchCore, 2022): within twice the smallest possible
    covering radius. Distances are taken after a random projection to `projected` dimensions where
    d is larger (Johnson and Lindenstrauss), 0 to keep all. Cost: n * size * projected.

    Raises `DimensionError`, `MRADError` for a size below 1, `NonFiniteError`.
    """
    if vectors.ndim != 2 or len(vectors) == 0:
        raise DimensionError(f"a coreset is chosen from vectors [n, d], not {list(vectors.shape)}")
    if size < 1:
        raise MRADError(f"a coreset of {size} vectors is none; ask for 1 or more")
    points = vectors.float()
    if not torch.isfinite(points).all():
        raise NonFiniteError("the vectors hold NaN or infinity")
    if 0 < projected < points.shape[1]:
        generator = torch.Generator().manual_seed(seed)
        basis = torch.randn(points.shape[1], projected, generator=generator) / projected**0.5
        points = points @ basis.to(points.device)
    square = points.square().sum(dim=1)
    centre = points.mean(dim=0)
    row = int((square - 2 * points @ centre).argmin())
    picked = np.empty(min(size, len(points)), dtype=np.int64)
    gap = torch.full_like(square, torch.inf)
    for place in range(len(picked)):
        picked[place] = row
        gap = torch.minimum(gap, square + square[row] - 2 * (points @ points[row]))
        gap[row] = -torch.inf
        row = int(gap.argmax())
    return picked


def reduced(level: LevelMemory, size: int) -> LevelMemory:
    """`size` keys of a level that cover it best, in their order; each class keeps its share.

    The share matters: at temperature 1 the number of a class's keys is its prior. Raises `MRADError`
    where that leaves a class without a key.
    """
    kept: list[npt.NDArray[np.int64]] = []
    for label in (NORMAL, ANOMALOUS):
        rows = np.flatnonzero(level.labels == label)
        if len(rows):
            wanted = round(size * len(rows) / len(level))
            if wanted < 1:
                raise MRADError(
                    f"a coreset of {size} of {len(level)} keys leaves none of the {len(rows)} "
                    f"{'anomalous' if label else 'normal'} ones; ask for {_least(level)} or more"
                )
            picked = greedy_coreset(torch.from_numpy(level.keys[rows]), wanted)
            kept.append(rows[picked])
    chosen = np.sort(np.concatenate(kept)) if kept else np.empty(0, dtype=np.int64)
    return level.take(chosen)


def _least(level: LevelMemory) -> int:
    """The smallest coreset that keeps a key of each class."""
    rarest = min(int((level.labels == label).sum()) for label in np.unique(level.labels))
    return len(level) // (2 * rarest) + 1


def bounded(bank: B, cells: int, most: int = LOCAL_KEYS) -> B:
    """The bank with at most `most` single patches: those of whole images, or tiles, that cover the others best.

    `cells`: patches of an image or tile. What shows a defect has a quarter of the room at most, good tiles of
    defective images none; they are chosen by their class features (`greedy_coreset`), and one good one is kept in
    any case. Chosen tile by tile, for a few large images would fill the memory, and say little of how good ones vary.
    The other levels stay as they are.
    """
    local, image = bank.local, bank.image
    if len(local) <= most:
        return bank
    views = list(zip(local.entry[::cells].tolist(), local.tile[::cells].tolist()))
    held = {view: place for place, view in enumerate(views)}
    place = np.array(
        [held.get(pair, -1) for pair in zip(image.entry.tolist(), image.tile.tolist())], np.int64
    )
    good = np.array([entry.label == NORMAL for entry in bank.entries])[image.entry]
    wanted = ((image.labels == ANOMALOUS, most // 4), ((image.labels == NORMAL) & good, most))
    kept = np.zeros(len(views), dtype=bool)
    for label, (chosen, room) in zip((ANOMALOUS, NORMAL), wanted):
        rows = np.flatnonzero(chosen & (place >= 0))
        count = room // cells - int(kept.sum())
        if label == NORMAL:
            count = max(1, count)
        if len(rows) and count > 0:
            keys = torch.from_numpy(np.ascontiguousarray(image.keys[rows]))
            kept[place[rows[greedy_coreset(keys, min(count, len(rows)))]]] = True
    return replace(bank, local=local.take(np.repeat(kept, cells)))
