"""Retrieval: its error against exact attention, and what 10 k to 10 M keys cost.

Two tables of errors (by sharpness, by how keys are stored) on patch features of real images, and one of sizes at the paper's key width. Peak memory stays under 20 GiB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import faiss
import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks import scale
from benchmarks.features import Patches, as_tensor, error_encoder, patches, records, wide_patches
from benchmarks.tables import Cell, Table, main, middle, ratio, shown
from mrad.approximate import ApproximateRetriever
from mrad.approximate_codec import STORAGES
from mrad.retrieval import ExactRetriever, probability_of

NAME = "retrieval"
SHARPNESS = (1, 4, 16, 64)
KEYS, QUERIES = 100_000, 1_500
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
EXACT_UP_TO = 1_000_000
"""Beyond it exact attention over one image's patches takes minutes."""


def plain(
    keys: Patches, queries: torch.Tensor, sharpness: float, cells: int, probes: int
) -> torch.Tensor:
    """The design's own rule, for comparison: diagonal Gaussian cells, the strongest ones probed."""
    scale = np.float32(sharpness**0.5)
    sums = torch.full((len(queries), 2), -torch.inf, dtype=torch.float64)
    for label in (0, 1):
        own = np.ascontiguousarray(keys.keys[keys.labels == label] * scale)
        count = max(1, min(cells, len(own) // 39))
        kmeans = faiss.Kmeans(own.shape[1], count, niter=10, seed=1)
        kmeans.train(own)
        cell = kmeans.index.search(own, 1)[1][:, 0]
        groups = [torch.from_numpy(own[cell == c]) for c in range(count) if (cell == c).any()]
        mean = torch.stack([g.mean(dim=0) for g in groups])
        variance = torch.stack([g.var(dim=0, correction=0) for g in groups])
        size = torch.tensor([len(g) for g in groups]).double().log()
        closed = (queries @ mean.T + queries.square() @ variance.T / 2).double() + size
        if probes:
            chosen = torch.zeros_like(closed, dtype=torch.bool)
            chosen.scatter_(1, closed.topk(min(probes, len(groups)), dim=1).indices, True)
            for c, group in enumerate(groups):
                rows = chosen[:, c].nonzero()[:, 0]
                closed[rows, c] = (queries[rows] @ group.T).double().logsumexp(dim=1)
        sums[:, label] = closed.logsumexp(dim=1)
    return probability_of(sums)


def compared(got: torch.Tensor, want: torch.Tensor) -> str:
    """Largest |delta p| and Spearman's rho, as the design's table has them."""
    rank = float(spearmanr(got.numpy(), want.numpy()).statistic)
    return f"{shown(float((got - want).abs().max()))}, {rank:.5f}"


def error_tables(
    keys: Patches, queries: Patches, what: str, sharpnesses: Sequence[int] = SHARPNESS
) -> list[Table]:
    """By sharpness against the plain rule, and by storage."""
    rows: list[list[Cell]] = []
    stored: list[list[Cell]] = []
    for sharpness in sharpnesses:
        scaled = keys.keys * np.float32(sharpness**0.5)
        asked = as_tensor(queries.keys, sharpness)
        exact = ExactRetriever(scaled, keys.labels).probability(asked)
        row: list[Cell] = [sharpness]
        for cells in (64, 512):
            for probes in (0, 16):
                row.append(compared(plain(keys, asked, sharpness, cells, probes), exact))
        ours = ApproximateRetriever.build(scaled, keys.labels, storage="fp32")
        row += [compared(ours.probability(asked), exact), round(ours.probed, 1)]
        rows.append([*row, len(ours.cells.stats.count)])
        other = [
            ApproximateRetriever.build(scaled, keys.labels, storage=storage).probability(asked)
            for storage in STORAGES
        ]
        stored.append([sharpness, *(compared(probability, exact) for probability in other)])
    notes = [
        f"{what}: {len(keys.keys):,} keys, {int(keys.labels.sum()):,} of them anomalous by mask, "
        f"{len(queries.keys):,} queries from images that give no key. Largest |delta probability|, "
        "Spearman's rho.",
        "Plain: diagonal Gaussian cells as in the design, 0 or 16 strongest cells of each class "
        "summed key by key. Ours: `approximate` as shipped (wanted error 1e-3), fp32 inside cells.",
    ]
    heads = ["64 cells", "64 cells, 16 probed", "512 cells", "512 cells, 16 probed"]
    columns = ["sharpness", *(f"plain, {h}" for h in heads), "ours", "cells read of", "cells"]
    bits = "Bytes a dimension: 4, 2, 1, 1/8. Closed forms come from the keys as they were."
    return [
        Table("Error against exact attention, by sharpness of q.k", columns, rows, notes),
        Table("Error by how keys are kept inside cells", ["sharpness", *STORAGES], stored, [bits]),
    ]


def size_table(real: Patches, grid: int, quick: bool) -> Table:
    """Each size in processes of its own, so that memory is that size's."""
    sizes = (1_000,) if quick else SIZES
    rows: list[list[Cell]] = []
    ratios = {}
    with tempfile.TemporaryDirectory(prefix="mrad-sizes-") as folder:
        kept = Path(folder) / "real.npz"
        np.savez(kept, keys=real.keys, labels=real.labels)
        for size in sizes:
            path = Path(folder) / str(size)
            built = _alone(scale.build, kept, size, path)
            asked = _alone(scale.ask, kept, size, path, grid**2, size <= EXACT_UP_TO)
            exact = asked.exact
            if exact is not None:
                ratios[f"exact over approximate, {size} keys"] = ratio(exact, asked.query)
            rows.append(
                [
                    size,
                    f"{shown(built.seconds)} s",
                    f"{built.bytes / 2**20:,.0f} MiB",
                    f"{built.peak / 2**20:,.0f} MiB",
                    f"{asked.start * 1e3:,.0f} ms",
                    f"{asked.anonymous / 2**20:,.0f} MiB",
                    f"{asked.mapped / 2**20:,.0f} MiB",
                    middle(asked.query),
                    None if exact is None else middle(exact),
                    f"{shown(built.largest_error)}, {built.spearman:.5f}",
                ]
            )
    columns = ["keys", "build", "file", "peak of the build", "start", "resident, own"]
    columns += ["resident, mapped", "one image's patches", "exact", "error"]
    notes = [
        f"Keys of width {real.keys.shape[1]}, fp16 inside cells, sharpness 1, {grid**2:,} queries. "
        f"{len(real.keys):,} keys are patches of {len(records(10**9))} real images by a seeded, "
        "untrained tower of the paper's width; larger sizes repeat them with noise of L2 size 0.05.",
        "Start: the index opened and mapped, not the process or the encoder. Resident: after the "
        "queries, less what Python and torch take before; mapped pages can be dropped at any time.",
        "Error: largest |delta probability| and Spearman's rho on 256 keys as queries without "
        "themselves.",
    ]
    return Table("Sizes: 10 k to 10 M keys", columns, rows, notes, ratios)


def _alone(work, *arguments):  # type: ignore[no-untyped-def]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def run(quick: bool) -> list[Table]:
    """See the module."""
    encoder, tower = error_encoder(quick)
    count = 1_500 if quick else KEYS * 8 // 7
    keys, held = patches(encoder, count).split()
    rng = np.random.default_rng(0)
    asked = held.of(rng.permutation(len(held.keys))[: 200 if quick else QUERIES])
    what = f"Patches of real images by {tower}, {encoder.width} wide"
    tables = error_tables(
        keys.of(np.arange(len(keys.keys))[:KEYS]), asked, what, (4,) if quick else SHARPNESS
    )
    wide = wide_patches(400 if quick else 60_000, quick)
    grid = 9 if quick else 37
    return [*tables, size_table(wide, grid, quick)]


if __name__ == "__main__":
    main(run)
