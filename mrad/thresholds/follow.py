"""Thresholds that follow lessons, so that a lesson changes verdicts near what it teaches, and no other.

A calibration is made once, and with it the scores of the memory's own images, each left out. After a
lesson they are scored again. What moved most of those near the threshold moves the threshold too, as
where a head tells distances in spreads of all good images. Beyond that it stays, unless the images
contradict it: where it has left the 95 % interval of a threshold that is chosen again by the same
rule, it moves to the interval's end. So the threshold depends on the calibration and on what the memory
holds now, not on the way there: what was taught and forgotten again leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrad.calibration import Calibration, Isotonic, Platt, Rule, Summary, Tail, Threshold
from mrad.confidence import Promise
from mrad.detector import Detector
from mrad.errors import CalibrationError
from mrad.fitting import Values, effect_of
from mrad.retrieval.lessons import FEW
from mrad.thresholds.calibrate import TARGET, Cuts, Scored, separation_of, thresholds_of
from mrad.thresholds.own import memory_of, own_scores
from mrad.types import ANOMALOUS, NORMAL

LEAST = 5
"""Images by which a shift is measured at least, where there are so many."""
DRAWS = 200


@dataclass(frozen=True)
class Flip:
    """An image of the memory that is judged otherwise than before."""

    entry_id: str
    label: int
    before: int
    after: int
    """NORMAL or ANOMALOUS."""


def followed(origin: Calibration, detector: Detector, scored: Scored) -> Calibration:
    """The calibration for the memory as it is now.

    Args:
        origin: as it was made, with the scores of the memory's own images of then (`own`).
        detector: of the memory as it is now.
        scored: its own images now (`mrad.thresholds.own.score_own`).
    """
    bank, before = detector.bank, origin.own or {}
    now, name = own_scores(bank, scored), memory_of(bank)
    kept = {"own": now, "follows": name, "origin": origin.origin or origin.made_at}
    if name == origin.follows:
        return origin.model_copy(update={**kept, "own": before})
    both = [entry for entry in before if entry in now]
    pairs = [(before[entry], now[entry]) for entry in both]
    shift = _shift([(was.score, own.score) for was, own in pairs], origin.image.value)
    found = origin.model_copy(update=kept | _moved(origin, shift, shift))
    if origin.pixel is not None:
        by = _shift([(was.peak, own.peak) for was, own in pairs], origin.pixel.value)
        found = found.model_copy(update={"pixel": _threshold(origin.pixel, by)})
    if not rests_on_own(origin):
        return found
    target = TARGET if origin.image.target_fpr is None else origin.image.target_fpr
    rule = origin.image.rule
    try:
        cuts = thresholds_of(detector, scored, rule, target, DRAWS)
        chosen = (_chosen(detector, scored, set(both), rule, target) or cuts).image
        value = min(max(found.image.value, chosen.low), chosen.high)
    except CalibrationError:  # too few images are left, or they say nothing: it stays
        return found
    truth = np.array(scored.anomalous, dtype=bool)
    score = np.array(scored.score)
    return found.model_copy(
        update={
            **_moved(origin, value - origin.image.value, shift),
            "image": _at(value, cuts, score, truth),
            "separation": separation_of(scored),
            "normal": int((~truth).sum()),
            "anomalous": int(truth.sum()),
            "normal_scores": Tail.of(cuts.good),
            "normal_peaks": None if cuts.peaks is None else Tail.of(cuts.peaks),
            "scores_normal": Summary.of(score[~truth]),
            "scores_anomalous": Summary.of(score[truth]) if truth.any() else None,
            "similarity_image": Summary.of(np.array(scored.similarity_image)),
        }
    )


def rests_on_own(calibration: Calibration) -> bool:
    """Whether a calibration was made of the very images that the memory holds, each left out.

    Of others nobody can say how they would be judged now: its threshold is moved with the scores, and
    not chosen again.
    """
    labels = [own.label for own in (calibration.own or {}).values()]
    counts = labels.count(NORMAL), labels.count(ANOMALOUS)
    return calibration.scored == "leave-one-out" and counts == (
        calibration.normal,
        calibration.anomalous,
    )


def flips(before: Calibration, after: Calibration) -> list[Flip]:
    """The memory's own images that are judged otherwise, each left out; those that it held throughout."""
    one, other = before.own or {}, after.own or {}
    found = []
    for entry, was in one.items():
        if (then := other.get(entry)) is None:
            continue
        verdicts = [
            ANOMALOUS if np.float32(own.score) >= np.float32(cut) else NORMAL
            for own, cut in ((was, before.image_threshold), (then, after.image_threshold))
        ]
        if verdicts[0] != verdicts[1]:
            found.append(Flip(entry, then.label, *verdicts))
    return found


def _chosen(
    detector: Detector, scored: Scored, kept: set[str], rule: Rule, target: float
) -> Cuts | None:
    """What is chosen again on the images that the calibration was made of, while `FEW` good ones are left:
    lessons, often odd ones, are no sample of what is to come. None with fewer: all have a say."""
    entries = detector.bank.entries
    rows = [i for i, row in enumerate(scored.own_row) if entries[row].entry_id in kept]
    if len(rows) == len(scored.own_row) or sum(not scored.anomalous[i] for i in rows) < FEW:
        return None
    return thresholds_of(detector, scored.some(rows), rule, target, DRAWS)


def _shift(pairs: list[tuple[float, float]], cut: float) -> float:
    """What moved most of the images around a cut: the median over the half of them nearest to it."""
    if not pairs:
        return 0.0
    before, after = np.array(pairs).T
    count = max(LEAST, len(before) // 2)
    nearest = np.argsort(np.abs(before - cut), kind="stable")[:count]
    return float(np.median(after[nearest] - before[nearest]))


def _moved(origin: Calibration, by: float, scores: float) -> dict[str, object]:
    """What stands on the scale of scores: the threshold and probabilities `by`, the images `scores`."""
    bad = origin.scores_anomalous
    good = [value + scores for value in origin.normal_scores.value]
    return {
        "image": _threshold(origin.image, by),
        "model": _model(origin.model, by),
        "normal_scores": origin.normal_scores.model_copy(update={"value": good}),
        "scores_normal": _summary(origin.scores_normal, scores),
        "scores_anomalous": None if bad is None else _summary(bad, scores),
    }


def _model(model: Platt | Isotonic | None, by: float) -> Platt | Isotonic | None:
    if isinstance(model, Platt):
        return model.model_copy(update={"centre": model.centre + by})
    return model and model.model_copy(update={"x": [x + by for x in model.x]})


def _threshold(cut: Threshold, by: float) -> Threshold:
    moved = {"value": cut.value + by, "low": cut.low + by, "high": cut.high + by}
    return cut.model_copy(update=moved)


def _summary(summary: Summary, by: float) -> Summary:
    quantiles = [value + by for value in summary.quantiles]
    return summary.model_copy(update={"mean": summary.mean + by, "quantiles": quantiles})


def _at(
    value: float, cuts: Cuts, score: Values, truth: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> Threshold:
    """A threshold with what it does to the images as they are now."""
    good, promise = cuts.good, cuts.image.promise
    if promise is not None:
        promise = Promise.of(min(int((good >= value).sum()) + 1, len(good)), len(good))
    facts = {"value": value, "promise": promise, **effect_of(value, good, score[truth])}
    return cuts.image.model_copy(update=facts)
