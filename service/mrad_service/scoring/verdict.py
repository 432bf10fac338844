"""The thresholds of a request: what it says, then the bank's calibration."""

from __future__ import annotations

from mrad.calibration import refuse_unreachable
from mrad.errors import CalibrationError
from mrad.thresholds.verdicts import Verdicts
from mrad_service.errors import InvalidRequestError
from mrad_service.models.loading import Model


def verdicts_of(
    model: Model,
    *,
    threshold: float | None = None,
    target_fpr: float | None = None,
    pixel_threshold: float | None = None,
) -> Verdicts:
    """What is in force for one request; see `Verdicts.of`.

    Raises `InvalidRequestError`; `CalibrationError` for a rate that no calibration can give.
    """
    try:
        refuse_unreachable(threshold)
        refuse_unreachable(pixel_threshold, "pixel_threshold")
    except CalibrationError as error:
        raise InvalidRequestError(str(error)) from None
    if target_fpr is not None:
        if threshold is not None:
            raise InvalidRequestError("give threshold or target_fpr, not both")
        if not 0 <= target_fpr <= 1:
            raise InvalidRequestError(f"target_fpr lies in [0, 1], not {target_fpr}")
        model.calibrated()  # raises
    return Verdicts.of(
        model.calibration,
        threshold=threshold,
        target_fpr=target_fpr,
        pixel_threshold=pixel_threshold,
    )


def pixel_cut(verdicts: Verdicts, purpose: str) -> float:
    """The cut of map values. Raises `CalibrationError` where there is none."""
    if verdicts.pixel_threshold is None:
        raise CalibrationError(
            f"{purpose} needs a cut of map values: pass pixel_threshold, or calibrate the bank "
            "(mrad calibrate)"
        )
    return verdicts.pixel_threshold
