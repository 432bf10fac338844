"""A prediction -> the result that the client asked for. Runs in the finishing threads."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from typing import Any

from PIL import Image

from mrad.errors import DataError, LayoutError, MRADError
from mrad.images.layout import Layout
from mrad.images.regions import parse_area, parse_parts
from mrad.maps import regions
from mrad.types import Evidence, PartScore, Prediction
from mrad_service.errors import InvalidRequestError, ResponseTooLargeError
from mrad_service.models.loading import Model
from mrad_service.problems import problem_of
from mrad_service.scheduler.queue import Outcome, Wanted
from mrad_service.schemas.memory import label_name
from mrad_service.schemas.score import FIELDS, ScoreOptions
from mrad_service.scoring.render import CUT, render
from mrad_service.scoring.verdict import pixel_cut, verdicts_of

MAX_REGIONS = 200
"""The strongest ones of an image."""


class Budget:
    """The bytes that one answer may still grow by. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit, self._spent, self._lock = limit, 0, threading.Lock()

    def spend(self, count: int) -> None:
        """Raises `ResponseTooLargeError` once all images together took more than the limit."""
        with self._lock:
            self._spent += count
            over = self._spent > self._limit
        if over:
            raise ResponseTooLargeError(
                f"this answer exceeds {self._limit} bytes; send fewer images at once, or ask for a "
                "smaller format"
            )


class Judge:
    """Everything about one request that its results depend on. Thread-safe."""

    def __init__(self, model: Model, options: ScoreOptions, max_bytes: int) -> None:
        """Raises `InvalidRequestError`, `CalibrationError` for options that cannot be met."""
        unknown = sorted(set(options.fields or ()) - set(FIELDS))
        if unknown:
            raise InvalidRequestError(f"unknown fields {unknown}; there are {list(FIELDS)}")
        self.model, self._budget = model, Budget(max_bytes)
        self.fields = set(options.fields if options.fields is not None else FIELDS)
        self.verdicts = verdicts_of(
            model,
            threshold=options.threshold,
            target_fpr=options.target_fpr,
            pixel_threshold=options.pixel_threshold,
        )
        self._kind = options.map if "map" in self.fields else "none"
        self._cut = self.verdicts.pixel_threshold
        if self._kind in CUT:
            self._cut = pixel_cut(self.verdicts, f"map={self._kind}")
        elif options.fields is not None and "regions" in self.fields:
            self._cut = pixel_cut(self.verdicts, "regions")
        self._tiles = options.fields is not None and "tiles" in self.fields
        self._full_map = options.full_map
        self.layout: Layout | None = None
        """How these images are looked at, where not as the bank says."""
        if options.roi is not None or options.parts is not None:
            try:
                area = options.roi and parse_area(options.roi.model_dump(exclude_none=True))
                given = options.parts and options.parts.model_dump(exclude_none=True)
                parts = parse_parts(given) if given else ()
                aligned = options.parts is not None and options.parts.align
                self.layout = model.detectors[0].layout.with_regions(area, parts, aligned)
            except (DataError, LayoutError) as error:
                raise InvalidRequestError(str(error)) from error
        if options.tile_closely is not None:
            try:
                looked_at = self.layout or model.detectors[0].layout
                self.layout = looked_at.looked_at_closely(options.tile_closely)
            except LayoutError as error:
                raise InvalidRequestError(str(error)) from error
        self._regions = "regions" in self.fields and self._cut is not None
        self._evidence = options.evidence if "evidence" in self.fields else 0

    @property
    def wanted(self) -> Wanted:
        """What the batcher has to compute."""
        return Wanted(
            maps=self._kind != "none" or self._regions,
            image=self._kind == "overlay",
            evidence=self._evidence,
            full_map=self._full_map,
        )

    def __call__(self, index: int, prediction: Prediction, image: Image.Image) -> dict[str, Any]:
        """The parts of a result that were asked for. Raises `ResponseTooLargeError`."""
        verdicts = self.verdicts
        prediction = verdicts.as_taught(prediction)
        score = prediction.score
        made: dict[str, Any] = {
            "score": score,
            "calibrated_score": verdicts.calibrated(score),
            "class_score": prediction.class_score,
            "verdict": verdicts.verdict(score),
            "threshold": verdicts.threshold,
            "probability": verdicts.probability(score),
            "p_value": verdicts.p_value(score),
        }
        values = prediction.anomaly_map
        if values is not None and self._kind != "none":
            unseen = prediction.unseen(values.shape)
            anomalous = verdicts.verdict(score) == "anomalous" and prediction.peak_box is not None
            framed = (prediction.peak_box, prediction.size[0]) if anomalous else None
            made["map"] = render(self._kind, values, image, self._cut, unseen, framed)
            made["map"]["size"] = values.shape[::-1]
            self._budget.spend(_size(made["map"]["data"]))
        if values is not None and self._regions and self._cut is not None:
            found = regions(values, self._cut, size=prediction.size)[:MAX_REGIONS]
            made["regions"] = [vars(region) for region in found]
            self._budget.spend(_size(made["regions"]))
        made["peak_box"] = prediction.peak_box
        if prediction.recognised is not None:
            made["recognised"] = prediction.recognised.to_json()
        if prediction.parts:
            made["parts"] = [self._part(part) for part in prediction.parts]
        if self._tiles:
            made["tiles"] = [vars(tile) for tile in prediction.tiles]
            self._budget.spend(100 * len(prediction.tiles))
        if self._evidence:
            made["evidence"] = self._shown_evidence(prediction)
            self._budget.spend(sum(len(found["thumbnail"] or "") for found in made["evidence"]))
        kept = {name: value for name, value in made.items() if name in self.fields}
        warnings = [*prediction.warnings, *([verdicts.note] if verdicts.note else [])]
        if self.model.part and verdicts.threshold is None:
            warnings.append(f"no_threshold: {self.model.why_uncalibrated}")
        if warnings:  # never left out: a verdict on a misread image is worth nothing
            kept["warnings"] = warnings
        return kept

    def _part(self, part: PartScore) -> dict[str, Any]:
        return {
            "name": part.name,
            "box": part.box,
            "score": part.score,
            "class_score": part.class_score,
            "calibrated_score": self.verdicts.calibrated(part.score),
            "verdict": self.verdicts.verdict(part.score),
            "probability": self.verdicts.probability(part.score),
        }

    def _shown_evidence(self, prediction: Prediction) -> list[dict[str, Any]]:
        chosen: list[Evidence] = []
        for level in ("image", "patch"):
            own = [found for found in prediction.evidence if found.level == level]
            chosen += own[: self._evidence]
        return [
            {
                "level": found.level,
                "similarity": found.similarity,
                "label": label_name(found.label),
                "entry_id": found.entry_id,
                "source": found.source,
                "region": found.region,
                "defect": found.defect,
                "query_box": found.query_box,
                "tile": found.tile,
                "box": found.box,
                "size": found.size,
                "thumbnail": self._thumbnail(found.entry_id),
            }
            for found in chosen
        ]

    def _thumbnail(self, entry_id: str) -> str | None:
        jpeg = self.model.bank.thumbnails.get(entry_id)
        return None if jpeg is None else base64.b64encode(jpeg).decode("ascii")


def result_of(index: int, name: str, outcome: Outcome) -> dict[str, Any]:
    """One entry of the answer."""
    head = {"index": index, "name": name}
    if isinstance(outcome, MRADError):
        return head | {"status": "error", "problem": problem_of(outcome)}
    return head | {"status": "ok"} | outcome


def whole_failure(outcomes: Sequence[Outcome]) -> MRADError | None:
    """The error that the whole request ends with, where no result is worth sending.

    An image that is not one spoils its own result only. A server that failed on every image, and
    an answer over its limit, are the request's.
    """
    for outcome in outcomes:
        if isinstance(outcome, ResponseTooLargeError):
            return outcome
    failed = [outcome for outcome in outcomes if isinstance(outcome, MRADError)]
    if len(failed) < len(outcomes):
        return None
    for error in failed:
        if problem_of(error)["status"] < 500:
            return None
    return failed[0]


def _size(data: Any) -> int:
    """Bytes of a map, run lengths or outlines as JSON, about."""
    if isinstance(data, str):
        return len(data)
    if isinstance(data, dict):
        return 8 * len(data["counts"])
    return sum(200 + 40 * len(part["polygon"]) for part in data)
