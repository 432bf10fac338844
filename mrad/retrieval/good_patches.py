"""How far is the nearest good patch: the memory's patches of good images, asked for one neighbour."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mrad.encoder.kernels import filled_product
from mrad.memory.level import LevelMemory
from mrad.retrieval import patch_index
from mrad.retrieval.nearest import nearest
from mrad.retrieval.patch_index import PatchIndex
from mrad.types import NORMAL

BLOCK = 8_192
"""Keys at a time: with one image's patches, a product that stays in the cache."""
WINDOW = 2
"""Cells around a patch that are too much like it to tell how far another good image would be."""


@dataclass(frozen=True)
class Views:
    """The images, or tiles, that the local level holds whole, in its order."""

    rows: Tensor
    """int64 [V]: the entry of each."""
    tiles: Tensor
    """int64 [V]: the tile of each."""
    good: Tensor
    """bool [V]: whether it is one of a good image."""
    normal: Tensor
    """bool [V, N]: patches that are known to be normal."""
    anomalous: Tensor
    """bool [V, N]: patches that are known to be anomalous."""

    @classmethod
    def of(cls, local: LevelMemory, cells: int) -> Views:
        """`cells`: N, patches of one image."""
        every = slice(None, None, cells)
        region = local.region.reshape(-1, cells)
        return cls(
            torch.from_numpy(local.entry[every].copy()),
            torch.from_numpy(local.tile[every].astype("int64")),
            torch.from_numpy(local.labels[every] == NORMAL),
            torch.from_numpy(region == "normal"),
            torch.from_numpy(region == "anomalous"),
        )

    def __len__(self) -> int:
        return len(self.rows)


class GoodPatches:
    """The normal patches of good images, L2-normalised, on the encoder's device."""

    def __init__(
        self,
        local: LevelMemory,
        views: Views,
        groups: Tensor,
        device: torch.device | str,
        before: GoodPatches | None = None,
        settled: int | None = None,
    ) -> None:
        """
        Args:
            local: single patches of whole images.
            views: those images.
            groups: int64 [entries]: images of one group are left out together.
            device: where the keys lie and are asked.
            before: of another state of the memory; its index is used again where it holds.
            settled: so many first entries are of the build; None: all.
        """
        kept = (views.normal & views.good[:, None]).flatten()
        self.rows = kept.nonzero()[:, 0]
        """Row of each key in the local level."""
        vectors = torch.from_numpy(local.keys)[self.rows]
        self.keys = F.normalize(vectors, dim=1).to(device)
        self.entry = torch.from_numpy(local.entry)[self.rows].to(device)
        self.groups = groups.to(device)
        self.group = self.groups[self.entry]
        self._patches, self._lock = views.normal.shape[1], threading.Lock()
        self._before: PatchIndex | None = None
        if before is not None:
            self._before = before._index or before._before
        self._index: PatchIndex | None = None
        self._settled = len(self) if settled is None else int((self.entry < settled).sum())
        self.elsewhere: Tensor | None = None
        """Cosine of each of the first keys to the nearest of another group among them, once measured."""
        self._only: Tensor | None = None
        self.only: tuple[int, ...] | None = None
        """Entry rows whose keys are asked; None: all."""
        self._exact = (
            self.keys.is_cuda or len(self) < patch_index.MANY or len(torch.unique(self.group)) < 2
        )

    def __len__(self) -> int:
        return len(self.keys)

    def among(self, entries: Tensor) -> GoodPatches:
        """The same keys, of which only those of some entries, rows [n], are asked; nothing is copied."""
        other = copy.copy(self)
        other._only = torch.isin(self.entry, entries.to(self.entry.device))
        other.only = tuple(entries.unique().tolist())
        return other

    @property
    def several_groups(self) -> bool:
        """Whether keys of more than one group are asked."""
        return len(torch.unique(self.group if self._only is None else self.group[self._only])) > 1

    @torch.inference_mode()
    def nearest(
        self, queries: Tensor, exclude: int = -1, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The nearest key of each query [M, W]: cosine float32 [M], and which key, int64 [M].

        Args:
            queries: L2-normalised.
            exclude: entry row whose group is not asked, -1 for none.
            keys: bool [n], those that are asked; None: all.

        Where no key is left, the cosine is -1 and the key -1. Many keys on the CPU are asked by an index
        (`mrad.retrieval.patch_index`), unless a group is left out; all else is exact.
        """
        if self._only is not None:
            keys = self._only if keys is None else keys & self._only
        if exclude < 0 and (index := self.index()) is not None:
            if keys is None:
                return index.nearest(queries, self._patches)
            return index.nearest_among(queries, keys)
        if exclude < 0 and keys is None and self.keys.is_cuda:
            cosine, found = nearest(queries, self.keys, 1)
            return cosine[:, 0], found[:, 0]
        return self.by_blocks(queries, exclude, keys)

    def index(self) -> PatchIndex | None:
        """The index by which the keys are asked, made when first needed; None where search is exact."""
        with self._lock:
            if self._index is None and not self._exact:
                self._index = PatchIndex.build(
                    self.keys, self.group, self.entry, self._settled, self._before, self.elsewhere
                )
                self._before = None
        return self._index if self._index is not None and self._index.usable else None

    @torch.inference_mode()
    def by_blocks(
        self, queries: Tensor, exclude: int = -1, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `nearest`, exactly; of keys that are as near, the first."""
        banned = None if exclude < 0 else self.group == self.groups[exclude]
        if keys is not None:
            banned = ~keys if banned is None else banned | ~keys
        if banned is not None and not self.keys.is_cuda:  # a card would have to be waited for
            asked = (~banned).nonzero()[:, 0]
            if 2 * len(asked) < len(self):
                return self._nearest_of(queries, asked, None)
        return self._nearest_of(queries, None, banned)

    @torch.inference_mode()
    def each_without(self, queries: Tensor, exclude: Tensor) -> tuple[Tensor, Tensor]:
        """As `nearest`, exactly, each query [M, W] without the group of an entry of its own.

        `exclude`: int64 [M], entry rows.
        """
        own = self.groups[exclude.to(self.groups.device)][:, None]
        keys = None if self._only is None else self._only.nonzero()[:, 0]
        return self._nearest_of(queries, keys, own)

    def _nearest_of(
        self, queries: Tensor, keys: Tensor | None, banned: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The nearest key of each query, a block of keys at a time.

        Args:
            queries: [M, W].
            keys: int64 [m], their numbers, rising; None: all.
            banned: bool [n], keys that are not asked; or int64 [M, 1], the group that each query does not ask.
        """
        best = torch.full((len(queries),), -1.0, device=self.keys.device)
        found = torch.full((len(queries),), -1, dtype=torch.int64, device=self.keys.device)
        for start in range(0, len(self) if keys is None else len(keys), BLOCK):
            part = slice(start, start + BLOCK) if keys is None else keys[start : start + BLOCK]
            cosine = filled_product(queries, self.keys[part])
            if banned is not None:
                own = banned[part] if banned.ndim == 1 else banned == self.group[part]
                cosine.masked_fill_(own, -torch.inf)
            value, place = cosine.max(dim=1)
            place = place + start if keys is None else keys[start + place]
            closer = value > best
            best, found = torch.where(closer, value, best), torch.where(closer, place, found)
        return best, found

    @torch.inference_mode()
    def several(self, queries: Tensor, k: int, exclude: int = -1) -> tuple[Tensor, Tensor]:
        """The nearest key of each of the k nearest images: cosine and key, [M, k], best first.

        Neighbours in one image say the same thing again, so each image is named once. Places that
        cannot be filled have the key -1; there are no more places than images.
        """
        banned = None if exclude < 0 else self.group == self.groups[exclude]
        images, values, places = len(self.groups), [], []
        for query in queries:
            cosine = self.keys @ query
            if banned is not None:
                cosine.masked_fill_(banned, -torch.inf)
            best = cosine.new_full((images,), -torch.inf).scatter_reduce(
                0, self.entry, cosine, "amax"
            )
            value, image = best.topk(min(k, images))
            own = cosine.where(self.entry == image[:, None], -torch.inf)
            values.append(value)
            places.append(own.argmax(dim=1).where(value > -torch.inf, -1))
        return torch.stack(values), torch.stack(places)


def within_itself(queries: Tensor, grid: int) -> Tensor:
    """Cosine [N] of each patch of one image [N, W] to the nearest of its patches farther away.

    What stands in where a memory holds one good image, which nothing can be left out of.
    """
    cells = torch.arange(grid * grid)
    row, column = cells // grid, cells % grid
    near = ((row[:, None] - row).abs() <= WINDOW) & ((column[:, None] - column).abs() <= WINDOW)
    if grid <= WINDOW + 1:
        near = torch.eye(len(cells), dtype=torch.bool)
    return (queries @ queries.T).masked_fill(near.to(queries.device), -1.0).amax(dim=1)
