"""The error of approximate retrieval against exact attention, on patch features of real images:
by way of counting cells, and by how keys are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import faiss
import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.features import Patches, error_encoder, patches
from benchmarks.tables import Cell, Table, main, shown
from mrad.retrieval.approximate.codec import STORAGES
from mrad.retrieval.approximate.index import ApproximateRetriever
from mrad.retrieval.base import probability_of
from mrad.retrieval.exact import ExactRetriever

NAME = "retrieval"
SHARPNESS = (1, 4, 16, 64)
KEYS, QUERIES = 100_000, 1_500


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
    rows = [row(f"ours, {cells} cells, none read", index.probability)]
    index.cells = shipped
    return [*rows, row(f"ours, {cells} cells", counted), ["cells that it read", *read]]


def run(quick: bool) -> list[Table]:
    """See the module."""
    encoder, tower = error_encoder(quick)
    count = 1_500 if quick else KEYS * 8 // 7
    keys, held = patches(encoder, count).split()
    rng = np.random.default_rng(0)
    asked = held.of(rng.permutation(len(held.keys))[: 200 if quick else QUERIES])
    what = f"Patches of real images by {tower}, {encoder.width} wide"
    some = keys.of(np.arange(len(keys.keys))[:KEYS])
    return error_tables(some, asked, what, (4,) if quick else SHARPNESS)


if __name__ == "__main__":
    main(run)
