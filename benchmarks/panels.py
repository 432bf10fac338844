"""Panels: mosaics of DeepPCB boards, and memories of single boards or of such panels, for `benchmarks.tiles`.

A panel that is judged is one board many times, as in production: all good, or one of them defective. Boards that are
judged are in no memory, neither with defects nor without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

import numpy as np
import torch
from mrad_indexer.datasets import Record, read_dataset
from PIL import Image
from torch import Tensor

from benchmarks.tables import DATA
from mrad import Detector, Encoder, MemoryBank, Prediction, Sample
from mrad.encoder.encoder import Features
from mrad.heads.nn import NNHead
from mrad.images.layout import Layout, Tile
from mrad.images.tiles import Tiling
from mrad.opening import Decoded
from mrad.types import BoolArray

BOARD = 640
MOST_KNOWN = 200
"""Tiles whose features are kept."""
T = TypeVar("T")


def panel(boards: Sequence[Image.Image], across: int) -> np.ndarray:
    """Boards side by side, uint8 [H, W]."""
    rows = [
        np.hstack([np.asarray(b) for b in boards[i : i + across]])
        for i in range(0, len(boards), across)
    ]
    return np.vstack(rows)


def opened(record: Record) -> Image.Image:
    """A board in grey."""
    return Image.open(record.image).convert("L")


@dataclass(frozen=True)
class Boards:
    """DeepPCB: which boards are remembered, and which are asked about."""

    bank: MemoryBank
    """Of single boards; a board is one tile."""
    known: list[Record]
    """Good ones."""
    defects: list[Record]
    """Remembered ones with defects."""
    pairs: list[tuple[Record, Record]]
    """Boards asked about: with defects, and the same one without."""

    @classmethod
    def of(cls, encoder: Encoder) -> Boards:
        """A board with defects is remembered where the same one without is; in an order by chance."""
        records = read_dataset(DATA / "deep_pcb").records
        bad = [r for r in records if r.anomalous and r.mask]
        order = [bad[i] for i in np.random.default_rng(0).permutation(len(bad))]
        known = [r for r in records if not r.anomalous and r.split == "train"]
        good = {r.image.stem: r for r in records if not r.anomalous and r.split == "test"}
        defects = [r for r in order if r.image.stem not in good]
        pairs = [(r, good[r.image.stem]) for r in order if r.image.stem in good]
        samples = [r.sample() for r in (*known, *defects)]
        bank = MemoryBank.from_samples(encoder, samples, layout=Layout(Tiling(BOARD)))
        return cls(bank, known, defects, pairs)

    def panels(
        self, across: int, down: int, pictures: int
    ) -> Iterator[tuple[np.ndarray, BoolArray]]:
        """Panels and their masks: of each board one as good as it is, then one with a defective copy."""
        rng = np.random.default_rng(across)
        for record, base in self.pairs[:pictures]:
            boards = [opened(base)] * (across * down)
            yield panel(boards, across), np.zeros((down * BOARD, across * BOARD), dtype=bool)
            yield with_defect(boards, across, int(rng.integers(across * down)), record)

    def panel_bank(
        self, encoder: Encoder, across: int, down: int, panels: int, tiling: Tiling
    ) -> MemoryBank:
        """Of so many good panels and as many with one defective board.

        Every panel has good boards of its own, in an order by chance, so that any two may be neighbours and
        the memory's own panels, left out, are as new as those that are judged.
        """
        rng = np.random.default_rng(0)
        known = [self.known[i] for i in rng.permutation(len(self.known))]
        defects = [self.defects[i] for i in rng.permutation(len(self.defects))[:panels]]
        count = across * down

        def samples() -> Iterator[Sample]:
            for number in range(2 * panels):
                own = known[number % panels :: panels]
                boards = [opened(own[i]) for i in rng.permutation(count) % len(own)]
                if number < panels:
                    picture = Image.fromarray(panel(boards, across))
                    yield Sample(picture, anomalous=False, source=f"good {number}")
                    continue
                place = int(rng.integers(count))
                found, mask = with_defect(boards, across, place, defects[number - panels])
                shown = Image.fromarray(mask.astype(np.uint8) * 255)
                yield Sample(Image.fromarray(found), True, shown, source=f"defect {number}")

        return MemoryBank.from_samples(encoder, samples(), layout=Layout(tiling))


def with_defect(
    boards: Sequence[Image.Image], across: int, place: int, record: Record
) -> tuple[np.ndarray, BoolArray]:
    """A panel with a defective board at one place, and its mask."""
    changed = list(boards)
    changed[place] = opened(record)
    found = panel(changed, across)
    mask = np.zeros(found.shape, dtype=bool)
    x, y = place % across * BOARD, place // across * BOARD
    mask[y : y + BOARD, x : x + BOARD] = record.read_mask((BOARD, BOARD))
    return found, mask


class Known:
    """What is known of tiles by their pixels: most tiles of a panel of one board are the same."""

    def __init__(self) -> None:
        self.features: dict[bytes, Features] = {}

    def of(self, encoder: Encoder, decoded: Decoded, tiles: Sequence[Tile]) -> Features:
        """Features of tiles."""
        cut = [decoded.image.crop(tile.box) for tile in tiles]
        names = [sha256(image.tobytes()).digest() for image in cut]
        if len(self.features) > MOST_KNOWN:
            self.features.clear()
        if fresh := {name: n for n, name in enumerate(names) if name not in self.features}:
            found = encoder.encode_prepared([encoder.prepare(cut[n]) for n in fresh.values()])
            self.features |= {name: found[row : row + 1] for row, name in enumerate(fresh)}
        return Features.cat([self.features[name] for name in names])


def remembering(detectors: Sequence[Detector]) -> None:
    """Measure the same tile once for all heads on one memory; nothing else changes."""
    known: dict[bytes, Tensor] = {}
    for detector in detectors:
        if not isinstance(detector.head, NNHead):
            continue
        ask = detector.head.patch_distances

        def asked(features: Features, exclude: Tensor | None, ask=ask) -> Tensor:  # type: ignore[no-untyped-def]
            names = [row.numpy().tobytes() for row in features.class_feature]
            fresh = {name: n for n, name in enumerate(names) if name not in known}
            if fresh:
                found = ask(Features.cat([features[n : n + 1] for n in fresh.values()]), exclude)
                known.update({name: found[:, row] for row, name in enumerate(fresh)})
            return torch.stack([known[name] for name in names], dim=1)

        detector.head.patch_distances = asked  # type: ignore[method-assign]


def together(
    detectors: Mapping[T, Detector], picture: np.ndarray, known: Known, pixels: int
) -> dict[T, Prediction]:
    """What detectors of one layout say of a picture whose tiles are encoded once for all; maps of so many `pixels`."""
    first = next(iter(detectors.values()))
    decoded = first.decode(picture)
    canvases = {name: d.canvas(decoded.places) for name, d in detectors.items()}
    tiles = decoded.places.tiles
    for start in range(0, len(tiles), 8):
        batch = tiles[start : start + 8]
        features = known.of(first.encoder, decoded, batch)
        for name, detector in detectors.items():
            detector.draw([(canvases[name], tile) for tile in batch], features)
    return {name: d.conclude(canvases[name], map_pixels=pixels) for name, d in detectors.items()}
