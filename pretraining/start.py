"""The weights before the first step, by design and least squares.

Descent alone finds in an hour what a filter bank has from the start, so the tower starts as one. A
white cosine transform enters; block 0 turns it into energies of bands, block 1 sets each cell beside
its surroundings and the whole picture, blocks 1 and 2 read the targets of `statistics.py` from these,
and the V-V path of blocks 2 and 3 carries them out. What is linear in a layer is solved for on a
sample of made pictures; what is not (which hidden units there are) is laid out by hand.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.layout import Layout, band_pools, cosine_filters, position_table

RECTIFIED_FROM = (0.0, 1.5, 3.0)
"""Of a white response, deviations: |c| itself, and only its peaks."""
LOCALITY = 0.35
"""By how much attention's logit falls from a cell to its neighbour."""
UNIT_GAIN = 1.2
"""Deviation of a hidden unit's input."""
VALUE_GAIN = 2.5
"""Deviation of white values: v vT is then local, and a patch keeps what is its own."""
RIDGE = 0.002
POSITIVE_WEIGHT = 8.0
"""Of a defective cell in every fit: there are few."""


@torch.no_grad()
def start(visual: Any, pixels: Tensor, cells: Tensor, wanted: Tensor) -> Tensor:
    """Fill the image tower so that its patch features hold `wanted`.

    `pixels` [B, 3, S, S] normalised, `cells` [B, N] as in `losses.Batch`, `wanted` [B, N, T] of
    mean 0 and deviation 1. Returns the share of each target that is explained [T].
    """
    fit = _Start(visual, pixels, cells, wanted)
    fit.energies()
    fit.contexts()
    fit.statistics(1)
    fit.read_out(2)
    fit.statistics(2)
    fit.read_out(3)
    return fit.standardise()


class _Start:
    """The sample's way through the tower, block by block, each filled as it is reached."""

    def __init__(self, visual: Any, pixels: Tensor, cells: Tensor, wanted: Tensor) -> None:
        self.visual, self.blocks = visual, visual.transformer.resblocks
        self.width, _, self.patch, _ = visual.conv1.weight.shape
        self.layout = Layout(self.patch, self.width)
        self.weights = torch.where(cells == 1, POSITIVE_WEIGHT, 1.0).flatten()
        self.wanted = wanted.flatten(0, 1)
        rows = torch.cat([self.layout.context, self.layout.free])
        frame = torch.linalg.qr(torch.randn(len(rows), wanted.shape[-1])).Q
        self.frame = torch.zeros(wanted.shape[-1], self.width)
        self.frame[:, rows] = frame.T
        for block in self.blocks:
            _faint(block)
        self.x = self._embed(pixels)
        self.path: Tensor | None = None

    def _embed(self, pixels: Tensor) -> Tensor:
        visual, grid = self.visual, pixels.shape[-1] // self.patch
        visual.conv1.weight.copy_(cosine_filters(self.layout, pixels))
        visual.class_embedding.zero_()
        visual.positional_embedding.copy_(position_table(self.layout, visual.grid_size[0]))
        table = visual.positional_embedding[1:].unflatten(0, visual.grid_size)[:grid, :grid]
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2) + table.flatten(0, 1)
        first = visual.positional_embedding[0].expand(len(pixels), 1, -1)
        embedded: Tensor = visual.ln_pre(torch.cat([first, patches], dim=1))
        return embedded

    def energies(self) -> None:
        """Block 0: rectified responses, pooled in bands, in place of all but the lowest responses."""
        layout, block = self.layout, self.blocks[0]
        self.x = self.x + attend(block, self.x)[0]
        h = block.ln_2(self.x)
        white = rows_of(h)
        mean, deviation = white.mean(0), white.std(0).clamp_min(1e-6)
        singles = torch.eye(self.width)
        chosen = [(i, t) for t in RECTIFIED_FROM for i in range(layout.pixels)]
        chosen = chosen[: block.mlp.c_fc.out_features // 2]
        rows = torch.stack([singles[i] for i, _ in chosen])
        _hidden(block.mlp, rows, white, 1.5, -1.5 * torch.tensor([t for _, t in chosen]))
        responses = ((white - mean) / deviation)[:, : layout.pixels]
        bands = torch.cat(
            [F.gelu(1.5 * (responses.abs() - t)) @ pools
             for t, pools in zip(RECTIFIED_FROM, band_pools(layout))], dim=1
        )  # fmt: skip
        x = rows_of(self.x)
        target = torch.zeros_like(x)
        target[:, layout.kept] = x[:, layout.kept]
        target[:, layout.energies] = (bands - bands.mean(0)) / bands.std(0)
        self._solve_mlp(block.mlp, h, torch.eye(self.width), target, share=1e-5)
        self.path = self.x[:, 1:]

    def contexts(self) -> None:
        """Block 1's attention: a head that looks at all cells alike, and one at near ones, bring
        the plain energies and the levels of others beside a cell's own."""
        layout, attention = self.layout, self.blocks[1].attn
        size, width = self.width // attention.num_heads, self.width
        h = rows_of(self.blocks[1].ln_1(self.x))
        mean, deviation = h.mean(0), h.std(0).clamp_min(1e-6)
        count = len(layout.plain)
        spread = h[:, layout.positions].std() * 2**0.5
        slope = (1 - layout.rates.cos()).sum() * spread**2 / size**0.5
        for head in (0, 1):
            rows = slice(head * size, head * size + size)
            values = torch.arange(2 * width + head * size, 2 * width + head * size + count)
            attention.in_proj_weight[2 * width + head * size :][:size] = 0
            attention.in_proj_weight[values, layout.plain] = 1 / deviation[layout.plain]
            attention.in_proj_bias[values] = -(mean / deviation)[layout.plain]
            for part in (attention.in_proj_weight[:width], attention.in_proj_weight[width:]):
                part[rows] = 0
                near = torch.arange(rows.start, rows.start + len(layout.positions))
                part[near, layout.positions] = head * (LOCALITY / slope) ** 0.5
            out = layout.context[head * count : head * count + count]
            attention.out_proj.weight[:, rows] = 0
            attention.out_proj.weight[out, torch.arange(rows.start, rows.start + count)] = 1.0
        ordinary, gain = attend(self.blocks[1], self.x)
        self.x, self.path = self.x + ordinary, self.path + gain

    def statistics(self, number: int) -> None:
        """A block's MLP: hidden units on energies, contexts, their differences and what of the
        targets is read already; out of them what is missing."""
        mlp, h = self.blocks[number].mlp, self.blocks[number].ln_2(self.x)
        units = mlp.c_fc.out_features // 2
        deviation = rows_of(h).std(0)
        rows = self._differences() if number == 1 else list(self.frame)
        if number > 1:
            mixes = torch.randn(units // 2 - len(rows), len(self.frame)) @ self.frame
            rows += list(mixes)
        sources = torch.cat([self.layout.energies, self.layout.context, self.layout.kept[:-1]])
        while len(rows) < units:
            row = torch.zeros(self.width)
            few = sources[torch.randperm(len(sources))[:4]]
            row[few] = torch.randn(4) / deviation[few].clamp_min(1e-4)
            rows.append(row)
        _hidden(mlp, torch.stack(rows[:units]), rows_of(h), UNIT_GAIN, 0.8 * torch.randn(units))
        self._solve_mlp(mlp, h, self.frame, self.wanted, RIDGE)

    def _differences(self) -> list[Tensor]:
        """Each source alone, and each plain energy less its context."""
        layout = self.layout
        one = torch.eye(self.width)
        rows = list(one[torch.cat([layout.energies, layout.context, layout.kept[:-1]])])
        for number, source in enumerate(layout.plain):
            for start_at in (0, len(layout.plain)):
                rows.append(one[source] - one[layout.context[start_at + number]])
        return rows

    def read_out(self, number: int) -> None:
        """White, local values; the output projection solved for what the V-V path still lacks."""
        block = self.blocks[number]
        attention, h = block.attn, rows_of(block.ln_1(self.x))
        mean = h.mean(0)
        power, axes = torch.linalg.eigh(torch.cov((h - mean).T))
        whiten = axes / power.clamp_min(1e-3 * power.max()).sqrt()
        mixed = VALUE_GAIN * torch.linalg.qr(torch.randn(self.width, self.width)).Q @ whiten.T
        attention.in_proj_weight[2 * self.width :] = mixed
        attention.in_proj_bias[2 * self.width :] = -mixed @ mean
        attention.out_proj.weight.copy_(torch.eye(self.width))
        _, values = attend(block, self.x)
        assert self.path is not None
        missing = self.wanted - self.path.flatten(0, 1) @ self.frame.T
        solved, _ = ridge(values.flatten(0, 1), missing, self.weights, RIDGE)
        attention.out_proj.weight.copy_(self.frame.T @ solved)
        ordinary, gain = attend(block, self.x)
        self.x, self.path = self.x + ordinary, self.path + gain

    def standardise(self) -> Tensor:
        """`ln_post` centres what the path carries: cosines then compare cells, not constants."""
        assert self.path is not None
        norm, features = self.visual.ln_post, self.path.flatten(0, 1)
        read = features @ self.frame.T
        normed = F.layer_norm(features, features.shape[-1:])
        scale = 1 / normed.std(0).clamp_min(0.05)
        scale[self.layout.positions] = 0
        scale[self.layout.constant] = 0
        norm.weight.copy_(scale)
        norm.bias.copy_(-normed.mean(0) * scale)
        return 1 - (self.wanted - read).square().mean(0) / self.wanted.square().mean(0)

    def _solve_mlp(self, mlp: Any, h: Tensor, frame: Tensor, target: Tensor, share: float) -> None:
        hidden = rows_of(F.gelu(mlp.c_fc(h)))
        solved, offset = ridge(hidden, target - rows_of(self.x) @ frame.T, self.weights, share)
        mlp.c_proj.weight.copy_(frame.T @ solved)
        mlp.c_proj.bias.copy_(frame.T @ offset)
        self.x = self.x + mlp(h)


def ridge(inputs: Tensor, target: Tensor, weights: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression of [n, K] to [n, T]: weights [T, K] and offsets [T].

    The penalty is a `share` of the inputs' mean variance.
    """
    x, y, w = inputs.double(), target.double(), weights.double()[:, None]
    w = w / w.sum()
    mean_x, mean_y = (w * x).sum(0), (w * y).sum(0)
    x = x - mean_x
    moment = x.T @ (w * x)
    moment.diagonal().add_(share * moment.diagonal().mean())
    solution = torch.linalg.solve(moment, x.T @ (w * (y - mean_y)))
    return solution.T.float(), (mean_y - mean_x @ solution).float()


def rows_of(x: Tensor) -> Tensor:
    """Tokens [B, 1 + N, D] -> patches [B N, D]."""
    return x[:, 1:].flatten(0, 1)


def _faint(block: Any) -> None:
    """Nothing but noise, so that what is not laid out can still learn."""
    for name, value in block.named_parameters():
        if "ln_" not in name:
            value.zero_()
    block.attn.in_proj_weight.normal_(std=0.02)
    block.attn.out_proj.weight.normal_(std=0.005)
    block.mlp.c_fc.weight.normal_(std=0.06)
    block.mlp.c_proj.weight.normal_(std=0.005)


def _hidden(mlp: Any, rows: Tensor, inputs: Tensor, gain: float, bias: Tensor) -> None:
    """Pairs of opposite units on the readings `rows` [K, W], standardised on `inputs` [n, W]."""
    readings = inputs @ rows.T
    scaled = rows * (gain / readings.std(0).clamp_min(1e-4))[:, None]
    centre, half = scaled @ inputs.mean(0), len(rows)
    mlp.c_fc.weight[: 2 * half] = torch.cat([scaled, -scaled])
    mlp.c_fc.bias[: 2 * half] = torch.cat([bias - centre, bias + centre])


def attend(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a block's attention adds to all tokens, and to patches on the V-V path."""
    attention, ordinary, gains = block.attn, [], []
    for part in x.split(16):
        qkv = F.linear(block.ln_1(part), attention.in_proj_weight, attention.in_proj_bias)
        shape = (*part.shape[:2], 3, attention.num_heads, -1)
        q, k, v = qkv.view(shape).permute(2, 0, 3, 1, 4)
        pairs = ((q, k), (v[:, :, 1:], v))
        both = [
            F.scaled_dot_product_attention(a, b, v).transpose(1, 2).flatten(2) for a, b in pairs
        ]
        ordinary.append(attention.out_proj(both[0]))
        gains.append(attention.out_proj(both[1]))
    return torch.cat(ordinary), torch.cat(gains)
