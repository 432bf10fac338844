"""Towers of every kind, and their features computed as plainly as can be."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from benchmarks.paper_loop import Memory, PaperLoop


def build_clip(seed: int = 0, quick_gelu: bool = False, **vision: Any) -> nn.Module:
    """An open_clip CLIP whose class token matters; `vision` goes to CLIPVisionCfg."""
    torch.manual_seed(seed)
    config = {"image_size": 64, "patch_size": 16, "width": 48, "layers": 3, "head_width": 16}
    text = open_clip.CLIPTextCfg(width=16, heads=1, layers=1)
    clip = open_clip.model.CLIP(
        32, open_clip.CLIPVisionCfg(**config | vision), text, quick_gelu=quick_gelu
    )
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide a lost one
        for name, parameter in clip.visual.named_parameters():
            if parameter.ndim == 1 and "class" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return clip.eval()


def build_timm(name: str, pool: str = "token", proj: str = "linear", size: int = 64) -> nn.Module:
    """timm's tower `name` behind open_clip, as open_clip builds it."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(
        image_size=size, timm_model_name=name, timm_pool=pool, timm_proj=proj
    )
    text = open_clip.CLIPTextCfg(width=16, heads=1, layers=1)
    return open_clip.model.CLIP(32, vision, text).eval()


@torch.no_grad()
def plain_features(visual: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Class features [B, E] and V-V patch features [B, N, W] before the average."""
    loop = PaperLoop(visual, pixels.shape[-1], Memory.random(1, 1, 1, 1))
    found = [loop.paths(image[None]) for image in pixels]
    return torch.cat([c for c, _ in found]), torch.cat([p for _, p in found])
