"""Judged tiles -> the map and the scores of the picture that they were cut from.

Of each tile only its grid of patch probabilities and its class feature are kept, not its pixels and patch
features; the map is made from the grids at whatever size it is wanted. Upsampling, blur and blending are linear and
separable: along each axis a tile has a matrix, and the map is the sum of `rows grid columns^T`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrad.evidence import EvidenceQuery
from mrad.images.layout import Places, Section, Tile, cell_box
from mrad.maps import anomaly_map, at_shape, fuse, map_operator, resize_map, top_mean
from mrad.types import FloatArray, PartScore, TileScore

WORKING = 8_000_000
"""Pixels, at most, of the map of a coarse look: 32 MB."""
FULL = 32_000_000
"""Pixels of a picture up to which its map is given at full size unless asked otherwise: 128 MB."""


@dataclass(frozen=True)
class Axis:
    """The tiles of one axis on an output of so many pixels."""

    spans: tuple[slice, ...]
    """Output pixels of each tile."""
    operators: tuple[Tensor, ...]
    """[n, g] of each: upsampling and blur, times the tile's share of each output pixel."""
    shares: tuple[Tensor, ...]
    """[n] of each: that share."""

    @classmethod
    def of(cls, starts: Sequence[int], side: int, length: int, out: int, operator: Tensor) -> Axis:
        """Tiles of `side` pixels that begin at `starts` on an axis of `length`, drawn on `out` pixels.

        `operator` [S, g] is `mrad.maps.map_operator`'s. Where tiles overlap, a tile's share falls to
        nothing towards its edge; shares add up to one everywhere, so a constant field stays constant.
        """
        centres = (np.arange(out) + 0.5) * (length / out)
        spans, weights = [], []
        total = np.zeros(out)
        for start in starts:
            first, end = np.searchsorted(centres, (start, start + side))
            inside = centres[first:end] - start
            spans.append(slice(int(first), int(end)))
            weights.append(np.minimum(inside, side - inside).clip(1e-6))
            total[first:end] += weights[-1]
        operators, shares = [], []
        size = len(operator)
        for start, span, weight in zip(starts, spans, weights):
            place = ((centres[span] - start) * (size / side) - 0.5).clip(0, size - 1)
            low = np.floor(place).astype(np.int64)
            part = torch.from_numpy((place - low).astype(np.float32))[:, None]
            rows = torch.lerp(operator[low], operator[np.minimum(low + 1, size - 1)], part)
            shares.append(torch.from_numpy((weight / total[span]).astype(np.float32)))
            operators.append(rows * shares[-1][:, None])
        return cls(tuple(spans), tuple(operators), tuple(shares))


def blend(
    section: Section, grids: dict[int, Tensor], size: tuple[int, int], operator: Tensor
) -> Tensor:
    """The map of a section, float32 [height, width] of `size` (width, height), without seams.

    `grids`: number of a tile -> its patch probabilities [g, g]; a tile that has none counts as 0, which
    happens where no pixel is of interest. Where only some tiles are looked at (`Section.only`), these
    share each pixel among them, and what none shows is 0.
    """
    width, height = size
    columns = Axis.of(section.columns, section.tile[0], section.size[0], width, operator)
    rows = Axis.of(section.rows, section.tile[1], section.size[1], height, operator)
    out = torch.zeros(height, width)
    shares = None if section.only is None else torch.zeros(height, width)
    for tile in section.tiles:
        row, column = divmod(tile.number - section.first, len(section.columns))
        part = rows.operators[row] @ grids[tile.number] @ columns.operators[column].T
        place = rows.spans[row], columns.spans[column]
        out[place] += part
        if shares is not None:
            shares[place] += torch.outer(rows.shares[row], columns.shares[column])
    if shares is not None:
        out /= shares.clamp_min_(1e-12)
    return out.clamp_(0, 1)


def working_size(section: Section, image_size: int) -> tuple[int, int]:
    """Width, height of a coarse look's map: a tile has the encoder's pixels, within `WORKING` pixels for
    the whole."""
    (width, height), (across, down) = section.size, section.tile
    wide, high = width * image_size / across, height * image_size / down
    shrink = min(1.0, math.sqrt(WORKING / (wide * high)))
    return max(1, round(wide * shrink)), max(1, round(high * shrink))


def tops_around(section: Section, tops: Tensor) -> Tensor:
    """The largest top score of each tile and of those that overlap it, [n] as `tops` of the section's tiles."""
    places = [divmod(tile.number - section.first, len(section.columns)) for tile in section.tiles]
    rows, columns = (list(own) for own in zip(*places))
    found = torch.full((len(section.rows), len(section.columns)), -torch.inf)
    found[rows, columns] = tops
    for starts, side in ((section.columns, section.tile[0]), (section.rows, section.tile[1])):
        at = torch.tensor(starts)
        found = torch.stack([found[:, (at - start).abs() < side].amax(dim=1) for start in starts])
    return found[rows, columns]


@dataclass(frozen=True)
class Peak:
    """The patch that shows an anomaly most, and what it asked the memory with."""

    value: float
    tile: Tile
    query: Tensor
    cell: int
    """Number of the patch on the grid."""


@dataclass(frozen=True)
class Rules:
    """How grids become scores; see `mrad.detector.Detector`."""

    grid: int
    image_size: int
    sigma: float
    top: float
    fusion: float

    @property
    def operator(self) -> Tensor:
        """See `mrad.maps.map_operator`."""
        return map_operator(self.grid, self.image_size, self.sigma, "cpu")


class Canvas:
    """What is known of one picture while its tiles are judged. `add` is thread-safe."""

    def __init__(self, places: Places, rules: Rules, finer: Places | None = None) -> None:
        """`finer`: what this look, a coarse one, is to choose from."""
        self.places, self.rules, self.finer = places, rules, finer
        self._grids: dict[int, Tensor] = {}
        self._levels: dict[int, float] = {}
        self._tops: dict[int, float] = {}
        self._queries: dict[int, Tensor] = {}
        self._peaks: dict[str, Peak] = {}
        self._taught: dict[int, dict[int, float]] = {}
        self._counted = 0
        self._lock = threading.Lock()
        self._section = {tile.number: s for s in places.sections for tile in s.tiles}

    def count(self) -> bool:
        """One tile more is done, drawn or drawn over; whether it was the last. For several threads."""
        with self._lock:
            self._counted += 1
            return self._counted == len(self.places.tiles)

    def add(
        self,
        tile: Tile,
        patch: Tensor,
        image: float,
        queries: tuple[Tensor, Tensor],
        taught: dict[int, float] | None = None,
    ) -> None:
        """One tile.

        Args:
            tile: which.
            patch: probabilities [N].
            image: its own probability.
            queries: its class [E] and patch [N, W] features, of which the strongest patch is kept.
            taught: what `mrad.retrieval.taught` found of it.
        """
        grid = self.rules.grid
        section = self._section[tile.number]
        cells = patch.float().cpu()
        shown = cells
        if section.inside is not None:  # a patch outside is no evidence
            shown = torch.where(_centres(section.counts(tile), grid), cells, -1.0)
        best = int(shown.argmax())
        top = self._top(section, tile, cells)
        local = Peak(float(shown[best]), tile, queries[1][best].clone(), best)
        with self._lock:
            self._grids[tile.number] = cells.view(grid, grid)
            self._levels[tile.number], self._tops[tile.number] = image, top
            self._taught[tile.number], self._queries[tile.number] = taught or {}, queries[0]
            before = self._peaks.get(section.name, local)
            self._peaks[section.name] = local if local.value > before.value else before

    def closer(self) -> Canvas | None:
        """After a coarse look: where the picture's strongest tiles are gathered. None after a last look.

        A tile is as strong as the top score of the coarse map inside it. Every section keeps its own
        share of tiles, one at least.
        """
        if self.finer is None:
            return None
        chosen = []
        for section, fine in zip(self.places.sections, self.finer.sections, strict=True):
            size = working_size(section, self.rules.image_size)
            strength = partial(
                self._strength, torch.from_numpy(self._drawn(section, size)), section
            )
            count = math.ceil(self.finer.closely * len(fine.every))
            kept = sorted(fine.every, key=strength, reverse=True)[:count]
            chosen.append(replace(fine, only=frozenset(tile.number for tile in kept)))
        return Canvas(replace(self.finer, sections=tuple(chosen), coarse=None), self.rules)

    def _strength(self, values: Tensor, section: Section, tile: Tile) -> float:
        """The top score of a section's map inside one tile."""
        scale = values.shape[1] / section.size[0], values.shape[0] / section.size[1]
        left, top, right, bottom = (
            (edge - section.box[i % 2]) * scale[i % 2] for i, edge in enumerate(tile.box)
        )
        own = values[int(top) : math.ceil(bottom), int(left) : math.ceil(right)]
        return float(top_mean(own[None], self.rules.top)[0])

    def notes(self) -> tuple[str, ...]:
        """What is to be said of the judgement."""
        every = sum(len(section.every) for section in self.places.sections)
        left = every - len(self.places.tiles)
        if not left:
            return ()
        return (
            f"looked_at_coarsely: {left} of {every} tiles were looked at coarsely only, as they were "
            "asked to be; the map is 0 there",
        )

    def taught(self) -> list[dict[int, float]]:
        """What was found of each tile among taught pictures."""
        return [self._taught[tile.number] for tile in self.places.tiles]

    def parts(self) -> list[PartScore]:
        """Each section's scores, in the layout's order: those of its worst place (`_worst`)."""
        return [self._worst(section)[1] for section in self.places.sections]

    def _worst(self, section: Section) -> tuple[Tile, PartScore]:
        """A section's worst place: the tile there, and the score.

        Each tile is scored as an image of its own, but with the largest top score of the tiles that overlap it:
        they show the same defect, seldom all of it, and not the same one has both terms largest. The largest
        top score and the largest image level of any two tiles would be the maxima of two noises.
        """
        numbers = [tile.number for tile in section.tiles]
        tops = tops_around(section, torch.tensor([self._tops[number] for number in numbers]))
        levels = torch.tensor([self._levels[number] for number in numbers])
        scores = fuse(tops, levels, self.rules.fusion)
        worst = int(scores.argmax())
        score, level, top = float(scores[worst]), self._levels[numbers[worst]], float(tops[worst])
        return section.tiles[worst], PartScore(section.name, section.box, score, level, top)

    def evidence_queries(self, name: str) -> tuple[EvidenceQuery, EvidenceQuery]:
        """What asks the memory for evidence: a section's worst tile, and its strongest patch."""
        (section,) = (section for section in self.places.sections if section.name == name)
        (tile, _), local = self._worst(section), self._peaks[name]
        cell = divmod(local.cell, self.rules.grid)
        box = None if self.places.whole else tile.box
        return EvidenceQuery(self._queries[tile.number], box), EvidenceQuery(
            local.query, cell_box(cell, self.rules.grid, local.tile.box), cell
        )

    def tiles(self) -> tuple[TileScore, ...]:
        """Every tile with its image probability and its largest patch probability."""
        return tuple(
            TileScore(tile.box, self._levels[tile.number], float(self._grids[tile.number].max()))
            if tile.number in self._grids
            else TileScore(tile.box, 0.0, 0.0, closely=False)
            for section in self.places.sections
            for tile in section.every
        )

    def map(self, most: int | None = FULL) -> FloatArray:
        """The picture's map, float32 [height, width]; 0 where nothing is of interest.

        At the picture's size, or, where that has more than `most` pixels, scaled down to so many; None
        for the full size whatever it costs.
        """
        width, height = self.places.size
        shrink = 1.0 if most is None else min(1.0, math.sqrt(most / (width * height)))
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        out = np.zeros(size[::-1], dtype=np.float32)
        for section in self.places.sections:
            left, top, right, bottom = (
                round(edge * size[axis % 2] / self.places.size[axis % 2])
                for axis, edge in enumerate(section.box)
            )
            part = max(1, right - left), max(1, bottom - top)
            values = self._drawn(section, part)
            if section.inside is not None:
                values = np.where(at_shape(section.inside, part[::-1]), values, 0)
            place = out[top : top + part[1], left : left + part[0]]
            np.maximum(place, values[: place.shape[0], : place.shape[1]], out=place)
        return out

    def _drawn(self, section: Section, size: tuple[int, int]) -> FloatArray:
        if section.tile == section.size:
            return resize_map(self._own_map(self._grids[section.tiles[0].number]), size)
        return np.asarray(blend(section, self._grids, size, self.rules.operator).numpy())

    def _own_map(self, cells: Tensor) -> Tensor:
        """The map [S, S] of one tile's patch probabilities."""
        return anomaly_map(cells.reshape(1, -1), self.rules.image_size, self.rules.sigma)[0]

    def _top(self, section: Section, tile: Tile, cells: Tensor) -> float:
        """A tile's top score, of its pixels of interest alone.

        Of a section that is cut, as many pixels count as the `top` share of a whole tile has: at the edge
        of a region a tile may have few, and the largest of few says little.
        """
        values = self._own_map(cells)
        if section.inside is None:
            return float(top_mean(values[None], self.rules.top)[0])
        shown = torch.from_numpy(at_shape(section.counts(tile), tuple(values.shape)).copy())
        own = values[shown] if shown.any() else values.flatten()
        if len(section.every) == 1:
            return float(top_mean(own[None], self.rules.top)[0])
        count = min(len(own), max(1, int(values.numel() * self.rules.top)))
        return float(own.topk(count).values.mean())


def _centres(counts: np.ndarray[Any, np.dtype[np.bool_]], grid: int) -> Tensor:
    """Which of a tile's patches have their centre on a pixel that counts, bool [N]; all if none has."""
    height, width = counts.shape
    rows = ((np.arange(grid) + 0.5) * height / grid).astype(int)
    columns = ((np.arange(grid) + 0.5) * width / grid).astype(int)
    found = torch.from_numpy(counts[np.ix_(rows, columns)].copy()).flatten()
    return found if found.any() else torch.ones_like(found)
