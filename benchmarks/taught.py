"""What lessons do to verdicts: of other images, and of near-duplicates of what was taught."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mrad_indexer.datasets import Record, read_dataset
from PIL import Image, ImageChops, ImageEnhance

from benchmarks.tables import Cell
from mrad.detector import Detector
from mrad.encoder.encoder import Encoder, Features
from mrad.errors import MRADError
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key
from mrad.memory.keys import keys_of, pieces_of
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.follow import followed
from mrad.thresholds.own import anchored, score_own
from mrad.types import Sample

SETS = Path(__file__).parents[2] / "shared" / "data"
HEADS = ("tf", "nn", "combined")
COUNTS = (1, 5, 12, 36)
MEMORY, ASKED, SINGLE = 30, 30, 6
"""Images of each class in the memory and among those asked; lessons taught alone for the row of 1."""


@dataclass(frozen=True)
class Seen:
    """An image with its features and what it would add to a memory."""

    record: Record
    features: Features
    entry: Entry
    keys: list[Key]
    doubles: Features | None = None
    """Of its near-duplicates."""


def doubles_of(image: Image.Image) -> list[Image.Image]:
    """The same picture recompressed, brightened by 3 %, and moved by two pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    moved = ImageChops.offset(image, 2, 1)
    return [Image.open(buffer), ImageEnhance.Brightness(image).enhance(1.03), moved]


def see(encoder: Encoder, record: Record, twice: bool) -> Seen:
    """Encode an image, and its doubles."""
    with Image.open(record.image) as opened:  # type: ignore[arg-type]
        image = opened.convert("RGB")
    features = encoder.encode([image])
    sample = Sample(record.image, record.anomalous, None, record.source)
    entry = Entry.of(sample, image.size, "")
    from mrad.images.layout import PLAIN

    (piece,) = pieces_of(PLAIN.places(image.size), record.anomalous, record.read_mask(image.size))
    keys = keys_of(encoder, features, 0, entry, piece)
    doubles = encoder.encode(doubles_of(image)) if twice else None
    return Seen(record, features, entry, keys, doubles)


@dataclass(frozen=True)
class Course:
    """A set's images by their part in the measurement."""

    name: str
    memory: list[Seen]
    asked: list[Seen]
    lessons: dict[bool, list[Seen]]

    @classmethod
    def of(cls, encoder: Encoder, folder: Path, quick: bool) -> Course:
        """Drawn once: memory, images that are asked, and lessons share no image."""
        records = list(read_dataset(folder).records)
        rng = np.random.default_rng(0)
        memory, asked, lessons = [], [], {}
        for bad in (False, True):
            own = [record for record in records if record.anomalous == bad]
            order = [own[place] for place in rng.permutation(len(own))]
            size = min(4 if quick else MEMORY, len(own) // 3)
            memory += [see(encoder, record, False) for record in order[:size]]
            asked += [see(encoder, record, False) for record in order[size : 2 * size]]
            most = 3 if quick else COUNTS[-1]
            lessons[bad] = [see(encoder, record, True) for record in order[2 * size :][:most]]
        return cls(folder.name, memory, asked, lessons)


def bank_of(encoder: Encoder, seen: Sequence[Seen]) -> MemoryBank:
    """A memory of these images."""
    keys = [key for one in seen for key in one.keys]
    dims = encoder.embed_dim, encoder.width
    return MemoryBank.from_keys(encoder.identity, [one.entry for one in seen], keys, dims=dims)


def judged(detector: Detector, features: Features, cut: float) -> np.ndarray:
    """Which are at or above the cut."""
    sizes = [(64, 64)] * len(features)
    found = detector.finish(features, sizes, maps=False)
    return np.array([np.float32(one.score) >= np.float32(cut) for one in found])


@dataclass
class Told:
    """Of one row."""

    flipped: list[float]
    near: list[float]
    flagged: list[tuple[float, float]]


def measure(course: Course, encoder: Encoder, head: str, quick: bool) -> Iterator[list[Cell]]:
    """Rows of one set and head."""
    bank = bank_of(encoder, course.memory)
    detector = Detector(encoder, bank, head)
    scored = score_own(detector, thorough=True)
    try:
        origin = anchored(calibrate(detector, scored), bank, scored)
    except MRADError as error:
        yield [course.name, head, "-", "-", str(error)[:40], "-", "-", "-"]
        return
    asked = Features.cat([one.features for one in course.asked])
    bad = np.array([one.record.anomalous for one in course.asked])
    before = judged(detector, asked, origin.image_threshold)
    rates = f"{before[~bad].sum()}/{(~bad).sum()}, {before[bad].sum()}/{bad.sum()}"
    for label in (False, True):
        for count in (1, 2) if quick else COUNTS:
            lessons = course.lessons[label]
            runs = [[one] for one in lessons[:SINGLE]] if count == 1 else [lessons[:count]]
            if count > len(lessons):
                continue
            told = Told([], [], [])
            for run in runs:
                now = bank
                for one in run:
                    now = now.add(one.entry, one.keys)
                after = detector.with_bank(now)
                held = followed(origin, after, score_own(after))
                found = judged(after, asked, held.image_threshold)
                told.flipped.append(float((found != before).mean()))
                told.flagged.append((float(found[~bad].sum()), float(found[bad].sum())))
                near = Features.cat([one.doubles for one in run if one.doubles is not None])
                told.near.append(float((judged(after, near, held.image_threshold) == label).mean()))
            good, caught = np.mean(told.flagged, axis=0)
            yield [
                course.name, head, rates, f"{count} {'bad' if label else 'good'}",
                f"{good:.1f}, {caught:.1f}", f"{100 * np.mean(told.flipped):.1f} %",
                f"{100 * np.mean(told.near):.0f} %", f"{held.image_threshold - origin.image_threshold:+.4f}",
            ]  # fmt: skip
