"""A memory's own images, each left out: what every distance means in this memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrad.types import Place

Places = Sequence[Place | None] | None
"""Where in their pictures tiles lie; None: images are whole."""
PRIOR_SPREAD = 0.3
"""Spread over mean that a distance is taken to have before any was seen."""
PRIOR_WEIGHT = 3
"""So many values that this is worth."""
TILE_WEIGHT = 10
"""So many values is worth what is known of the same patch of all tiles."""
SOFT = 6.0
"""Spreads from a typical good image's top at which a score is 0.85."""
BALANCED = 0.7
"""Weight of the image level (`Detector`, `fusion`) at which all statistics count alike."""
PRIOR_PAIRS = 3
"""So much (`trust`) must have been seen of both classes until what they tell counts for a half."""
LEAST_SEPARATION = 0.3
"""Spreads; distances that tell defects by less than this are taken to tell them by as much."""
STRONGEST = 6.0
"""No defect counts for more than this many spreads when weights are chosen."""


@dataclass(frozen=True)
class Scale:
    """What is typical of one statistic over good images that were left out."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Tensor, distance: bool = True) -> Scale:
        """Of finite `values` [n], more than three unless they are distances.

        Few distances are helped by `PRIOR_SPREAD`. Of other values nothing is known beforehand: their
        spread is that of the next one, whose distribution is Student's.
        """
        values, count = values.double(), len(values)
        mean = float(values.mean())
        squares = float((values - mean).square().sum())
        weight = PRIOR_WEIGHT if distance else 0
        prior = weight * (PRIOR_SPREAD * mean) ** 2
        spread = ((squares + prior) / max(count - 1 + weight, 1)) ** 0.5
        if not distance:
            spread *= ((count - 1) / max(count - 3, 1e-3) * (1 + 1 / count)) ** 0.5
        return cls(mean, max(spread, 1e-9))

    def __call__(self, values: Tensor) -> Tensor:
        """In spreads above what is typical."""
        return (values - self.mean) / self.spread


@dataclass(frozen=True)
class CellScale:
    """What is typical of a patch's distance, place by place: some places of a product vary more.

    Where pictures are cut, a patch of one tile is another place than that of the next.
    """

    mean: Tensor
    """[1 + P, N]: of all tiles alike, which serves a tile where the memory has none; then of each place."""
    spread: Tensor
    """[1 + P, N]."""
    rows: dict[Place | None, int]

    @classmethod
    def of(cls, distances: Tensor, places: Places = None) -> CellScale:
        """Of good images' distances [V, N], NaN where unknown; `places` of the V tiles."""
        return CellSums.of(distances, places).scale()

    def __call__(self, distances: Tensor, places: Places = None) -> Tensor:
        """[V, N] in spreads above what is typical of each place."""
        index = [0] * len(distances)
        if places is not None and self.rows:
            index = [self.rows.get(place, -1) + 1 for place in places]
        return (distances - self.mean[index]) / self.spread[index]


@dataclass(frozen=True)
class CellSums:
    """What the scale of each place follows from: taking images away costs no look at the others."""

    count: Tensor
    """float64 [P, N], as the others; P is 1 where images are whole."""
    total: Tensor
    square: Tensor
    rows: dict[Place | None, int]
    """Place -> its row; empty where images are whole. None: somewhere."""

    @classmethod
    def of(cls, distances: Tensor, places: Places = None, like: CellSums | None = None) -> CellSums:
        """Of distances [V, N], NaN where unknown; rows as those of sums that hold all these places."""
        rows: dict[Place | None, int] = {}
        if like is not None:
            rows = like.rows
        elif places is not None and len(set(places)) > 1:
            rows = {place: row for row, place in enumerate(dict.fromkeys(places))}
        index = torch.zeros(len(distances), dtype=torch.int64)
        if rows and places is not None:
            index = torch.tensor([rows[place] for place in places])
        known, filled = ~distances.isnan(), distances.nan_to_num(0.0).double()
        empty = torch.zeros(max(1, len(rows)), distances.shape[1], dtype=torch.float64)
        return cls(
            empty.index_add(0, index, known.double()),
            empty.index_add(0, index, filled),
            empty.index_add(0, index, filled.square()),
            rows,
        )

    def less(self, part: CellSums) -> CellSums:
        """Without some of the images."""
        return CellSums(
            self.count - part.count, self.total - part.total, self.square - part.square, self.rows
        )

    def scale(self) -> CellScale:
        """Patches lean on the mean of all, those of a tile on the same patch of all tiles.

        The latter since the encoder sees less of what is around a patch at its input's edge. Every
        spread has the mean spread added, so that a place that never varied is no alarm.
        """
        share, every = PRIOR_WEIGHT - 1, self.count.sum()
        overall = self.total.sum() / every
        count, total = self.count.sum(dim=0), self.total.sum(dim=0)
        mean = (total + share * overall) / (count + share)
        square = squares(count, total, self.square.sum(dim=0), mean)
        varied = (self.square.sum() - every * overall.square()).clamp_min(0) / (every - 1)
        typical = max(float(varied) if float(every) > 1 else 0.0, float(overall) ** 2 * 1e-4)
        spread = ((square + share * typical) / (count + share)).sqrt()
        means, spreads = mean[None], (spread + spread.mean())[None]
        if self.rows:
            own = (self.total + TILE_WEIGHT * mean) / (self.count + TILE_WEIGHT)
            square = squares(self.count, self.total, self.square, own)
            within = square.sum(dim=0) / count.clamp_min(1)
            spread = ((square + TILE_WEIGHT * within) / (self.count + TILE_WEIGHT)).sqrt()
            means, spreads = torch.cat([means, own]), torch.cat([spreads, spread + spread.mean()])
        if None in self.rows:
            means[self.rows[None] + 1], spreads[self.rows[None] + 1] = means[0], spreads[0]
        return CellScale(means.float(), spreads.float(), self.rows)


def squares(count: Tensor, total: Tensor, square: Tensor, mean: Tensor) -> Tensor:
    """Sum of squared differences from `mean`."""
    return (square - 2 * mean * total + count * mean.square()).clamp_min(0)


def chosen(places: Places, rows: Tensor) -> Places:
    """Those of the `places` whose row is true in bool [V]."""
    if places is None:
        return None
    return [place for place, kept in zip(places, rows.tolist()) if kept]


@dataclass(frozen=True)
class Blend:
    """Several statistics of an image as the two numbers that a head gives: map and image level.

    All are brought to the scale of the map's top score, in spreads of good images that were left out,
    and through one rising function into [0, 1]: what is typical of a good image's top is 0.5.
    """

    top: Scale
    parts: tuple[Scale, ...]
    weights: tuple[float, ...]
    """Of the top, then of each part."""

    @classmethod
    def of(
        cls, top: Tensor, parts: Tensor, good: Tensor, distances: int, bad: Tensor | None = None
    ) -> Blend:
        """From images that were left out: `top` [V], `parts` [K, V], `good` bool [V].

        The first `distances` of the parts are distances. `bad` bool [V]: which show a defect, if not
        all others: a tile of a defective picture may be neither. A part that is not finite, or that is none
        and was seen of three good images or fewer, is not used.

        Without defects, distances count alike and the others not at all. The weights that defects ask for
        are the mean numbers of spreads by which each tells them from good images; they are followed as
        far as `trust` says.
        """
        used = [
            i
            for i, part in enumerate(parts)
            if bool(part[good].isfinite().all()) and (i < distances or int(good.sum()) > 3)
        ]
        kept = [parts[i] for i in used]
        scales = [Scale.of(top[good])]
        scales += [Scale.of(parts[i][good], i < distances) for i in used]
        begin = torch.tensor([1.0] + [float(i < distances) for i in used], dtype=torch.float64)
        defects = ~good if bad is None else bad
        far = [
            scale(values[defects].double())[values[defects].isfinite()]
            for scale, values in zip(scales, (top, *kept))
        ]
        separations = torch.tensor(
            [float(z.clamp(-STRONGEST, STRONGEST).mean()) if len(z) else 0.0 for z in far],
            dtype=torch.float64,
        ).clamp_min(0)
        share = trust(int(good.sum()), int(defects.sum()))
        base = separations[begin > 0].mean().clamp_min(LEAST_SEPARATION)
        weights = (1 - share) * begin + share * separations / base
        every = [Scale(0.0, 1.0)] * len(parts)
        shares = [0.0] * len(parts)
        for scale, weight, i in zip(scales[1:], weights[1:].tolist(), used):
            every[i], shares[i] = scale, weight
        return cls(scales[0], tuple(every), (float(weights[0]), *shares))

    def patch(self, cells: Tensor) -> Tensor:
        """Patch values [B, N] -> [0, 1]."""
        return soft(self.top(cells)).float()

    def image(self, parts: Tensor) -> Tensor:
        """Statistics [K, B] -> [0, 1]: 0.5 where there is none."""
        total = torch.zeros(parts.shape[1], dtype=torch.float64)
        for scale, weight, values in zip(self.parts, self.weights[1:], parts):
            if weight:
                total = total + weight / self.weights[0] * scale(values.double())
        return soft((1 - BALANCED) / BALANCED * total).float()


def trust(good: int, defects: int) -> float:
    """How far what so many good images and defects tell of the two classes is believed, 0 to 1."""
    if not good or not defects:
        return 0.0
    pairs = good * defects / (good + defects)
    return pairs / (pairs + PRIOR_PAIRS)


def soft(z: Tensor) -> Tensor:
    """Rising from 0 to 1, 0.5 at 0, nearly straight within `SOFT` spreads."""
    scaled = z / SOFT
    return 0.5 * (1 + scaled / torch.sqrt(1 + scaled.square()))
