"""The whole line on bundled images: build, calibrate, score, heat maps, a contact sheet.

Twice: with a memory of good boards alone, as most begin, and of good and defective ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mrad_client.batch.pictures import jpeg, write_atomic
from PIL import Image, ImageDraw, ImageFont

from mrad import demo
from mrad.detector import Detector
from mrad.encoder.encoder import Encoder
from mrad.errors import CalibrationError
from mrad.images.reader import load_image
from mrad.memory.bank import MemoryBank
from mrad.memory.store import save_calibration
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.own import score_own
from mrad.types import NORMAL, Prediction
from mrad.words import counted
from mrad_indexer.build.build import BuildOptions, build
from mrad_indexer.datasets import Dataset, Record, read_dataset
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.scoring.pictures import draw

SIDE = 300
GAP = 12
LINE = 24
GOODS, BOTH = "good-bank", "bank"
"""Folders of the two memories."""


@dataclass(frozen=True)
class Shown:
    """One query with its judgement by one memory."""

    record: Record
    prediction: Prediction
    verdict: str | None
    overlay: Path
    calibrated: float | None
    """0 to 100, the threshold at 50."""

    @property
    def score(self) -> str:
        """As it is shown: calibrated, or raw without a calibration."""
        return (
            f"{self.prediction.score:.4f}" if self.calibrated is None else f"{self.calibrated:.1f}"
        )


@dataclass(frozen=True)
class Pair:
    """One query, judged by good boards alone, and by good and defective ones."""

    good_only: Shown
    both: Shown

    @property
    def record(self) -> Record:
        """The query."""
        return self.both.record


def run(
    encoder: Encoder,
    out: Path,
    *,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Pair]:
    """Everything below `out`: good-bank/, bank/, overlays/, contact-sheet.png.

    Raises what building raises.
    """
    memory, queries = (read_dataset(demo.FOLDER / part) for part in ("memory", "query"))
    total, done = len(memory) + 2 * len(queries), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    say(f"building a memory of {counted(len(memory), 'board')}")
    built = build(
        encoder,
        memory,
        out / BOTH,
        BuildOptions(added_by="mrad demo"),
        replace=True,
        progress=lambda count, skipped, old: advance(count),
    )
    good = np.array([entry.label == NORMAL for entry in built.bank.entries])
    say(f"the {good.sum()} good ones among them are a memory of their own")
    say("choosing thresholds: every board is judged by the others")
    part = built.bank.select(good).save(out / GOODS, replace=True)
    banks = {
        GOODS: calibrated(encoder, part, out / GOODS, say),
        BOTH: calibrated(encoder, built.bank, out / BOTH, say),
    }
    say(f"judging {counted(len(queries), 'board')} that no memory holds")
    found = {
        name: judge_all(Judge.of(encoder, bank), queries, out / "overlays" / name, advance)
        for name, bank in banks.items()
    }
    pairs = [Pair(*two) for two in zip(found[GOODS], found[BOTH])]
    write_atomic(out / "contact-sheet.png", png(contact_sheet(pairs)))
    return pairs


def calibrated(
    encoder: Encoder, bank: MemoryBank, path: Path, say: Callable[[str], None]
) -> MemoryBank:
    """The bank with thresholds from its own boards, each left out."""
    detector = Detector(encoder, bank)
    try:
        scored = score_own(detector, thorough=True)
        calibration = calibrate(detector, scored, source="mrad demo", draws=200)
    except CalibrationError as error:  # scores and maps are still worth a look
        say(f"no thresholds: {error}")
        return bank
    return save_calibration(calibration.into(bank), path)


def judge_all(
    judge: Judge, queries: Dataset, folder: Path, advance: Callable[[int], None]
) -> list[Shown]:
    """Judge the queries and write their overlays."""
    shown = []
    for record in queries.records:
        image = load_image(record.image)
        prediction = judge.detector.predict([image])[0]
        advance(1)
        path = folder / f"{record.image.stem}.jpg"
        write_atomic(path, jpeg(draw(image, prediction, judge)))
        verdict = judge.verdict(prediction.score)
        calibrated = judge.calibrated(prediction.score)
        shown.append(Shown(record, prediction, verdict, path, calibrated))
    return shown


def png(picture: Image.Image) -> bytes:
    """Lossless."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def contact_sheet(pairs: Sequence[Pair]) -> Image.Image:
    """A row for each query: the image, its mask, both heat maps; most anomalous first."""
    columns = ("image", "mask", "from good boards alone", "from good and defective boards")
    width = len(columns) * (SIDE + GAP) + GAP
    step = SIDE + LINE + GAP
    sheet = Image.new("RGB", (width, step * len(pairs) + LINE + 2 * GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for place, title in enumerate(columns):
        pen.text((GAP + place * (SIDE + GAP), GAP), title, "black", font)
    ranked = sorted(pairs, key=lambda pair: -pair.both.prediction.score)
    for row, pair in enumerate(ranked):
        top, record = 2 * GAP + LINE + row * step, pair.record
        image = load_image(record.image)
        mask = record.read_mask(image.size)
        truth = Image.fromarray(np.zeros(image.size[::-1], bool) if mask is None else mask)
        label = "defective" if record.anomalous else "good"
        captions = [record.image.name, label, _caption(pair.good_only), _caption(pair.both)]
        pictures = (image, truth, load_image(pair.good_only.overlay), load_image(pair.both.overlay))
        for place, (picture, caption) in enumerate(zip(pictures, captions)):
            left = GAP + place * (SIDE + GAP)
            small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (left, top))
            pen.text((left, top + SIDE + 2), caption, "black", font)
    return sheet


def _caption(shown: Shown) -> str:
    text = f"score {shown.score}"
    return text if shown.verdict is None else f"{text}: {shown.verdict} (limit 50)"
