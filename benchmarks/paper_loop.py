"""The paper's loop, written plainly: what the speed of this project is compared with.

One image at a time; both paths in full, class token and all, through every block; attention as
explicit softmax matrices; the blur by SciPy; the top 1 % by sorting. Same numbers as
`mrad.Detector`, none of its savings. The released code took 16.5 s an image on 2 cores of an AMD
EPYC (Zen 4) at the paper's geometry; this one is to be read against that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from mrad.images.preprocess import Preprocess
from mrad.types import FloatArray


@dataclass
class Memory:
    """What the loop retrieves from: unit keys and one-hot values (normal, anomalous)."""

    image_keys: Tensor  # [n, E]
    image_values: Tensor  # [n, 2]
    patch_keys: Tensor  # [m, W]
    patch_values: Tensor  # [m, 2]

    @classmethod
    def random(
        cls, embed_dim: int, width: int, image: int, patch: int, device: str = "cpu"
    ) -> Memory:
        """A memory of the paper's size whose content does not matter for the time it takes."""
        torch.manual_seed(1)
        tensors: list[Tensor] = []
        for count, dim in ((image, embed_dim), (patch, width)):
            tensors.append(F.normalize(torch.randn(count, dim), dim=-1).to(device))
            tensors.append(F.one_hot(torch.arange(count) % 2, 2).float().to(device))
        return cls(*tensors)


class PaperLoop:
    """MRAD-TF, one image at a time, from an open_clip model's own modules."""

    def __init__(self, visual: nn.Module, image_size: int, memory: Memory) -> None:
        """`visual`: open_clip's own VisionTransformer, on the device of `memory`."""
        self.visual: Any = visual
        self.size, self.memory = image_size, memory
        self.preprocess = Preprocess(image_size)

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> tuple[float, FloatArray]:
        """RGB image -> fused score and map [S, S]."""
        memory = self.memory
        pixels = self.preprocess(image)[None].to(memory.image_keys.device)
        class_feature, patches, grid = self.encode(pixels)
        query = F.normalize(class_feature, dim=-1)
        image_probability = float(retrieve(query, memory.image_keys, memory.image_values)[0, 1])
        query = F.normalize(patches[0], dim=-1)
        cells = retrieve(query, memory.patch_keys, memory.patch_values)[:, 1]
        cells = cells.view(1, 1, grid, grid)
        size = (self.size, self.size)
        big = F.interpolate(cells, size=size, mode="bilinear", align_corners=False)
        blurred: FloatArray = gaussian_filter(big[0, 0].cpu().numpy(), sigma=4)
        largest = np.sort(blurred.ravel())[::-1][: int(blurred.size * 0.01)]
        return 0.3 * float(largest.mean()) + 0.7 * image_probability, blurred

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor, int]:
        """Pixels [1, 3, S, S] -> class feature [1, E], averaged patch features [1, N, W], grid."""
        class_feature, patches = self.paths(pixels)
        grid = round(patches.shape[1] ** 0.5)
        return class_feature, average(patches, grid), grid

    def paths(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class feature of the ordinary path, and the V-V path's patch features [1, N, W]."""
        visual = self.visual
        embedded = visual.conv1(pixels)
        tokens = embedded.flatten(2).transpose(1, 2)
        tokens = torch.cat([visual.class_embedding.view(1, 1, -1), tokens], dim=1)
        ordinary = visual.ln_pre(tokens + self.positions(embedded.shape[-1]))
        surgery = None
        for number, block in enumerate(visual.transformer.resblocks):
            plain, value_value = attention_of_both(block, ordinary)
            if number > 0:
                surgery = (ordinary if surgery is None else surgery) + block.ls_1(value_value)
            ordinary = ordinary + block.ls_1(plain)
            ordinary = ordinary + block.ls_2(block.mlp(block.ln_2(ordinary)))
        return (ordinary @ visual.proj)[:, 0], visual.ln_post(surgery)[:, 1:]

    def positions(self, grid: int) -> Tensor:
        """The position table, interpolated again for every image."""
        table = self.visual.positional_embedding
        own = round((len(table) - 1) ** 0.5)
        square = table[1:].view(1, own, own, -1).permute(0, 3, 1, 2)
        square = F.interpolate(square, size=(grid, grid), mode="bilinear", align_corners=False)
        return torch.cat([table[:1], square.permute(0, 2, 3, 1).reshape(grid * grid, -1)])


def attention_of_both(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Ordinary and value-value attention of a block over ALL tokens, matrices written out."""
    attention = block.attn
    batch, tokens, width = x.shape
    heads = attention.num_heads
    qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    shape = (batch, tokens, 3, heads, width // heads)
    q, k, v = qkv.view(shape).permute(2, 0, 3, 1, 4)
    scale = (width // heads) ** -0.5
    outputs = []
    for left, right in ((q, k), (v, v)):
        matrix = (left @ right.transpose(-2, -1) * scale).softmax(dim=-1)
        mixed = (matrix @ v).transpose(1, 2).reshape(batch, tokens, width)
        outputs.append(attention.out_proj(mixed))
    return outputs[0], outputs[1]


def average(patches: Tensor, grid: int) -> Tensor:
    """Mean of 1, 3 and 5 wide average pools on the grid, zero padding counted."""
    image = patches.transpose(1, 2).unflatten(2, (grid, grid))
    pools = [F.avg_pool2d(image, side, stride=1, padding=side // 2) for side in (1, 3, 5)]
    return torch.stack(pools).mean(dim=0).flatten(2).transpose(1, 2)


def retrieve(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax over every key, then its mean of the values: [M, 2]."""
    return (query @ keys.T).softmax(dim=-1) @ values
