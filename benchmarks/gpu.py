"""The GPU: the same numbers as the CPU, images a second by batch, share of the card's GEMM rate.

    python -m benchmarks.gpu [--quick]

Without a GPU it says so and runs nothing.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import torch

from benchmarks.geometry import Geometry
from benchmarks.tables import Table, hardware, main, middle, timed
from mrad.retrieval import ExactRetriever

NAME = "gpu"
BOUND = 1e-3
"""Largest difference between CPU and GPU, float32, as a share of each feature's range."""


def run(quick: bool) -> list[Table]:
    """Raises `SystemExit` when the GPU's features are not the CPU's."""
    if not torch.cuda.is_available():
        note = f"{hardware()}. No GPU here: nothing was run, there is no figure to show."
        return [Table("GPU", ["not run"], [["no GPU"]], [note])]
    torch.backends.cuda.matmul.allow_tf32 = False
    geometry = Geometry.tiny() if quick else Geometry.paper()
    return [same_numbers(geometry), by_batch(geometry, quick), retrieval(geometry, quick)]


def same_numbers(geometry: Geometry) -> Table:
    """Features of two inputs on both devices, float32."""
    pixels = torch.randn(2, 3, geometry.size, geometry.size)
    cpu, gpu = (
        geometry.encoder("fp32", device).encode_pixels(pixels) for device in ("cpu", "cuda")
    )
    rows = []
    for name in ("class_feature", "patch"):
        one, other = getattr(cpu, name), getattr(gpu, name).cpu()
        share = float((one - other).abs().max() / (one.max() - one.min()))
        if share > BOUND:
            raise SystemExit(f"{name} on the GPU is off by {share:.1e} of its range, over {BOUND}")
        rows.append([name, share])
    columns = ["feature", "largest difference, share of the range"]
    return Table("CPU = GPU, float32", columns, rows, [hardware(), f"The bound is {BOUND}."])


def gemm_rate() -> float:
    """Operations a second of a large bf16 product: what this card really gives."""
    side = 8_192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median(timed(lambda: a @ b, 20))


def operations(geometry: Geometry) -> float:
    """Multiply-adds, times two, of one image through what the encoder computes."""
    cells = (geometry.size // geometry.patch) ** 2
    tokens, width = cells + 1, geometry.width
    projections = 24 * tokens * width**2  # qkv 6, out 2, MLP 16
    attention = 4 * tokens**2 * width
    gained = 2 * cells * width**2 + 4 * cells * tokens * width  # V-V: out and attention
    last = tokens * width**2 * 4 + gained  # keys and values for all, the rest for one token
    blocks = geometry.layers
    return (blocks - 1) * (projections + attention) + (blocks - 2) * gained + last


def by_batch(geometry: Geometry, quick: bool) -> Table:
    """bf16, pixels from pinned memory."""
    encoder, rate = geometry.encoder("bf16", "cuda"), gemm_rate()
    rows = []
    for batch in (1, 2) if quick else (1, 2, 4, 8, 16, 32, 64):
        pixels = torch.randn(batch, 3, geometry.size, geometry.size).pin_memory()
        times = timed(lambda p=pixels: encoder.encode_pixels(p), 3 if quick else 10)
        images = batch / median(times)
        share = 100 * images * operations(geometry) / rate
        rows.append([batch, middle(times), images, share])
    columns = ["batch", "time", "images a second", "percent of the GEMM rate"]
    notes = [hardware(), f"The card's measured bf16 GEMM rate: {rate / 1e12:.0f} TFLOP/s."]
    return Table(f"{geometry.name} at {geometry.size} px, bf16, on the GPU", columns, rows, notes)


def retrieval(geometry: Geometry, quick: bool) -> Table:
    """Exact retrieval of one image's patches."""
    rows = []
    queries = torch.randn((geometry.size // geometry.patch) ** 2, geometry.width, device="cuda")
    queries = torch.nn.functional.normalize(queries, dim=1)
    for count in (1_000,) if quick else (1_000, 10_000, 100_000, 1_000_000):
        keys = torch.nn.functional.normalize(torch.randn(count, geometry.width), dim=1)
        labels = (np.arange(count) % 2).astype(np.uint8)
        retriever = ExactRetriever(keys, labels, device="cuda")
        rows.append([count, middle(timed(lambda r=retriever: r.probability(queries), 5))])
    columns = ["keys", "time for one image's patches"]
    return Table("Exact retrieval on the GPU", columns, rows, [hardware()])


if __name__ == "__main__":
    main(run)
