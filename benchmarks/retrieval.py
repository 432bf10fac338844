"""Retrieval: its error against exact attention, and what 10 k to 10 M keys cost.

Errors by way of counting cells, by how keys are stored, and by number of keys, on patch features of
real images; and what each size costs at the paper's key width. Peak memory stays under 20 GiB, the
largest size takes 21 GB of disk where temporary files go (TMPDIR).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import faiss
import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks import scale
from benchmarks.features import (
    KEY_WIDTH,
    Patches,
    error_encoder,
    patches,
    records,
    wide_patches,
)
from benchmarks.geometry import Geometry
from benchmarks.tables import Cell, Table, main, middle, ratio, shown
from mrad.approximate import ApproximateRetriever
from mrad.approximate_codec import STORAGES
from mrad.retrieval import ExactRetriever, probability_of

NAME = "retrieval"
SHARPNESS = (1, 4, 16, 64)
KEYS, QUERIES = 100_000, 1_500
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
UP_TO = 1_000_000
"""Beyond it exact attention over one image's patches takes minutes, and a bank does not fit."""
FEW = (1, 4)
"""Sharpnesses beyond it: sharper queries read most of a file of 20 GB."""


class Plain:
    """The design's own rule, for comparison: diagonal Gaussian cells, the strongest ones probed."""

    def __init__(self, keys: Patches, cells: int) -> None:
        self.groups: dict[int, list[torch.Tensor]] = {}
        for label in (0, 1):
            own = np.ascontiguousarray(keys.keys[keys.labels == label])
            count = max(1, min(cells, len(own) // 39))
            kmeans = faiss.Kmeans(own.shape[1], count, niter=10, seed=1)
            kmeans.train(own)
            cell = kmeans.index.search(own, 1)[1][:, 0]
            found = [torch.from_numpy(own[cell == c]) for c in range(count)]
            self.groups[label] = [group for group in found if len(group)]

    def probability(self, queries: torch.Tensor, probes: int) -> torch.Tensor:
        """The anomalous class's share, with so many cells of each class summed key by key."""
        sums = torch.full((len(queries), 2), -torch.inf, dtype=torch.float64)
        for label, groups in self.groups.items():
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
    """By way of counting cells, against the plain rule, and by storage."""
    # A sharper head is longer queries: what counts is q.k, so every index is built once.
    asked = {s: torch.from_numpy(queries.keys) * s for s in sharpnesses}
    whole = ExactRetriever(keys.keys, keys.labels)
    exact = {s: whole.probability(q) for s, q in asked.items()}

    def row(name: str, probability) -> list[Cell]:  # type: ignore[no-untyped-def]
        return [name, *(compared(probability(q), exact[s]) for s, q in asked.items())]

    rows: list[list[Cell]] = []
    for cells in (64, 512):
        plain = Plain(keys, cells)
        for probes in (0, 16):
            name = f"plain, {cells} cells" + (f", {probes} probed" if probes else "")
            rows.append(row(name, lambda q, n=probes, p=plain: p.probability(q, n)))
        rows += _ours(keys, cells, row)
    stored = {
        storage: ApproximateRetriever.build(keys.keys, keys.labels, storage=storage)
        for storage in STORAGES
    }
    notes = [
        f"{what}: {len(keys.keys):,} keys, {int(keys.labels.sum()):,} of them anomalous by mask, "
        f"{len(queries.keys):,} queries from images that give no key. Largest |delta probability|, "
        "Spearman's rho.",
        "Plain: diagonal Gaussian cells as in the design, 0 or 16 strongest cells of each class "
        "summed key by key. Ours: `approximate`, fp32 inside cells; as shipped it reads cells "
        "until the estimated error of a class's log-sum is 1e-3, so it reads none where none is "
        "needed.",
    ]
    columns = ["cells of each class", *(f"sharpness {s}" for s in sharpnesses)]
    bits = "Bytes a dimension: 4, 2, 1, 1/8. Closed forms come from the keys as they were."
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
    rows = [row(f"ours, {cells} cells, none read", index.probability)]
    index.cells = shipped
    return [*rows, row(f"ours, {cells} cells", counted), ["cells that it read", *read]]


def size_tables(real: Patches, grid: int, quick: bool) -> list[Table]:
    """Each size in processes of its own, so that memory is that size's."""
    sizes = (1_000, 3_000) if quick else SIZES
    geometry = Geometry.tiny() if quick else KEY_WIDTH
    few = sizes[-1]
    rows: list[list[Cell]] = []
    wrong: list[list[Cell]] = []
    ratios = {}
    with tempfile.TemporaryDirectory(prefix="mrad-sizes-") as folder:
        kept = Path(folder) / "real.npz"
        keys, held = real.split()
        np.savez(kept, keys=keys.keys, labels=keys.labels, held=held.keys)
        for size in sizes:
            path = Path(folder) / str(size)
            built = _alone(scale.build, kept, size, path)
            asked = _alone(scale.ask, kept, size, path, grid**2, size <= UP_TO)
            asks = (256, SHARPNESS) if size < few else (64, FEW)
            found = _alone(scale.errors, kept, size, path, *asks)
            shutil.rmtree(path)
            started = None
            if size <= UP_TO:
                _alone(scale.make_bank, kept, size, path, geometry)
                started = _alone(scale.start_bank, path, geometry)
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
                    None if started is None else f"{shown(started.seconds)} s",
                    None if started is None else f"{started.bytes / 2**20:,.0f} MiB",
                    f"{asked.anonymous / 2**20:,.0f} MiB",
                    f"{asked.mapped / 2**20:,.0f} MiB",
                    middle(asked.query),
                    None if exact is None else middle(exact),
                ]
            )
            cells = [f"{shown(e.largest)}, {e.spearman:.5f} ({e.probed:.0f} read)" for e in found]
            wrong.append([size, *cells, *[None] * (len(SHARPNESS) - len(cells))])
    columns = ["keys", "index built in", "index", "peak of that", "index opened in"]
    columns += ["bank started in", "bank", "resident, own", "resident, mapped"]
    columns += ["one image's patches", "exact"]
    what = (
        f"{len(keys.keys):,} keys are patches of {len(records(10**9))} real images by a seeded, "
        "untrained tower of the paper's width; larger sizes repeat them with noise of L2 size 0.05."
    )
    notes = [
        f"Keys of width {real.keys.shape[1]}, fp16 inside cells, sharpness 1, {grid**2:,} queries. "
        + what,
        "A bank's start: every digest verified, every key seen to be finite, its index opened; "
        "two keys an image, so half as many entries as keys, and an image key each. Its files are "
        "in the page cache. Neither start counts Python or the encoder.",
        "Resident: after the queries, less what Python and torch take before; mapped pages can be "
        "dropped at any time. Exact: beyond 1 M keys it is not timed.",
    ]
    about = (
        "Largest |delta probability|, Spearman's rho, and cells read key by key of at most 1,024; "
        "256 queries, 64 at the largest size, are patches of images that give no key. " + what
    )
    by_size = ["keys", *(f"sharpness {s}" for s in SHARPNESS)]
    return [
        Table("Sizes: 10 k to 10 M keys", columns, rows, notes, ratios),
        Table("Error against exact attention, by number of keys", by_size, wrong, [about]),
    ]


def _alone(work, *arguments):  # type: ignore[no-untyped-def]
    begin = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(work, *arguments).result()
    size = next(a for a in (*arguments, "") if isinstance(a, int | str))
    took = time.perf_counter() - begin
    print(f"  {work.__name__} {size}: {took:.1f} s", file=sys.stderr, flush=True)
    return found


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
    wide = wide_patches(700 if quick else 70_000, quick)
    return [*tables, *size_tables(wide, 9 if quick else 37, quick)]


if __name__ == "__main__":
    main(run)
