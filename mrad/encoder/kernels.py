"""What the tower spends its time on - projections, attention, MLP - as each device does it fastest.

Measured by `python -m benchmarks encoder`. On a CPU: weights packed once for oneDNN, attention in
bf16 as matrix products that use the bf16 instructions (PyTorch's fused kernel does not).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

QUICK = 1.702
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, list[float], str]]] = {
    "none": (lambda x: x, ("none", [], "")),
    "silu": (F.silu, ("swish", [], "")),
    "gelu": (F.gelu, ("gelu", [], "none")),
    "gelu tanh": (partial(F.gelu, approximate="tanh"), ("gelu", [], "tanh")),
}
"""As PyTorch computes it, and as oneDNN is told to."""
FILLED = 16
"""Rows and columns of a product at least (`filled_product`): oneDNN wants 2 of each, MKL 9 columns, and 10 rows
on two cores."""


class Linear(nn.Module):
    """act(x W^T + b) with frozen weights; `pack` lays them out for the CPU, which then applies the
    activation to each result before it is rounded and written.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        activation: str = "none",
    ) -> None:
        """`activation`: a key of `ACTIVATIONS`."""
        super().__init__()
        self.register_buffer("weight", weight.detach().to(dtype).clone())
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype).clone())
        self.activation = activation
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        plain, fused = ACTIVATIONS[self.activation]
        if self.packed is None:
            assert self.weight is not None
            return plain(F.linear(x, self.weight, self.bias))
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *fused)
        return y

    def pack(self) -> None:
        """Replace the weights by oneDNN's own layout. They can neither move nor learn any more."""
        if self.weight is not None and can_pack(self.weight):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())
            self.weight = None


class Cut(nn.Module):
    """Plain patches as one matrix product.

    Float32 whatever the rest runs in: a patch is nearly flat, so its products cancel, and bf16
    weights would be off by more than the contrast that is looked for. A thousandth of the work.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """`weight` [W, 3, p, p]."""
        super().__init__()
        self.side = weight.shape[-1]
        self.product = Linear(weight.flatten(1), bias, torch.float32)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, N, W], row by row."""
        batch, side = pixels.shape[0], self.side
        grid = pixels.shape[-1] // side
        cells = pixels.view(batch, 3, grid, side, grid, side)
        rows: Tensor = self.product(cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, -1))
        return rows


class Stem(nn.Module):
    """Convolutions before the blocks, in float32 as `Cut`."""

    def __init__(self, convolutions: nn.Module) -> None:
        super().__init__()
        own = copy.deepcopy(convolutions).float()
        for layer in _reading_what_nobody_else_reads(own):
            layer.inplace = True  # new memory for each takes longer than the layer itself
        # oneDNN and cuDNN read neighbouring channels together faster.
        self.convolutions: nn.Module = own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, N, W], row by row."""
        found = self.convolutions(pixels.contiguous(memory_format=torch.channels_last))
        rows: Tensor = found.flatten(2).transpose(1, 2)
        return rows


MAKES_NEW = (nn.Conv2d, _NormBase, nn.GroupNorm, nn.LayerNorm)
"""Layers whose output is no one else's input but the next layer's, in a chain."""


def _reading_what_nobody_else_reads(whole: nn.Module) -> list[nn.ReLU]:
    """The ReLUs that may write over their input: one anywhere else may read what a shortcut reads too.

    Those are next to a convolution or a norm in an `nn.Sequential`, or are a norm's own activation, as timm's.
    """
    found: list[nn.ReLU] = []
    for parent in whole.modules():
        own: list[nn.Module] = list(parent.children())
        if isinstance(parent, MAKES_NEW):
            found += [layer for layer in own if isinstance(layer, nn.ReLU)]
        elif type(parent) is nn.Sequential:
            pairs = pairwise(own)
            found += [b for a, b in pairs if isinstance(a, MAKES_NEW) and isinstance(b, nn.ReLU)]
    return found


def has_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16: a GPU with it, a CPU of which oneDNN says so.

    Elsewhere PyTorch emulates its products, and oneDNN's packed ones fail. Having them is not being
    faster than float32: Intel's without AMX are not.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def can_pack(weight: Tensor) -> bool:
    """Whether this PyTorch has oneDNN's packed product for these weights."""
    if weight.dtype == torch.bfloat16 and not has_bf16(weight.device):
        return False
    ready = torch.backends.mkldnn.is_available() and weight.device.type == "cpu"
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return ready and all(hasattr(torch.ops.mkldnn, name) for name in names)


def by_onednn(rows: Tensor, columns: Tensor) -> Tensor:
    """As `product`, where `can_pack` and no gradient is wanted."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], "")
    return y


def product(rows: Tensor, columns: Tensor) -> Tensor:
    """rows columns^T: float32 [M, I] and [O, I] -> [M, O].

    On an AMD EPYC PyTorch's own product takes twice as long.
    """
    if rows.dtype == torch.float32 and can_pack(rows) and not torch.is_grad_enabled():
        return by_onednn(rows.contiguous(), columns.contiguous())
    return rows @ columns.T


def filled_product(rows: Tensor, columns: Tensor) -> Tensor:
    """As `product`, and each number is the same whatever stands beside its row and its column.

    A memory that learned is measured a lesson at a time, one that is opened all at once, and both must come
    to the same numbers. A product of few rows or columns is added up in another order than one of many, so
    it is filled up. On a GPU numbers may still differ by some 1e-7.
    """
    count, width = len(rows), len(columns)
    if count < FILLED:
        rows = F.pad(rows, (0, 0, 0, FILLED - count))
    if width < FILLED:
        columns = F.pad(columns, (0, 0, 0, FILLED - width))
    return product(rows, columns)[:count, :width]


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite. Their sum tells, unless it overflows: a tenth of the time."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x): what OpenAI's weights were trained with; open_clip's has the same name."""

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> same."""
        return x * torch.sigmoid(QUICK * x)


class Scale(nn.Module):
    """A factor for each channel (LayerScale)."""

    gamma: Tensor

    def __init__(self, gamma: Tensor) -> None:
        super().__init__()
        self.register_buffer("gamma", gamma)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> same."""
        return x * self.gamma


class Gated(nn.Module):
    """An MLP whose first product gives a gate and what it lets through, side by side (SwiGLU)."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> same."""
        gate, value = self.first(x).chunk(2, dim=-1)
        found: Tensor = self.second(F.silu(gate) * value)
        return found


def activation_name(module: nn.Module) -> str | None:
    """`quick`, `gelu`, `gelu tanh`; None for another layer."""
    if type(module).__name__ == QuickGELU.__name__:
        return "quick"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu tanh"
    return None


def activation_module(name: str) -> nn.Module:
    """The layer of a name that `activation_name` gives."""
    return QuickGELU() if name == "quick" else nn.GELU("tanh" if name == "gelu tanh" else "none")


def activation_of(module: nn.Module) -> str | None:
    """Its name in `ACTIVATIONS`; None for one that has to stay a pass of its own."""
    name = activation_name(module)
    return "silu" if name == "quick" else name  # but for a factor on either side: `frozen_mlp`


def frozen_mlp(mlp: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a block's MLP on `Linear`s, the first of which applies the activation.

    QuickGELU x sigmoid(1.702 x) = silu(1.702 x) / 1.702: both factors go into the weights around it.
    """
    out = copy.deepcopy(mlp).to(dtype)
    names = [name for name, layer in mlp.named_children() if isinstance(layer, nn.Linear)]
    found = [(name, m, activation_of(m)) for name, m in mlp.named_children() if activation_of(m)]
    # open_clip's c_fc, gelu, c_proj or timm's fc1, act, fc2; anything else keeps its own steps.
    fuses = len(names) == 2 and len(found) == 1
    place, quick = (found[0][0], activation_name(found[0][1]) == "quick") if fuses else ("", False)
    for name in names:
        layer: Any = getattr(mlp, name)
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        first = name == names[0]
        if quick:
            weight = weight * QUICK if first else weight / QUICK
            bias = bias * QUICK if first and bias is not None else bias
        activation = found[0][2] if fuses and first else None
        out.add_module(name, Linear(weight, bias, dtype, activation or "none"))
    if fuses:
        out.add_module(place, nn.Identity())
    return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: [B, heads, T, d] -> [B, T, heads * d]."""
    if q.device.type == "cpu":
        if q.dtype == torch.bfloat16:
            return _attend_bf16_cpu(q, k, v).flatten(2)
        if _products_pay(q, k):
            return _attend_cpu(q, k, v).flatten(2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


ROWS_PER_THREAD = 512
"""Queries for each thread from which oneDNN's products beat the fused kernel on two threads, beside other
work too: they meet three times a head, the fused kernel's threads once."""
LONGEST = 4096
"""Tokens beyond which a whole matrix of scores is too much."""


def _products_pay(q: Tensor, k: Tensor) -> bool:
    if torch.compiler.is_compiling():  # which follows no question about threads
        return False
    rows = q.shape[2]
    return (
        rows >= ROWS_PER_THREAD * torch.get_num_threads()
        and k.shape[2] <= LONGEST
        and can_pack(q)
        and not torch.is_grad_enabled()
    )


def _attend_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Float32, head by head, as two of oneDNN's products: [B, T, heads, d].

    Its products reach what the projections do; PyTorch's fused kernel reaches two fifths of that.
    """
    batch, heads, tokens, width = q.shape
    out = q.new_empty(batch, tokens, heads, width)
    q, columns = q * width**-0.5, v.transpose(2, 3).contiguous()
    for image in range(batch):
        for head in range(heads):
            scores = by_onednn(q[image, head], k[image, head])
            # In place: a second matrix would be new memory each time.
            torch.softmax(scores, dim=-1, out=scores)
            out[image, :, head] = by_onednn(scores, columns[image, head])
    return out


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
