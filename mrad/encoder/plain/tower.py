"""A vision transformer as it is: class feature and the tokens of its patches, after the last norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mrad.encoder.kernels import attend
from mrad.encoder.tower import Block, TowerParts, grid_of, interpolate_positions


class PlainBlock(Block):
    """A pre-norm block without the V-V path; its positions may be rotations of queries and keys."""

    def forward(self, x: Tensor, turn: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """[B, T, W] -> same. `turn` [2, N, d]: cosines and sines of the last N tokens."""
        q, k, v = self._qkv(self._normed(x))
        if turn is not None:
            q, k = turned(q, turn), turned(k, turn)
        keys, values, common = self._centred(k, v)
        return self._mlp(x + self._out(attend(q, keys, values), common=common))


class PlainTower(nn.Module):
    """Pixels -> class feature and patch tokens, for one input size; called as `mrad.encoder.tower.Tower`."""

    prefix: Tensor
    positions: Tensor | None
    turn: Tensor | None
    projection: Tensor | None

    def __init__(self, parts: TowerParts, image_size: int, dtype: torch.dtype) -> None:
        """Raises `EncoderError` where the patches do not fill `image_size`."""
        super().__init__()
        self.patch_size, self.grid, self.dtype = parts.patch_size, grid_of(parts, image_size), dtype
        self.patches = parts.patches
        self.width: int = parts.blocks[0]["qkv_weight"].shape[1]
        prefix, positions = _tokens(parts, self.grid)
        self.register_buffer("prefix", prefix)
        self.register_buffer("positions", positions)
        turn = None if parts.periods is None else rotations(parts.periods, self.grid)
        self.register_buffer("turn", turn)
        projection = parts.projection
        left = None if projection is None else projection.detach().float().clone()
        self.register_buffer("projection", left)
        self.embed_dim: int = self.width if left is None else left.shape[1]
        self.has_class = parts.class_token is not None
        self.norm_pre, self.norm_post = parts.norms()
        self.middle = nn.ModuleList(PlainBlock(part, dtype) for part in parts.blocks)
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`pixels` float32 [B, 3, S, S]. Returns class features [B, E] and patch tokens [B, N, W].

        The class feature is the class token after the last norm, projected where the tower projects;
        without a class token it is the mean of the patches.
        """
        tokens = self.patches(pixels.float())
        if self.positions is not None:
            tokens = tokens + self.positions
        first = len(self.prefix)
        x = torch.cat([self.prefix.expand(len(tokens), -1, -1), tokens], dim=1)
        x = self.norm_pre(x)
        for block in self.middle:
            x = block(x, self.turn)
        x = self.norm_post(x)
        patches = x[:, first:].contiguous()
        whole = x[:, 0] if self.has_class else patches.mean(dim=1)
        return whole if self.projection is None else whole @ self.projection, patches


def _tokens(parts: TowerParts, grid: int) -> tuple[Tensor, Tensor | None]:
    """What comes before the patches [P, W] and the positions of the patches [N, W], all float32."""
    start: list[Tensor] = [] if parts.class_token is None else [parts.class_token[None]]
    positions: Tensor | None = None
    if parts.positions is not None:
        table = interpolate_positions(
            parts.positions.detach().float(), grid, parts.table, parts.resample
        )
        start, positions = [token + table[:1] for token in start], table[1:].clone()
    if parts.registers is not None:
        start.append(parts.registers)
    if not start:
        return torch.empty(0, parts.blocks[0]["qkv_weight"].shape[1]), positions
    return torch.cat(start).detach().float(), positions


def rotations(periods: Tensor, grid: int) -> Tensor:
    """Cosines and sines [2, N, d] of DINOv3's rotary positions; `periods` [d/4].

    Rows and columns run from -1 to 1 at the middles of the patches, whatever their number.
    """
    middles = (torch.arange(grid, dtype=torch.float32) + 0.5) / grid * 2 - 1
    places = torch.cartesian_prod(middles, middles)
    angles = (2 * math.pi * places[:, :, None] / periods.detach().float()).flatten(1)
    angles = torch.cat([angles, angles], dim=1)
    return torch.stack([angles.cos(), angles.sin()])


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate the last N of the tokens [B, heads, T, d], halves against each other."""
    cosines, sines = turn
    first = x.shape[2] - cosines.shape[0]
    rows = x[:, :, first:]
    one, other = rows.chunk(2, dim=-1)
    found = rows * cosines + torch.cat([-other, one], dim=-1) * sines
    return torch.cat([x[:, :, :first], found.to(x.dtype)], dim=2)
