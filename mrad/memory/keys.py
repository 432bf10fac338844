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

from mrad.errors import MRADError
from mrad.images.preprocess import load_image, load_mask
from mrad.memory.coreset import greedy_coreset
from mrad.memory.entry import REGIONS, Entry, Key, PatchKeys
from mrad.types import ANOMALOUS, NORMAL, BoolArray, Sample

if TYPE_CHECKING:
    from mrad.encoder.encoder import Encoder, Features


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
    encoder: Encoder,
    features: Features,
    index: int,
    entry: Entry,
    mask: BoolArray | None,
    patch_keys: PatchKeys = REGIONS,
) -> list[Key]:
    """The keys of image `index` of a batch: one image key, and what each of its two regions adds.

    `patch_keys`: `regions` for the paper's one key a region, the L2-normalised MEAN of the averaged,
    not yet normalised, patch features; `all` for every patch that lies wholly in the region,
    L2-normalised; a number for so many of those at most, which cover the others best. Patches on a
    defect's border give no key.
    """
    patch = features.patch[index]
    image = F.normalize(features.class_feature[index], dim=-1).float().cpu().numpy()
    keys = [Key("image", entry.label, entry.entry_id, "image", len(patch), image)]
    regions = region_grid(mask, entry.label == ANOMALOUS, encoder.image_size, encoder.grid)
    for label, name, cells in zip((NORMAL, ANOMALOUS), ("normal", "anomalous"), regions):
        own = patch[cells.to(patch.device)]
        if not len(own):
            continue
        vectors = own.mean(dim=0, keepdim=True) if patch_keys == REGIONS else own
        vectors = F.normalize(vectors, dim=-1)
        if isinstance(patch_keys, int):
            vectors = vectors[torch.from_numpy(np.sort(greedy_coreset(vectors, patch_keys)))]
        size = len(own) if patch_keys == REGIONS else 1
        for vector in vectors.float().cpu().numpy():
            keys.append(Key("patch", label, entry.entry_id, name, size, vector))
    return keys


def parse_patch_keys(text: str | int) -> PatchKeys:
    """`regions`, `all`, or a number of 1 or more, as people type it. Raises `MRADError`."""
    if text == "all" or text == REGIONS:
        return "all" if text == "all" else REGIONS
    try:
        if (count := int(text)) >= 1:
            return count
    except (TypeError, ValueError):
        pass
    raise MRADError(f"patch keys are `regions`, `all`, or a number of 1 or more, not {text!r}")


def encode_samples(
    encoder: Encoder,
    samples: Iterable[Sample],
    *,
    batch_size: int = 8,
    added_by: str = "",
    patch_keys: PatchKeys = REGIONS,
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
            yield entry, keys_of(encoder, features, index, entry, mask, patch_keys)
