"""The nearest of many good patches: FAISS cells, as many of them as measured recall asks for.

Patches of one kind of part vary along few directions, so cells hold keys along those alone, in half
precision, and name the few that seem nearest; their cosine is then taken in full. It is thus the cosine of
a key that exists, never above that of the nearest. Of the keys in a cell that is looked at, none is nearer
than the one found by more than 2 * a * b, where a and b are the lengths of what the directions leave of
the key and of the query (at most 1); keys in other cells are missed.

So a patch can seem farther away than it is, never nearer. The patches that seem farthest, which decide
the map's top, are asked again among many more cells: none of the others can be as far as they seemed.
"""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from mrad.encoder.kernels import product

logger = logging.getLogger(__name__)
SearchParameters: Any = faiss.SearchParametersIVF
Selector: Any = faiss.IDSelectorBitmap

MANY = 8_192
"""Keys from which cells are worth the time that it takes to make them."""
WANTED = 0.95
"""Share of patches that must find their nearest key, or exact search stays."""
PROBES = (2, 4, 6, 8, 12, 16, 32)
"""Cells looked at for each patch, tried in this order."""
AGAIN = 8
"""So many times as many for the patches that decide."""
DECISIVE = 0.04
"""Share of an image's patches, the farthest, that are asked again."""
KEPT = 0.999
"""Share of the keys' squared length along the directions that cells know."""
SHORTS = (2, 4, 8)
"""Keys whose cosine is taken in full, tried in this order: near ties want more; twice as many for the patches that decide."""
ITERATIONS, POINTS = 6, 64
"""Of k-means, and keys for each cell that it sees: cells need not be good, recall is measured."""
SAMPLE_IMAGES, SAMPLE_PATCHES = 8, 64
"""Stored patches on which recall is measured, each without its own image."""


@dataclass
class PatchIndex:
    """An index over keys on the CPU."""

    faiss: Any
    """`faiss.IndexIVFScalarQuantizer` of `keys` along `axes`."""
    keys: Tensor
    """[n, W], L2-normalised."""
    axes: Tensor
    """[W, d], orthonormal directions."""
    probes: int
    short: int
    """Keys of those cells whose cosine is taken in full."""
    recall: float
    """Of the nearest key, on stored patches without their own image."""
    groups: Tensor
    """int64 [m], of the first keys, which made the cells."""

    @classmethod
    def build(
        cls,
        keys: Tensor,
        group: Tensor,
        entry: Tensor,
        settled: int,
        before: PatchIndex | None = None,
        elsewhere: Tensor | None = None,
    ) -> PatchIndex:
        """An index; where no number of cells finds enough, one that is not `usable`.

        It follows from the memory as it is, whatever way that took: lessons come after the keys of the
        build, and cells are made of these alone (`trained_on`).

        Args:
            keys: [n, W], L2-normalised.
            group: int64 [n]; keys of one group are of the same part.
            entry: int64 [n], rising, of each key.
            settled: so many first keys are of the build.
            before: of another state of the memory; its cells serve again where the same keys made them, and
                what they hold where only lessons were added.
            elsewhere: cosine of each of the keys that make the cells to the nearest of another group
                among them; None, or of another length: not known.
        """
        count = trained_on(len(keys), settled)
        first, groups = keys[:count], group[:count]
        if before is None or not before._made_of(first, groups):
            before = cls._trained(first, groups, elsewhere)
        held = len(before.keys)
        if not before.usable or held == len(keys) == count:
            return replace(before, keys=keys)
        index: Any = faiss.clone_index(before.faiss)
        if held > len(keys) or not torch.equal(before.keys, keys[:held]):
            index.reset()
            index.add((first @ before.axes).numpy())
            held = count
        # An entry at a time, as they are taught: a key that lies between two cells may go to the other one
        # when it is added together with others.
        for size in entry[held:].unique_consecutive(return_counts=True)[1].tolist():
            index.add((keys[held : held + size] @ before.axes).numpy())
            held += size
        return replace(before, faiss=index, keys=keys)

    @classmethod
    def _trained(cls, keys: Tensor, group: Tensor, elsewhere: Tensor | None) -> PatchIndex:
        """Of keys that all make the cells; `elsewhere`: see `build`."""
        count = 2 ** round(math.log2(2 * len(keys) ** 0.5))
        axes = _directions(keys[:: max(1, len(keys) // (POINTS * count))])
        along = (keys @ axes).numpy()
        quantizer = faiss.IndexFlatIP(axes.shape[1])
        index = faiss.IndexIVFScalarQuantizer(
            quantizer,
            axes.shape[1],
            count,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
            True,  # what a key differs from its cell's centre by: half of a whole key's precision is too few
        )
        index.cp.niter, index.cp.seed = ITERATIONS, 0
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, POINTS
        index.train(along)
        index.add(along)
        made = cls(index, keys, axes, 0, 0, 0.0, group)
        if len(torch.unique(group)) < 2:  # recall cannot be measured
            return made
        asked = _sample(group)
        known = elsewhere is not None and len(elsewhere) == len(keys)
        exact = torch.cat(
            [elsewhere[r] if known else _exact(keys, group, r) for r in asked]  # type: ignore[index]
        )
        for made.probes, made.short in itertools.product(PROBES, SHORTS):
            found = torch.cat([made._without_own(rows, group) for rows in asked])
            made.recall = float((found >= exact - 1e-5).double().mean())
            if made.usable:
                logger.info(
                    "nearest of %d good patches: %d of %d cells, %d of %d directions, recall %.3f",
                    len(keys), made.probes, count, axes.shape[1], len(axes), made.recall,
                )  # fmt: skip
                return made
        logger.info("nearest of %d good patches: exact, cells find too few", len(keys))
        return made

    @property
    def usable(self) -> bool:
        """Whether cells find enough; else search is exact."""
        return self.recall >= WANTED

    def _made_of(self, keys: Tensor, group: Tensor) -> bool:
        """Whether these keys made the cells."""
        count = len(self.groups)
        return torch.equal(self.groups, group) and torch.equal(self.keys[:count], keys)

    @torch.inference_mode()
    def nearest(self, queries: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        """Cosine and key of each query [M, W]; the first `cells` are one image's, and so on."""
        along = product(queries, self.axes.T)
        cosine, key = self._search(queries, along, self.probes, self.short)
        width = cells if len(queries) % cells == 0 else len(queries)
        most = max(1, round(DECISIVE * width))
        rows = cosine.view(-1, width).topk(most, largest=False).indices
        rows = (rows + torch.arange(0, len(queries), width)[:, None]).flatten()
        better, found = self._search(
            queries[rows], along[rows], AGAIN * self.probes, 2 * self.short
        )
        closer = better > cosine[rows]
        cosine[rows] = torch.where(closer, better, cosine[rows])
        key[rows] = torch.where(closer, found, key[rows])
        return cosine, key

    @torch.inference_mode()
    def nearest_among(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """As `nearest` among some `keys` bool [n], of queries that all decide."""
        chosen = np.packbits(keys.numpy(), bitorder="little")
        among = Selector(chosen)
        return self._search(
            queries, product(queries, self.axes.T), AGAIN * self.probes, 2 * self.short, among
        )

    def _search(
        self, queries: Tensor, along: Tensor, probes: int, short: int, among: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Cosine, in full, and key of each query.

        Args:
            queries: [M, W].
            along: the same along `axes`, [M, d].
            probes: cells looked at.
            short: keys of them whose cosine is taken in full.
            among: a `faiss.IDSelector` of the keys that are asked; None: all.
        """
        params = SearchParameters(nprobe=min(probes, self.faiss.nlist), sel=among)
        _, rows = self.faiss.search(np.ascontiguousarray(along.numpy()), short, params=params)
        # Not by torch: a product of so many small matrices takes it five times as long.
        cosine = np.einsum("mkw,mw->mk", self.keys.numpy()[rows], queries.numpy())
        cosine[rows < 0] = -1.0
        place = cosine.argmax(axis=1)[:, None]
        best, key = (np.take_along_axis(one, place, 1)[:, 0] for one in (cosine, rows))
        return torch.from_numpy(best), torch.from_numpy(key)

    def _without_own(self, rows: Tensor, group: Tensor) -> Tensor:
        """As `_exact`, by the index."""
        own = (group == group[rows[0]]).nonzero()[:, 0].numpy().astype(np.int64)
        others = faiss.IDSelectorNot(faiss.IDSelectorBatch(own))
        asked = self.keys[rows]
        return self._search(asked, asked @ self.axes, self.probes, self.short, others)[0]


def trained_on(count: int, settled: int) -> int:
    """How many of so many first keys make the cells: those of the build, so that no lesson makes them again.

    Where the build has fewer than `MANY`, or lessons outnumber it: so many, times 2, 4, 8 ...
    """
    first = max(settled, MANY)
    return first << max(0, (count // first).bit_length() - 1)


def _directions(keys: Tensor) -> Tensor:
    """[W, d], along which `keys` have `KEPT` of their squared length; d fills vectors of 16 numbers."""
    square, vectors = torch.linalg.eigh(keys.T @ keys)
    kept = square.flip(0).clamp_min(0).cumsum(0) / square.clamp_min(0).sum()
    count = int((kept < KEPT).sum()) + 1
    axes: Tensor = vectors.flip(1)[:, : min(len(square), 16 * math.ceil(count / 16))].contiguous()
    return axes


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
