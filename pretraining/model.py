"""The small CLIP: built from its shipped config, initialised by design, run on both paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Tensor, nn

from mrad import models

NAME = "mrad-mini"


def build(seed: int, sample: Tensor) -> nn.Module:
    """An untrained `mrad-mini`. `sample` [B, 3, S, S]: normalised pixels that scale its filters."""
    models.register()
    torch.manual_seed(seed)
    clip = open_clip.create_model(NAME, load_weights=False)
    visual: Any = clip.visual
    with torch.no_grad():
        _patch_filters(visual, sample)
        _positions(visual)
        for number, block in enumerate(visual.transformer.resblocks):
            _attention(block.attn)
            _energies(block.mlp, gain=1.0 if number == 0 else 0.6)
    return clip


def _patch_filters(visual: Any, sample: Tensor) -> None:
    """Cosine transforms of grey and, coarser, of two colour differences, each of deviation 1.

    A patch then enters without loss and white, where random filters would drown its detail in its
    mean; training goes on from there.
    """
    width, _, side, _ = visual.conv1.weight.shape
    order = sorted(np.ndindex(side, side), key=lambda index: (sum(i * i for i in index), index))
    colours = ((1, 1, 1), (1, 0, -1), (1, -2, 1))
    counts = (min(side * side, width), *((width - min(side * side, width)) // 2,) * 2)
    filters = []
    for mix, count in zip(colours, counts):
        channel = torch.tensor(mix, dtype=torch.float32).view(3, 1, 1)
        channel = channel / channel.norm()
        for index in order[:count]:
            impulse = np.zeros((side, side), dtype=np.float32)
            impulse[index] = 1
            basis = torch.from_numpy(dctn(impulse, type=3, norm="ortho")).float()
            filters.append(channel * basis)
    bank = torch.stack(filters)
    visual.conv1.weight[: len(bank)] = bank
    responses = F.conv2d(sample, visual.conv1.weight, stride=side)
    scale = responses.std(dim=(0, 2, 3)).clamp_min(0.02)
    visual.conv1.weight /= scale.view(-1, 1, 1, 1)


def _positions(visual: Any) -> None:
    """Sines and cosines of row and column, faint beside the patch."""
    grid, width = visual.grid_size[0], visual.positional_embedding.shape[1]
    rates = torch.exp(torch.linspace(0, -4, width // 4))
    angle = torch.arange(grid)[:, None] * rates
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)
    table = torch.cat(
        [
            waves[:, None].expand(-1, grid, -1),
            waves[None].expand(grid, -1, -1),
        ],
        dim=-1,
    )
    visual.positional_embedding[1:, : table.shape[-1]] = 0.3 * table.reshape(grid * grid, -1)
    visual.positional_embedding[0] = 0


def _attention(attention: Any) -> None:
    """A token less the mean of the others: values out are the negative of values in.

    The first half of the heads looks everywhere alike, the other half at what is like the query.
    Values are large enough that v vT is local.
    """
    width = attention.embed_dim
    weight = attention.in_proj_weight
    nn.init.orthogonal_(weight[:width], gain=0.8)
    weight[: width // 2] *= 0.3
    weight[width : 2 * width] = weight[:width]
    nn.init.orthogonal_(weight[2 * width :], gain=1.3)
    attention.out_proj.weight.copy_(-0.4 * weight[2 * width :].T)
    nn.init.zeros_(attention.in_proj_bias)
    nn.init.zeros_(attention.out_proj.bias)


def _energies(mlp: Any, gain: float) -> None:
    """Hidden units in pairs of opposite sign and equal weight out: |w.x|, centred.

    A defect may be darker or brighter, rougher or smoother: what tells is how far, not which way.
    """
    half = mlp.c_fc.weight.shape[0] // 2
    width = mlp.c_fc.weight.shape[1]
    mlp.c_fc.weight[:half] = torch.randn(half, width) * (1.5 / width**0.5)
    mlp.c_fc.weight[half:] = -mlp.c_fc.weight[:half]
    nn.init.zeros_(mlp.c_fc.bias)
    mlp.c_proj.weight[:, :half] = torch.randn(width, half) * (gain / half**0.5)
    mlp.c_proj.weight[:, half:] = mlp.c_proj.weight[:, :half]
    mean = F.gelu(1.5 * torch.randn(100_000)).mean()
    mlp.c_proj.bias.copy_(-mean * mlp.c_proj.weight.sum(dim=1))


def image_features(
    visual: Any, pixels: Tensor, corner: tuple[int, int]
) -> tuple[Tensor, Tensor, int]:
    """Class feature [B, E] and averaged patch features [B, N, W] (METHOD.md), with gradients.

    A smaller picture takes the part of the position table that starts at `corner`.
    """
    x = visual.conv1(pixels)
    batch, width, grid, _ = x.shape
    own = visual.grid_size[0]
    table = visual.positional_embedding[1:].view(own, own, width)
    window = table[corner[0] : corner[0] + grid, corner[1] : corner[1] + grid]
    x = x.flatten(2).transpose(1, 2) + window.reshape(1, grid * grid, width)
    start = visual.class_embedding + visual.positional_embedding[0]
    x = visual.ln_pre(torch.cat([start.expand(batch, 1, -1), x], dim=1))
    patches: Tensor = x
    for number, block in enumerate(visual.transformer.resblocks):
        if number == 1:
            patches = x[:, 1:]
        x, gain = _block(block, x, both=number > 0)
        if gain is not None:
            patches = patches + gain
    normed = visual.ln_post(patches)
    return x[:, 0] @ visual.proj, average(normed, grid), grid


def _block(block: Any, x: Tensor, both: bool) -> tuple[Tensor, Tensor | None]:
    attention = block.attn
    batch, tokens, width = x.shape
    qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    heads = qkv.view(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    # Attention in float32: its bfloat16 backward pass is the slower one on a CPU.
    q, k, v = heads.float()
    joined = F.scaled_dot_product_attention(q, k, v)
    if both:
        joined = torch.cat([joined, F.scaled_dot_product_attention(v[:, :, 1:], v, v)], dim=2)
    out = attention.out_proj(joined.transpose(1, 2).reshape(batch, -1, width))
    x = x + out[:, :tokens]
    return x + block.mlp(block.ln_2(x)), out[:, tokens:] if both else None


def average(patch: Tensor, grid: int) -> Tensor:
    """The method's neighbourhood average of [B, N, W]: pools of 1, 3 and 5."""
    image = patch.transpose(1, 2).unflatten(2, (grid, grid))
    pooled = image + F.avg_pool2d(image, 3, 1, 1) + F.avg_pool2d(image, 5, 1, 2)
    return (pooled / 3).flatten(2).transpose(1, 2)


def text_features(clip: Any, tokens: Tensor) -> Tensor:
    """L2-normalised text features [C, E]; padding behind the longest caption is not computed."""
    length = int((tokens != 0).sum(dim=1).max())
    tokens = tokens[:, :length]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    x = clip.ln_final(x)
    ends = tokens.argmax(dim=1)
    projected: Tensor = x[torch.arange(len(x)), ends] @ clip.text_projection
    return F.normalize(projected, dim=-1)
