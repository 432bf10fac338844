"""What a build is asked: options and data, cut into shards, and the identity of the whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mrad.encoder.encoder import Encoder
from mrad.errors import DataError
from mrad.images.layout import PLAIN, Layout
from mrad.images.options import ReadOptions
from mrad.images.survey import depth_of, joined
from mrad.memory.entry import REGIONS, PatchKeys
from mrad_indexer.ahead import ahead
from mrad_indexer.datasets import Dataset, Record

SHARD = 64
"""Images in a shard: what a kill can lose."""


@dataclass(frozen=True)
class BuildOptions:
    """What decides the bank's content, beside the data and the encoder."""

    batch_size: int = 8
    thumbnails: bool = True
    strict: bool = False
    """Stop at the first image or mask that cannot be used, instead of skipping it."""
    pretrained: str | None = None
    """Tag or file of the encoder's weights, kept in the bank so that it finds them again."""
    added_by: str = ""
    origin: dict[str, Any] | None = None
    """Where the images were read from (path, layout, split, objects), kept for `mrad calibrate`."""
    shard: int = SHARD
    patch_keys: PatchKeys = REGIONS
    """What a region of an image adds to the patch level (`mrad.memory.keys.levels_of`)."""
    coreset: int | None = None
    """Keep so many patch keys of all, those that cover the others best."""
    layout: Layout = PLAIN
    """Tiles, region of interest and parts of every image."""
    reading: ReadOptions = field(default_factory=ReadOptions)
    """How pictures are read; a depth that they do not state is found over all of them."""
    trial: dict[str, Any] | None = None
    """What was measured of the encoder's precision, kept in the bank (`mrad_indexer.build.precision`)."""


@dataclass
class Plan:
    """A dataset cut into shards, and the identity of the whole."""

    dataset: Dataset
    asked: dict[str, Any]
    shards: list[Sequence[Record]] = field(default_factory=list)
    reading: ReadOptions = field(default_factory=ReadOptions)
    """The options', with the depths that the images leave open."""

    @classmethod
    def of(cls, encoder: Encoder, dataset: Dataset, options: BuildOptions) -> Plan:
        """Look at every file once: size, time of change, and depth, where it does not state that.

        Raises `DataError`.
        """
        size = options.shard
        records = dataset.records
        asked = {
            "data": data_fingerprint(records),
            "images": len(records),
            "encoder": str(encoder.identity),
            "encoder_digest": encoder.identity.digest,
            "precision": str(encoder.dtype).removeprefix("torch."),
            "batch_size": options.batch_size,
            "shard": size,
            "thumbnails": options.thumbnails,
        }
        # Told only where they differ from the default, so that older banks keep their fingerprint.
        if options.patch_keys != REGIONS:
            asked["patch_keys"] = options.patch_keys
        if options.coreset is not None:
            asked["coreset"] = options.coreset
        if not options.layout.plain:
            asked["layout"] = options.layout.to_json()
        reading = survey(records, options.reading)
        if reading.assume or reading.bit_depth is not None:
            asked["depths"] = dict(reading.assume) | {"told": reading.bit_depth}
        if reading.strict:
            asked["strict_input"] = True
        if reading.allow_truncated:
            asked["allow_truncated"] = True
        shards = [records[start : start + size] for start in range(0, len(records), size)]
        return cls(dataset, asked, shards, reading)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the keys."""
        return hashlib.sha256(json.dumps(self.asked, sort_keys=True).encode()).hexdigest()


def survey(records: Sequence[Record], reading: ReadOptions) -> ReadOptions:
    """With the depths that the records' images leave open, found over all of them."""
    if reading.bit_depth is not None:
        return reading
    look = partial(depth_of, options=reading)
    with closing(ahead(look, (r.image for r in records), depth=32)) as looks:
        return dataclasses.replace(reading, assume={**joined(looks), **reading.assume})


def data_fingerprint(records: Sequence[Record]) -> str:
    """SHA-256 of what is said of the images and of each file's size and time of change.

    Raises `DataError` when one has gone.
    """
    digest = hashlib.sha256()
    for record in records:
        facts = asdict(record) | {"image": _stamp(record.image), "mask": _stamp(record.mask)}
        if record.mask_orientation == "auto":  # as before it could be said
            del facts["mask_orientation"]
        digest.update(json.dumps(facts, default=str).encode())
    return digest.hexdigest()


def _stamp(path: Path | None) -> list[int] | None:
    if path is None:
        return None
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path} has gone: {error.strerror}") from error
    return [facts.st_size, facts.st_mtime_ns]
