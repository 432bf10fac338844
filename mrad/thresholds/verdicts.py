"""The thresholds in force, and what they say of scores: one rule for every door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from mrad.calibration import Calibration, refuse_unreachable
from mrad.errors import CalibrationError
from mrad.thresholds.taught import as_taught
from mrad.types import Prediction


@dataclass(frozen=True)
class Verdicts:
    """Thresholds as they were asked for, or as a memory is calibrated."""

    threshold: float | None
    """Image scores at or above are anomalous; None: no verdict."""
    pixel_threshold: float | None
    """Of map values; None: no outline."""
    calibration: Calibration | None
    note: str | None = None
    """What was asked for and cannot be had, with a code."""

    @classmethod
    def of(
        cls,
        calibration: Calibration | None,
        *,
        threshold: float | None = None,
        target_fpr: float | None = None,
        pixel_threshold: float | None = None,
    ) -> Self:
        """What was asked for, then the calibration's own.

        Args:
            calibration: of the memory; without one `target_fpr` gives nothing.
            threshold: of image scores, 0 to 1.
            target_fpr: share of good images that may be flagged.
            pixel_threshold: of map values, 0 to 1.

        Raises `CalibrationError` for thresholds that nothing can reach, and for a threshold beside a rate.
        """
        refuse_unreachable(threshold)
        refuse_unreachable(pixel_threshold, "pixel_threshold")
        if threshold is not None and target_fpr is not None:
            raise CalibrationError("give a threshold or a false-alarm rate, not both")
        if calibration is None:
            return cls(threshold, pixel_threshold, None)
        note = None
        if threshold is None and target_fpr is not None:
            threshold = calibration.threshold_at(target_fpr)
            note = calibration.shortfall(target_fpr)
            if pixel_threshold is None and calibration.normal_pixels is not None:
                pixel_threshold = calibration.threshold_at(target_fpr, "pixel")
        threshold = calibration.image_threshold if threshold is None else threshold
        if pixel_threshold is None and calibration.pixel is not None:
            pixel_threshold = calibration.pixel_threshold
        return cls(threshold, pixel_threshold, calibration, note)

    def as_taught(self, prediction: Prediction) -> Prediction:
        """A picture that was taught and is shown again, on its label's side of the thresholds."""
        return as_taught(prediction, self.calibration, self.threshold, self.pixel_threshold)

    def verdict(self, score: float) -> str | None:
        """`anomalous` or `normal`, None without a threshold; float32 decides, as for maps."""
        if self.threshold is None:
            return None
        return "anomalous" if np.float32(score) >= np.float32(self.threshold) else "normal"

    def probability(self, score: float) -> float | None:
        """Calibrated; None without a calibration, or one without defects."""
        return None if self.calibration is None else self.calibration.probability(score)

    def p_value(self, score: float) -> float | None:
        """Share of good parts that look as unusual; None without a calibration."""
        return None if self.calibration is None else self.calibration.p_value(score)

    def calibrated(self, score: float) -> float | None:
        """0 to 100, the threshold in force at 50; None without a calibration."""
        if self.calibration is None:
            return None
        return self.calibration.calibrated(score, threshold=self.threshold)
