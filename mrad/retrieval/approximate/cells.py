"""Cells of keys: k-means per class, and what each cell is on average.

Written for `mrad.retrieval.approximate.index`. FAISS finds the centroids and assigns; moments are gathered in one
pass over the keys, which may exceed memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.errors import DimensionError, EmptyLevelError, MRADError, NonFiniteError
from mrad.retrieval.base import KeySource
from mrad.types import ANOMALOUS, NORMAL, FloatArray

BLOCK = 32_768
TRAIN_PER_CELL = 64
MIN_PER_CELL = 39
"""FAISS's own least number of training points for a centroid."""
MAX_CELLS = 512
RANK = 64
"""Principal directions along which a cell's variance is kept; what lies beyond is isotropic."""
COVARIED = 32
"""The first of them, within which its whole covariance is kept."""


@dataclass(frozen=True)
class Frame:
    """What is learned once, from a sample, and kept while keys come and go."""

    centroid: FloatArray
    """[C, d]: keys are assigned to the nearest of their class."""
    label: npt.NDArray[np.uint8]
    """[C]."""
    basis: FloatArray
    """[d, r] orthonormal: principal directions of what keys differ by inside cells.

    Cells are stretched along the same directions, though each in its own way.
    """

    @property
    def diagonal(self) -> npt.NDArray[np.bool_]:
        """[p]: which of the products of `outer` are squares along the basis."""
        row, column = pairs(self.basis.shape[1])
        return np.append((row == column).numpy(), False)


def pairs(rank: int) -> tuple[Tensor, Tensor]:
    """Which coordinates within a basis of `rank` directions are multiplied: two int64 [p - 1]."""
    whole = min(rank, COVARIED)
    row, column = torch.triu_indices(whole, whole)
    alone = torch.arange(whole, rank)
    return torch.cat([row, alone]), torch.cat([column, alone])


def outer(vectors: Tensor, basis: Tensor) -> Tensor:
    """`vectors` [m, d], `basis` [d, r] -> [m, p]: what makes a covariance when averaged.

    Products of two coordinates within the basis (`pairs`), then the mean square of what lies beyond
    it, per dimension.
    """
    along = vectors @ basis
    whole, square = min(along.shape[1], COVARIED), along.square()
    products = [along[:, i : i + 1] * along[:, i:whole] for i in range(whole)]
    rest = vectors.norm(dim=1).square() - square.sum(dim=1)
    beyond = rest.clamp_min(0) / max(basis.shape[0] - basis.shape[1], 1)
    return torch.cat([*products, square[:, whole:], beyond[:, None]], dim=1)


def weights(queries: Tensor, basis: Tensor) -> Tensor:
    """[M, d] -> [M, p]: the variance of q.k is its dot product with a cell's `Stats.covariance`."""
    found = outer(queries, basis)
    row, column = pairs(basis.shape[1])
    found[:, :-1] *= 1 + (row != column).to(found)  # each product off the diagonal stands for two
    found[:, -1] *= basis.shape[0] - basis.shape[1]  # the mean per dimension becomes the sum
    return found


@dataclass(frozen=True)
class Stats:
    """What each of the C cells is on average; cells of both classes in one table."""

    frame: Frame
    mean: FloatArray
    """[C, d] of the keys that the cell holds now."""
    covariance: FloatArray
    """[C, p] of the same keys: within `frame.basis`, then the variance per dimension beyond it."""
    radius: FloatArray
    """[C], largest distance of a key from the mean (an upper bound, after `merge`)."""
    count: npt.NDArray[np.int64]
    """[C]; a cell may be empty."""

    def merge(self, other: Stats) -> Stats:
        """Both sets of keys together, exactly (Chan's pairwise update)."""
        n, m = self.count[:, None].astype(np.float64), other.count[:, None].astype(np.float64)
        total = np.maximum(n + m, 1)
        gap = other.mean.astype(np.float64) - self.mean
        mean = self.mean + gap * (m / total)
        basis = torch.from_numpy(self.frame.basis).double()
        apart = outer(torch.from_numpy(gap), basis).numpy() * (n * m / total)
        spread = self.covariance * n + other.covariance * m + apart
        moved = np.linalg.norm(gap * (m / total), axis=1)
        back = np.linalg.norm(gap * (n / total), axis=1)
        radius = np.maximum(
            np.where(self.count > 0, self.radius + moved, 0),
            np.where(other.count > 0, other.radius + back, 0),
        )
        return Stats(
            self.frame,
            mean.astype(np.float32),
            (spread / total).astype(np.float32),
            radius.astype(np.float32),
            self.count + other.count,
        )

    @property
    def spread(self) -> npt.NDArray[np.float64]:
        """[C], mean squared distance of a cell's keys from their mean."""
        inside = self.covariance[:, self.frame.diagonal].sum(axis=1, dtype=np.float64)
        beyond = self.frame.basis.shape[0] - self.frame.basis.shape[1]
        return np.asarray(inside + self.covariance[:, -1] * beyond)

    @property
    def distortion(self) -> float:
        """Mean squared distance of the keys from their cell's centroid."""
        gap = np.square(self.mean.astype(np.float64) - self.frame.centroid).sum(axis=1)
        each = self.spread + gap
        return float((each * self.count).sum() / max(int(self.count.sum()), 1))


def blocks(count: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices that cover `count` rows."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def cells_for(count: int) -> int:
    """Cells for a class of `count` keys: about its square root, 512 at most.

    Fewer keys than FAISS asks for a centroid make no cell of their own.
    """
    return max(1, min(MAX_CELLS, isqrt(count), count // MIN_PER_CELL))


def make_frame(
    keys: KeySource, labels: npt.NDArray[np.uint8], cells: int | None = None, seed: int = 0
) -> Frame:
    """k-means per class on a sample of the keys, and the principal directions inside cells.

    Raises `EmptyLevelError` without keys, `DimensionError` when labels and keys do not pair up.
    """
    if len(keys.shape) != 2 or keys.shape[0] == 0:
        raise EmptyLevelError("there is no key to index")
    if len(labels) != keys.shape[0]:
        raise DimensionError(f"{len(labels)} labels for {keys.shape[0]} keys")
    rng = np.random.default_rng(seed)
    centroids, classes = [], []
    inside = np.zeros((keys.shape[1], keys.shape[1]))
    for label in (NORMAL, ANOMALOUS):
        rows = np.flatnonzero(labels == label)
        if not len(rows):
            continue
        wanted = min(cells or cells_for(len(rows)), len(rows))
        rows = np.sort(rng.permutation(rows)[: wanted * TRAIN_PER_CELL])
        sample = checked(keys[rows])
        centroids.append(_kmeans(sample, wanted, seed))
        classes.append(np.full(wanted, label, dtype=np.uint8))
        residual = sample - centroids[-1][faiss.knn(sample, centroids[-1], 1)[1][:, 0]]
        inside += residual.T @ residual
    basis = np.linalg.eigh(inside)[1][:, ::-1][:, :RANK]
    return Frame(
        np.concatenate(centroids),
        np.concatenate(classes),
        np.ascontiguousarray(basis, dtype=np.float32),
    )


def _kmeans(sample: FloatArray, cells: int, seed: int) -> FloatArray:
    if cells == 1:
        return np.asarray(sample.mean(axis=0, keepdims=True), dtype=np.float32)
    kmeans = faiss.Kmeans(
        sample.shape[1], cells, niter=10, seed=seed + 1, min_points_per_centroid=1
    )
    kmeans.train(sample)
    return np.array(kmeans.centroids, dtype=np.float32).reshape(cells, -1)


def checked(keys: Any) -> FloatArray:
    """A block of keys as contiguous float32. Raises `NonFiniteError`."""
    block = np.require(keys, np.float32, ["C", "A"])  # mapped keys need not lie aligned
    if not np.isfinite(block).all():
        raise NonFiniteError("the keys hold NaN or infinity")
    return block


def assign(
    keys: KeySource, labels: npt.NDArray[np.uint8], frame: Frame
) -> tuple[npt.NDArray[np.int64], Stats]:
    """Each key's nearest cell of its class [n], and the cells' moments, gathered block by block.

    Raises `NonFiniteError`, `MRADError` for a class without cells.
    """
    own = {int(c): np.flatnonzero(frame.label == c) for c in np.unique(frame.label)}
    if strangers := set(np.unique(labels).tolist()) - own.keys():
        raise MRADError(f"the index holds no cell of class {strangers.pop()}; build it again")
    nearest = {}
    for label, rows in own.items():
        nearest[label] = faiss.IndexFlatL2(frame.centroid.shape[1])
        nearest[label].add(np.ascontiguousarray(frame.centroid[rows]))
    cells, dim = frame.centroid.shape
    basis, cell = torch.from_numpy(frame.basis), np.empty(len(labels), dtype=np.int64)
    first = torch.zeros(
        cells, dim, dtype=torch.float64
    )  # sums of what keys differ by from centroids
    second = torch.zeros(cells, len(frame.diagonal), dtype=torch.float64)
    reach = np.zeros(cells)
    for part in blocks(len(labels)):
        block, mine = checked(keys[part]), cell[part]
        for label in np.unique(labels[part]).tolist():
            rows = np.flatnonzero(labels[part] == label)
            _, found = nearest[label].search(np.ascontiguousarray(block[rows]), 1)
            mine[rows] = own[label][found[:, 0]]
        residual, where = torch.from_numpy(block - frame.centroid[mine]), torch.from_numpy(mine)
        for total, values in ((first, residual), (second, outer(residual, basis))):
            # float32 within a block, float64 across
            total += torch.zeros(total.shape).index_add_(0, where, values)
        np.maximum.at(reach, mine, residual.norm(dim=1).double().numpy())
    count = np.bincount(cell, minlength=cells)
    shift = first.numpy() / np.maximum(count, 1)[:, None]
    away = outer(torch.from_numpy(shift), basis.double()).numpy()
    covariance = second.numpy() / np.maximum(count, 1)[:, None] - away
    squares = np.append(np.flatnonzero(frame.diagonal), -1)
    covariance[:, squares] = np.maximum(covariance[:, squares], 0)
    stats = Stats(
        frame,
        (frame.centroid + shift).astype(np.float32),
        covariance.astype(np.float32),
        (reach + np.linalg.norm(shift, axis=1)).astype(np.float32),
        count,
    )
    return cell, stats
