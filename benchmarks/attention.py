"""Float32 attention on the CPU: PyTorch's fused kernel against oneDNN's products, by shape."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.tables import Cell, Ratio, Table, middle, paired, ratio
from mrad.encoder.kernels import ROWS_PER_THREAD, _attend_cpu

SHAPES = {
    "mrad-mini at 264 px": (4, 485, 64),
    "ViT-B/16 at 224 px": (12, 197, 64),
    "ViT-L/14-336 at 336 px": (16, 577, 64),
    "ViT-L/14-336 at 518 px": (16, 1370, 64),
}
"""Heads, tokens, width of a head."""
LEFT = (
    "What is left of ViT-L in float32 beyond products of matrices is the softmax of two attentions a block. "
    "V-V scores are symmetric, but half of them has to be computed in blocks, whose products oneDNN runs "
    "slower than whole ones by about what the half saves. The last block has one query already, the class "
    "token's, and that is left to the fused kernel."
)


@torch.inference_mode()
def row(name: str, runs: int) -> tuple[list[Cell], Ratio]:
    """Both ways on the same queries, keys and values, in turn."""
    heads, tokens, width = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, tokens, width, generator=generator) for _ in range(3))
    fused, products = paired(
        torch.inference_mode()(partial(F.scaled_dot_product_attention, q, k, v)),
        torch.inference_mode()(partial(_attend_cpu, q, k, v)),
        runs,
    )
    operations = 4 * heads * tokens**2 * width / 1e9
    faster = ratio(fused, products)
    rate = operations / sorted(products)[len(products) // 2]
    taken = "products" if tokens >= ROWS_PER_THREAD * torch.get_num_threads() else "fused"
    return [name, tokens, middle(fused), middle(products), str(faster), rate, taken], faster


def run(quick: bool) -> list[Table]:
    """One table."""
    # As a tower's MLP does: after that, memory of a matrix of scores is used again, not mapped again.
    torch.zeros(6 << 20)
    made = {name: row(name, 2 if quick else 21) for name in SHAPES}
    columns = ["", "tokens", "fused", "products", "products against fused", "GFLOP/s", "taken here"]
    return [
        Table(
            "Attention of one block, one image, float32",
            columns,
            [cells for cells, _ in made.values()],
            [LEFT, "GFLOP/s: of the products, with the softmax's time."],
            {f"attention, {name}": faster for name, (_, faster) in made.items()},
        )
    ]
