"""The small CLIP: built from its shipped config, run on both paths with gradients."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrad import models

NAME = "mrad-mini"


def build(seed: int) -> nn.Module:
    """`mrad-mini` as open_clip makes it, from its shipped config."""
    models.register()
    torch.manual_seed(seed)
    clip: nn.Module = open_clip.create_model(NAME, load_weights=False)
    return clip


def image_features(
    visual: Any, pixels: Tensor, corner: tuple[int, int]
) -> tuple[Tensor, Tensor, int]:
    """Class feature [B, E] and averaged patch features [B, N, W] (METHOD.md), with gradients.

    A smaller picture takes the part of the position table that starts at `corner`.
    """
    x, grid = _embedded(visual, pixels, corner)
    x, patches = _through(visual.transformer.resblocks, x)
    normed = visual.ln_post(patches)
    return x[:, 0] @ visual.proj, average(normed, grid), grid


def before_last(visual: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, 1 + N, W] and V-V path [B, N, W] as the last block meets them."""
    parts = [_through(visual.transformer.resblocks[:-1], _embedded(visual, p, (0, 0))[0])
             for p in pixels.split(16)]  # fmt: skip
    return torch.cat([x for x, _ in parts]), torch.cat([path for _, path in parts])


def _embedded(visual: Any, pixels: Tensor, corner: tuple[int, int]) -> tuple[Tensor, int]:
    x = visual.conv1(pixels)
    batch, width, grid, _ = x.shape
    own = visual.grid_size[0]
    table = visual.positional_embedding[1:].view(own, own, width)
    window = table[corner[0] : corner[0] + grid, corner[1] : corner[1] + grid]
    x = x.flatten(2).transpose(1, 2) + window.reshape(1, grid * grid, width)
    start = visual.class_embedding + visual.positional_embedding[0]
    x = visual.ln_pre(torch.cat([start.expand(batch, 1, -1), x], dim=1))
    return x, grid


def _through(blocks: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    patches: Tensor = x
    for number, block in enumerate(blocks):
        if number == 1:
            patches = x[:, 1:]
        x, gain = _block(block, x, both=number > 0)
        if gain is not None:
            patches = patches + gain
    return x, patches


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
