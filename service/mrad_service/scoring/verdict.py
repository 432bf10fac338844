"""Thresholds of a request, and what they say about a score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mrad.errors import CalibrationError
from mrad_service.errors import InvalidRequestError
from mrad_service.models.loading import Model


@dataclass(frozen=True)
class Verdict:
    """The cuts in force for one request."""

    threshold: float | None
    """Of `score`; None where neither the request nor the bank has one."""
    pixel_threshold: float | None
    """Of map values."""
    model: Model
    note: str | None = None
    """What the request asked for and cannot have, with a code."""

    @classmethod
    def of(
        cls,
        model: Model,
        *,
        threshold: float | None = None,
        target_fpr: float | None = None,
        pixel_threshold: float | None = None,
    ) -> Verdict:
        """What the request says, then the bank's calibration.

        Raises `InvalidRequestError`; `CalibrationError` for a rate that no calibration can give.
        """
        for name, value in (("threshold", threshold), ("pixel_threshold", pixel_threshold)):
            if value is not None and not math.isfinite(value):
                raise InvalidRequestError(f"{name} must be a finite number")
        note = None
        if target_fpr is not None:
            if threshold is not None:
                raise InvalidRequestError("give threshold or target_fpr, not both")
            if not 0 <= target_fpr <= 1:
                raise InvalidRequestError(f"target_fpr lies in [0, 1], not {target_fpr}")
            calibration = model.calibrated()
            threshold = calibration.threshold_at(target_fpr)
            note = calibration.shortfall(target_fpr)
            if pixel_threshold is None and calibration.normal_pixels is not None:
                pixel_threshold = calibration.threshold_at(target_fpr, "pixel")
        held = model.calibration
        if held is not None:
            threshold = held.image_threshold if threshold is None else threshold
            if pixel_threshold is None and held.pixel is not None:
                pixel_threshold = held.pixel_threshold
        return cls(threshold, pixel_threshold, model, note)

    def says(self, score: float) -> str | None:
        """`normal` or `anomalous`; float32 decides, as for maps."""
        if self.threshold is None:
            return None
        return "anomalous" if np.float32(score) >= np.float32(self.threshold) else "normal"

    def probability(self, score: float) -> float | None:
        """Calibrated, where there is a calibration with defects."""
        calibration = self.model.calibration
        return None if calibration is None else calibration.probability(score)

    def p_value(self, score: float) -> float | None:
        """Share of good parts that look as unusual, where there is a calibration."""
        calibration = self.model.calibration
        return None if calibration is None else calibration.p_value(score)

    def calibrated(self, score: float) -> float | None:
        """0 to 100 with the threshold in force at 50, where there is a calibration."""
        calibration = self.model.calibration
        if calibration is None:
            return None
        return calibration.calibrated(score, threshold=self.threshold)

    def pixel(self, purpose: str) -> float:
        """The cut of map values. Raises `CalibrationError` where there is none."""
        if self.pixel_threshold is None:
            raise CalibrationError(
                f"{purpose} needs a cut of map values: pass pixel_threshold, or calibrate the bank "
                "(mrad calibrate)"
            )
        return self.pixel_threshold
