"""Which entry of the residual stream holds what, when the tower starts."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Tensor

COLOUR_MIXES = ((1, 0, -1), (1, -2, 1))
COLOURS = 24
"""Responses of each of the two colour differences."""
KEPT_GREY, KEPT_COLOUR = 16, 4
"""Lowest responses that stay in the stream as they are."""
POSITION_AMPLITUDE, CONSTANT = 0.5, 16.0
"""The constant keeps layer norms from taking a patch's contrast away."""
RADII = (1.2, 2.3, 3.5, 5.0, 7.0, 9.5)


class Layout:
    """Entries of a stream of `width` for square patches of `patch` pixels."""

    rates = torch.tensor([0.08, 0.16, 0.25, 0.36, 0.5, 0.66, 0.85, 1.1])
    """Of the position table, radians a cell."""

    def __init__(self, patch: int, width: int) -> None:
        self.patch, self.width, self.grey = patch, width, patch * patch
        self.order = sorted(
            np.ndindex(patch, patch), key=lambda index: (sum(i * i for i in index), index)
        )
        self.pixels = self.grey + 2 * COLOURS
        count = 4 * len(self.rates)
        self.positions = torch.arange(self.pixels, self.pixels + count)
        self.constant = self.pixels + count
        low = [
            *range(KEPT_GREY),
            *range(self.grey, self.grey + KEPT_COLOUR),
            *range(self.grey + COLOURS, self.grey + COLOURS + KEPT_COLOUR),
        ]
        self.kept = torch.tensor([*low, *self.positions.tolist(), self.constant])
        self.bands = self._bands()
        rest = torch.tensor(sorted(set(range(width)) - set(self.kept.tolist())))
        plain, energies = int(self.bands.max()) + 1, sum(p.shape[1] for p in band_pools(self))
        self.energies = rest[:energies]
        self.plain = torch.cat([self.energies[:plain], torch.tensor([0, self.grey])])
        """Energies at the first threshold, and the levels of grey and of a colour difference."""
        contexts = 2 * len(self.plain)
        self.context = rest[energies : energies + contexts]
        self.free = rest[energies + contexts :]

    def _bands(self) -> Tensor:
        """[grey]: the band of each grey response by radius and direction; -1 for the level."""
        names = []
        for row, column in self.order:
            radius = int(np.searchsorted(RADII, np.hypot(row, column)))
            direction = 0 if row > 2 * column else 1 if column > 2 * row else 2
            names.append(3 * radius + direction if row or column else -1)
        present = sorted(set(names) - {-1})
        return torch.tensor([present.index(n) if n >= 0 else -1 for n in names])


def band_pools(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Of rectified responses [.., pixels], for each threshold: matrices [pixels, bands]."""
    grey = torch.zeros(layout.pixels, int(layout.bands.max()) + 1)
    for place, band in enumerate(layout.bands.tolist()):
        if band >= 0:
            grey[place, band] = 1
    colour = torch.zeros(layout.pixels, 4)
    for place in range(2 * COLOURS):
        coarse = place % COLOURS < COLOURS // 4
        colour[layout.grey + place, 2 * (place // COLOURS) + (0 if coarse else 1)] = 1
    grey, colour = (p / p.sum(0).sqrt() for p in (grey, colour))
    return torch.cat([grey, colour], 1), torch.cat([grey, colour], 1), grey


def cosine_filters(layout: Layout, sample: Tensor) -> Tensor:
    """[W, 3, p, p]: cosine transforms of grey and of two colour differences, white on `sample`.

    A patch then enters without loss, where random filters would drown its detail in its mean.
    """
    filters = torch.zeros(layout.width, 3, layout.patch, layout.patch)
    counts = (layout.grey, COLOURS, COLOURS)
    place = 0
    for mix, count in zip(((1, 1, 1), *COLOUR_MIXES), counts):
        channel = torch.tensor(mix, dtype=torch.float32).view(3, 1, 1)
        for index in layout.order[:count]:
            impulse = np.zeros((layout.patch, layout.patch), dtype=np.float32)
            impulse[index] = 1
            basis = torch.from_numpy(dctn(impulse, type=3, norm="ortho")).float()
            filters[place] = channel / channel.norm() * basis
            place += 1
    responses = F.conv2d(sample, filters[:place], stride=layout.patch)
    filters[:place] /= responses.std(dim=(0, 2, 3)).clamp_min(0.02).view(-1, 1, 1, 1)
    return filters


def position_table(layout: Layout, grid: int) -> Tensor:
    """[1 + grid**2, W]: sines and cosines of row and column, and the constant."""
    angle = torch.arange(grid)[:, None] * layout.rates
    waves = POSITION_AMPLITUDE * torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    table = torch.zeros(1 + grid * grid, layout.width)
    table[1:, layout.positions] = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    table[:, layout.constant] = CONSTANT
    return table
