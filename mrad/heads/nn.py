"""Nearest good part: how far is the nearest patch, and the nearest image, of the memory's good ones.

A patch is measured in two ways: from the nearest good patch, and by the spread of all (`good_parts.spread`). It needs good images alone and no training. Every distance is told in spreads of the same distance among
the good images themselves, each left out (`mrad.heads.good_parts.standard`), so scores compare between products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.errors import HeadError
from mrad.heads import HeadOutput, NoSettings
from mrad.heads.choose import check_good_parts
from mrad.heads.good_parts.cells import CellScales, LeftOutCells
from mrad.heads.good_parts.classes import GoodClasses
from mrad.heads.good_parts.left_out import LeftOutDistances, Query, eased, stored_at
from mrad.heads.good_parts.spread import GoodSpread, LeftOutSpread, usual_views
from mrad.heads.good_parts.spread import stored_at as spread_stored_at
from mrad.heads.good_parts.standard import Blend, chosen
from mrad.maps import smoothed, top_mean
from mrad.memory.bank import MemoryBank
from mrad.retrieval.good_patches import GoodPatches, Views
from mrad.retrieval.lessons import FEW
from mrad.types import ANOMALOUS, WHOLE

NEAR_DUPLICATE = 0.998
"""Measured with `mrad-mini`: the same picture recompressed or brightened has 0.998 or more."""
BATCH = 16
"""Stored images looked at together."""


@dataclass(frozen=True)
class LeftOut:
    """The memory's own images, none of which was compared with itself or its near-duplicates."""

    cells: Tensor
    """[V, N], patch values."""
    parts: Tensor
    """[K, V], statistics of the whole image; NaN where there is nothing to compare with."""
    good: Tensor
    """bool [V]."""


class NNHead:
    """See the module."""

    name = "nn"
    Config: type[BaseModel] = NoSettings
    distances = 1
    """How many of the statistics of a whole image are distances."""
    local = True
    """Its evidence are single patches of good images."""

    def __init__(
        self, encoder: Encoder, config: BaseModel, state: Mapping[str, Tensor] | None = None
    ) -> None:
        if state:
            raise HeadError("nn is train-free: it takes no checkpoint")
        self.encoder = encoder
        self._left_out: LeftOutDistances | None = None
        self._usual: LeftOutDistances | None = None
        self._left_out_spread: LeftOutSpread | None = None

    @torch.inference_mode()
    def attach(self, bank: MemoryBank, mode: str = "exact") -> None:
        """Take the good images' patches and class features, and measure them against each other.

        Raises `NoGoodPartsError`.
        """
        check_good_parts(bank)
        self.bank, cells = bank, self.encoder.grid**2
        self.views = Views.of(bank.local, cells)
        self.groups = groups_of(bank, self.views, cells)
        before, device = getattr(self, "good_patches", None), self.encoder.device
        self.good_patches = GoodPatches(
            bank.local, self.views, self.groups, device, before, bank.settled
        )
        # What is usual is said by the images that the bank was built of: a lesson moves no scale.
        count = settled_entries(bank, self.views)
        self.settled = self.views.rows < count
        image = enumerate(zip(bank.image.entry.tolist(), bank.image.tile.tolist()))
        row_of = {pair: row for row, pair in image}
        pairs = list(zip(self.views.rows.tolist(), self.views.tiles.tolist()))
        self.places = bank.places(pairs)
        rows, good = [row_of[pair] for pair in pairs], self.views.good
        raw = torch.from_numpy(bank.local.keys).view(len(pairs), cells, bank.local.dim)
        self._wholes = whole_images(torch.from_numpy(bank.image.keys[rows]), raw)
        self.classes = GoodClasses(
            self._wholes[good], self.groups[self.views.rows[good]], self.settled[good]
        )
        found = self.left_out()
        tops = self.tops(found.cells)
        bad = torch.from_numpy(bank.image.labels[rows] == ANOMALOUS)
        kept = self.settled
        self.blend = Blend.of(
            tops[kept], found.parts[:, kept], found.good[kept], self.distances, bad[kept]
        )
        self._values = self.blend.patch(found.cells[found.good]).flatten()

    def left_out(self) -> LeftOut:
        """Measure every image that the memory holds whole, its group left out; sets the scales."""
        distance, whole = self._distances_left_out()
        good, group = self.views.good & self.settled, self.groups[self.views.rows]
        places = chosen(self.places, good)
        self._cells = LeftOutCells(distance[:, good], group[good], places)
        cells = self._cells.scales(distance, self.places)
        cells[good] = self._cells.left_out()
        return LeftOut(cells.nan_to_num(0.0), whole[None], self.views.good)

    def _distances_left_out(self) -> tuple[Tensor, Tensor]:
        """Of every view: patch distances [K, V, N], NaN outside what is of interest; class distance [V].

        Those of settled images are to settled ones alone.
        """
        cells, width = self.encoder.grid**2, self.bank.local.dim
        raw = torch.from_numpy(self.bank.local.keys).view(-1, cells, width)

        def patches(view: int) -> Tensor:
            return F.normalize(raw[view].to(self.encoder.device), dim=-1)

        place, known = stored_at(self.bank), self._left_out
        if known is None and place is not None:
            known = LeftOutDistances.read(place)
        usual = None
        if not bool(self.settled.all()):
            build = self.good_patches.among(self.views.rows[self.settled])
            usual = LeftOutDistances.measure(
                self.bank, self.views, build, patches, self._known_usual()
            )
        measured = LeftOutDistances.measure(
            self.bank, self.views, self.good_patches, patches, known or usual
        )
        if place is not None and known is None:
            measured.write(place)
        self._left_out, self._usual = measured, usual or measured
        if self._usual.several:
            first = self.settled.repeat_interleave(cells)[self.good_patches.rows]
            self.good_patches.elsewhere = self._usual.cosine.flatten()[
                self.good_patches.rows[first]
            ]
        group = self.groups[self.views.rows]
        whole = self.classes.left_out(self._wholes, group)
        built = 1 - self._usual.cosine
        spread, calmed = self._spread_left_out(measured, patches)
        near = eased(built, 1 - measured.cosine)
        self._own = torch.stack([near, *calmed]), whole[None].nan_to_num(2.0)
        if usual is not None:
            alone = self.classes.alone().left_out(self._wholes[self.settled], group[self.settled])
            whole = whole.clone()
            whole[self.settled] = alone
        distance = torch.stack([built, *spread])
        distance[:, self.views.good[:, None] & ~self.views.normal] = torch.nan
        return distance, whole

    def _spread_left_out(
        self, measured: LeftOutDistances, query: Query
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of every view, distances [V, N] by the spread; then with what taught images calm.

        Both are empty where there are too few good images for a spread.
        """
        known, place = self._left_out_spread, spread_stored_at(self.bank)
        if known is None and place is not None:
            known = LeftOutSpread.read(place)
        groups = self.groups[self.views.rows]
        usual = usual_views(measured, self.views.good & self.settled, groups)
        known = known if known is not None and known.usual == usual else None
        self.spread = GoodSpread(self.good_patches, self.views, self.settled, known)
        if not self.spread.enough:
            return [], []
        given = self.spread, measured, self.views, query
        found = LeftOutSpread.measure(*given, usual, known)
        if place is not None and known is None:
            found.write(place)
        self._left_out_spread = found
        return [found.values], [found.calmed(*given)]

    def _known_usual(self) -> LeftOutDistances | None:
        """What was measured among settled images, unless one of those is a lesson here."""
        found, entries = self._usual, self.bank.entries
        if found is None:
            return None
        asked = found.entries if found.asked is None else found.asked
        lessons = {entries[row].entry_id for row in self.views.rows[~self.settled].tolist()}
        return None if lessons.intersection(asked) else found

    def left_out_measures(self) -> tuple[Tensor, Tensor]:
        """As `measure` of the images in `views`, each without its own group."""
        distance, parts = self._own
        rows = zip(self.views.rows.tolist(), distance.split(1, dim=1), self.places)
        return torch.cat([self._scale_without(row)(one, [at]) for row, one, at in rows]), parts

    def left_out_output(self, views: Views) -> HeadOutput:
        """As `__call__` judges the images that the memory holds whole, each without its own group."""
        cells, parts = self.left_out_measures()
        return HeadOutput(self.blend.patch(cells), self.blend.image(parts))

    def tops(self, cells: Tensor) -> Tensor:
        """The top score [V] of maps of patch values [V, N]."""
        side = self.encoder.image_size
        return torch.cat([top_mean(smoothed(part, side)) for part in cells.split(BATCH)])

    def patch_distances(self, features: Features, exclude: Tensor | None) -> Tensor:
        """Of each patch, [K, B, N], on the CPU: 1 - cosine to the nearest good one; by the spread."""
        asked = features.local_query()
        rows = [-1] * len(asked) if exclude is None else exclude.tolist()
        if exclude is None:
            nearest, key = (
                one.view(asked.shape[:2]) for one in self.good_patches.nearest(asked.flatten(0, 1))
            )
        else:
            pairs = [self.good_patches.nearest(one, row) for one, row in zip(asked, rows)]
            nearest, key = (torch.stack(one) for one in zip(*pairs))
        found = [self._eased(1 - nearest, asked, key, rows).cpu()]
        if self.spread.enough:
            far = [self.spread.distance(*one) for one in zip(asked, key, rows)]
            found.append(torch.stack(far))
        return torch.stack(found)

    def _eased(self, distance: Tensor, asked: Tensor, key: Tensor, rows: list[int]) -> Tensor:
        """Distances [B, N] of patches to the nearest good `key`, as far as taught ones count (`eased`)."""
        entry = self.good_patches.entry[key.clamp_min(0)].where(key >= 0, -1)
        taught = self.spread.taught(entry)
        if not bool(taught.any()):
            return distance
        found = distance.clone()
        for image, row in enumerate(rows):
            if bool((mine := taught[image]).any()):
                usual = self.good_patches.nearest(asked[image, mine], row, self.spread.of_build)[0]
                found[image, mine] = eased(1 - usual, distance[image, mine])
        return found

    def measure(self, features: Features, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        """Patch values [B, N] in spreads, and the statistics [K, B] of the whole images."""
        distance = self.patch_distances(features, exclude)
        whole = whole_images(features.class_query(), features.local_raw()).cpu()
        places = (WHOLE,) * len(whole) if features.places is None else features.places
        if exclude is None:
            return self._cells.scales(distance, places), self.classes.distance(whole)[None]
        own, parts = exclude.tolist(), torch.empty(1, len(whole), dtype=torch.float64)
        scaled = torch.empty(distance.shape[1:])
        for row in dict.fromkeys(own):  # the tiles of one picture together
            mine = torch.tensor([one == row for one in own])
            left = None if row < 0 else self.classes.group == self.groups[row]
            parts[0, mine] = self.classes.distance(whole[mine], left)
            scaled[mine] = self._scale_without(row)(distance[:, mine], chosen(places, mine))
        return scaled, parts

    def _scale_without(self, row: int) -> CellScales:
        """The scale of patch distances as images other than an entry's group give it; -1: all."""
        return self._cells.without(int(self.groups[row]) if row >= 0 else -1)

    def typical(self) -> tuple[float, float]:
        """Patch values of good images that were left out: the median, and what only the top reaches."""
        return float(self._values.median()), max(0.5, float(self._values.median()))

    @torch.inference_mode()
    def nearest_patches(self, query: Tensor, k: int, exclude: int = -1) -> list[tuple[float, int]]:
        """Cosine and row in the local level of the nearest good patch of the k nearest good images.

        `query` [W], L2-normalised; `exclude`: an entry row, -1 for none.
        """
        cosines, keys = self.good_patches.several(
            query[None].to(self.good_patches.keys.device), k, exclude
        )
        found = [(c, key) for c, key in zip(cosines[0].tolist(), keys[0].tolist()) if key >= 0]
        return [(cosine, int(self.good_patches.rows[key])) for cosine, key in found]

    @torch.inference_mode()
    def __call__(self, features: Features, exclude: Tensor | None = None) -> HeadOutput:
        """See `mrad.heads.Head`."""
        cells, parts = self.measure(features, exclude)
        device = features.class_feature.device
        return HeadOutput(self.blend.patch(cells).to(device), self.blend.image(parts).to(device))


def settled_entries(bank: MemoryBank, views: Views) -> int:
    """How many first entries say what is usual; all while fewer than `FEW` good ones of them do."""
    good = views.rows[(views.rows < bank.settled) & views.good]
    return bank.settled if len(torch.unique(good)) >= FEW else len(bank.entries)


def whole_images(classes: Tensor, patches: Tensor) -> Tensor:
    """What an image is like as a whole: class feature and mean patch, each and together of length 1.

    The class feature knows what a picture shows, the mean patch knows surfaces; distances of the two
    together tell more defects than of either (`benchmarks good_parts`).

    Args:
        classes: [B, E], L2-normalised.
        patches: [B, N, W], before the average, not normalised.

    Returns [B, E + W].
    """
    mean = F.normalize(patches.mean(dim=1), dim=-1)
    return F.normalize(torch.cat([classes, mean.to(classes.device)], dim=-1), dim=-1)


@torch.inference_mode()
def groups_of(bank: MemoryBank, views: Views, cells: int) -> Tensor:
    """int64 [entries]: good images that show the very same thing, as a burst does, share a number.

    Left out alone, such an image would find its double and look better than any new one will. Two
    are doubles where their patches, place by place, have a mean cosine of `NEAR_DUPLICATE` or more.
    """
    group = torch.arange(len(bank.entries))
    own: dict[int, dict[int, int]] = {}
    for view, (row, tile) in enumerate(zip(views.rows.tolist(), views.tiles.tolist())):
        if views.good[view]:
            own.setdefault(row, {})[tile] = view
    if len(own) < 2:
        return group
    raw = torch.from_numpy(bank.local.keys).view(-1, cells, bank.local.dim)
    entries = list(own)
    first = [next(iter(tiles.values())) for tiles in own.values()]
    sheets = F.normalize(raw[first], dim=2).flatten(1)

    def alike(one: int, other: int) -> bool:
        """Every tile, for corners are often empty, and alike in every picture."""
        if own[one].keys() != own[other].keys():
            return False
        pairs = ((raw[view], raw[own[other][tile]]) for tile, view in own[one].items())
        return all(
            bool(F.cosine_similarity(a, b, dim=1).mean() >= NEAR_DUPLICATE) for a, b in pairs
        )

    for place, row in enumerate(entries):
        same = (
            (sheets[place + 1 :] @ sheets[place] >= NEAR_DUPLICATE * cells).nonzero()[:, 0]
            + place
            + 1
        )
        for other in (entries[found] for found in same.tolist()):
            if group[other] != group[row] and alike(row, other):
                group[group == group[other]] = group[row].clone()
    return group
