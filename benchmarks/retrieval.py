"""The error of approximate retrieval against exact attention, on patch features of real images:
by number of cells, and by how keys are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.features import Patches, patches
from benchmarks.geometry import Geometry
from benchmarks.tables import Cell, Table, shown
from mrad import Encoder
from mrad.retrieval.approximate.codec import STORAGES
from mrad.retrieval.approximate.index import ApproximateRetriever
from mrad.retrieval.exact import ExactRetriever

SHARPNESS = (1, 4, 16, 64)
KEYS, QUERIES = 100_000, 1_500


def compared(got: torch.Tensor, want: torch.Tensor) -> str:
    """Largest |delta p| and Spearman's rho, as a cell of the table."""
    rank = float(spearmanr(got.numpy(), want.numpy()).statistic)
    return f"{shown(float((got - want).abs().max()))}, {rank:.5f}"


def error_tables(
    keys: Patches, queries: Patches, what: str, sharpnesses: Sequence[int] = SHARPNESS
) -> list[Table]:
    """By number of cells, and by storage."""
    # A sharper head is longer queries: what counts is q.k, so every index is built once.
    asked = {s: torch.from_numpy(queries.keys) * s for s in sharpnesses}
    whole = ExactRetriever(keys.keys, keys.labels)
    exact = {s: whole.probability(q) for s, q in asked.items()}

    def row(name: str, probability) -> list[Cell]:  # type: ignore[no-untyped-def]
        return [name, *(compared(probability(q), exact[s]) for s, q in asked.items())]

    rows: list[list[Cell]] = []
    for cells in (64, 512):
        rows += _ours(keys, cells, row)
    stored = {
        storage: ApproximateRetriever.build(keys.keys, keys.labels, storage=storage)
        for storage in STORAGES
    }
    notes = [
        f"{what}: {len(keys.keys):,} keys, {int(keys.labels.sum()):,} of them anomalous by mask, "
        f"{len(queries.keys):,} queries from images that give no key. Largest |delta probability|, "
        "Spearman's rho.",
        "fp32 inside cells; as shipped it reads cells until the estimated error of a class's log-sum is "
        "1e-3, so it reads none where none is needed.",
    ]
    columns = ["cells of each class", *(f"sharpness {s}" for s in sharpnesses)]
    bits = "Bytes a dimension: 4, 2. Closed forms come from the keys as they were."
    return [
        Table("Error against exact attention, by sharpness of q.k", columns, rows, notes),
        Table(
            "Error by how keys are kept inside cells",
            ["kept as", *columns[1:]],
            [row(name, index.probability) for name, index in stored.items()],
            [bits],
        ),
    ]


def _ours(keys: Patches, cells: int, row) -> list[list[Cell]]:  # type: ignore[no-untyped-def]
    """Closed forms alone, as shipped, and how many cells that read."""
    index = ApproximateRetriever.build(keys.keys, keys.labels, cells=cells, storage="fp32")
    shipped, read = index.cells, []

    def counted(queries: torch.Tensor) -> torch.Tensor:
        found = index.probability(queries)
        read.append(f"{index.probed:.1f} of {len(index.cells.stats.count)}")
        return found

    index.cells = replace(shipped, tolerance=np.inf)
    rows = [row(f"{cells} cells, none read", index.probability)]
    index.cells = shipped
    return [*rows, row(f"{cells} cells", counted), ["cells that it read", *read]]


def run(quick: bool) -> list[Table]:
    """See the module."""
    encoder = Geometry.tiny().encoder() if quick else Encoder.load("mrad-mini", precision="fp32")
    count = 1_500 if quick else KEYS * 8 // 7
    keys, held = patches(encoder, count).split()
    rng = np.random.default_rng(0)
    asked = held.of(rng.permutation(len(held.keys))[: 200 if quick else QUERIES])
    what = f"Patches of real images by {encoder.name}, {encoder.width} wide"
    some = keys.of(np.arange(len(keys.keys))[:KEYS])
    return error_tables(some, asked, what, (4,) if quick else SHARPNESS)
