"""The losses of docs/method.md, on patch probabilities: never logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mrad.maps import map_operator

EPSILON = 1e-5
TINY = 1e-12
"""Keeps powers of 1 - p finite where p is 1."""


class _Focal(torch.autograd.Function):
    """Focal loss and its gradient in one pass, an image at a time: its map stays in the cache."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, mask: Tensor, operator: Tensor, gamma: float) -> Tensor:
        """`cells` p [B, g, g], `mask` bool [B, S, S], `operator` [S, g]."""
        total, gradient = cells.new_zeros(()), torch.empty_like(cells)
        for image, (values, inside) in enumerate(zip(cells, mask)):
            predicted = operator @ values @ operator.T
            picked = torch.where(inside, predicted, 1 - predicted)
            picked.mul_(1 - 2 * EPSILON).add_(2 * EPSILON)
            log, rest = picked.log(), (1 - picked).clamp_(min=TINY)
            power = rest**gamma
            total -= torch.dot(power.flatten(), log.flatten())
            slope = (gamma * log).mul_(power / rest).sub_(power / picked)
            gradient[image] = operator.T @ torch.where(inside, slope, -slope) @ operator
        ctx.save_for_backward(gradient.mul_((1 - 2 * EPSILON) / mask.numel()))
        return total / mask.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None, None


def focal_loss(patch: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss of the two-channel upsampled map (1 - p, p); mean over pixels.

    `patch` p [B, N] in [0, 1]; `mask` bool [B, S, S]. One-hot targets are clamped to
    [1e-5, 1 - 1e-5] and 1e-5 is added to the picked probability; no class weight.
    """
    operator = _operator(patch, mask)
    cells = patch.view(len(patch), operator.shape[1], operator.shape[1])
    loss: Tensor = _Focal.apply(cells, mask, operator, gamma)
    return loss


def dice_loss(patch: Tensor, mask: Tensor) -> Tensor:
    """1 - mean over images of (2 |p m| + 1) / (|p| + |m| + 1) of the upsampled map.

    `patch` p [B, N], `mask` bool [B, S, S]. Upsampling is linear, so |p m| is the product of the
    patches with the mask brought to the grid by the transpose, and |p| that with a mask of ones.
    """
    operator, target = _operator(patch, mask), mask.to(patch.dtype)
    overlap = (patch * (operator.T @ target @ operator).flatten(1)).sum(dim=1)
    reach = operator.sum(dim=0)
    total = patch @ torch.outer(reach, reach).flatten() + target.sum(dim=(1, 2))
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()


def _operator(patch: Tensor, mask: Tensor) -> Tensor:
    """[S, g]: bilinear upsampling of one axis, without the blur of inference."""
    return map_operator(round(patch.shape[1] ** 0.5), mask.shape[-1], 0.0).to(patch.device)


def image_loss(probability: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Cross-entropy that takes the probabilities (1 - p, p) / temperature as logits.

    `probability` p [B], `labels` int64 [B].
    """
    logits = torch.stack([1 - probability, probability], dim=1) / temperature
    return F.cross_entropy(logits, labels)
