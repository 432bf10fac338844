"""Thresholds of one product of a memory that holds several."""

from __future__ import annotations

from mrad.calibration import Calibration
from mrad.detector import Detector
from mrad.thresholds.calibrate import FEWEST, TARGET, calibrate
from mrad.thresholds.own import memory_of, score_own


def calibration_of_object(detector: Detector, whole: Calibration, name: str) -> Calibration:
    """The calibration of a detector on one product: the one made for it, or from its own images, each left out.

    What was made for it (`with_object`) holds for the images that the memory held then. Else by its rule,
    or by that of the whole memory's, whose thresholds are not on this product's scale; a rule that wants
    defects gives way where the product has none.

    Args:
        detector: `Detector.of_object`'s.
        whole: the calibration of the memory that holds all products.
        name: of the product.

    Raises `CalibrationError` where its images are too few, or hold no patches.
    """
    own = whole.objects.get(name)
    if own is not None and own.head == detector.head.name:
        if own.follows == memory_of(detector.bank):
            return own
        whole = own
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


def with_object(whole: Calibration, name: str, own: Calibration, detector: Detector) -> Calibration:
    """The whole memory's calibration, with that of one product beside those of others.

    Args:
        whole: of the memory that holds all products.
        name: of the product.
        own: its calibration.
        detector: `Detector.of_object`'s, on the images that it holds for.
    """
    kept = own.model_copy(update={"follows": memory_of(detector.bank)})
    return whole.model_copy(update={"objects": {**whole.objects, name: kept}})


def keeping_objects(made: Calibration, before: Calibration | None) -> Calibration:
    """A new calibration of the whole memory with the products' own of the one before it.

    They stay where its settings are the same, for a product is judged with the whole memory's.
    """
    if before is None or before.settings != made.settings:
        return made
    return made.model_copy(update={"objects": before.objects})
