"""Thresholds of one product of a memory that holds several."""

from __future__ import annotations

from mrad.calibration import Calibration
from mrad.detector import Detector
from mrad.thresholds.calibrate import FEWEST, TARGET, calibrate
from mrad.thresholds.own import score_own


def calibration_of_object(detector: Detector, whole: Calibration) -> Calibration:
    """The calibration of a detector on one product, from its own images, each left out.

    By the rule of the whole memory's, whose thresholds are not on this product's scale; a rule that wants
    defects gives way where the product has none.

    Args:
        detector: `Detector.of_object`'s.
        whole: the calibration of the memory that holds all products.

    Raises `CalibrationError` where its images are too few, or hold no patches.
    """
    scored = score_own(detector, thorough=True)
    target, defects = whole.image.target_fpr, sum(scored.anomalous) >= FEWEST
    rule = None if whole.image.rule == "f1" and not defects else whole.image.rule
    return calibrate(
        detector,
        scored,
        rule=rule,
        target_fpr=TARGET if target is None else target,
        source="the memory's own images of this product",
        checkpoint=str(whole.settings.get("checkpoint") or ""),
    )
