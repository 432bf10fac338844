"""Whether int8 should be offered: what it saves of an image's time, and what it does to the maps.

The MLPs alone, over half of the work, in int8: a scale for each token, as it comes, and for each
output channel; what all tokens of an image share is taken out first and multiplied in bf16; all else
as in bf16. Accuracy can be measured here with mrad-mini alone, which says little of large towers: this
module is the measurement, not an offer.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.geometry import Geometry, surface
from benchmarks.precision import COLUMNS, bound, compare, datasets, mini
from benchmarks.tables import Table, hardware, main, middle, paired, ratio
from mrad import Encoder
from mrad.encoder.kernels import ACTIVATIONS, Linear, frozen_mlp
from mrad.encoder.parts import parts_of

NAME = "int8"
ZERO, LARGEST = 128, 126
"""Of uint8 codes: where zero lies, and the largest step from it (rounding in bf16 may add one)."""


class Int8Linear(nn.Module):
    """act(x W^T + b): x - shared in int8, shared in bf16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        super().__init__()
        self.shared = Linear(weight, bias, torch.bfloat16)
        self.shared.pack()
        weight = weight.detach().float()
        self.scale = weight.abs().amax(dim=1) / 127
        codes = (weight / self.scale[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(codes, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.activation = ACTIVATIONS[activation][0]

    def forward(self, x: Tensor) -> Tensor:
        """bf16 [B, T, I] -> bf16 [B, T, O]."""
        shared = x.mean(dim=1, keepdim=True)
        own = x - shared
        scale = own.abs().amax(dim=-1, keepdim=True).float().clamp_min(1e-12) / LARGEST
        codes = (own * (1 / scale).bfloat16()).add_(ZERO).round_().to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, ZERO, self.packed, self.scale, self.zeros,
            None, 1.0, 0, torch.bfloat16, "none", [], "",
        )  # fmt: skip
        return self.activation(torch.addcmul(self.shared(shared), product, scale.bfloat16()))


def in_int8(encoder: Encoder) -> Encoder:
    """A bf16 encoder, its MLPs changed to int8."""
    tower, visual = encoder.tower, cast(nn.Module, encoder.clip.visual)
    blocks: list[Any] = [tower.first, *tower.middle, tower.last]
    for block, source in zip(blocks, parts_of(visual).blocks, strict=True):
        mlp = frozen_mlp(source["mlp"], torch.float32)
        layers = [layer for layer in mlp.children() if isinstance(layer, Linear)]
        block.mlp = nn.Sequential(
            *(Int8Linear(cast(Tensor, p.weight), p.bias, p.activation) for p in layers)
        )
    return encoder


def speed(geometry: Geometry, runs: int) -> Table:
    """Seconds an image, in turn with bf16."""
    half, whole = geometry.encoder("bf16"), in_int8(geometry.encoder("bf16"))
    image = surface(640, 480)
    slow, fast = paired(lambda: half.encode([image]), lambda: whole.encode([image]), runs)
    rows = [["bf16", middle(slow), "1x"], ["int8 MLPs", middle(fast), str(ratio(slow, fast))]]
    title = f"{geometry.name} at {geometry.size} px, seeded weights: int8 against bf16"
    return Table(title, ["", "time an image", "against bf16, paired"], rows, [hardware()])


def run(quick: bool) -> list[Table]:
    """Speed at the paper's geometry, accuracy with mrad-mini."""
    encoders = {"fp32": mini("fp32"), "int8 MLPs": in_int8(mini("bf16"))}
    sets = datasets(quick)
    rows = [row for name, records in sets.items() for row in compare(name, records, encoders)]
    return [
        speed(Geometry.tiny() if quick else Geometry.paper(), 1 if quick else 5),
        Table("What int8 changes: mrad-mini, MRAD-TF", COLUMNS, rows, bound(sets)),
    ]


if __name__ == "__main__":
    main(run)
