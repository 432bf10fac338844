"""Judged tiles -> the map and the scores of the picture that they were cut from.

Of each tile only its grid of patch probabilities is kept, so memory is flat in the picture's size; the
map is made from the grids at whatever size it is wanted. Upsampling, blur and blending are linear and
separable: along each axis a tile has a matrix, and the map is the sum of `rows grid columns^T`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrad.evidence import Asked, cell_box
from mrad.images.layout import Places, Section, Tile
from mrad.maps import anomaly_map, at_shape, fuse, map_operator, resize_map, top_mean
from mrad.types import FloatArray, PartScore, TileScore

WORKING = 8_000_000
"""Pixels, at most, of the map from which the top score is taken: 32 MB, and as much to find the largest."""
FULL = 32_000_000
"""Pixels of a picture up to which its map is given at full size unless told otherwise: 128 MB."""


@dataclass(frozen=True)
class Axis:
    """The tiles of one axis on an output of so many pixels."""

    spans: tuple[slice, ...]
    """Output pixels of each tile."""
    operators: tuple[Tensor, ...]
    """[n, g] of each: upsampling and blur, times the tile's share of each output pixel."""

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
        operators = []
        size = len(operator)
        for start, span, weight in zip(starts, spans, weights):
            place = ((centres[span] - start) * (size / side) - 0.5).clip(0, size - 1)
            low = np.floor(place).astype(np.int64)
            part = torch.from_numpy((place - low).astype(np.float32))[:, None]
            rows = torch.lerp(operator[low], operator[np.minimum(low + 1, size - 1)], part)
            share = torch.from_numpy((weight / total[span]).astype(np.float32))[:, None]
            operators.append(rows * share)
        return cls(tuple(spans), tuple(operators))


def blend(
    section: Section, grids: dict[int, Tensor], size: tuple[int, int], operator: Tensor
) -> Tensor:
    """The map of a section, float32 [height, width] of `size` (width, height), without seams.

    `grids`: number of a tile -> its patch probabilities [g, g]; a tile that has none counts as 0, which
    happens only where no pixel is of interest.
    """
    width, height = size
    columns = Axis.of(section.columns, section.tile[0], section.size[0], width, operator)
    rows = Axis.of(section.rows, section.tile[1], section.size[1], height, operator)
    out = torch.zeros(height, width)
    for tile in section.tiles:
        row, column = divmod(tile.number - section.first, len(section.columns))
        part = rows.operators[row] @ grids[tile.number] @ columns.operators[column].T
        out[rows.spans[row], columns.spans[column]] += part
    return out.clamp_(0, 1)


def working_size(section: Section, image_size: int) -> tuple[int, int]:
    """Width, height of the map that scores are taken from: a tile has the encoder's pixels, within
    `WORKING` pixels for the whole."""
    (width, height), (across, down) = section.size, section.tile
    wide, high = width * image_size / across, height * image_size / down
    shrink = min(1.0, math.sqrt(WORKING / (wide * high)))
    return max(1, round(wide * shrink)), max(1, round(high * shrink))


@dataclass(frozen=True)
class Peak:
    """The tile that shows an anomaly most, at one level, and what it asked the memory with."""

    value: float
    tile: Tile
    query: Tensor
    cell: int = 0
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

    def __init__(self, places: Places, rules: Rules) -> None:
        self.places, self.rules = places, rules
        self._grids: dict[int, Tensor] = {}
        self._levels: dict[int, float] = {}
        self._peaks: dict[str, tuple[Peak, Peak]] = {}
        self._counted = 0
        self._lock = threading.Lock()
        self._section = {tile.number: s for s in places.sections for tile in s.tiles}

    @property
    def done(self) -> bool:
        """Whether every tile was judged."""
        return len(self._grids) == len(self.places.tiles)

    def count(self) -> bool:
        """One tile more is done, drawn or drawn over; whether it was the last. For several threads."""
        with self._lock:
            self._counted += 1
            return self._counted == len(self.places.tiles)

    def add(self, tile: Tile, patch: Tensor, image: float, queries: tuple[Tensor, Tensor]) -> None:
        """One tile: `patch` [N] and `image` probabilities; `queries`: its class [E] and patch [N, W]
        features, of which the strongest are kept."""
        grid = self.rules.grid
        section = self._section[tile.number]
        cells = patch.float().cpu()
        shown = cells
        if section.inside is not None:  # a patch outside is no evidence
            shown = torch.where(_centres(section.counts(tile), grid), cells, -1.0)
        best = int(shown.argmax())
        whole = Peak(image, tile, queries[0])
        local = Peak(float(shown[best]), tile, queries[1][best].clone(), best)
        with self._lock:
            self._grids[tile.number] = cells.view(grid, grid)
            self._levels[tile.number] = image
            before = self._peaks.get(section.name, (whole, local))
            self._peaks[section.name] = (
                whole if whole.value > before[0].value else before[0],
                local if local.value > before[1].value else before[1],
            )

    def parts(self) -> list[PartScore]:
        """Each section's scores, in the layout's order.

        The top score is the mean of the largest pixels of the whole map, as many as the `top` share of
        one tile has; the image level is that of the strongest tile. So a picture's score is that of its
        worst place, however much that is good lies around it, and one tile's is one image's.
        """
        found = []
        for section in self.places.sections:
            top = self._top(section)
            level = max(self._levels[tile.number] for tile in section.tiles)
            score = fuse(torch.tensor(top), torch.tensor(level), self.rules.fusion)
            found.append(PartScore(section.name, section.box, float(score), level, top))
        return found

    def asked(self, name: str) -> tuple[Asked, Asked]:
        """What asks the memory for evidence: a section's strongest tile, and its strongest patch."""
        whole, local = self._peaks[name]
        cell = divmod(local.cell, self.rules.grid)
        box = None if self.places.whole else whole.tile.box
        return Asked(whole.query, box), Asked(
            local.query, cell_box(cell, self.rules.grid, local.tile.box), cell
        )

    def tiles(self) -> tuple[TileScore, ...]:
        """Every tile with its image probability and its largest patch probability."""
        return tuple(
            TileScore(tile.box, self._levels[tile.number], float(self._grids[tile.number].max()))
            for tile in self.places.tiles
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
        if len(section.tiles) == 1 and section.tile == section.size:
            return resize_map(self._square(section), size)
        return np.asarray(blend(section, self._grids, size, self.rules.operator).numpy())

    def _square(self, section: Section) -> Tensor:
        """The map [S, S] of a section that is one tile."""
        cells = self._grids[section.tiles[0].number].reshape(1, -1)
        return anomaly_map(cells, self.rules.image_size, self.rules.sigma)[0]

    def _top(self, section: Section) -> float:
        size = working_size(section, self.rules.image_size)
        if len(section.tiles) == 1 and section.tile == section.size:
            values = self._square(section)
        else:
            values = blend(section, self._grids, size, self.rules.operator)
        if section.inside is not None:
            shown = torch.from_numpy(at_shape(section.inside, tuple(values.shape)).copy())
            values = values[shown] if shown.any() else values.flatten()
        if len(section.tiles) == 1:
            return float(top_mean(values.reshape(1, -1), self.rules.top)[0])
        # The same of a large map: `topk` would take four times its memory.
        flat = values.numpy().ravel()
        share = math.prod(section.tile) / math.prod(section.size)
        count = min(len(flat), max(1, int(math.prod(size) * share * self.rules.top)))
        flat.partition(len(flat) - count)
        return float(flat[len(flat) - count :].mean(dtype=np.float64))


def _centres(counts: np.ndarray[Any, np.dtype[np.bool_]], grid: int) -> Tensor:
    """Which of a tile's patches have their centre on a pixel that counts, bool [N]; all if none has."""
    height, width = counts.shape
    rows = ((np.arange(grid) + 0.5) * height / grid).astype(int)
    columns = ((np.arange(grid) + 0.5) * width / grid).astype(int)
    found = torch.from_numpy(counts[np.ix_(rows, columns)].copy()).flatten()
    return found if found.any() else torch.ones_like(found)
