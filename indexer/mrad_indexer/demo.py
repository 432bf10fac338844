"""The whole line on bundled images: build, calibrate, score, heat maps, a contact sheet."""

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
from mrad.memory.store import save_calibration
from mrad.types import Prediction
from mrad_indexer.build.build import BuildOptions, build
from mrad_indexer.calibration.calibrate import calibrate, score_without_self
from mrad_indexer.datasets import Dataset, Record, read_dataset
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.scoring.pictures import draw

SIDE = 300
GAP = 12
LINE = 24


@dataclass(frozen=True)
class Shown:
    """One query with its judgement."""

    record: Record
    prediction: Prediction
    verdict: str | None
    overlay: Path


def run(
    encoder: Encoder,
    out: Path,
    *,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Shown]:
    """Everything below `out`: bank/, overlays/, contact-sheet.png. Raises what building raises."""
    memory, queries = (read_dataset(demo.FOLDER / part) for part in ("memory", "query"))
    total = 2 * len(memory) + len(queries)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    say(f"building a memory of {len(memory)} boards")
    options = BuildOptions(added_by="mrad demo")
    built = build(
        encoder,
        memory,
        out / "bank",
        options,
        replace=True,
        progress=lambda count, skipped, old: advance(count),
    )
    say("choosing thresholds: every board is judged by the others")
    detector = Detector(encoder, built.bank)
    seen = 0

    def scored_so_far(count: int) -> None:
        nonlocal seen
        advance(count - seen)
        seen = count

    scored = score_without_self(detector, memory, progress=scored_so_far)
    bank = built.bank
    try:
        calibration = calibrate(detector, scored, source="mrad demo", draws=200)
        bank = save_calibration(calibration.into(bank), out / "bank")
    except CalibrationError as error:  # scores and maps are still worth a look
        say(f"no thresholds: {error}")
    say(f"judging {len(queries)} boards that the memory does not hold")
    judge = Judge.of(encoder, bank)
    shown = judge_all(judge, queries, out, lambda: advance(1))
    sheet = contact_sheet(shown, judge)
    write_atomic(out / "contact-sheet.png", png(sheet))
    return shown


def judge_all(
    judge: Judge, queries: Dataset, out: Path, advance: Callable[[], None]
) -> list[Shown]:
    """Judge the queries and write their overlays."""
    shown = []
    for record in queries.records:
        image = load_image(record.image)
        prediction = judge.detector.predict([image])[0]
        advance()
        if prediction.anomaly_map is None:
            raise AssertionError("predict gives maps unless told otherwise")
        path = out / "overlays" / f"{record.image.stem}.jpg"
        write_atomic(path, jpeg(draw(image, prediction.anomaly_map, judge)))
        shown.append(Shown(record, prediction, judge.verdict(prediction.score), path))
    return shown


def png(picture: Image.Image) -> bytes:
    """Lossless."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def contact_sheet(shown: Sequence[Shown], judge: Judge) -> Image.Image:
    """A row for each query: the image, its mask, the heat map; most anomalous first."""
    width = 3 * SIDE + 4 * GAP
    step = SIDE + LINE + GAP
    sheet = Image.new("RGB", (width, step * len(shown) + LINE + 2 * GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for place, title in enumerate(("image", "mask", "heat map")):
        pen.text((GAP + place * (SIDE + GAP), GAP), title, "black", font)
    ranked = sorted(shown, key=lambda item: -item.prediction.score)
    for row, item in enumerate(ranked):
        top = 2 * GAP + LINE + row * step
        image = load_image(item.record.image)
        mask = item.record.read_mask(image.size)
        truth = Image.fromarray(np.zeros(image.size[::-1], bool) if mask is None else mask)
        for place, picture in enumerate((image, truth, load_image(item.overlay))):
            small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (GAP + place * (SIDE + GAP), top))
        label = "defective" if item.record.anomalous else "good"
        text = f"{item.record.image.name}: {label}, score {item.prediction.score:.4f}"
        if item.verdict:
            text += f" ({item.verdict}, threshold {judge.threshold:.4f})"
        pen.text((GAP, top + SIDE + 2), text, "black", font)
    return sheet
