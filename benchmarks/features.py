"""Real patch features with their labels, and as many keys as a table asks for, made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.records import Record

from benchmarks.geometry import Geometry
from benchmarks.tables import DATA
from mrad import Encoder
from mrad.images.reader import load_image
from mrad.memory.keys import region_grid
from mrad.retrieval.approximate.cells import blocks
from mrad.types import FloatArray

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "mrad" / "demo" / "deep_pcb"
NOISE = 0.05
"""L2 size, relative to a key's norm of 1, of the noise on repeated keys."""
KEY_WIDTH = Geometry("patches of ViT-L/14's width", 1024, 4, 14, 336, 518, 768)
"""The paper's key width from a tower of 4 seeded blocks: what keys cost, at a sixth of the time."""


def records(limit: int) -> list[Record]:
    """Up to `limit` labelled images spread over all that are at hand; defects have masks."""
    folders = sorted(p for p in DATA.glob("*") if p.is_dir()) if DATA.is_dir() else []
    folders = folders or [DEMO / "memory", DEMO / "query"]
    found = [r for f in folders for r in read_dataset(f).records if not r.anomalous or r.mask]
    return [found[i] for i in np.linspace(0, len(found) - 1, min(limit, len(found))).astype(int)]


@dataclass(frozen=True)
class Patches:
    """Labelled patches of real images; those on the border of a defect are left out."""

    keys: FloatArray
    """[n, d], L2-normalised."""
    labels: npt.NDArray[np.uint8]
    """[n], by the image's mask."""
    image: npt.NDArray[np.int64]
    """[n], which image."""

    def of(self, rows: npt.NDArray[Any]) -> Patches:
        """Some of them."""
        return Patches(self.keys[rows], self.labels[rows], self.image[rows])

    def split(self, every: int = 8) -> tuple[Patches, Patches]:
        """Keys, and queries from every eighth image, which gives no key."""
        held = self.image % every == 0
        return self.of(~held), self.of(held)


def patches(encoder: Encoder, count: int) -> Patches:
    """At least `count` labelled patches, or all that the images at hand have."""
    keys, labels, image = [], [], []
    for number, record in enumerate(records(-(-count * 11 // 10 // encoder.grid**2))):
        picture = load_image(record.image)
        mask = record.read_mask(picture.size)
        cells = region_grid(mask, record.anomalous, encoder.image_size, encoder.grid)
        query = encoder.encode([picture]).patch_query()[0].cpu()
        for label, own in enumerate(cells):
            keys.append(query[own].numpy())
            labels.append(np.full(int(own.sum()), label, dtype=np.uint8))
            image.append(np.full(int(own.sum()), number))
    return Patches(np.concatenate(keys), np.concatenate(labels), np.concatenate(image))


def wide_patches(count: int, quick: bool) -> Patches:
    """Patches of the paper's key width."""
    geometry = Geometry.tiny() if quick else KEY_WIDTH
    return patches(geometry.encoder(), count)


class Repeated:
    """n keys [n, d] made block by block: the real ones first, then repeats with noise.

    Nothing is held but the real keys and a table of noise, so n may exceed memory.
    """

    def __init__(self, real: FloatArray, count: int) -> None:
        self.real, self.shape = real, (count, real.shape[1])
        rng = np.random.default_rng(1)
        size = NOISE / np.sqrt(real.shape[1])
        self.noise = rng.normal(0, size, (4_099, real.shape[1])).astype(np.float32)

    def __getitem__(self, rows: Any) -> FloatArray:
        """Keys of a slice or of row numbers."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        turn, row = np.divmod(np.asarray(rows), len(self.real))
        keys = torch.from_numpy(self.real)[torch.from_numpy(row)]
        again = np.flatnonzero(turn)
        noise = torch.from_numpy((row[again] + 37 * turn[again]) % len(self.noise))
        if len(again):
            keys[again[0] :].index_add_(
                0, torch.from_numpy(again - again[0]), torch.from_numpy(self.noise)[noise]
            )
        keys /= keys.norm(dim=1, keepdim=True)
        return keys.numpy()

    def held(self) -> FloatArray:
        """All of them in memory, [n, d]."""
        found = np.empty(self.shape, dtype=np.float32)
        for part in blocks(self.shape[0]):
            found[part] = self[part]
        return found
