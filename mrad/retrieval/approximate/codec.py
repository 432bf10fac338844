"""Keys inside cells: what is stored of each, in one plain array sorted by cell.

A cell is a slice of that array, so reading one is a small matrix product straight from a memory map.
What is coded is the difference from the cell's centroid, which is smaller than the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.errors import MRADError
from mrad.retrieval.approximate.cells import Assignment, blocks, checked
from mrad.retrieval.base import KeySource
from mrad.types import FloatArray

STORAGES = {"fp32": np.float32, "fp16": np.float16, "sq8": np.uint8, "pq": np.uint8}
"""Bytes for each dimension: 4, 2, 1, and 1/8 (one byte for eight dimensions)."""
PQ_SUBSPACE = 8
SAMPLE = 16_384


@dataclass(frozen=True)
class Codec:
    """How differences [m, d] are kept. Unused arrays are empty."""

    storage: str
    low: FloatArray
    step: FloatArray
    """[d], for `sq8`."""
    codebook: FloatArray
    """[d / s, 256, s], for `pq`: the centroids of each subspace of s dimensions."""
    noise: FloatArray
    """[d], mean squared error of coding. A sum of exponentials of coded keys lacks half of it."""

    @classmethod
    def learn(cls, storage: str, sample: FloatArray, low: FloatArray, high: FloatArray) -> Codec:
        """The codec for differences like `sample` [m, d], which all lie in [low, high].

        Raises `MRADError` for an unknown `storage`, and for `pq` with fewer than 256 keys.
        """
        if storage not in STORAGES:
            raise MRADError(f"storage {storage!r} is unknown; choose {', '.join(STORAGES)}")
        empty = np.empty(0, dtype=np.float32)
        step, codebook = empty, empty.reshape(0, 0, 0)
        if storage == "sq8":
            step = np.maximum((high - low) / 255, 1e-12).astype(np.float32)
        if storage == "pq":
            codebook = _codebook(sample)
        codec = cls(storage, low, step, codebook, np.zeros_like(low))
        back = codec.decode(torch.from_numpy(codec.encode(sample))).numpy()
        noise = np.square(back - sample).mean(axis=0) if len(sample) else np.zeros_like(low)
        return cls(storage, low, step, codebook, noise.astype(np.float32))

    def encode(self, difference: FloatArray) -> npt.NDArray[Any]:
        """[m, d] float32 -> codes; `sq8` clips what lies outside the range of the build."""
        if self.storage == "sq8":
            steps = np.rint((difference - self.low) / self.step)
            return np.asarray(steps.clip(0, 255), dtype=np.uint8)
        if self.storage == "pq":
            return np.asarray(_quantizer(self.codebook).compute_codes(difference))
        return np.asarray(difference, dtype=STORAGES[self.storage])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes -> float32 [m, d], on their device."""
        if self.storage == "sq8":
            low, step = (torch.from_numpy(a).to(codes.device) for a in (self.low, self.step))
            return torch.addcmul(low, codes.float(), step)
        if self.storage == "pq":
            book = torch.from_numpy(self.codebook).to(codes.device)
            parts = book[torch.arange(len(book), device=codes.device), codes.long()]
            return parts.flatten(1)
        return codes.float()


def _codebook(sample: FloatArray) -> FloatArray:
    if len(sample) < 256:
        raise MRADError(f"pq needs at least 256 keys to learn from, there are {len(sample)}")
    dim = sample.shape[1]
    quantizer = faiss.ProductQuantizer(dim, dim // gcd(dim, PQ_SUBSPACE), 8)
    quantizer.cp.min_points_per_centroid = 1
    quantizer.train(sample)
    book = faiss.vector_to_array(quantizer.centroids)
    return np.ascontiguousarray(book.reshape(quantizer.M, 256, quantizer.dsub))


def _quantizer(codebook: FloatArray) -> Any:
    parts, _, width = codebook.shape
    quantizer = faiss.ProductQuantizer(parts * width, parts, 8)
    faiss.copy_array_to_vector(codebook.ravel(), quantizer.centroids)
    return quantizer


@dataclass(frozen=True)
class Segment:
    """Coded keys sorted by cell; cell c is `start[c]:start[c + 1]`."""

    codes: npt.NDArray[Any]
    """[n, ...], in memory or mapped."""
    row: npt.NDArray[np.int64]
    """[n], the key's row in its level."""
    entry: npt.NDArray[np.int64]
    """[n], the key's entry, for `exclude`."""
    start: npt.NDArray[np.int64]
    """[C + 1]."""

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def join(cls, segments: Sequence[Segment]) -> Segment:
        """One segment, in memory, of the keys of several."""
        cells = [np.repeat(np.arange(len(s.start) - 1), np.diff(s.start)) for s in segments]
        order = np.argsort(np.concatenate(cells), kind="stable")
        return cls(
            np.concatenate([s.codes for s in segments])[order],
            np.concatenate([s.row for s in segments])[order],
            np.concatenate([s.entry for s in segments])[order],
            np.sum([s.start for s in segments], axis=0),
        )


def learn_codec(storage: str, keys: KeySource, assigned: Assignment) -> Codec:
    """The codec for keys that were assigned to cells, learned from an even sample of them."""
    count = len(assigned.cell)
    rows = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))
    sample = checked(keys[rows]) - assigned.stats.frame.centroid[assigned.cell[rows]]
    return Codec.learn(storage, sample, assigned.low, assigned.high)


def make_segment(
    keys: KeySource,
    assigned: Assignment,
    codec: Codec,
    *,
    entry: npt.NDArray[np.int64],
    first_row: int = 0,
    file: Path | None = None,
) -> Segment:
    """Second pass: code every key into its place, in memory or straight into `file` (.npy)."""
    cell, centroid = assigned.cell, assigned.stats.frame.centroid
    start = np.concatenate([[0], np.cumsum(assigned.stats.count)]).astype(np.int64)
    order = np.argsort(cell, kind="stable")
    place = np.empty(len(cell), dtype=np.int64)
    place[order] = np.arange(len(cell))
    shape, dtype = (len(cell), *codec.encode(centroid[:1]).shape[1:]), STORAGES[codec.storage]

    def coded() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        for part in blocks(len(cell)):
            yield place[part], codec.encode(checked(keys[part]) - centroid[cell[part]])

    if file is None:
        codes = np.empty(shape, dtype=dtype)
        for rows, found in coded():
            codes[rows] = found
    else:
        _write(file, shape, np.dtype(dtype), coded())
        codes = np.load(file, mmap_mode="c", allow_pickle=False)
    return Segment(codes, order + first_row, np.asarray(entry, dtype=np.int64)[order], start)


def _write(
    file: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    coded: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]],
) -> None:
    """Codes to their rows of a .npy file, run by run: written, not mapped, so that memory stays flat."""
    width = int(np.prod(shape[1:])) * dtype.itemsize
    with file.open("wb") as out:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(out, header)
        begin = out.tell()
        out.truncate(begin + shape[0] * width)
        for rows, found in coded:
            order = np.argsort(rows)
            rows, found = rows[order], np.ascontiguousarray(found[order])
            cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
            for first, end in pairwise(cuts):
                out.seek(begin + int(rows[first]) * width)
                out.write(found[first:end].data)
