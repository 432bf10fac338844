"""The image tower of `mrad-mini`, made known to timm: convolutions find what is small, and a vision
transformer with a class token stands on their cells, so that the V-V path is defined (docs/method.md).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.norm import RmsNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

SIDE = 264
WIDTH = 256
STAGES = ((32, 2), (32, 1), (64, 2), (64, 1), (96, 1), (WIDTH, 3))
"""Channels and stride of each 3 x 3 convolution; the last reads cells that do not overlap."""
FINE = math.prod(stride for _, stride in STAGES[:-1])
"""Pixels of a place before the last convolution."""
PATCH = FINE * STAGES[-1][1]
"""Pixels of a cell."""
default_cfgs = generate_default_cfgs({"mrad_mini.ours": {"input_size": (3, SIDE, SIDE)}})


def stem() -> nn.Sequential:
    """[B, 3, S, S] -> [B, WIDTH, S / PATCH, S / PATCH], rectified between the convolutions."""
    layers: list[nn.Module] = []
    channels = 3
    for number, (out, stride) in enumerate(STAGES):
        last = number == len(STAGES) - 1
        layers.append(nn.Conv2d(channels, out, 3, stride, padding=0 if last else 1))
        layers += [] if last else [nn.ReLU()]
        channels = out
    return nn.Sequential(*layers)


@register_model
def mrad_mini(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Three blocks of width 256 behind a stem of six convolutions, 264 px, 22 x 22 cells."""
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        "mrad_mini",
        pretrained,
        img_size=SIDE,
        patch_size=1,
        embed_dim=WIDTH,
        depth=3,
        num_heads=4,
        norm_layer=RmsNorm,
        embed_layer=partial(HybridEmbed, backbone=stem(), proj=False),
        **kwargs,
    )
    return model
