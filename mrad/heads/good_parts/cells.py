"""Patch distances of several kinds on one scale: the mean of their spreads above what is usual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrad.heads.good_parts.standard import CellScale, CellSums, Places, chosen


@dataclass(frozen=True)
class CellScales:
    """What is typical of each of K kinds of distance, place by place."""

    kinds: tuple[CellScale, ...]

    def __call__(self, distances: Tensor, places: Places = None) -> Tensor:
        """Distances [K, V, N] of V images -> [V, N], in spreads above what is typical."""
        found = [scale(one, places) for scale, one in zip(self.kinds, distances)]
        return torch.stack(found).mean(dim=0)


class LeftOutCells:
    """The memory's good images, left out: their distances, and the scales that follow from these."""

    def __init__(self, distances: Tensor, group: Tensor, places: Places) -> None:
        """
        Args:
            distances: [K, V, N] of V images, each left out; NaN where unknown.
            group: int64 [V]: images of one group are left out together.
            places: of the V images, where these are tiles.
        """
        self.distances, self.group, self.places = distances, group, places
        self._sums = [CellSums.of(one, places) for one in distances]
        self.scales = CellScales(tuple(sums.scale() for sums in self._sums))

    def without(self, group: int) -> CellScales:
        """The scales as images of other groups give them; -1: all.

        An image that is left out must not have helped to say what is usual of it: places where it
        alone varies would look calm, and a threshold taken from such values would be too low.
        """
        own = self.group == group
        if not bool(own.any()) or bool(own.all()):
            return self.scales
        here = chosen(self.places, own)
        parts = [CellSums.of(one[own], here, sums) for one, sums in zip(self.distances, self._sums)]
        return CellScales(tuple(sums.less(part).scale() for sums, part in zip(self._sums, parts)))

    def left_out(self) -> Tensor:
        """Their own distances on the scales of the others, [V, N]: a group at a time is left out."""
        found = torch.empty_like(self.distances[0])
        for group in torch.unique(self.group).tolist():
            mine = self.group == group
            found[mine] = self.without(group)(self.distances[:, mine], chosen(self.places, mine))
        return found
