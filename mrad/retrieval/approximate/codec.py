"""Keys inside cells: what is stored of each, in one plain array sorted by cell.

A cell is a slice of that array, so reading one is a small matrix product straight from a memory map.
What is kept is the difference from the cell's centroid, which is smaller than the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mrad.retrieval.approximate.cells import Stats, blocks, checked
from mrad.retrieval.base import KeySource

STORAGES = {"fp32": np.float32, "fp16": np.float16}


@dataclass(frozen=True)
class Segment:
    """Differences sorted by cell; cell c is `start[c]:start[c + 1]`."""

    codes: npt.NDArray[Any]
    """[n, d], of a type of `STORAGES`; in memory or mapped."""
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


def make_segment(
    keys: KeySource,
    cell: npt.NDArray[np.int64],
    stats: Stats,
    dtype: npt.DTypeLike,
    *,
    entry: npt.NDArray[np.int64],
    first_row: int = 0,
    file: Path | None = None,
) -> Segment:
    """Second pass: write every key into its place, in memory or straight into `file` (.npy)."""
    centroid = stats.frame.centroid
    start = np.concatenate([[0], np.cumsum(stats.count)]).astype(np.int64)
    order = np.argsort(cell, kind="stable")
    place = np.empty(len(cell), dtype=np.int64)
    place[order] = np.arange(len(cell))
    shape = (len(cell), centroid.shape[1])

    def coded() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        for part in blocks(len(cell)):
            yield place[part], (checked(keys[part]) - centroid[cell[part]]).astype(dtype)

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
    width = shape[1] * dtype.itemsize
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
