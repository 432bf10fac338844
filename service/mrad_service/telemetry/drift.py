"""Whether what comes in still looks like what the bank was calibrated on."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

from mrad.calibration import Summary
from mrad.types import Prediction
from mrad_service.models.loading import Model

LEAST = 30
"""Images before anything is said."""


class Signal(BaseModel):
    """One distribution against the calibration's."""

    images: int = Field(description="looked back on")
    mean: float
    calibrated_mean: float
    distance: float = Field(description="largest difference of the two distribution functions")
    limit: float = Field(description="reached by chance once in a hundred such windows")
    drifted: bool


class DriftReport(BaseModel):
    """`scores` against the good images of the calibration; `similarity` of the nearest image key."""

    scores: Signal | None
    similarity: Signal | None


class Drift:
    """The latest scores and similarities of each bank. Thread-safe."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._seen: dict[str, tuple[deque[float], deque[float]]] = {}
        self._lock = threading.Lock()

    def note(self, model: Model, prediction: Prediction) -> None:
        """An image was judged."""
        with self._lock:
            fresh = deque[float](maxlen=self._window), deque[float](maxlen=self._window)
            scores, similarities = self._seen.setdefault(model.name, fresh)
            scores.append(prediction.score)
            whole = [found.similarity for found in prediction.evidence if found.level == "image"]
            if whole:
                similarities.append(whole[0])

    def report(self, model: Model) -> DriftReport | None:
        """None where the bank has no calibration to compare with."""
        held = model.calibration
        if held is None:
            return None
        with self._lock:
            scores, similarities = map(list, self._seen.get(model.name, ((), ())))
        return DriftReport(
            scores=compare(scores, held.scores_normal),
            similarity=compare(similarities, held.similarity_image),
        )


def compare(values: Sequence[float], expected: Summary) -> Signal | None:
    """Kolmogorov and Smirnov's distance at the summary's quantiles, with its 1 % limit."""
    if len(values) < LEAST:
        return None
    seen = np.sort(np.asarray(values))
    places = np.asarray(expected.quantiles)
    wanted = np.linspace(0, 1, len(places))
    below = np.searchsorted(seen, places, side="left") / len(seen)
    upto = np.searchsorted(seen, places, side="right") / len(seen)
    # Where the quantile's share lies between both, ties alone make the difference.
    distance = float(np.maximum(np.maximum(below - wanted, wanted - upto), 0).max())
    limit = 1.63 * math.sqrt(1 / len(seen) + 1 / expected.count)
    return Signal(
        images=len(seen),
        mean=float(seen.mean()),
        calibrated_mean=expected.mean,
        distance=distance,
        limit=min(1.0, limit),
        drifted=distance > limit,
    )
