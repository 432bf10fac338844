"""What an answer says of a lesson: what it could not teach, and what it changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
import structlog
from fastapi import Request

from mrad.detector import Detector
from mrad.encoder.encoder import Features
from mrad.errors import MRADError
from mrad.images.layout import Places, Tile
from mrad.images.masks import Mask
from mrad.maps import regions
from mrad.memory.entry import Entry, Key
from mrad.thresholds.follow import Flip, flips
from mrad.thresholds.own import MAP_PIXELS
from mrad.thresholds.taught import CLEAR
from mrad.thresholds.verdicts import Verdicts
from mrad.types import ANOMALOUS, Prediction
from mrad.words import counted
from mrad_service.memory import DurableMemory
from mrad_service.models.following import Renewal
from mrad_service.models.loading import Model
from mrad_service.scheduler.retry import in_halves
from mrad_service.schemas.memory import Flip as FlipShown
from mrad_service.schemas.memory import LessonEffect, MemoryEntry, label_name

T = TypeVar("T")
log = structlog.get_logger(__name__)
THIN = (
    "the mask covers no patch wholly: the image as a whole is learned, but heat maps learn nothing "
    "of this defect; paint more generously, or cut the image closer"
)
EMPTY = "the mask is empty: the image is learned as defective as a whole, and no part of it"
GOOD_ONLY = """head nn compares with good images alone: this picture is recognised when it is shown \
again, and no other score moves where ten good images or more say what is usual; \
head combined uses it: mrad calibrate BANK --head combined, and serve it again"""
NOT_HELD = """the memory holds no patches, or as many as it may, so this picture is not recognised when \
it is shown again"""
UNNAMED = """the memory holds several products, and this lesson names none (object_name): requests \
that name a product do not know it"""
FLIPS = 50
"""Images of the memory that an answer names at most."""


def note_of(
    detector: Detector, entry: Entry, keys: list[Key], region: Mask | None, unnamed: bool
) -> str | None:
    """What a lesson does not do; None for nothing.

    Args:
        detector: as it was before.
        entry: what was taught.
        keys: what it added.
        region: the mask of a defect.
        unnamed: it names no product, and the memory holds several.
    """
    defect = entry.label == ANOMALOUS
    notes = [
        UNNAMED if unnamed else None,
        _of_defect(region, keys, detector.head.name) if defect else None,
        None if detector.bank.keeps_local else NOT_HELD,
    ]
    return "; ".join(text for text in notes if text) or None


def _of_defect(region: Mask | None, keys: list[Key], head: str) -> str | None:
    """What a taught defect, with its mask, does not do for the head that judges; None for nothing."""
    unmarked = None
    taught = any(key.level == "patch" and key.label == ANOMALOUS for key in keys)
    if region is not None and not taught:  # heat maps learn from patches
        unmarked = THIN if region.anomalous.any() else EMPTY
    if head == "nn":
        return GOOD_ONLY if unmarked is None else f"{GOOD_ONLY}; {unmarked}"
    return unmarked


class Before:
    """How a picture that is taught as good was judged until now.

    It is for a warning alone: where the device fails at it, there is none, and the lesson goes on.
    """

    def __init__(self, model: Model, places: Places, keeps: bool) -> None:
        """`model`: what judges such pictures; `keeps`: see `against_verdict`."""
        self._keeps = keeps
        self._verdicts, self._detector = Verdicts.of(model.calibration), model.detectors[0]
        self._failed = False
        self._canvas = self._run(lambda: self._detector.canvas(places))

    def draw(self, tile: Tile, features: Features) -> None:
        """Judge a tile of it."""
        canvas = self._canvas
        if canvas is not None:
            self._run(lambda: self._detector.draw([(canvas, tile)], features))

    def warning(self) -> str | None:
        """See `against_verdict`."""
        canvas, head = self._canvas, self._detector.head.name
        if canvas is None or self._failed:
            return None

        def found() -> str | None:
            judged = self._detector.conclude(canvas, map_pixels=MAP_PIXELS)
            return against_verdict(judged, self._verdicts, head, self._keeps)

        return self._run(found)

    def _run(self, step: Callable[[], T]) -> T | None:
        if self._failed:
            return None
        ((_, result),) = in_halves([None], lambda _: step(), self._detector.encoder.device)
        if isinstance(result, MRADError):
            log.warning("a lesson is not compared with the verdict before it", why=str(result))
            self._failed = True
            return None
        return result


def against_verdict(
    prediction: Prediction, verdicts: Verdicts, head: str, keeps: bool = True
) -> str | None:
    """What a picture that is taught as good, against a clear verdict, lets pass from now on; with a code.

    Args:
        prediction: of the memory before the lesson, with its map.
        verdicts: the limits in force.
        head: the one that judges.
        keeps: whether the memory keeps its patches, by which pictures are recognised and `nn` compares.
    """
    judged, calibration = verdicts.as_taught(prediction), verdicts.calibration
    score, threshold = verdicts.calibrated(judged.score), verdicts.threshold
    if score is None or calibration is None or threshold is None:
        return None
    if judged.score < threshold + CLEAR * calibration.unit(threshold):
        return None
    shown, cut = judged.anomaly_map, verdicts.pixel_threshold
    where = ""
    if shown is not None and cut is not None:
        count = len(regions(shown, cut, size=judged.size))
        share = 100 * float((shown >= np.float32(cut)).mean())
        said = "100" if share >= 99.5 else f"{share:.2g}"
        where = f", with {counted(count, 'region')} ({said} % of it) above the limit of the map"
    if keeps and head in ("nn", "combined"):
        passes = (
            "what is seen there is usual from now on, in every picture: defects like it may pass"
        )
    elif keeps:
        passes = "it passes when it is shown again, and pictures like it score lower"
    elif head == "nn":
        passes = "it changes no score: the memory keeps no more patches"
    else:
        passes = "it and pictures like it score lower"
    return (
        f"against_verdict: this picture scored {score:.0f} of 100 (limit 50){where}. Taught as good, {passes}. "
        "If it is defective, remove the entry"
    )


def effect_of(
    request: Request, memory: DurableMemory, renewal: Renewal | None
) -> LessonEffect | None:
    """What a lesson changed; None where nothing is known of thresholds here."""
    if renewal is None:
        return None
    before, after = renewal.before, renewal.after if renewal.done else None
    held = after or before
    found = flips(before, after) if before is not None and after is not None else []
    promise = None if after is None else after.expected
    state: Literal["follow", "stay", "pending"] = "pending"
    if renewal.done:
        state = "follow" if after is not None else "stay"
    why, asked = renewal.why_not, None if after is None else after.image.target_fpr
    if promise is not None and asked is not None and promise.rate > asked:
        why = (
            f"{asked:.1%} of false alarms were asked for, and now {promise.rate:.1%} are to be expected: "
            "calibrate again (POST /v1/banks/NAME/calibrate)"
        )
    return LessonEffect(
        thresholds=state,
        why=why,
        threshold_before=None if before is None else before.image_threshold,
        threshold=None if held is None else held.image_threshold,
        pixel_threshold=None if held is None or held.pixel is None else held.pixel.value,
        false_alarms=None if promise is None else promise.rate,
        false_alarms_range=None if promise is None else (promise.low, promise.high),
        judged=len((after.own or {}) if after is not None else ()),
        flipped=len(found),
        flips=[_flip(request, memory, one) for one in found[:FLIPS]],
    )


def _flip(request: Request, memory: DurableMemory, flip: Flip) -> FlipShown:
    entry = memory.get(flip.entry_id)
    return FlipShown(
        entry_id=entry.entry_id,
        label=label_name(entry.label),
        source=entry.source,
        before=label_name(flip.before),
        after=label_name(flip.after),
        thumbnail=described(request, memory, entry).thumbnail,
    )


def described(request: Request, memory: DurableMemory, entry: Entry) -> MemoryEntry:
    has = memory.thumbnail(entry.entry_id) is not None
    address = request.app.url_path_for("get_thumbnail", entry_id=entry.entry_id) if has else None
    if address is not None:
        address = request.scope.get("root_path", "") + address
    return MemoryEntry.of(entry, address)
