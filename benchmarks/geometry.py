"""Encoders for timing: real shapes with seeded weights, for what they cost, not what they see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import nn

from mrad import Encoder
from mrad.encoder.weights import PAPER_IMAGE_SIZE


@dataclass(frozen=True)
class Geometry:
    """A vision tower's shape and the size that it is asked at."""

    name: str
    width: int
    layers: int
    patch: int
    native: int
    size: int
    embed_dim: int

    @classmethod
    def paper(cls) -> Geometry:
        """ViT-L/14-336 at 518 px."""
        return cls("ViT-L-14-336", 1024, 24, 14, 336, PAPER_IMAGE_SIZE, 768)

    @classmethod
    def tiny(cls) -> Geometry:
        """A quick check of a script."""
        return cls("tiny", 128, 3, 14, 112, 126, 64)

    def build(self) -> nn.Module:
        """The CLIP, without a text tower worth the name; QuickGELU as OpenAI's."""
        torch.manual_seed(0)
        vision = open_clip.CLIPVisionCfg(
            image_size=self.native,
            patch_size=self.patch,
            width=self.width,
            layers=self.layers,
            head_width=64,
        )
        text = open_clip.CLIPTextCfg(width=64, heads=1, layers=1)
        return open_clip.model.CLIP(self.embed_dim, vision, text, quick_gelu=True).eval()

    def encoder(self, precision: str = "fp32", device: str = "cpu") -> Encoder:
        """The same weights in every precision and on every device."""
        return Encoder.from_clip(
            self.build(), self.size, name=self.name, device=device, precision=precision
        )


def surface(width: int, height: int, seed: int = 0) -> Image.Image:
    """A noisy striped surface, RGB."""
    rng = np.random.default_rng(seed)
    stripes = 128 + 50 * np.sin(np.arange(width) / 7 + seed)[None, :, None]
    return Image.fromarray(
        np.clip(stripes + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
    )
