"""What hand-made methods read of a picture's cells: targets that keep it all readable.

A small tower that learns from few pictures forgets what it has no use for yet; asked to let these be
read off its patch features by one linear layer, it cannot.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = (1.0, 2.0, 4.0)
"""Deviations of the Gaussians, pixels."""
PLANES = 1 + 4 * len(SCALES)
STATISTICS = 5 * PLANES
MIXES = 64
FLOOR = 0.02
"""Of energies before the logarithm, in deviations of OpenAI's normalisation."""


@torch.no_grad()
def statistics(pixels: Tensor, grid: int) -> Tensor:
    """[B, 3, S, S] normalised -> [B, N, STATISTICS].

    Level, gradients, blobs and spread at three scales: a cell's mean and peak, each less its
    surroundings and less the picture's mean, and how far from the picture's mean, either way.
    """
    planes = _planes(pixels.mean(dim=1, keepdim=True))
    cell = pixels.shape[-1] // grid
    mean, peak = F.avg_pool2d(planes, cell), F.max_pool2d(planes, cell)
    around = F.avg_pool2d(mean, 5, 1, 2, count_include_pad=False)
    whole = mean.mean(dim=(2, 3), keepdim=True)
    # By two means: ten times faster than `std`.
    variance = planes.square().mean(dim=(2, 3), keepdim=True) - whole.square()
    spread = variance.clamp_min(0.01).sqrt()
    far = ((mean - whole) / spread).abs()
    parts = [mean, peak - mean, mean - around, (mean - whole) / spread, far]
    return torch.cat(parts, dim=1).flatten(2).transpose(1, 2)


def _planes(grey: Tensor) -> Tensor:
    """[B, 1, S, S] -> [B, PLANES, S, S]; all but the level itself in logarithms."""
    planes = []
    for scale in SCALES:
        smooth = _blur(grey, scale)
        gy, gx = torch.gradient(smooth, dim=(2, 3))
        energy = _blur(grey.square(), scale) - smooth.square()
        blobs = smooth - _blur(grey, 2 * scale)
        planes += [gx.abs(), gy.abs(), blobs.abs(), energy.clamp_min(0).sqrt()]
    return torch.cat([grey, (torch.cat(planes, dim=1) + FLOOR).log()], dim=1)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """As two matrix products: one-channel convolutions are ten times slower."""
    matrix = _gaussian(image.shape[-1], sigma).to(image.device)
    return matrix @ image @ matrix.T


@lru_cache(maxsize=32)
def _gaussian(side: int, sigma: float) -> Tensor:
    place = torch.arange(side, dtype=torch.float32)
    weights = torch.exp(-(place[:, None] - place).square() / (2 * sigma**2))
    return weights / weights.sum(dim=1, keepdim=True)


class Targets:
    """What patch features are asked to hold, each of mean 0 and deviation 1 on a sample: the
    statistics, and bounded mixes of them, which a linear layer cannot make by itself."""

    def __init__(self, sample: Tensor, grid: int) -> None:
        """`sample` [B, 3, S, S], normalised."""
        device = sample.device
        generator = torch.Generator().manual_seed(0)
        mixes = torch.randn(STATISTICS, MIXES, generator=generator) * (2 / STATISTICS**0.5)
        for column in range(MIXES // 2):  # half of them mix three
            few = torch.randperm(STATISTICS, generator=generator)[:3]
            mixes[:, column] = 0
            mixes[few, column] = torch.randn(3, generator=generator)
        self._mixes = mixes.to(device)
        self._offsets = torch.randn(MIXES, generator=generator).to(device)
        found = statistics(sample, grid).flatten(0, 1)
        self._mean, self._deviation = found.mean(0), found.std(0).clamp_min(1e-3)
        mixed = self._mixed(self._standard(found))
        self._mixed_mean, self._mixed_deviation = mixed.mean(0), mixed.std(0)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, grid: int) -> Tensor:
        """[B, 3, S, S] -> [B, N, STATISTICS + MIXES]."""
        standard = self._standard(statistics(pixels, grid))
        mixed = (self._mixed(standard) - self._mixed_mean) / self._mixed_deviation
        return torch.cat([standard, mixed], dim=-1)

    def _standard(self, found: Tensor) -> Tensor:
        return ((found - self._mean) / self._deviation).clamp(-5, 5)

    def _mixed(self, standard: Tensor) -> Tensor:
        return torch.tanh(standard @ self._mixes + self._offsets)
