"""After the last step: patch features are made nearly white on flawless cells.

MRAD-TF compares by cosine at temperature one, which is nearly a projection on the difference of two
class means. On white features that is Fisher's discriminant; where a few directions hold most of the
variance (brightness, contrast), it compares by little else.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.model import average, before_last
from pretraining.start import attend, ridge

FLOOR = 5.0
"""Variance of a direction, of the mean direction's, that whitening adds before it divides."""
RIDGE = 1e-4
IDLE = 1e-3
"""Of the largest scale of `ln_post`: entries below carry positions and the constant."""
NARROW = 0.02
"""Least deviation that `ln_post` raises to one."""
CLASS_WEIGHT = 100.0
"""Of a class token beside a cell, where the projection is solved for: there are few."""


@torch.no_grad()
def whiten(visual: Any, pixels: Tensor, cells: Tensor) -> float:
    """Solve the last block's output projection and `ln_post` for whitened patch features, and
    `proj` so that captions meet what they met.

    `pixels` [B, 3, S, S] normalised, `cells` [B, N] as in `losses.Batch`. Returns the share of the
    wanted features that is explained.
    """
    block, norm = visual.transformer.resblocks[-1], visual.ln_post
    stream, path = before_last(visual, pixels)
    token, features = _read(visual, stream, path)
    joint = torch.cat([features.flatten(0, 1), token]) @ visual.proj
    active = norm.weight.abs() > IDLE * norm.weight.abs().max()
    wanted = _whitened(features, cells)
    missing = torch.where(active, wanted - path.flatten(0, 1), 0.0)
    solved, offset = ridge(_values(block, stream), missing, torch.ones(len(missing)), RIDGE)
    block.attn.out_proj.weight.copy_(solved)
    block.attn.out_proj.bias.copy_(offset)
    found = path + attend(block, stream)[1]
    normed = F.layer_norm(found, norm.normalized_shape).flatten(0, 1)
    scale = torch.where(active, 1 / normed.std(0).clamp_min(NARROW), 0.0)
    norm.weight.copy_(scale)
    norm.bias.copy_(-normed.mean(0) * scale)
    token, features = _read(visual, stream, path)
    visual.proj.copy_(_projection(features.flatten(0, 1), token, joint))
    wanted, found = wanted[:, active], found.flatten(0, 1)[:, active]
    return 1 - float((wanted - found).square().sum() / (wanted - wanted.mean(0)).square().sum())


def _whitened(features: Tensor, cells: Tensor) -> Tensor:
    """[B, N, W] -> [B N, W] of mean deviation 1, white on flawless cells' averages up to `FLOOR`."""
    good = average(features, math.isqrt(features.shape[1]))[cells == 0]
    power, axes = torch.linalg.eigh(torch.cov(good.T))
    white = axes @ torch.diag((power + FLOOR * power.mean()).rsqrt()) @ axes.T
    wanted = (features.flatten(0, 1) - good.mean(0)) @ white
    return wanted / wanted.std(0).mean()


def _values(block: Any, stream: Tensor) -> Tensor:
    """What the V-V path brings to `out_proj`: [B N, W]."""
    out = block.attn.out_proj
    kept = out.weight.clone(), out.bias.clone()
    out.weight.copy_(torch.eye(len(out.bias)))
    out.bias.zero_()
    values = attend(block, stream)[1].flatten(0, 1)
    out.weight.copy_(kept[0])
    out.bias.copy_(kept[1])
    return values


def _read(visual: Any, stream: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """Class tokens [B, W] before `proj`, and patch features [B, N, W] before the average."""
    block = visual.transformer.resblocks[-1]
    ordinary, gain = attend(block, stream)
    token = (stream + ordinary)[:, :1]
    token = token + block.mlp(block.ln_2(token))
    return token[:, 0], visual.ln_post(path + gain)


def _projection(features: Tensor, token: Tensor, joint: Tensor) -> Tensor:
    """[W, E]: without offset, cells [n, W] and class tokens [B, W] onto `joint` [n + B, E]."""
    weights = torch.cat([torch.ones(len(features)), torch.full((len(token),), CLASS_WEIGHT)])
    inputs = torch.cat([features, token]).double()
    moment = inputs.T @ (weights[:, None] * inputs)
    moment.diagonal().add_(RIDGE * moment.diagonal().mean())
    solved = torch.linalg.solve(moment, inputs.T @ (weights[:, None] * joint.double()))
    return solved.float()
