"""The nearest keys of the memory: why an image was judged as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.heads import Head, HeadOutput
from mrad.heads.nn import NNHead
from mrad.images.layout import cell_box
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry
from mrad.retrieval.base import Retriever
from mrad.retrieval.choose import make_retriever
from mrad.retrieval.exact import ExactRetriever
from mrad.types import Box, Evidence, Level


@dataclass(frozen=True)
class Asked:
    """What of an image asks the memory, and with which feature."""

    query: Tensor
    """[d], L2-normalised."""
    box: Box | None = None
    """Pixels of the image; None for all of it."""
    cell: tuple[int, int] | None = None
    """Row and column of a patch on its tile's grid."""


def hottest(
    queries: Tensor, patch: Tensor, sizes: Sequence[tuple[int, int]], grid: int
) -> list[Asked]:
    """The most anomalous patch of each image of a batch.

    Args:
        queries: [B, N, d], L2-normalised features of the patches.
        patch: [B, N], their probabilities.
        sizes: width, height of each image.
        grid: patches a side.
    """
    asked = []
    for row, (number, size) in enumerate(zip(patch.argmax(dim=1).tolist(), sizes)):
        cell = divmod(number, grid)
        asked.append(Asked(queries[row, number], cell_box(cell, grid, (0, 0, *size)), cell))
    return asked


def size_of(entry: Entry) -> tuple[int, int] | None:
    """Width, height of an entry's image; None where nobody knows."""
    return (entry.width, entry.height) if entry.width and entry.height else None


def nearest_keys(
    bank: MemoryBank,
    level: Level,
    asked: Sequence[Asked],
    k: int,
    exclude: Tensor | None,
    retriever: Callable[[Level], Retriever],
) -> list[list[Evidence]]:
    """The k nearest keys of each, best first. `exclude` int64 [n]: entry rows not to find, or -1."""
    memory = bank.image if level == "image" else bank.patch
    queries = torch.stack([one.query for one in asked])
    similarity, rows = retriever(level).nearest(queries, k, exclude)
    found = []
    for one, values, keys in zip(asked, similarity, rows):
        evidence = []
        for value, key in zip(values, keys):
            if key < 0:  # fewer than k are left once the own entry is excluded
                continue
            entry = bank.entries[int(memory.entry[key])]
            evidence.append(
                Evidence(
                    level=level,
                    similarity=float(value),
                    label=int(memory.labels[key]),
                    entry_id=entry.entry_id,
                    source=entry.source,
                    region=str(memory.region[key]),
                    defect=entry.defect if memory.labels[key] else "",
                    query_cell=one.cell,
                    query_box=one.box,
                    tile=bank.tile_box(entry, int(memory.tile[key])),
                    size=size_of(entry),
                )
            )
        found.append(evidence)
    return found


def nearest_good(
    bank: MemoryBank,
    head: NNHead,
    asked: Sequence[Asked],
    k: int,
    exclude: Tensor | None,
    grid: int,
) -> list[list[Evidence]]:
    """The nearest good patch in each of the k nearest good images, with its place in its image.

    `exclude` int64 [n]: entry rows not to find, or -1; `grid`: patches along a side.
    """
    own = [-1] * len(asked) if exclude is None else exclude.tolist()
    found = []
    for one, row in zip(asked, own):
        evidence = []
        for cosine, key in head.nearest_patches(one.query, k, row):
            entry = bank.entries[int(bank.local.entry[key])]
            tile = bank.tile_box(entry, int(bank.local.tile[key]))
            whole = (0, 0, entry.width, entry.height)
            cell = divmod(key % grid**2, grid)
            evidence.append(
                Evidence(
                    level="patch",
                    similarity=cosine,
                    label=int(bank.local.labels[key]),
                    entry_id=entry.entry_id,
                    source=entry.source,
                    region="normal",
                    query_cell=one.cell,
                    query_box=one.box,
                    tile=tile,
                    box=cell_box(cell, grid, tile or whole) if entry.width else None,
                    size=size_of(entry),
                )
            )
        found.append(evidence)
    return found


class Finder:
    """Asks a memory for the keys nearest to what a head judged."""

    def __init__(self, bank: MemoryBank, head: Head, retrieval: str, encoder: Encoder) -> None:
        """`head`: attached to `bank`; `retrieval`: as for `mrad.detector.Detector`."""
        self._bank, self._head, self._retrieval, self._encoder = bank, head, retrieval, encoder
        self._made: dict[Level, Retriever] = {}

    def of_images(
        self,
        features: Features,
        output: HeadOutput,
        sizes: Sequence[tuple[int, int]],
        k: int,
        exclude: Tensor | None,
    ) -> list[tuple[Evidence, ...]]:
        """Of each image of a batch the nearest keys of all of it, then of its most anomalous patch.

        Args:
            features: of the batch.
            output: what the head said of it.
            sizes: width, height of each image.
            k: how many for each level.
            exclude: int64 [B], entry rows not to find, or -1.
        """
        if k < 1:
            return [()] * len(features)
        whole = [Asked(query) for query in features.class_query()]
        local = hottest(self.patch_query(features), output.patch, sizes, self._encoder.grid)
        image = self.nearest("image", whole, k, exclude)
        parts = self.nearest("patch", local, k, exclude)
        return [(*one, *part) for one, part in zip(image, parts)]

    def nearest(
        self, level: Level, asked: Sequence[Asked], k: int, exclude: Tensor | None
    ) -> list[list[Evidence]]:
        """The k nearest of each; see `nearest_keys`."""
        if level == "patch" and isinstance(self._head, NNHead):
            return nearest_good(self._bank, self._head, asked, k, exclude, self._encoder.grid)
        return nearest_keys(self._bank, level, asked, k, exclude, self.retriever)

    def patch_query(self, features: Features) -> Tensor:
        """What of a patch is asked for as evidence [B, N, W]: what the head compares."""
        if isinstance(self._head, NNHead):
            return features.local_query()
        return features.patch_query()

    def retriever(self, level: Level) -> Retriever:
        """Cosine similarity on the bank's own keys, whatever the head projects."""
        own: Any = getattr(self._head, level, None)
        if isinstance(own, ExactRetriever) and self._head.name == "tf":
            return own
        if level not in self._made:
            memory = self._bank.image if level == "image" else self._bank.patch
            device = self._encoder.device
            self._made[level] = make_retriever(memory, mode=self._retrieval, device=device)
        return self._made[level]
