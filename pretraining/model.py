"""The small CLIP: built from its shipped config, run on both paths with gradients."""

from __future__ import annotations

import math
from typing import Any, cast

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mrad import models

NAME = "mrad-mini"


def build(seed: int) -> nn.Module:
    """`mrad-mini` as open_clip makes it, from its shipped config, its stem ready to learn."""
    models.register()
    torch.manual_seed(seed)
    clip: Any = open_clip.create_model(NAME, load_weights=False)
    embed = clip.visual.trunk.patch_embed
    embed.backbone = _normed(embed.backbone)
    return cast(nn.Module, clip)


def _normed(stem: nn.Sequential) -> nn.Sequential:
    """Batch norms behind all convolutions but the last, while it learns."""
    layers: list[nn.Module] = []
    for number, layer in enumerate(stem):
        layers.append(layer)
        if isinstance(layer, nn.Conv2d) and number < len(stem) - 1:
            layers.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def fold(clip: Any) -> None:
    """Put the batch norms into the convolutions before them: the tower as it is shipped."""
    layers: list[nn.Module] = []
    for layer in clip.eval().visual.trunk.patch_embed.backbone:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(cast(nn.Conv2d, layers[-1]), layer)
        else:
            layers.append(layer)
    clip.visual.trunk.patch_embed.backbone = nn.Sequential(*layers)


def image_features(
    visual: Any, pixels: Tensor, corner: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Class feature [B, E], averaged patch features [B, N, W] (docs/method.md) and what the stem's last
    convolution reads [B, C, F, F], with gradients; and the grid.

    A smaller picture takes the part of the position table that starts at `corner`.
    """
    token, patches, fine = _paths(visual.trunk, pixels, corner)
    grid = math.isqrt(patches.shape[1])
    return visual.head(token), average(patches, grid), fine, grid


def _paths(trunk: Any, pixels: Tensor, corner: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    fine = trunk.patch_embed.backbone[:-1](pixels.contiguous(memory_format=torch.channels_last))
    x = _embedded(trunk, fine, corner)
    patches: Tensor = x
    for number, block in enumerate(trunk.blocks):
        if number == 1:
            patches = x[:, 1:]
        x, gain = _block(block, x, both=number > 0)
        if gain is not None:
            patches = patches + gain
    return x[:, 0], trunk.norm(patches), fine


def _embedded(trunk: Any, fine: Tensor, corner: tuple[int, int]) -> Tensor:
    x = trunk.patch_embed.backbone[-1](fine)
    batch, width, grid, _ = x.shape
    own = trunk.patch_embed.grid_size[0]
    table = trunk.pos_embed[0, 1:].view(own, own, width)
    window = table[corner[0] : corner[0] + grid, corner[1] : corner[1] + grid]
    x = x.flatten(2).transpose(1, 2) + window.reshape(1, grid * grid, width)
    start = trunk.cls_token + trunk.pos_embed[:, :1]
    return torch.cat([start.expand(batch, -1, -1), x], dim=1)


def _block(block: Any, x: Tensor, both: bool) -> tuple[Tensor, Tensor | None]:
    attention = block.attn
    batch, tokens, width = x.shape
    qkv = attention.qkv(block.norm1(x))
    heads = qkv.view(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    # Attention in float32: its bfloat16 backward pass is the slower one on a CPU.
    q, k, v = heads.float()
    joined = F.scaled_dot_product_attention(q, k, v)
    if both:
        joined = torch.cat([joined, F.scaled_dot_product_attention(v[:, :, 1:], v, v)], dim=2)
    out = attention.proj(joined.transpose(1, 2).reshape(batch, -1, width))
    x = x + out[:, :tokens]
    return x + block.mlp(block.norm2(x)), out[:, tokens:] if both else None


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
