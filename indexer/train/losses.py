"""The losses of METHOD.md, Training. Maps are probabilities, never logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrad.maps import map_operator

EPSILON = 1e-5


def upsampled(patch: Tensor, image_size: int) -> Tensor:
    """Patch probabilities [B, N] -> map [B, S, S], bilinear, without the blur of inference."""
    grid = round(patch.shape[1] ** 0.5)
    operator = map_operator(grid, image_size, 0.0).to(patch.device)
    return operator @ patch.view(-1, grid, grid) @ operator.T


def focal_loss(anomalous: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss of the two-channel map (1 - p, p); mean over pixels.

    `anomalous` p [B, S, S] in [0, 1]; `mask` bool [B, S, S]. One-hot targets are clamped to
    [1e-5, 1 - 1e-5] and 1e-5 is added to the picked probability; no class weight.
    """
    picked = torch.where(mask, anomalous, 1 - anomalous)
    picked = (1 - EPSILON) * picked + EPSILON * (1 - picked) + EPSILON
    return -((1 - picked) ** gamma * picked.log()).mean()


def dice_loss(probability: Tensor, mask: Tensor) -> Tensor:
    """1 - mean over images of (2 |p m| + 1) / (|p| + |m| + 1); both [B, S, S]."""
    target = mask.to(probability.dtype)
    overlap = (probability * target).flatten(1).sum(dim=1)
    total = probability.flatten(1).sum(dim=1) + target.flatten(1).sum(dim=1)
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()


def image_loss(probability: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Cross-entropy that takes the probabilities (1 - p, p) / temperature as logits.

    `probability` p [B], `labels` int64 [B].
    """
    logits = torch.stack([1 - probability, probability], dim=1) / temperature
    return F.cross_entropy(logits, labels)
