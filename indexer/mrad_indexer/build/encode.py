"""The two steps of a build: labelled records -> a shard of keys, and shards -> a bank.

Both are pure, so that any engine can run them anywhere: a shard depends on its records, the encoder
and the batch size alone. Batches never reach across shards, hence a build that was cut off and
resumed, or spread over machines, has the same keys to the last bit as one that was not.
"""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
import safetensors.numpy
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from mrad.encoder.encoder import Encoder
from mrad.encoder.identity import EncoderIdentity
from mrad.errors import BankCorruptError, DataError, ImageError, MaskError
from mrad.images.guard import InputProfile, code_of, refuse_doubtful
from mrad.images.layout import PLAIN, Layout, Places
from mrad.images.options import ReadOptions
from mrad.images.reader import Picture, read_image
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry
from mrad.memory.keys import Labelled, Levels, Piece, encode_labelled, pieces_of
from mrad.memory.level import LevelMemory, empty_level
from mrad.types import Level, Sample
from mrad_indexer.ahead import ahead
from mrad_indexer.build.plan import BuildOptions
from mrad_indexer.datasets import Record

FORMAT_VERSION = 3
LEVELS: tuple[Level, ...] = ("image", "patch", "local")
PARTS = ("image", "normal", "anomalous", "unknown", "outside")
BLANK = Image.new("RGB", (1, 1))
LARGE_AHEAD = 2
"""Pictures decoded ahead where they are cut: they are large, and each fills many batches."""
THUMBNAIL = 160
"""Longer side, pixels."""


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used, and why; or one that was used and is doubtful."""

    source: str
    code: str
    reason: str


@dataclass(frozen=True)
class DecodedRecord:
    """A labelled image on its way to the encoder."""

    record: Record
    image: Image.Image
    """Upright, L or RGB; one pixel where `pixels` are all that is needed."""
    pixels: Tensor | None
    """float32 [3, S, S] of an image that is looked at whole."""
    places: Places
    pieces: list[Piece]
    thumbnail: bytes | None
    picture: Picture
    """Without its pixels: what it was like."""
    warnings: tuple[str, ...] = ()
    """Of image and mask."""


@dataclass
class Shard:
    """Entries of consecutive records, their keys in the same order, what was skipped or is doubtful."""

    entries: list[Entry] = field(default_factory=list)
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    doubtful: list[Skipped] = field(default_factory=list)
    """A row for each warning."""
    profile: InputProfile = field(default_factory=InputProfile)
    parts: dict[Level, list[LevelMemory]] = field(default_factory=lambda: {n: [] for n in LEVELS})
    """Keys of each level, in pieces; their entries are rows of `entries`."""

    def level(self, name: Level) -> LevelMemory:
        """The keys of one level."""
        parts = self.parts[name]
        return LevelMemory.joined(parts) if parts else empty_level(0)


def decode_record(
    record: Record,
    prepare: Callable[[Image.Image], Tensor],
    *,
    layout: Layout = PLAIN,
    thumbnails: bool = False,
    strict: bool = False,
    reading: ReadOptions | None = None,
) -> DecodedRecord | Skipped:
    """Decode one image and its mask, in any thread.

    Args:
        prepare: `Encoder.prepare`.
        layout: tiles and regions of every image.
        thumbnails: whether to make one.
        strict: raise `ImageError`, `MaskError` or `DataError` for what cannot be read, or has no
            place for a region of `layout`, instead of giving `Skipped`.
        reading: how pictures are read; with its `strict`, doubtful ones count as unreadable.
    """
    try:
        picture = read_image(record.image, options=reading)
        image = picture.image
        mask = record.truth(picture.size, picture.orientation) if record.anomalous else None
        warnings = (*picture.warnings, *(mask.warnings if mask is not None else ()))
        if reading is not None and reading.strict:
            refuse_doubtful(warnings, str(record.image))
        thumbnail = thumbnail_of(image) if thumbnails else None
        if layout.align is not None:
            move = layout.align.find(image)
            image, mask = move.upright(image), None if mask is None else move.upright_mask(mask)
        places = layout.places(image.size)
    except (ImageError, MaskError, DataError) as error:
        if strict:
            raise
        return Skipped(record.source, error.code, str(error))
    pieces = pieces_of(places, record.anomalous, mask)
    slim = replace(picture, image=BLANK)
    pixels = prepare(image) if places.whole else None
    kept = BLANK if places.whole else image
    return DecodedRecord(record, kept, pixels, places, pieces, thumbnail, slim, warnings)


def decoded_ahead(
    encoder: Encoder, options: BuildOptions, reading: ReadOptions, records: Iterable[Record]
) -> Generator[DecodedRecord | Skipped, None, None]:
    """Records decoded in threads ahead of the encoder, in order; see `ahead` for its end."""
    decode = partial(
        decode_record,
        prepare=encoder.prepare,
        layout=options.layout,
        thumbnails=options.thumbnails,
        strict=options.strict,
        reading=reading,
    )
    depth = 2 * options.batch_size if options.layout.plain else LARGE_AHEAD
    return ahead(decode, records, depth=depth)


def encode_shard(
    encoder: Encoder, decoded: Iterable[DecodedRecord | Skipped], options: BuildOptions
) -> Shard:
    """The shard of records given in order; see `encode_shards`."""
    (shard,) = encode_shards(encoder, [decoded], options)
    return shard


def encode_shards(
    encoder: Encoder,
    groups: Iterable[Iterable[DecodedRecord | Skipped]],
    options: BuildOptions,
) -> Generator[Shard, None, None]:
    """Encode the shard of each group of records, in order, in batches of images or tiles.

    `map(decode_record, records)` will do for a group; a build decodes ahead in threads. No batch holds
    images of two groups, but the next group's are begun while the last batches of one are under way.

    Args:
        groups: records of each shard, in order.
        options: `batch_size`, `added_by` and `patch_keys` of the build.

    Raises `NonFiniteError`; what a group raises, once the shards before it are given.
    """
    begun: deque[_Begun] = deque()
    failed: list[Exception] = []

    def labelled() -> Iterator[Labelled | None]:
        try:
            for decoded in groups:
                begun.append(one := _Begun())
                for item in decoded:
                    if (picture := one.read(item, options.added_by)) is not None:
                        yield picture
                one.complete = True
                yield None
        except Exception as error:  # what was read before it is under way, and is not to be lost
            failed.append(error)

    encoded = encode_labelled(
        encoder, labelled(), batch_size=options.batch_size, patch_keys=options.patch_keys
    )
    with closing(encoded):
        for _, tiles in encoded:
            yield from _done(begun)  # of which no image could be used
            begun[0].add(tiles)
            yield from _done(begun)
    yield from _done(begun)
    if failed:
        raise failed[0]


@dataclass
class _Begun:
    """A shard that is being read and encoded."""

    shard: Shard = field(default_factory=Shard)
    complete: bool = False
    """Whether all its records are read."""
    encoded: int = 0
    """Images."""

    def read(self, item: DecodedRecord | Skipped, added_by: str) -> Labelled | None:
        """Note an image; None for one that cannot be used."""
        shard = self.shard
        if isinstance(item, Skipped):
            shard.skipped.append(item)
            return None
        entry = Entry.of(_facts(item.record), item.places.size, added_by)
        shard.entries.append(entry)
        shard.profile = shard.profile.seen(item.picture)
        shard.doubtful.extend(
            Skipped(item.record.source, code_of(text), text) for text in item.warnings
        )
        if item.thumbnail is not None:
            shard.thumbnails[entry.entry_id] = item.thumbnail
        return Labelled(entry, item.image, item.places, item.pieces, item.pixels)

    def add(self, tiles: Iterable[Levels]) -> None:
        """Keep the keys of the next image, whose entry is read."""
        for levels in tiles:
            for name, level in levels.items():
                own = replace(level, entry=np.full(len(level), self.encoded))
                self.shard.parts[name].append(own)
        self.encoded += 1


def _done(begun: deque[_Begun]) -> Iterator[Shard]:
    """Take the first shards out of which nothing is missing."""
    while begun and begun[0].complete and begun[0].encoded == len(begun[0].shard.entries):
        yield begun.popleft().shard


def _facts(record: Record) -> Sample:
    """The record without its mask, which is decoded already."""
    return Sample(
        record.image, record.anomalous, None, record.source, record.object_name, record.defect
    )


def bank_of(
    shards: Iterable[Shard],
    identity: EncoderIdentity,
    dims: tuple[int, int],
) -> MemoryBank:
    """The bank of all shards, in the order given; they are taken one at a time.

    `dims`: widths of image and patch keys.
    """
    entries: list[Entry] = []
    thumbnails: dict[str, bytes] = {}
    parts: dict[Level, list[LevelMemory]] = {name: [] for name in LEVELS}
    for shard in shards:
        for level, found in parts.items():
            found += [
                replace(p, entry=p.entry + len(entries)) for p in shard.parts[level] if len(p)
            ]
        entries.extend(shard.entries)
        thumbnails.update(shard.thumbnails)
    image, patch, local = (
        LevelMemory.joined(found) if found else empty_level(dim)
        for found, dim in zip(parts.values(), (*dims, dims[1]))
    )
    return MemoryBank(identity, tuple(entries), image, patch, thumbnails=thumbnails, local=local)


def to_bytes(shard: Shard) -> bytes:
    """A shard as one safetensors file."""
    tensors: dict[str, np.ndarray] = {}
    for level in LEVELS:
        own = shard.level(level)
        regions = np.full(len(own), -1)
        for number, name in enumerate(PARTS):
            regions[own.region == name] = number
        if (regions < 0).any():
            raise ValueError(f"a shard holds no regions but {PARTS}")
        facts = (own.entry, own.labels, regions, own.size, own.tile)
        tensors[f"{level}.keys"] = own.keys
        tensors[f"{level}.facts"] = np.stack(facts, axis=1).astype(np.int64)
    jpegs = [shard.thumbnails.get(entry.entry_id, b"") for entry in shard.entries]
    tensors["thumbnails"] = np.frombuffer(b"".join(jpegs), np.uint8)
    about = {
        "format_version": FORMAT_VERSION,
        "entries": [asdict(entry) for entry in shard.entries],
        "skipped": [asdict(item) for item in shard.skipped],
        "doubtful": [asdict(item) for item in shard.doubtful],
        "input": shard.profile.as_json(),
        "thumbnail_bytes": [len(jpeg) for jpeg in jpegs],
    }
    return safetensors.numpy.save(tensors, {"shard": json.dumps(about)})


def from_bytes(data: bytes, name: str = "the shard") -> Shard:
    """Inverse of `to_bytes`. Raises `BankCorruptError`."""
    try:
        header = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + header])["__metadata__"]["shard"])
        tensors = safetensors.numpy.load(data)
        entries = [Entry(**{**row, "tags": tuple(row["tags"])}) for row in about["entries"]]
        shard = Shard(
            entries,
            skipped=[Skipped(**row) for row in about["skipped"]],
            doubtful=[Skipped(**row) for row in about["doubtful"]],
            profile=InputProfile.of(about["input"]),
        )
        for level in LEVELS:
            if f"{level}.keys" not in tensors:  # written before there was a local level
                continue
            vectors, facts = tensors[f"{level}.keys"], tensors[f"{level}.facts"]
            row, label, region, size, *tile = facts.T
            if len(vectors) != len(facts) or not ((row >= 0) & (row < len(entries))).all():
                raise ValueError(f"its keys of level {level} belong to no entry")
            own = LevelMemory(
                vectors,
                label.astype(np.uint8),
                row,
                np.array(PARTS, dtype="U9")[region],
                size.astype(np.int32),
                tile=tile[0].astype(np.int32) if tile else None,  # type: ignore[arg-type]
            )
            shard.parts[level].append(own)
        ends = np.cumsum([0, *about["thumbnail_bytes"]]).tolist()
        jpegs = tensors["thumbnails"].tobytes()
        for entry, start, end in zip(entries, ends, ends[1:]):
            if end > start:
                shard.thumbnails[entry.entry_id] = jpegs[start:end]
    except (ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
        raise BankCorruptError(f"{name} cannot be read: {error!r}") from error
    return shard


def thumbnail_of(image: Image.Image) -> bytes:
    """A small JPEG of an upright image."""
    scale = min(1.0, THUMBNAIL / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    # Averages of whole pixels first: a fifth of the time of Pillow's own `thumbnail`.
    small = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=1.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
