"""Pictures that were taught, shown again: found by the whole picture first, then patch by patch.

The same picture is the same at every patch: a mean would pass it with a small new defect. Measured with
`mrad-mini` on five sets, 16 images of each class: 1 - cosine at the same place, the largest of a picture,

| of the picture                                          | smallest | 95 % below | largest |
|---------------------------------------------------------|----------|------------|---------|
| brightened by 3 %                                       |   0.0001 |      0.016 |   0.033 |
| recompressed (JPEG 80), magnetic tiles aside            |   0.0004 |      0.011 |   0.030 |
| recompressed magnetic tiles, which are grainy           |   0.0058 |      0.080 |   0.083 |
| with a small new defect (1,472, real and painted)       |   0.0144 |            |         |
| moved by two pixels                                     |   0.0120 |      0.31  |   0.74  |

So `SAME` passes none with a defect, nearly all that are recompressed or brightened, and none that moved;
to look at the patches beside makes a defect vanish sooner than a move. (The 80 boards of DeepPCB that are
there with and without defects differ by 0.235 at least.) What is marked as defective may move, for the same
board without the defect differs there by more: by a mean of 0.084 to 0.66, moved ones with it by 0.009 to
0.10, nine of ten by 0.059 at most, and by 0.032 over the whole picture. That holds where the mark is as tight
as a mask. A box, or the whole picture, is mostly good material, and photographs of one product in one position
differ by 0.03 from one another, there as elsewhere: so what is marked must be twice as near as in any good
picture of the memory.

A move that is undone after the picture was scaled for the encoder leaves 0.18 on boards of black and white,
and more in patches that show what came into view: features do not tell a moved picture from a small new
defect. Its pixels do (`mrad.retrieval.moved`), for pictures that are not cut into tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.images.layout import cell_box
from mrad.images.preprocess import Preprocess
from mrad.memory.bank import MemoryBank
from mrad.retrieval.moved import same_moved
from mrad.types import NORMAL, WHOLE, Box, Place, Recognised

SAME = 0.0125
"""1 - cosine up to which a patch is the very same: see the module."""
LIKE, MARKS = 0.035, 0.07
"""Means of it, over a picture and over what is marked, up to which it shows the same defect."""
NEARER = 0.5
"""Of the distance to the nearest good picture, at what is marked, so much at most: the mark sets it apart."""
GATE = 0.95
"""Cosine of the class features from which patches are looked at."""
NEAREST = 16
"""Taught pictures whose patches are looked at, at most: the most alike as a whole."""
MOVES = 2
"""Of those, the pictures whose pixels are compared, at most."""
STEP = 16
"""Of so many patches one is looked at first."""
MARKED = "anomalous"
"""What the local level says of a patch that is marked as defective."""


@dataclass(frozen=True)
class TaughtPictures:
    """The V pictures, or tiles, that a memory was taught since it was built, and holds whole."""

    bank: MemoryBank
    cells: int
    """N, patches of each."""
    views: npt.NDArray[np.int64]
    """[V], number of each among the images of the local level."""
    rows: npt.NDArray[np.int64]
    """[V], entry of each."""
    places: tuple[Place | None, ...]
    """[V], where in its picture it lies."""
    classes: Tensor
    """[V, E], class features, L2-normalised, on the encoder's device."""
    pictures: tuple[bytes, ...] = ()
    """[V], what was encoded; empty where it was cut, or taught before this was kept."""
    preprocess: Preprocess | None = None

    @classmethod
    def of(cls, bank: MemoryBank, encoder: Encoder) -> TaughtPictures:
        """Of a memory of what `encoder` gives; nearly nothing is computed."""
        cells = encoder.grid**2
        image, every = bank.image, slice(None, None, cells)
        entry, tile = bank.local.entry[every], bank.local.tile[every].astype(np.int64)
        views = np.flatnonzero(entry >= bank.settled)
        if not len(views):
            return cls.none(bank)
        span = 1 + int(max(tile.max(), image.tile.max(initial=0)))
        known, wanted = image.entry * span + image.tile, (entry * span + tile)[views]
        order = np.argsort(known, kind="stable")
        place = order[np.searchsorted(known[order], wanted).clip(max=len(known) - 1)]
        found = known[place] == wanted
        views = views[found]
        keys = torch.from_numpy(image.keys[place[found]]).to(encoder.device)
        rows = entry[views]
        places = bank.places(zip(rows.tolist(), tile[views].tolist()))
        held = bank.pictures if bank.layout.plain else {}
        pictures = tuple(held.get(bank.entries[row].entry_id, b"") for row in rows.tolist())
        return cls(bank, cells, views, rows, places, keys, pictures, encoder.preprocess)

    @classmethod
    def none(cls, bank: MemoryBank) -> TaughtPictures:
        """Nothing is recognised."""
        nothing = np.empty(0, np.int64)
        return cls(bank, 1, nothing, nothing, (), torch.empty(0, bank.image.dim))

    @torch.inference_mode()
    def find(
        self, features: Features, exclude: Sequence[int] | Tensor | None
    ) -> list[dict[int, float]]:
        """For each picture, or tile, of a batch: the entries that show it, and how alike.

        Alike is the mean cosine of patches at the same place. `exclude`: for each an entry that it must
        not retrieve, -1 for none; such are the memory's own images, judged as if they were new, so
        nothing is recognised.
        """
        found: list[dict[int, float]] = [{} for _ in range(len(features))]
        if not len(self.rows) or features.patch_raw is None:
            return found
        alike = features.class_query() @ self.classes.T
        values, nearest = alike.topk(min(NEAREST, len(self.rows)), dim=1)
        for place, (near, views) in enumerate(zip(values.tolist(), nearest.tolist())):
            if exclude is not None and int(exclude[place]) >= 0:
                continue
            here = WHOLE if features.places is None else features.places[place]
            close = [view for cosine, view in zip(near, views) if cosine >= GATE]
            close = [view for view in close if self.places[view] == here]
            if not close:
                continue
            patches = F.normalize(features.patch_raw[place], dim=1)
            unknown = []
            for view in close:
                if (cosine := self._shows(patches, view)) is not None:
                    found[place][int(self.rows[view])] = cosine
                elif self.pictures[view]:
                    unknown.append(view)
            if unknown and features.pixels is not None:
                found[place] |= self._moved(patches, features.pixels[place], unknown)
        return found

    def _moved(self, patches: Tensor, pixels: Tensor, views: Sequence[int]) -> dict[int, float]:
        """The entries of those views that show the same, moved; of several, the most alike are looked at."""
        some = np.arange(0, self.cells, STEP)
        apart = {view: float(self._apart(patches, view, some).mean()) for view in views}
        close = [view for view in views if apart[view] <= 2 * LIKE]
        close.sort(key=lambda view: (apart[view], -view))
        if not close or self.preprocess is None:
            return {}
        shown = self.preprocess.levels(pixels)
        found = {}
        for view in close[:MOVES]:
            levels = np.frombuffer(self.pictures[view], np.uint8).reshape(*shown.shape[:2], -1)
            if same_moved(levels, shown):
                found[int(self.rows[view])] = 1 - apart[view]
        return found

    def recognised(
        self, found: Sequence[dict[int, float]], boxes: dict[Place | None, Box]
    ) -> Recognised | None:
        """What a picture is, from what `find` said of each of its tiles, whose `boxes` are by place.

        An entry is the same picture where every tile is. Of several, the one that was taught last decides.
        """
        rows = set.intersection(*(set(one) for one in found))
        rows = {row for row in rows if int((self.rows == row).sum()) == len(boxes)}
        if not rows:
            return None
        entries, last = self.bank.entries, max(rows)
        entry = entries[last]
        return Recognised(
            entry_id=entry.entry_id,
            label=entry.label,
            source=entry.source,
            similarity=sum(one[last] for one in found) / len(found),
            marked=tuple(self._marked(last, boxes)),
            contradicts=tuple(
                entries[row].entry_id for row in sorted(rows) if entries[row].label != entry.label
            ),
        )

    def _shows(self, patches: Tensor, view: int) -> float | None:
        """Mean cosine, where patches [N, W] are those of a taught view; else None.

        Every patch is the very same; or what is marked as defective is there, and the rest is alike.
        """
        region = self._region(view)
        counted, marked = np.flatnonzero(region != "outside"), np.flatnonzero(region == MARKED)
        if not len(counted):
            return None
        apart = self._apart(patches, view, counted[::STEP])
        if float(apart.mean()) > 2 * LIKE or (not len(marked) and float(apart.max()) > SAME):
            return None
        apart = self._apart(patches, view, counted)
        mean = float(apart.mean())
        if float(apart.max()) <= SAME:
            return 1 - mean
        if not len(marked) or mean > LIKE:
            return None
        there = float(self._apart(patches, view, marked).mean())
        if there > MARKS or there > NEARER * self._nearest_good(patches, view, marked):
            return None
        return 1 - mean

    def _nearest_good(self, patches: Tensor, view: int, cells: npt.NDArray[np.int64]) -> float:
        """The smallest mean of 1 - cosine at some patches to a good picture's; infinite without one."""
        every = slice(None, None, self.cells)
        rows, tiles = self.bank.local.entry[every].tolist(), self.bank.local.tile[every].tolist()
        good = [n for n, row in enumerate(rows) if self.bank.entries[row].label == NORMAL]
        places = self.bank.places((rows[n], tiles[n]) for n in good)
        there = [n for n, place in zip(good, places) if place == self.places[view]]
        return min(
            (float(self._apart_from(patches, n, cells).mean()) for n in there), default=math.inf
        )

    def _apart(self, patches: Tensor, view: int, cells: npt.NDArray[np.int64]) -> Tensor:
        """1 - cosine of some patches to those of a view at the same place."""
        return self._apart_from(patches, int(self.views[view]), cells)

    def _apart_from(self, patches: Tensor, number: int, cells: npt.NDArray[np.int64]) -> Tensor:
        """The same of any image of the local level, by its number there."""
        raw = self.bank.local.keys[number * self.cells + cells]
        others = F.normalize(torch.from_numpy(raw).to(self.classes.device), dim=1)
        return 1 - (patches[torch.from_numpy(cells)] * others).sum(dim=1)

    def _region(self, view: int) -> npt.NDArray[np.str_]:
        """What is known of each patch."""
        start = int(self.views[view]) * self.cells
        return self.bank.local.region[start : start + self.cells]

    def _marked(self, row: int, boxes: dict[Place | None, Box]) -> list[Box]:
        """Boxes of the patches that are marked as defective."""
        grid = round(self.cells**0.5)
        return [
            cell_box(divmod(int(cell), grid), grid, boxes[self.places[view]])
            for view in np.flatnonzero(self.rows == row).tolist()
            for cell in np.flatnonzero(self._region(view) == MARKED)
        ]
