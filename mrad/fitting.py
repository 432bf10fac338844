"""Scores of labelled images -> thresholds and probabilities (`mrad.calibration` holds them)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrad.calibration import Isotonic, Platt, Reliability, Tail, Threshold
from mrad.confidence import interval, rank_of

Values = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Points:
    """Values in falling order with their truth, the image each belongs to, and a weight."""

    value: Values
    truth: Truth
    image: npt.NDArray[np.int64]
    weight: Values

    @classmethod
    def of(
        cls, value: Values, truth: Truth, image: npt.NDArray[np.int64], weight: Values
    ) -> Points:
        """Sort by value."""
        order = np.argsort(-value, kind="stable")
        return cls(value[order], truth[order], image[order], weight[order])

    def choose(self, times: Values) -> dict[str, Any]:
        """The threshold of the best F1, every image counted `times[image]`, and what it does."""
        weight = self.weight * times[self.image]
        tp, fp = np.cumsum(weight * self.truth), np.cumsum(weight * ~self.truth)
        last = np.append(np.diff(self.value) < 0, True)  # a cut cannot part equal values
        f1 = 2 * tp / np.maximum(tp + fp + tp[-1], 1e-12)
        best = int(np.where(last, f1, -1.0).argmax())
        # Half way to the next lower value: neither class has to repeat its digits.
        value, lower = self.value[best], self.value[min(best + 1, len(self.value) - 1)]
        middle = (value + lower) / 2
        return {
            "value": float(middle if middle > lower else value),
            "precision": float(tp[best] / max(tp[best] + fp[best], 1e-12)),
            "recall": float(tp[best] / max(tp[-1], 1e-12)),
            "f1": float(f1[best]),
            "fpr": float(fp[best] / max(fp[-1], 1e-12)),
        }


def best_f1(points: Points, images: Truth, draws: int, seed: int) -> Threshold:
    """The threshold and its 95 % interval: images resampled within each class, `draws` times."""
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(images == truth) for truth in (False, True)]
    values = []
    for _ in range(draws):
        times = np.zeros(len(images))
        for members in classes:
            drawn = rng.choice(members, len(members)) if len(members) else members
            times += np.bincount(drawn, minlength=len(images))
        values.append(points.choose(times)["value"])
    chosen = points.choose(np.ones(len(images)))
    low, high = np.quantile(values, [0.025, 0.975]) if values else [chosen["value"]] * 2
    low, high = min(float(low), chosen["value"]), max(float(high), chosen["value"])
    return Threshold(rule="f1", low=low, high=high, **chosen)


def by_false_alarms(good: Values, target_fpr: float, bad: Values | None = None) -> Threshold:
    """The threshold that good parts to come reach with a wanted rate, from those that were seen.

    Args:
        good: scores of independent good parts, none judged by a memory that holds it; one or more.
        target_fpr: the rate, in [0, 1].
        bad: scores of known defects, for what the threshold does to them; they do not move it.

    `Threshold.promise` says which rate it promises: more than the wanted one where the good parts are
    too few for that.
    """
    value, promise = Tail.of(good).promise_at(target_fpr)
    low, high = interval(-np.sort(-good), rank_of(target_fpr, len(good)))
    return Threshold(
        value=value,
        low=min(low, value),
        high=max(high, value),
        rule="fpr",
        target_fpr=target_fpr,
        promise=promise,
        **effect_of(value, good, np.empty(0) if bad is None else bad),
    )


def effect_of(value: float, good: Values, bad: Values) -> dict[str, Any]:
    """What a threshold does to known images; all but the rate of false alarms None without defects."""
    alarms, caught, known = int((good >= value).sum()), int((bad >= value).sum()), len(bad)
    return {
        "precision": caught / max(caught + alarms, 1) if known else None,
        "recall": caught / known if known else None,
        "f1": 2 * caught / (caught + alarms + known) if known else None,
        "fpr": alarms / len(good),
    }


def fit_platt(score: Values, truth: Truth) -> Platt:
    """Logistic regression with Platt's softened targets; never falling."""
    centre, scale = float(score.mean()), float(score.std()) or 1.0
    x = np.tile((score - centre) / scale, 2)[:, None]
    positives, negatives = int(truth.sum()), int((~truth).sum())
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    y = np.repeat([True, False], len(score))
    weight = np.concatenate([target, 1 - target])
    from sklearn.linear_model import LogisticRegression  # seconds to import

    fitted = LogisticRegression(C=1e6, max_iter=1_000).fit(x, y, sample_weight=weight)
    slope = float(fitted.coef_[0, 0])
    return Platt(
        slope=max(slope, 1e-6), offset=float(fitted.intercept_[0]), centre=centre, scale=scale
    )


def fit_isotonic(score: Values, truth: Truth) -> Isotonic:
    """Best rising function; ends are softened, so that nothing is ever certain."""
    from sklearn.isotonic import IsotonicRegression

    count = len(score)
    fitted = IsotonicRegression(y_min=1 / (count + 2), y_max=1 - 1 / (count + 2)).fit(score, truth)
    return Isotonic(x=fitted.X_thresholds_.tolist(), y=fitted.y_thresholds_.tolist())


FITS: dict[str, Callable[[Values, Truth], Platt | Isotonic]] = {
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}


def reliability_of(
    score: Values, truth: Truth, method: str, seed: int, bins: int = 8
) -> Reliability:
    """Predicted against observed, each image judged by a fit that had not seen it."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(5, int(truth.sum()), int((~truth).sum()))
    predicted = np.empty(len(score))
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(score, truth):
        model = FITS[method](score[train], truth[train])
        predicted[test] = [model(value) for value in score[test]]
    parts = [part for part in np.array_split(np.argsort(predicted), bins) if len(part)]
    mean = np.array([predicted[part].mean() for part in parts])
    seen = np.array([truth[part].mean() for part in parts])
    count = np.array([len(part) for part in parts])
    return Reliability(
        predicted=mean.tolist(),
        observed=seen.tolist(),
        count=count.tolist(),
        brier=float(np.mean((predicted - truth) ** 2)),
        expected_error=float(np.average(np.abs(mean - seen), weights=count)),
    )
