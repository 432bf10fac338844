"""What lessons do to verdicts: of other images, of near-duplicates of what was taught, and of those that
have a new defect."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mrad_indexer.datasets import Record, read_dataset
from PIL import Image, ImageChops, ImageDraw, ImageEnhance

from benchmarks.tables import DATA, Cell, Table, hardware
from mrad.calibration import Calibration
from mrad.detector import Detector
from mrad.encoder.encoder import Encoder, Features
from mrad.errors import MRADError
from mrad.images.layout import PLAIN
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key, new_entry_id
from mrad.memory.keys import Piece, keys_of, pieces_of
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.follow import followed
from mrad.thresholds.own import anchored, score_own
from mrad.thresholds.taught import as_taught
from mrad.types import Sample

HEADS = ("tf", "nn", "combined")
COUNTS = (1, 5, 12, 36)
MEMORY, SINGLE = 30, 4
"""Images of each class in the memory and among those asked; lessons taught alone for the row of 1."""
SPOT = 0.06
"""Of the shorter side: a defect that is painted on pictures that were taught as good."""


@dataclass(frozen=True)
class Seen:
    """An image with its features and what it would add to a memory."""

    record: Record
    features: Features
    entry: Entry
    keys: list[Key]
    doubles: Features | None = None
    """Of its near-duplicates."""
    spotted: Features | None = None
    """Of the same with a defect painted on it, where it is a good one."""


def doubles_of(image: Image.Image) -> list[Image.Image]:
    """The same picture recompressed, brightened by 3 %, and moved by two pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    moved = ImageChops.offset(image, 2, 1)
    return [Image.open(buffer), ImageEnhance.Brightness(image).enhance(1.03), moved]


def spotted(image: Image.Image, seed: int) -> Image.Image:
    """The same picture with a round spot, black or white, whatever differs more from what is there."""
    side = max(4, round(SPOT * min(image.size)))
    rng = np.random.default_rng(seed)
    x, y = (int(rng.integers(0, length - side)) for length in image.size)
    dark = np.asarray(image.crop((x, y, x + side, y + side))).mean() < 128
    marked = image.copy()
    fill = (255,) * 3 if dark else (0,) * 3
    ImageDraw.Draw(marked).ellipse((x, y, x + side, y + side), fill=fill)
    return marked


def see(encoder: Encoder, record: Record, lesson: int | None = None) -> Seen:
    """Encode an image; where it is a lesson, by its number, its doubles too, and one with a new defect."""
    with Image.open(record.image) as opened:  # type: ignore[arg-type]
        image = opened.convert("RGB")
    features = encoder.encode([image])
    sample = Sample(record.image, record.anomalous, None, record.source)
    entry = Entry.of(sample, image.size, "")
    (piece,) = pieces_of(PLAIN.places(image.size), record.anomalous, record.read_mask(image.size))
    keys = keys_of(encoder, features, 0, entry, piece)
    if lesson is None:
        return Seen(record, features, entry, keys)
    doubles = encoder.encode(doubles_of(image))
    flawed = None if record.anomalous else encoder.encode([spotted(image, lesson)])
    return Seen(record, features, entry, keys, doubles, flawed)


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
            memory += [see(encoder, record) for record in order[:size]]
            asked += [see(encoder, record) for record in order[size : 2 * size]]
            most = 3 if quick else COUNTS[-1]
            taught = enumerate(order[2 * size :][:most])
            lessons[bad] = [see(encoder, record, number) for number, record in taught]
        return cls(folder.name, memory, asked, lessons)


def bank_of(encoder: Encoder, seen: Sequence[Seen]) -> MemoryBank:
    """A memory of these images."""
    keys = [key for one in seen for key in one.keys]
    dims = encoder.embed_dim, encoder.width
    return MemoryBank.from_keys(encoder.identity, [one.entry for one in seen], keys, dims=dims)


def scored_by(detector: Detector, features: Features, held: Calibration) -> np.ndarray:
    """Raw scores as they are judged: a picture that was taught on its label's side."""
    sizes = [(64, 64)] * len(features)
    found = [as_taught(one, held) for one in detector.finish(features, sizes, maps=False)]
    return np.array([np.float32(one.score) for one in found])


def judged(detector: Detector, features: Features, held: Calibration) -> np.ndarray:
    """Which are anomalous."""
    return scored_by(detector, features, held) >= np.float32(held.image_threshold)


def far_from(course: Course, lessons: Sequence[Seen]) -> np.ndarray:
    """Which of the asked images are far from every lesson: nearer than any lesson lie memory images.

    By class features: an image is far where the nearest lesson is less like it than the nearest image
    of the memory.
    """

    def whole(seen: Sequence[Seen]) -> torch.Tensor:
        return torch.cat([one.features.class_query() for one in seen])

    asked = whole(course.asked)
    nearest = (asked @ whole(lessons).T).amax(dim=1)
    return (nearest < (asked @ whole(course.memory).T).amax(dim=1)).numpy()


@dataclass
class Tally:
    """Of one row, summed over its runs."""

    flipped: int = 0
    far: int = 0
    far_flipped: int = 0
    far_right: int = 0
    """Of those: judged as they are labelled since the lesson."""
    farthest: float = 0.0
    """Of those: how far from the threshold, in calibrated points, before or after."""
    near: int = 0
    as_taught: int = 0
    wrong: int = 0
    corrected: int = 0
    caught: int = 0
    """Taught good pictures with a new defect that were flagged before the lesson."""
    let_pass: int = 0
    """Of those: pass since."""
    runs: int = 0


def measure(course: Course, encoder: Encoder, head: str, quick: bool) -> Iterator[list[Cell]]:
    """Rows of one set and head."""
    bank = bank_of(encoder, course.memory)
    try:
        detector = Detector(encoder, bank, head)
        scored = score_own(detector, thorough=True)
        origin = anchored(calibrate(detector, scored), bank, scored)
    except MRADError:  # the benchmark's notes say which sets a head cannot serve
        return
    asked = Features.cat([one.features for one in course.asked])
    bad = np.array([one.record.anomalous for one in course.asked])
    raw = scored_by(detector, asked, origin)
    before = raw >= np.float32(origin.image_threshold)
    for label in (False, True):
        lessons = course.lessons[label]
        for count in (1, 2) if quick else COUNTS:
            runs = [[one] for one in lessons[:SINGLE]] if count == 1 else [lessons[:count]]
            if count > len(lessons):
                continue
            tally, found = Tally(), before
            for run in runs:
                now = bank
                for one in run:
                    now = now.add(one.entry, one.keys)
                after = detector.with_bank(now)
                held = followed(origin, after, score_own(after))
                now_raw = scored_by(after, asked, held)
                found = now_raw >= np.float32(held.image_threshold)
                far = far_from(course, run)
                doubles = Features.cat([one.doubles for one in run if one.doubles is not None])
                right = judged(after, doubles, held) == label
                missed = judged(detector, doubles, origin) != label
                tally.runs += 1
                tally.flipped += int((found != before).sum())
                tally.far += int(far.sum())
                tally.far_flipped += int((found != before)[far].sum())
                tally.far_right += int(((found != before) & (found == bad))[far].sum())
                for place in np.flatnonzero((found != before) & far):
                    points = origin.calibrated(raw[place]), held.calibrated(now_raw[place])
                    tally.farthest = max(tally.farthest, *(abs(one - 50) for one in points))
                tally.near += len(right)
                tally.as_taught += int(right.sum())
                tally.wrong += int(missed.sum())
                tally.corrected += int((right & missed).sum())
                if not label:
                    flawed = Features.cat([one.spotted for one in run if one.spotted is not None])
                    caught = judged(detector, flawed, origin)
                    tally.caught += int(caught.sum())
                    tally.let_pass += int((caught & ~judged(after, flawed, held)).sum())
            yield [
                course.name,
                head,
                f"{before[~bad].sum()}/{(~bad).sum()}, {before[bad].sum()}/{bad.sum()}",
                f"{count} {'defect' if label else 'good'}{'s' if count > 1 and label else ''}",
                f"{found[~bad].sum()}, {found[bad].sum()}",
                f"{tally.flipped}/{tally.runs * len(bad)}",
                f"{tally.far_flipped}/{tally.far}",
                str(tally.far_right) if tally.far_flipped else "–",
                f"{tally.farthest:.0f}" if tally.far_flipped else "–",
                f"{tally.as_taught}/{tally.near}",
                f"{tally.corrected}/{tally.wrong}",
                "–" if label else f"{tally.let_pass}/{tally.caught}",
            ]


def verdicts(quick: bool) -> Table:
    """After lessons, set by set."""
    encoder = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    rows: list[list[Cell]] = []
    sets = [folder for folder in sorted(DATA.glob("*")) if (folder / "test").is_dir()]
    for folder in sets[:1] if quick else sets:
        course = Course.of(encoder, folder, quick)
        for head in HEADS:
            rows += measure(course, encoder, head, quick)
            print(*rows[-8:], sep="\n", flush=True)
    columns = [
        "set", "head", "flagged before (good, bad)", "lessons", "flagged after", "flipped",
        "flipped far", "to the truth", "by points", "doubles as taught", "corrected", "defects let pass",
    ]  # fmt: skip
    notes = [
        f"Up to {MEMORY} images of each class in the memory, as many asked, none of them taught; encoder "
        "mrad-mini; thresholds of the memory's own images, followed. One lesson: the sum over "
        f"{SINGLE} lessons, each taught alone.",
        "`far`: asked images that are less like any lesson than like the memory; `to the truth`: those of them "
        "that flipped and are judged as labelled now; `by points`: how far, at "
        "most, those of them that flipped lay from the threshold, before or after, of the calibrated 100 "
        "(a typical good part lies 40 below). `doubles`: the taught "
        "image recompressed, brightened by 3 %, moved by two pixels. `corrected`: doubles that were judged "
        "wrongly before the lesson, and are judged as taught after it. `defects let pass`: of the taught good "
        f"images with a spot painted on ({SPOT:.0%} of the shorter side), that were flagged before the lesson "
        "(for the spot, or for what the lesson is about), those that pass after it.",
        "A head is missing where a set's memory cannot serve it (no masks: no tf), or says nothing.",
    ]
    return Table("Verdicts after lessons", columns, rows, [hardware(), *notes])


def synthetic(
    encoder: Encoder, count: int, held: int
) -> tuple[MemoryBank, tuple[Entry, list[Key]]]:
    """A memory of random features, of which `held` images are held whole, and a lesson."""
    rng, cells = np.random.default_rng(0), encoder.grid**2
    mask = np.zeros((encoder.image_size,) * 2, bool)
    mask[: encoder.image_size // 2] = True

    def image(number: int) -> tuple[Entry, list[Key]]:
        bad = number % 2 == 1
        raw = torch.from_numpy(rng.normal(size=(1, cells, encoder.width))).float()
        whole = torch.from_numpy(rng.normal(size=(1, encoder.embed_dim))).float()
        entry = Entry(new_entry_id(), int(bad))
        piece = Piece(0, bad, mask if bad else None)
        features = Features(whole, raw, raw if number < held else None)
        return entry, keys_of(encoder, features, 0, entry, piece)

    made = [image(number) for number in range(count)]
    keys = [key for _, own in made for key in own]
    dims = encoder.embed_dim, encoder.width
    bank = MemoryBank.from_keys(encoder.identity, [one for one, _ in made], keys, dims=dims)
    return bank, image(0)


def seconds(quick: bool) -> Table:
    """Of a lesson's way into force: the head takes it up, own images are judged again, the cut follows."""
    encoder = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    rows: list[list[Cell]] = []
    for head, counts in (("tf", (60, 600, 6_000)), ("nn", (60,))):
        for count in counts[:1] if quick else counts:
            held = 8 if quick else min(count, 270)
            bank, (entry, keys) = synthetic(encoder, 12 if quick else count, held)
            began = time.perf_counter()
            detector = Detector(encoder, bank, head)
            scored = score_own(detector)
            scored.similarity_patch = scored.similarity_image
            first = time.perf_counter() - began
            try:
                origin = calibrate(detector, scored, rule="fpr", draws=50)
            except MRADError:  # random features tell nothing apart
                scored.score = [s + bad for s, bad in zip(scored.score, scored.anomalous)]
                origin = calibrate(detector, scored, rule="fpr", draws=50)
            origin = anchored(origin, bank, scored)
            began = time.perf_counter()
            after = detector.with_bank(bank.add(entry, keys))
            taken = time.perf_counter() - began
            followed(origin, after, score_own(after))
            whole = time.perf_counter() - began
            rows.append([head, len(bank.entries), held, first, taken, whole])
            print(*rows[-1], flush=True)
    columns = ["head", "entries", "held whole", "at the start, s", "taken up, s", "a lesson, s"]
    note = (
        "Random features of mrad-mini's geometry. `at the start`: every image of the memory judged once, "
        "left out, before the first lesson. `a lesson`: taken up by the head, the own images judged "
        "again, thresholds followed; without encoding the image and writing it to disk."
    )
    return Table("Seconds a lesson", columns, rows, [hardware(), note])
