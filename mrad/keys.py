"""Labelled images -> entries and keys (METHOD.md, Memory)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mrad.memory import Entry, Key
from mrad.preprocess import load_image, load_mask
from mrad.types import ANOMALOUS, NORMAL, BoolArray, Sample

if TYPE_CHECKING:
    from mrad.encoder import Encoder, Features


def region_grid(
    mask: BoolArray | None, anomalous: bool, image_size: int, grid: int
) -> tuple[Tensor, Tensor]:
    """Which grid cells are wholly normal and which wholly anomalous: two bool [N].

    The 0/255 mask is resized to the encoder's input (PIL bilinear, antialiased), cut at 0.5, then
    resized to the grid (bilinear, no antialiasing); cells that are exactly 0 or 1 count, border
    cells belong to neither. A normal image is normal everywhere; an anomalous one without a mask
    says nothing about any cell.
    """
    if not anomalous or mask is None:
        cells = torch.zeros(grid * grid, dtype=torch.bool)
        return (cells if anomalous else ~cells), cells
    side = (image_size, image_size)
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(side, Image.Resampling.BILINEAR)
    cut = torch.from_numpy(np.asarray(grey) / 255.0 > 0.5).float()[None, None]
    small = F.interpolate(cut, size=(grid, grid), mode="bilinear", align_corners=False).flatten()
    return small == 0, small == 1


def keys_of(
    encoder: Encoder, features: Features, index: int, entry: Entry, mask: BoolArray | None
) -> list[Key]:
    """The keys of image `index` of a batch: one image key and at most two region keys.

    A region key is the L2-normalised MEAN of the averaged, not yet normalised, patch features.
    """
    patch = features.patch[index]
    image = F.normalize(features.class_feature[index], dim=-1)
    keys = [_key("image", entry.label, entry, "image", len(patch), image)]
    regions = region_grid(mask, entry.label == ANOMALOUS, encoder.image_size, encoder.grid)
    for label, name, cells in zip((NORMAL, ANOMALOUS), ("normal", "anomalous"), regions):
        size = int(cells.sum())
        if size:
            mean = patch[cells.to(patch.device)].mean(dim=0)
            keys.append(_key("patch", label, entry, name, size, F.normalize(mean, dim=-1)))
    return keys


def _key(level: str, label: int, entry: Entry, region: str, size: int, vector: Tensor) -> Key:
    values = vector.float().cpu().numpy()
    return Key(
        "image" if level == "image" else "patch", label, entry.entry_id, region, size, values
    )


def encode_samples(
    encoder: Encoder, samples: Iterable[Sample], *, batch_size: int = 8, added_by: str = ""
) -> Iterator[tuple[Entry, list[Key]]]:
    """Entries and keys of labelled samples, a batch at a time, in order.

    Raises `ImageError`, `MaskError`.
    """
    stream = iter(samples)
    while chunk := list(islice(stream, batch_size)):
        images = [load_image(sample.image) for sample in chunk]
        features = encoder.encode_pixels(torch.stack([encoder.preprocess(i) for i in images]))
        for index, (sample, image) in enumerate(zip(chunk, images)):
            entry = Entry.of(sample, image.size, added_by)
            mask = None if sample.mask is None else load_mask(sample.mask, image.size)
            yield entry, keys_of(encoder, features, index, entry, mask)
