"""Exact retrieval alone: one image's patches against all keys, at the paper's widths.

Seeded unit vectors stand for keys and queries: what exact attention costs does not depend on them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.tables import Table, main, middle, timed
from mrad.retrieval.exact import ExactRetriever

NAME = "exact"
WIDTH, GRID = 1024, 37
"""ViT-L/14-336 at 518 px, the paper's encoder."""
SIZES = (1_000, 10_000, 100_000)
RUNS = 5


def run(quick: bool) -> list[Table]:
    """Seconds by number of keys."""
    sizes, width = (SIZES[:1], 32) if quick else (SIZES, WIDTH)
    generator = torch.Generator().manual_seed(0)

    def unit(count: int) -> torch.Tensor:
        return F.normalize(torch.randn(count, width, generator=generator), dim=-1)

    queries, rows = unit(GRID**2), []
    for size in sizes:
        labels = (np.arange(size) % 2).astype(np.uint8)
        retriever = ExactRetriever(unit(size), labels)
        times = timed(lambda r=retriever: r.probability(queries), 1 if quick else RUNS)
        rows.append([size, middle(times), size * width * 4 / 2**20])
    columns = ["keys", "one image's patches", "keys, MiB"]
    notes = [f"{GRID**2} queries of width {width}, float32, {RUNS} runs, seeded unit vectors"]
    return [Table("Exact retrieval alone", columns, rows, notes)]


if __name__ == "__main__":
    main(run)
