"""The nearest of many good patches: FAISS cells, as many of them as measured recall asks for.

A patch whose nearest key lies in a cell that is not looked at seems farther away than it is, never nearer.
So the patches that seem farthest, which decide the map's top, are asked again among many more cells: none
of the others can be as far as they seemed.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)
SearchParameters: Any = faiss.SearchParametersIVF

MANY = 8_192
"""Keys from which cells are worth the time that it takes to make them."""
WANTED = 0.95
"""Share of patches that must find their nearest key, or exact search stays."""
PROBES = (2, 4, 8, 16, 32)
"""Cells looked at for each patch, tried in this order."""
AGAIN = 8
"""So many times as many for the patches that decide."""
DECISIVE = 0.1
"""Share of an image's patches, the farthest, that are asked again."""
ITERATIONS, POINTS = 6, 64
"""Of k-means, and keys for each cell that it sees: cells need not be good, recall is measured."""
SAMPLE_IMAGES, SAMPLE_PATCHES = 8, 64
"""Stored patches on which recall is measured, each without its own image."""


@dataclass
class GoodCells:
    """An index over keys on the CPU."""

    index: Any
    """`faiss.IndexIVFFlat`."""
    probes: int
    recall: float
    """Of the nearest key, on stored patches without their own image."""
    trained: int
    """Keys that made the cells."""

    @classmethod
    def build(
        cls, keys: Tensor, group: Tensor, before: GoodCells | None = None
    ) -> GoodCells | None:
        """Over `keys` [n, W], L2-normalised; None where no number of cells finds enough.

        `group` int64 [n]: keys of one group are of the same part. `before`: of an earlier state of the
        memory, whose cells are kept while it is of about the same size.
        """
        vectors = np.ascontiguousarray(keys.numpy())
        if (
            before is not None
            and before.index.d == vectors.shape[1]
            and 0.5 < len(vectors) / before.trained < 2
        ):
            index: Any = faiss.clone_index(before.index)
            index.reset()
            index.add(vectors)
            return cls(index, before.probes, before.recall, before.trained)
        count = 2 ** round(math.log2(2 * len(vectors) ** 0.5))
        quantizer = faiss.IndexFlatIP(vectors.shape[1])
        index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], count, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.seed = ITERATIONS, 0
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, POINTS
        index.train(vectors)
        index.add(vectors)
        asked = _sample(group)
        exact = [_exact(keys, group, rows) for rows in asked]
        for probes in PROBES:
            found = [_within(index, vectors, group, rows, probes) for rows in asked]
            recall = float((torch.cat(found) >= torch.cat(exact) - 1e-5).double().mean())
            if recall >= WANTED:
                logger.info(
                    "nearest of %d good patches: %d of %d cells, recall %.3f",
                    len(keys), probes, count, recall,
                )  # fmt: skip
                return cls(index, probes, recall, len(vectors))
        logger.info("nearest of %d good patches: exact, cells find too few", len(keys))
        return None

    def nearest(self, queries: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        """Cosine and key of each query [M, W]; the first `cells` are one image's, and so on."""
        asked = np.ascontiguousarray(queries.numpy())
        cosine, key = (torch.from_numpy(x[:, 0]) for x in self._search(asked, self.probes))
        width = cells if len(queries) % cells == 0 else len(queries)
        most = max(1, round(DECISIVE * width))
        rows = cosine.view(-1, width).topk(most, largest=False).indices
        rows = (rows + torch.arange(0, len(queries), width)[:, None]).flatten()
        better = self._search(asked[rows.numpy()], AGAIN * self.probes)
        cosine[rows], key[rows] = (torch.from_numpy(x[:, 0]) for x in better)
        return cosine, key

    def _search(self, queries: np.ndarray, probes: int) -> tuple[np.ndarray, np.ndarray]:
        values, rows = self.index.search(
            queries, 1, params=SearchParameters(nprobe=min(probes, self.index.nlist))
        )
        return values, rows


def _sample(group: Tensor) -> list[Tensor]:
    """Rows of some keys of some groups."""
    every = torch.unique(group)
    chosen = every[torch.linspace(0, len(every) - 1, min(SAMPLE_IMAGES, len(every))).long()]
    rows = [(group == one).nonzero()[:, 0] for one in chosen.tolist()]
    return [own[torch.linspace(0, len(own) - 1, SAMPLE_PATCHES).long().unique()] for own in rows]


def _exact(keys: Tensor, group: Tensor, rows: Tensor) -> Tensor:
    """Cosine of keys `rows`, of one group, to the nearest key of another."""
    cosine = keys[rows] @ keys.T
    return cosine.masked_fill_(group == group[rows[0]], -1.0).amax(dim=1)


def _within(index: Any, vectors: np.ndarray, group: Tensor, rows: Tensor, probes: int) -> Tensor:
    """As `_exact`, by the index."""
    own = (group == group[rows[0]]).nonzero()[:, 0].numpy().astype(np.int64)
    others = faiss.IDSelectorNot(faiss.IDSelectorBatch(own))
    params = SearchParameters(nprobe=probes, sel=others)
    values, _ = index.search(np.ascontiguousarray(vectors[rows.numpy()]), 1, params=params)
    return torch.from_numpy(values[:, 0])
