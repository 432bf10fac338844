"""The nearest keys of the memory: why an image was judged as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.heads import Head, HeadOutput
from mrad.heads.nn import NNHead
from mrad.images.layout import cell_box
from mrad.memory.bank import MemoryBank
from mrad.memory.level import LevelMemory
from mrad.retrieval.base import Retriever
from mrad.retrieval.choose import make_retriever
from mrad.retrieval.exact import ExactRetriever
from mrad.types import Box, Evidence, Level


@dataclass(frozen=True)
class EvidenceQuery:
    """What of an image asks the memory, and with which feature."""

    query: Tensor
    """[d], L2-normalised."""
    box: Box | None = None
    """Pixels of the image; None for all of it."""
    cell: tuple[int, int] | None = None
    """Row and column of a patch on its tile's grid."""


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
        whole = [EvidenceQuery(query) for query in features.class_query()]
        queries, grid, local = self.patch_query(features), self._encoder.grid, []
        for row, (number, size) in enumerate(zip(output.patch.argmax(dim=1).tolist(), sizes)):
            cell = divmod(number, grid)
            local.append(
                EvidenceQuery(queries[row, number], cell_box(cell, grid, (0, 0, *size)), cell)
            )
        image = self.nearest("image", whole, k, exclude)
        parts = self.nearest("patch", local, k, exclude)
        return [(*one, *part) for one, part in zip(image, parts)]

    def nearest(
        self, level: Level, asked: Sequence[EvidenceQuery], k: int, exclude: Tensor | None
    ) -> list[list[Evidence]]:
        """The k nearest keys of each, best first. `exclude` int64 [n]: entry rows not to find, or -1.

        For `nn` the nearest good patch in each of the k nearest good images, with its place there.
        """
        memory = self._bank.image if level == "image" else self._bank.patch
        if level == "patch" and isinstance(self._head, NNHead):
            memory = self._bank.local
            own = [-1] * len(asked) if exclude is None else exclude.tolist()
            found = [self._head.nearest_patches(one.query, k, row) for one, row in zip(asked, own)]
        else:
            queries = torch.stack([one.query for one in asked])
            similarity, rows = self.retriever(level).nearest(queries, k, exclude)
            found = [list(zip(*pair)) for pair in zip(similarity.tolist(), rows.tolist())]
        return [  # fewer than k are left once the own entry is excluded
            [self._evidence(level, memory, one, *pair) for pair in pairs if pair[1] >= 0]
            for one, pairs in zip(asked, found)
        ]

    def _evidence(
        self, level: Level, memory: LevelMemory, asked: EvidenceQuery, similarity: float, key: int
    ) -> Evidence:
        entry, grid = self._bank.entries[int(memory.entry[key])], self._encoder.grid
        size = (entry.width, entry.height) if entry.width and entry.height else None
        tile = self._bank.tile_box(entry, int(memory.tile[key]))
        box = None
        if memory is self._bank.local and size is not None:
            box = cell_box(divmod(key % grid**2, grid), grid, tile or (0, 0, *size))
        return Evidence(
            level=level,
            similarity=similarity,
            label=int(memory.labels[key]),
            entry_id=entry.entry_id,
            source=entry.source,
            region=str(memory.region[key]),
            defect=entry.defect if memory.labels[key] else "",
            query_cell=asked.cell,
            query_box=asked.box,
            tile=tile,
            box=box,
            size=size,
        )

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
