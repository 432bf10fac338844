"""Good images that score far above the others: a threshold by false alarms then rests on them alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrad.fitting import by_false_alarms
from mrad.thresholds.calibrate import Scored

FEWEST = 20
"""Good images from which a few can be said to lie apart."""
SHARE = 0.1
"""Of the good images at most: more are a kind of part of their own."""
GAP = 1.5
"""Times as far above the next image as that one lies above the median: scores of one kind of part hardly have
such a gap."""


@dataclass(frozen=True)
class Apart:
    """The images, highest first, and what holds without them."""

    sources: tuple[str, ...]
    """Empty texts where they are not known."""
    scores: tuple[float, ...]
    others: int
    next_score: float
    """The highest of the others."""
    threshold: float
    """What the same rate would give on the others."""


def apart(scored: Scored, target_fpr: float) -> Apart | None:
    """The good images that lie apart, if any do."""
    score = np.array(scored.score)
    good = np.flatnonzero(~np.array(scored.anomalous, dtype=bool))
    if len(good) < FEWEST:
        return None
    good = good[np.argsort(-score[good], kind="stable")]
    falling, median = score[good], float(np.median(score[good]))
    most = max(1, int(SHARE * len(good)))
    gap = (falling[:most] - falling[1 : most + 1]) / np.maximum(
        falling[1 : most + 1] - median, 1e-9
    )
    count = int(gap.argmax()) + 1
    if gap[count - 1] < GAP:
        return None
    named = len(scored.source) == len(score)
    return Apart(
        sources=tuple(scored.source[place] if named else "" for place in good[:count]),
        scores=tuple(float(value) for value in falling[:count]),
        others=len(good) - count,
        next_score=float(falling[count]),
        threshold=by_false_alarms(falling[count:], target_fpr).value,
    )
