"""What judges one product of a memory that holds several: made when first asked for, then kept."""

from __future__ import annotations

import threading
from dataclasses import replace

from mrad.calibration import Calibration
from mrad.errors import CalibrationError
from mrad.heads.choose import problem
from mrad.thresholds.objects import calibration_of_object
from mrad_service.models.loading import Model


class Objects:
    """Models by bank and product. Thread-safe; one is made at a time."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[Model, Model]] = {}
        self._lock = threading.Lock()

    def get(self, whole: Model, name: str) -> Model:
        """The model of one product's images, with thresholds of their own where the bank has any.

        It takes as long as the memory of that product takes to measure itself: keep it off the event
        loop. Raises `UnknownObjectError`, and what keeps the head from serving these images.
        """
        with self._lock:
            place = whole.name, name
            held = self._held.get(place)
            if held is not None and held[0] is whole:
                return held[1]
            if held is not None:
                held = (
                    None if held[1].detectors[0].encoder is not whole.detectors[0].encoder else held
                )
            made = self._made(whole, name, None if held is None else held[1])
            self._held = {p: pair for p, pair in self._held.items() if p[0] != whole.name or
                          pair[0] is whole}  # fmt: skip
            self._held[place] = whole, made
            return made

    def _made(self, whole: Model, name: str, before: Model | None) -> Model:
        bank = whole.bank.of_object(name)
        head = whole.detectors[0].head.name
        if before is not None and before.bank.entries == bank.entries:
            detectors = before.detectors  # other products learned
        elif (
            before is not None
            and before.spec == whole.spec
            and before.detectors[0].head.name == head
            and problem(bank, head) is None
        ):  # it goes on from what was measured of this product
            detectors = tuple(detector.with_bank(bank) for detector in before.detectors)
        else:
            detectors = tuple(detector.of_object(name) for detector in whole.detectors)
        calibration: Calibration | None = None
        why = whole.why_uncalibrated
        if whole.calibration is not None:
            try:
                calibration = calibration_of_object(detectors[0], whole.calibration, name)
            except CalibrationError as error:
                why = f"there is no threshold for {name!r} alone: {error}"
        return replace(
            whole, detectors=detectors, calibration=calibration, why_uncalibrated=why, part=name
        )
