"""Labelled images -> entries and keys (docs/method.md)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.encoder.stream import encode_tiles
from mrad.errors import MRADError
from mrad.images.layout import PLAIN, Layout, Places
from mrad.images.masks import Mask, read_mask
from mrad.images.options import ReadOptions
from mrad.images.reader import Picture, read_image
from mrad.memory.coreset import greedy_coreset
from mrad.memory.entry import REGIONS, Entry, Key, PatchKeys
from mrad.memory.level import LevelMemory
from mrad.types import ANOMALOUS, NORMAL, BoolArray, Level, Sample

Levels: TypeAlias = dict[Level, LevelMemory]
"""Keys of one tile, level by level, all of row 0; a level without a key is left out."""


@dataclass(frozen=True)
class Piece:
    """What is known of one tile of a labelled picture."""

    tile: int = 0
    """Its number (`mrad.images.layout.Tile`)."""
    anomalous: bool | None = None
    """None where nobody knows: such a tile gives no image key."""
    mask: BoolArray | None = None
    """Its anomalous pixels, [h, w]."""
    counts: BoolArray | None = None
    """Which of its pixels are of interest, [h, w]; None for all."""
    whole: bool = False
    """Whether it is the picture itself, uncut."""


def pieces_of(places: Places, anomalous: bool, mask: Mask | BoolArray | None) -> list[Piece]:
    """What is known of each tile of a picture, in the order of `places.tiles`.

    `mask`: of the picture; pixels that it ignores are of no interest. A tile of a defective picture is anomalous where it shows at
    least half of a marked region, normal where it shows none of any, else unknown: a sliver at its
    edge makes no defect, unless it fills a patch. Without a mask nobody knows which of several tiles
    is defective.
    """
    alone, ignore = len(places.tiles) == 1, None
    if isinstance(mask, Mask):
        ignore, mask = mask.ignore if mask.ignore.any() else None, mask.anomalous
    labelled, areas = None, np.zeros(1, dtype=np.int64)
    if anomalous and mask is not None and not places.whole:
        from skimage import measure

        labelled = measure.label(mask, connectivity=2)
        areas = np.bincount(labelled.ravel())
    found = []
    for section in places.sections:
        for tile in section.tiles:
            counts = None if section.inside is None else section.counts(tile)
            if ignore is not None and anomalous:
                left, top, right, bottom = tile.box
                clear = ~ignore[top:bottom, left:right]
                counts = clear if counts is None else counts & clear
            if not anomalous:
                found.append(Piece(tile.number, False, None, counts, places.whole))
            elif mask is None or labelled is None:
                label = True if alone else None
                found.append(Piece(tile.number, label, mask, counts, places.whole))
            else:
                left, top, right, bottom = tile.box
                seen = labelled[top:bottom, left:right]
                if counts is not None:
                    seen = np.where(counts, seen, 0)
                own = np.bincount(seen.ravel(), minlength=len(areas))[1:]
                shown = bool((2 * own >= areas[1:]).any())
                label = shown or (None if own.any() else False)
                found.append(Piece(tile.number, label, seen > 0, counts))
    return found


def region_grid(
    mask: BoolArray | None,
    anomalous: bool | None,
    image_size: int,
    grid: int,
    counts: BoolArray | None = None,
) -> tuple[Tensor, Tensor]:
    """Which grid cells are wholly normal and which wholly anomalous: two bool [N].

    The 0/255 mask is resized to the encoder's input (PIL bilinear, antialiased), cut at 0.5, then
    resized to the grid (bilinear, no antialiasing); cells that are exactly 0 or 1 count, border
    cells belong to neither. A normal image is normal everywhere; an anomalous one without a mask
    says nothing about any cell. `counts`: pixels of interest; a cell with another belongs to neither.
    """
    if anomalous is False or mask is None:
        bad = torch.zeros(grid * grid, dtype=torch.bool)
        good = ~bad if anomalous is False else bad.clone()
    else:
        small = _on_grid(mask, image_size, grid)
        good, bad = small == 0, small == 1
    if counts is not None:
        within = _on_grid(counts, image_size, grid) == 1
        good, bad = good & within, bad & within
    return good, bad


def _on_grid(mask: BoolArray, image_size: int, grid: int) -> Tensor:
    side = (image_size, image_size)
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(side, Image.Resampling.BILINEAR)
    cut = torch.from_numpy(np.asarray(grey) / 255.0 > 0.5).float()[None, None]
    return F.interpolate(cut, size=(grid, grid), mode="bilinear", align_corners=False).flatten()


def keys_of(
    encoder: Encoder,
    features: Features,
    index: int,
    entry: Entry,
    piece: Piece,
    patch_keys: PatchKeys = REGIONS,
) -> list[Key]:
    """The keys of `levels_of`, one by one, as a single lesson is handed on, with the picture itself."""
    keys = _listed([levels_of(encoder, features, index, entry.label, piece, patch_keys)], entry)
    pixels = features.pixels if piece.whole else None
    return _pictured(keys, encoder, None if pixels is None else pixels[index])


def _pictured(keys: list[Key], encoder: Encoder, pixels: Tensor | None) -> list[Key]:
    """The keys of a lesson that is looked at whole, with what was encoded, float32 [3, S, S]."""
    if pixels is None:
        return keys
    picture = encoder.preprocess.levels(pixels).tobytes()
    return [key._replace(picture=picture) if key.level == "image" else key for key in keys]


def _listed(tiles: Iterable[Levels], entry: Entry) -> list[Key]:
    named = (pair for levels in tiles for pair in levels.items())
    return [key for name, level in named for key in level.listed(name, entry.entry_id)]


def levels_of(
    encoder: Encoder,
    features: Features,
    index: int,
    label: int,
    piece: Piece,
    patch_keys: PatchKeys = REGIONS,
) -> Levels:
    """The keys of tile `index` of a batch: one image key, what each of its two regions adds, and every
    patch as the encoder gave it, which `nn` compares with.

    Args:
        label: the image's: that of its single patches.
        piece: what is known of the tile.
        patch_keys: `regions` for the paper's one key a region, the L2-normalised MEAN of the averaged,
            not yet normalised, patch features; `all` for every patch that lies wholly in the region,
            L2-normalised; a number for so many of those at most, which cover the others best. Patches
            on a defect's border give no key.

    Of single patches `region` says what is known of each: `normal`, `anomalous`, `outside` the region of
    interest, else `unknown`.
    """
    patch = features.patch[index]
    found: Levels = {}
    cells = region_grid(piece.mask, piece.anomalous, encoder.image_size, encoder.grid, piece.counts)
    # a long scratch fills patches of many tiles
    anomalous = piece.anomalous or bool(cells[1].any())
    if anomalous or piece.anomalous is False:
        image = F.normalize(features.class_feature[index], dim=-1)[None]
        own = ANOMALOUS if anomalous else NORMAL
        found["image"] = _level(image, own, np.array(["image"], "U9"), len(patch), piece.tile)
    if features.patch_raw is not None and piece.anomalous is not None:
        names = np.full(len(patch), "unknown" if piece.counts is None else "outside", dtype="U9")
        names[cells[0].numpy()], names[cells[1].numpy()] = "normal", "anomalous"
        found["local"] = _level(features.patch_raw[index], label, names, 1, piece.tile)
    regions: list[LevelMemory] = []
    for own, name, inside in zip((NORMAL, ANOMALOUS), ("normal", "anomalous"), cells):
        chosen = patch[inside.to(patch.device)]
        if not len(chosen):
            continue
        vectors = chosen.mean(dim=0, keepdim=True) if patch_keys == REGIONS else chosen
        vectors = F.normalize(vectors, dim=-1)
        if isinstance(patch_keys, int):
            vectors = vectors[torch.from_numpy(np.sort(greedy_coreset(vectors, patch_keys)))]
        size = len(chosen) if patch_keys == REGIONS else 1
        regions.append(_level(vectors, own, np.full(len(vectors), name, "U9"), size, piece.tile))
    if regions:
        found["patch"] = LevelMemory.joined(regions) if regions[1:] else regions[0]
    return found


def _level(
    vectors: Tensor, label: int, region: npt.NDArray[np.str_], size: int, tile: int
) -> LevelMemory:
    """Keys [n, d] of one tile, all of row 0."""
    count = len(vectors)
    return LevelMemory(
        vectors.float().cpu().numpy(),
        np.full(count, label, np.uint8),
        np.zeros(count, np.int64),
        region,
        np.full(count, size, np.int32),
        tile=np.full(count, tile, np.int32),
    )


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


@dataclass(frozen=True)
class Labelled:
    """A decoded labelled picture on its way to the encoder."""

    entry: Entry
    image: Image.Image
    places: Places
    pieces: list[Piece]
    pixels: Tensor | None = None
    """float32 [3, S, S] where the picture is one tile and was prepared already, or is encoded."""


def encode_labelled(
    encoder: Encoder,
    pictures: Iterable[Labelled | None],
    *,
    batch_size: int = 8,
    patch_keys: PatchKeys = REGIONS,
) -> Generator[tuple[Labelled, list[Levels]], None, None]:
    """Each picture with the keys of each of its tiles, in order, once the last is encoded.

    None among the pictures: see `encode_tiles`.
    """
    tiles: list[Levels] = []
    with closing(encode_tiles(encoder, pictures, batch_size)) as batches:
        for batch, features in batches:
            for index, (picture, _) in enumerate(batch):
                label, piece = picture.entry.label, picture.pieces[len(tiles)]
                tiles.append(levels_of(encoder, features, index, label, piece, patch_keys))
                if len(tiles) == len(picture.pieces):
                    if picture.places.whole and features.pixels is not None:
                        picture = replace(picture, pixels=features.pixels[index])
                    yield picture, tiles
                    tiles = []


def encode_samples(
    encoder: Encoder,
    samples: Iterable[Sample],
    *,
    batch_size: int = 8,
    added_by: str = "",
    patch_keys: PatchKeys = REGIONS,
    layout: Layout = PLAIN,
    reading: ReadOptions | None = None,
    seen: Callable[[Picture], None] = lambda picture: None,
    lessons: bool = True,
) -> Generator[tuple[Entry, list[Key]], None, None]:
    """Entries and keys of labelled samples, a batch at a time, in order.

    Args:
        batch_size: images, or tiles, encoded at once.
        added_by: kept with each entry.
        patch_keys: see `levels_of`.
        layout: tiles and regions of every image.
        reading: how pictures are read.
        seen: called with each picture as it was read.
        lessons: whether they are for a memory that stands, which keeps pictures of what it is taught.

    Raises `ImageError`, `MaskError`, `DataError`; `LayoutError` where a region of `layout` does not fit a
    picture, or that cannot be aligned.
    """

    def labelled() -> Iterator[Labelled]:
        for sample in samples:
            picture = read_image(sample.image, options=reading)
            seen(picture)
            image, mask = picture.image, None
            if sample.mask is not None:
                mask = read_mask(sample.mask, image.size, image_orientation=picture.orientation)
            if layout.align is not None:
                move = layout.align.find(image)
                image = move.upright(image)
                mask = None if mask is None else move.upright_mask(mask)
            places = layout.places(image.size)
            pieces = pieces_of(places, sample.anomalous, mask)
            yield Labelled(Entry.of(sample, image.size, added_by), image, places, pieces)

    encoded = encode_labelled(encoder, labelled(), batch_size=batch_size, patch_keys=patch_keys)
    with closing(encoded):
        for picture, tiles in encoded:
            keys = _listed(tiles, picture.entry)
            yield picture.entry, _pictured(keys, encoder, picture.pixels if lessons else None)
