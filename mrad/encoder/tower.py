"""CLIP's image tower with the V-V path, computing only what the method reads (docs/method.md).

The ordinary path is the ViT as it is. The V-V path (CLIP Surgery, AnomalyCLIP) starts with the
second block's input and adds, in every block from the second to the last, the block's output
projection of softmax(v vT / sqrt(d)) v; no MLP is ever applied on it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrad.encoder.kernels import Linear, attend, frozen_mlp
from mrad.errors import EncoderError, UnsupportedEncoderError

Packed = TypeVar("Packed", bound=nn.Module)


@dataclass(frozen=True)
class TowerParts:
    """What the two paths need of a ViT, whichever library built it."""

    patches: nn.Module  # [B, 3, S, S] -> [B, N, W]
    patch_size: int
    class_token: Tensor | None  # [W]
    positions: Tensor | None  # [1 + rows * columns, W], the class position first
    norm_pre: nn.Module
    blocks: list[dict[str, Any]]
    norm_post: nn.Module
    projection: Tensor | None  # [W, E]
    # What only towers with plain tokens have (`mrad.encoder.plain`):
    registers: Tensor | None = None  # [R, W], their positions added
    table: tuple[int, int] | None = None  # rows and columns of the positions; None: a square
    resample: str = "bilinear"  # positions to another size; or bicubic, as timm does
    periods: Tensor | None = None  # [d / 4], of rotary positions

    def norms(self) -> tuple[nn.Module, nn.Module]:
        """Copies of the norms before and after the blocks, float32."""
        return copy.deepcopy(self.norm_pre).float(), copy.deepcopy(self.norm_post).float()


class Block(nn.Module):
    """A pre-norm transformer block that runs both paths from one set of projections.

    The residual stream stays float32; projections and attention run in `dtype`.
    """

    out_bias: Tensor | None

    def __init__(self, parts: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.heads: int = parts["heads"]
        self.dtype, self.rounded = dtype, dtype != torch.float32
        self.norm1, self.norm2 = copy.deepcopy(parts["norm1"]), copy.deepcopy(parts["norm2"])
        self.scale1, self.scale2 = copy.deepcopy(parts["scale1"]), copy.deepcopy(parts["scale2"])
        self.mlp = frozen_mlp(parts["mlp"], dtype)
        weight, bias = parts["out_weight"], parts["out_bias"]
        self.out = Linear(weight, None if self.rounded else bias, dtype)
        left = bias.detach().float().clone() if self.rounded and bias is not None else None
        self.register_buffer("out_bias", left)
        self._project(parts["qkv_weight"], parts["qkv_bias"])

    def _project(self, weight: Tensor, bias: Tensor | None) -> None:
        self.qkv = Linear(weight, bias, self.dtype)

    def ordinary(self, x: Tensor) -> Tensor:
        """The block as it is: [B, T, W] -> [B, T, W]."""
        q, k, v = self._qkv(self._normed(x))
        keys, values, common = self._centred(k, v)
        return self._mlp(x + self._out(attend(q, keys, values), common=common))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The ordinary output [B, T, W] and what the V-V path gains for each patch [B, N, W]."""
        q, k, v = self._qkv(self._normed(x))
        keys, values, common = self._centred(k, v)
        both = attend(q, keys, values), attend(v[:, :, 1:], values, values)
        out = self._out(*both, common=common)
        return self._mlp(x + out[:, : x.shape[1]]), out[:, x.shape[1] :]

    def _normed(self, x: Tensor) -> Tensor:
        h: Tensor = self.norm1(x)
        return h.to(self.dtype)

    def _qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._split(self.qkv(h), 3)
        return q, k, v

    def _split(self, x: Tensor, parts: int) -> Tensor:
        """[B, T, parts * W] -> [parts, B, heads, T, d]."""
        batch, tokens, width = x.shape
        shape = (batch, tokens, parts, self.heads, width // parts // self.heads)
        split = x.view(shape).permute(2, 0, 3, 1, 4)
        # The CPU's fused float32 kernel reads rows that lie together an eighth faster.
        return split.contiguous() if x.device.type == "cpu" and not self.rounded else split

    def _centred(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values [B, heads, T, d] less what all tokens share; the values' share [B, 1, W].

        A softmax does not feel a constant in its keys, and its weights sum to one, so a constant in
        the values passes through. Left inside, it takes from bf16's eight bits what tells patches
        apart: on nearly even surfaces that is most of what bf16 loses. Float32 has bits enough.
        """
        if not self.rounded:
            return k, v, None
        key, value = k.mean(dim=2, keepdim=True), v.mean(dim=2, keepdim=True)
        return k - key, v - value, value.transpose(1, 2).flatten(2)

    def _out(self, *attended: Tensor, common: Tensor | None = None) -> Tensor:
        """The output projection of all rows in one product, float32; `common` as `_centred` gave it."""
        rows = attended if common is None else (*attended, common)
        out = self.out(torch.cat(rows, dim=1) if len(rows) > 1 else rows[0])
        constant = self.out_bias
        if common is not None:
            out, shared = out[:, :-1], out[:, -1:].float()
            constant = shared if constant is None else shared + constant
        if constant is not None:
            out = out + constant
        scaled: Tensor = self.scale1(out)
        return scaled

    def _mlp(self, x: Tensor) -> Tensor:
        h: Tensor = self.mlp(self.norm2(x).to(self.dtype))
        scaled: Tensor = self.scale2(h.float())
        return x + scaled


class LastBlock(Block):
    """The last block: of the ordinary path only the class token is read."""

    def _project(self, weight: Tensor, bias: Tensor | None) -> None:
        width = weight.shape[1]
        halves = (None, None) if bias is None else (bias[:width], bias[width:])
        self.query = Linear(weight[:width], halves[0], self.dtype)
        self.key_value = Linear(weight[width:], halves[1], self.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The class token's ordinary output [B, W], and what the V-V path gains [B, N, W]."""
        h = self._normed(x)
        (q,) = self._split(self.query(h[:, :1]), 1)
        k, v = self._split(self.key_value(h), 2)
        keys, values, common = self._centred(k, v)
        both = attend(q, keys, values), attend(v[:, :, 1:], values, values)
        out = self._out(*both, common=common)
        return self._mlp(x[:, :1] + out[:, :1])[:, 0], out[:, 1:]


class Tower(nn.Module):
    """Pixels -> class feature and V-V patch features, for one input size."""

    class_start: Tensor
    positions: Tensor
    projection: Tensor

    def __init__(self, parts: TowerParts, image_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        if len(parts.blocks) < 2:
            raise UnsupportedEncoderError("the V-V path starts at the second block; there is one")
        class_token, table, projection = parts.class_token, parts.positions, parts.projection
        if class_token is None or table is None or projection is None:
            raise UnsupportedEncoderError(
                "the paper's features need a class token, learned positions and a projection"
            )
        self.patch_size, self.grid, self.dtype = parts.patch_size, grid_of(parts, image_size), dtype
        self.patches = parts.patches
        positions = interpolate_positions(table.detach().float(), self.grid)
        self.register_buffer("class_start", class_token.detach().float() + positions[0])
        self.register_buffer("positions", positions[1:].clone())
        self.register_buffer("projection", projection.detach().float().clone())
        self.width, self.embed_dim = map(int, projection.shape)
        self.norm_pre, self.norm_post = parts.norms()
        first, *middle, last = parts.blocks
        self.first, self.last = Block(first, dtype), LastBlock(last, dtype)
        self.middle = nn.ModuleList(Block(part, dtype) for part in middle)
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`pixels` float32 [B, 3, S, S]. Returns class features [B, E] (the class token of the
        ordinary path times the projection, without `ln_post`) and V-V patch features [B, N, W]
        (after `ln_post`, not projected, not averaged), both float32.
        """
        x = self.first.ordinary(self.embed(pixels))
        patches = x[:, 1:]
        for block in self.middle:
            x, gain = block(x)
            patches = patches + gain
        class_token, gain = self.last(x)
        normed: Tensor = self.norm_post(patches + gain)
        return class_token @ self.projection, normed

    def embed(self, pixels: Tensor) -> Tensor:
        """Patches, class token and positions: [B, 1 + N, W]."""
        tokens = self.patches(pixels.float()) + self.positions
        start = self.class_start.expand(tokens.shape[0], 1, -1)
        embedded: Tensor = self.norm_pre(torch.cat([start, tokens], dim=1))
        return embedded


def grid_of(parts: TowerParts, image_size: int) -> int:
    """Patches along a side of the input. Raises `EncoderError` where they do not fill it."""
    patch = parts.patch_size
    if image_size < patch or image_size % patch:
        raise EncoderError(f"image size {image_size} is not a multiple of the patch size {patch}")
    return image_size // patch


def pack(tower: Packed) -> Packed:
    """Lay a tower's weights out for the device that they are on, for good. Returns the tower."""
    for module in tower.modules():
        if isinstance(module, Linear):
            module.pack()
    return tower


def interpolate_positions(
    positions: Tensor, grid: int, own: tuple[int, int] | None = None, mode: str = "bilinear"
) -> Tensor:
    """Position table [1 + rows * columns, W] -> [1 + grid**2, W], `align_corners=False`.

    `own`: its rows and columns; None: a square. `mode`: `bilinear`, or `bicubic` with antialiasing.
    """
    if own is None:
        side = round((positions.shape[0] - 1) ** 0.5)
        own = side, side
    if own[0] * own[1] + 1 != positions.shape[0]:
        raise UnsupportedEncoderError(
            f"{positions.shape[0]} positions are not a class and a square"
        )
    if own == (grid, grid):
        return positions
    table = positions[1:].view(1, *own, -1).permute(0, 3, 1, 2)
    table = F.interpolate(
        table, (grid, grid), mode=mode, align_corners=False, antialias=mode == "bicubic"
    )
    return torch.cat([positions[:1], table.permute(0, 2, 3, 1).reshape(grid * grid, -1)])


def neighbourhood_average(patch: Tensor, grid: int) -> Tensor:
    """Mean of average pools of 1, 3 and 5, stride 1, zero padding counted: [B, N, W] -> same."""
    batch, cells, width = patch.shape
    image = patch.transpose(1, 2).reshape(batch, width, grid, grid)
    pooled = image + F.avg_pool2d(image, 3, 1, 1) + F.avg_pool2d(image, 5, 1, 2)
    return (pooled / 3).reshape(batch, width, cells).transpose(1, 2).contiguous()
