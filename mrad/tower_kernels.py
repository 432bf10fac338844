"""What the tower spends its time on - projections, attention, MLP - as each device does it fastest.

Measured by `python -m benchmarks.encoder`. On a CPU: weights packed once for oneDNN, attention in
bf16 as matrix products that use the bf16 instructions (PyTorch's fused kernel does not).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

QUICK = 1.702


class Linear(nn.Module):
    """x W^T + b with frozen weights; `pack` lays them out for the CPU."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().to(dtype).clone())
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype).clone())
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        if self.packed is None:
            assert self.weight is not None
            return F.linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y

    def pack(self) -> None:
        """Replace the weights by oneDNN's own layout. They can neither move nor learn any more."""
        if self.weight is not None and can_pack(self.weight):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())
            self.weight = None


def can_pack(weight: Tensor) -> bool:
    """Whether this PyTorch has oneDNN's packed product for these weights."""
    ready = torch.backends.mkldnn.is_available() and weight.device.type == "cpu"
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return ready and all(hasattr(torch.ops.mkldnn, name) for name in names)


def frozen_mlp(mlp: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a block's MLP on `Linear`s, with QuickGELU in one pass instead of three.

    x sigmoid(1.702 x) = silu(1.702 x) / 1.702, and both factors go into the weights around it.
    """
    out = copy.deepcopy(mlp).to(dtype)
    quick = isinstance(getattr(mlp, "gelu", None), QuickGELU)
    if quick:
        out.add_module("gelu", nn.SiLU())
    for name, layer in mlp.named_children():
        if not isinstance(layer, nn.Linear):
            continue
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        if quick and name == "c_fc":
            weight, bias = weight * QUICK, None if bias is None else bias * QUICK
        elif quick:
            weight = weight / QUICK
        out.add_module(name, Linear(weight, bias, dtype))
    return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: [B, heads, T, d] -> [B, T, heads * d]."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _attend_bf16_cpu(q, k, v).flatten(2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _attend_bf16_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Head by head, so that the matrix of scores stays in the cache: [B, T, heads, d]."""
    batch, heads, tokens, width = q.shape
    out = q.new_empty(batch, tokens, heads, width)
    scores = q.new_empty(tokens, k.shape[2])
    weights = torch.empty_like(scores)
    q = q * width**-0.5
    for image in range(batch):
        for head in range(heads):
            torch.mm(q[image, head], k[image, head].T, out=scores)
            torch.softmax(scores, dim=-1, out=weights)
            torch.mm(weights, v[image, head], out=out[image, :, head])
    return out
