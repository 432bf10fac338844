"""Thresholds and calibrated probabilities: kept beside the raw scores, never baked into them.

A bank stores one calibration for each head (`bank.calibration = {"tf": {...}}`); it holds for the
settings that it names. A value at or above a threshold is anomalous. Good images alone are enough for
thresholds (`mrad.confidence`); probabilities need defects.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mrad.confidence import Promise, Separation, rank_of
from mrad.errors import CalibrationError
from mrad.words import counted

if TYPE_CHECKING:
    from mrad.memory.bank import MemoryBank

Rule = Literal["f1", "fpr"]
CALM = 10.0
"""Calibrated score of the median good part, or more: see `Calibration.calibrated`."""
MAX_KEPT = 2_000
"""Scores of good images kept one by one; more are thinned, the largest ones kept whole."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Threshold(_Part):
    """A cut, how it was chosen, and what it did on the images it was chosen on."""

    value: float
    low: float
    high: float
    """95 % interval of `value`, had other images been there."""
    rule: Rule
    target_fpr: float | None = None
    promise: Promise | None = None
    """Of good parts to come; None for a threshold that was not chosen by false alarms."""
    precision: float | None
    recall: float | None
    f1: float | None
    """None where no defect was there."""
    fpr: float


class Tail(_Part):
    """Values of normal things, thinned: of `total`, `rank[i]` are at or above `value[i]`."""

    total: int = Field(ge=1)
    value: list[float] = Field(min_length=1)
    """Falling."""
    rank: list[int]
    """Rising."""

    @classmethod
    def of(
        cls,
        values: npt.NDArray[np.floating[Any]],
        weights: npt.NDArray[np.integer[Any]] | None = None,
    ) -> Tail:
        """From values, each standing for `weights` things. Raises `CalibrationError` when empty."""
        if not len(values):
            raise CalibrationError("there is no normal value to take a threshold from")
        counts = np.ones(len(values), np.int64) if weights is None else weights.astype(np.int64)
        order = np.argsort(-values, kind="stable")
        value, rank = values[order], np.cumsum(counts[order])
        last = np.append(np.flatnonzero(np.diff(value)), len(value) - 1)  # ties: their last rank
        value, rank = value[last], rank[last]
        if len(value) > MAX_KEPT:
            tail = MAX_KEPT // 2
            rest = np.geomspace(tail, len(value) - 1, MAX_KEPT - tail).astype(int)
            chosen = np.unique(np.concatenate([np.arange(tail), rest]))
            value, rank = value[chosen], rank[chosen]
        return cls(total=int(rank[-1]), value=value.tolist(), rank=rank.tolist())

    def threshold_at(self, target_fpr: float) -> float:
        """A kept value at or above which lie at most `target_fpr` of the normal things.

        Where not even one may be flagged, just above the highest.
        """
        if not 0 <= target_fpr <= 1:
            raise CalibrationError(f"a false-alarm rate lies in [0, 1], not {target_fpr}")
        allowed = int(np.searchsorted(self.rank, target_fpr * self.total + 1e-9, side="right"))
        return self.value[allowed - 1] if allowed else above(self.value[0])

    def rank_at(self, target_fpr: float) -> tuple[float, int]:
        """A threshold that good things to come reach with this rate at most, and its rank.

        It promises rank / (total + 1): more than asked for, just above the highest, where so few
        things can promise no rate that low.
        """
        if not 0 <= target_fpr <= 1:
            raise CalibrationError(f"a false-alarm rate lies in [0, 1], not {target_fpr}")
        rank = rank_of(target_fpr, self.total)
        place = min(int(np.searchsorted(self.rank, rank)), len(self.rank) - 1)
        if self.rank[place] > rank and place >= MAX_KEPT // 2:  # thinned: rather fewer alarms
            place, rank = place - 1, self.rank[place - 1]
        return above(self.value[place]), rank

    def promise_at(self, target_fpr: float) -> tuple[float, Promise]:
        """The threshold of `rank_at`, and what it promises."""
        value, rank = self.rank_at(target_fpr)
        return value, Promise.of(rank, self.total)

    def p_value(self, value: float) -> float:
        """How rare it is for a good thing to lie as high or higher: never 0, for n things show 1/(n+1)."""
        return (1 + round(self.fpr_at(value) * self.total)) / (1 + self.total)

    def fpr_at(self, threshold: float) -> float:
        """Share of normal things at or above a threshold."""
        above_it = int(np.searchsorted(-np.asarray(self.value), -threshold, side="right"))
        return self.rank[above_it - 1] / self.total if above_it else 0.0


class Platt(_Part):
    """p = 1 / (1 + exp(-(slope * (score - centre) / scale + offset)))."""

    method: Literal["platt"] = "platt"
    slope: float = Field(gt=0)
    offset: float
    centre: float
    scale: float = Field(gt=0)

    def __call__(self, score: float) -> float:
        """Calibrated probability of one raw score."""
        return _sigmoid(self.slope * (score - self.centre) / self.scale + self.offset)


class Isotonic(_Part):
    """A rising piecewise-linear function, flat outside its first and last point."""

    method: Literal["isotonic"] = "isotonic"
    x: list[float] = Field(min_length=1)
    y: list[float]

    def __call__(self, score: float) -> float:
        """Calibrated probability of one raw score."""
        return float(np.interp(score, self.x, self.y))


class Summary(_Part):
    """A distribution to compare later ones with (drift)."""

    count: int
    mean: float
    std: float
    quantiles: list[float]
    """At 0, 5, 10, ..., 100 %."""

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> Summary:
        """Of at least one value."""
        if not len(values):
            raise CalibrationError("there is nothing to summarise")
        quantiles = np.quantile(values, np.linspace(0, 1, 21)).tolist()
        return cls(
            count=len(values),
            mean=float(values.mean()),
            std=float(values.std()),
            quantiles=quantiles,
        )


class Reliability(_Part):
    """Predicted against observed, on images that the fitted function had not seen (5 folds)."""

    predicted: list[float]
    observed: list[float]
    count: list[int]
    brier: float
    expected_error: float
    """Mean distance of predicted from observed, weighted by count."""


class OwnScore(NamedTuple):
    """One image of the memory, left out."""

    label: int
    score: float
    peak: float
    """The largest value of its map."""


class Calibration(_Part):
    """One head's thresholds and probabilities on one bank."""

    format_version: Literal[1] = 1
    head: str
    settings: dict[str, Any]
    """What the scores depend on: fusion, sigma, top, retrieval, checkpoint."""
    scored: Literal["leave-one-out", "held-out", "mixed"]
    made_at: str
    """RFC 3339, UTC."""
    source: str = ""
    normal: int
    anomalous: int
    image: Threshold
    pixel: Threshold | None = None
    normal_scores: Tail
    """Of good images; near-duplicates count once, with the largest score among them."""
    normal_pixels: Tail | None = None
    normal_peaks: Tail | None = None
    """The largest map value of each good image; near-duplicates count once."""
    model: Platt | Isotonic | None = Field(None, discriminator="method")
    """None where there were no defects to fit it on."""
    prevalence: float | None = Field(None, gt=0, lt=1)
    """Share of anomalous images among those calibrated on; probabilities presume it."""
    reliability: Reliability | None = None
    scores_normal: Summary
    scores_anomalous: Summary | None = None
    similarity_image: Summary
    """Cosine of each image to its nearest image key."""
    similarity_patch: Summary
    """Cosine of each image's most anomalous patch to its nearest patch key."""
    separation: Separation | None = None
    """None where there were no defects."""
    own: dict[str, OwnScore] | None = None
    """By entry: the memory's own images as they are judged now, each left out. What thresholds follow
    lessons by (`mrad.thresholds.follow`); None where nobody measured it."""
    follows: str = ""
    """The memory that `own` is of (`mrad.thresholds.own.memory_of`)."""
    origin: str = ""
    """`made_at` of the calibration that this one follows lessons from; empty for one that was made."""
    objects: dict[str, Calibration] = {}
    """By product, where thresholds were chosen for it alone (`mrad.thresholds.objects`)."""

    @property
    def image_threshold(self) -> float:
        """Cut of `Prediction.score`."""
        return self.image.value

    @property
    def pixel_threshold(self) -> float:
        """Cut of map values. Raises `CalibrationError` when there is none."""
        if self.pixel is None:
            raise CalibrationError(
                "the calibration has no pixel threshold, for it had no maps of good images; calibrate "
                "again, or pass a threshold"
            )
        return self.pixel.value

    @property
    def expected(self) -> Promise:
        """False alarms of the image threshold to expect, from the good images that it was held against."""
        alarms = round(self.normal_scores.fpr_at(self.image_threshold) * self.normal_scores.total)
        return Promise.of(min(alarms + 1, self.normal_scores.total), self.normal_scores.total)

    def threshold_at(self, target_fpr: float, level: Literal["image", "pixel"] = "image") -> float:
        """Threshold that at most `target_fpr` of the good images to come reach.

        At the pixel level: of whose maps any value reaches it; by shares of good pixels where no more is
        known. Rates below 1 / (number of good images + 1) give a threshold just above the highest good
        score, for no sample can promise less. Raises `CalibrationError`.
        """
        if level == "pixel" and self.normal_peaks is None and self.normal_pixels is not None:
            return self.normal_pixels.threshold_at(target_fpr)
        return self._good(level).rank_at(target_fpr)[0]

    def shortfall(self, target_fpr: float) -> str | None:
        """What to tell whoever asks for a rate that the good images cannot promise, with a code."""
        parts = self.normal_scores.total
        promised = self.normal_scores.rank_at(target_fpr)[1] / (parts + 1)
        if promised <= target_fpr + 1e-9:
            return None
        return (
            f"rate_not_promised: {counted(parts, 'good image')} cannot promise {100 * target_fpr:.4g} % false "
            f"alarms; the threshold lies just above the highest of them, which promises "
            f"{100 * promised:.2g} %"
        )

    def _good(self, level: Literal["image", "pixel"]) -> Tail:
        tail = self.normal_scores if level == "image" else self.normal_peaks
        if tail is None:
            raise CalibrationError("the calibration holds no maps of good images: calibrate again")
        return tail

    @property
    def weakness(self) -> str:
        """Why verdicts deserve no trust; empty where nothing says so."""
        found = self.separation
        if found is None or found.significant:
            return ""
        return (
            "this memory cannot tell its defective images from its good ones: area under the ROC curve "
            f"{found.auroc:.2f} (95 %: {found.low:.2f} to {found.high:.2f}; chance 0.50)"
            + (f"; {found.hint}" if found.hint else "")
        )

    def p_value(self, score: float) -> float:
        """Share of good parts that look as unusual, or more: small says anomalous. No probability of
        a defect, and no defect is needed for it."""
        return self.normal_scores.p_value(score)

    def probability(self, score: float, *, prevalence: float | None = None) -> float | None:
        """Probability that an image of this raw score is anomalous; None where no defects were there.

        `prevalence`: the share of anomalous images where it is used, in (0, 1), when it is not
        that of the calibration: odds are scaled by the ratio of prior odds.
        """
        if prevalence is not None and not 0 < prevalence < 1:
            raise CalibrationError(f"a prevalence lies between 0 and 1, not {prevalence}")
        if self.model is None or self.prevalence is None:
            return None
        probability = self.model(score)
        if prevalence is None:
            return probability
        ratio = (prevalence / (1 - prevalence)) / (self.prevalence / (1 - self.prevalence))
        return probability * ratio / (probability * ratio + 1 - probability)

    def calibrated(self, score: float, *, threshold: float | None = None) -> float:
        """A raw score on the scale that people read: 0 to 100, the threshold at 50.

        A logistic curve, 50 at the threshold. Its unit is the distance of the median good part from
        the threshold, so that this part is 10 and a score as far beyond is 90; no defect is needed.
        Where good parts spread further than that, or known defects lie more than twice as far
        beyond, the unit is larger, so that scores keep apart.

        `threshold`: the cut in force, where it is not the calibration's own.
        """
        cut = self.image_threshold if threshold is None else threshold
        return 100 * _sigmoid(math.log(100 / CALM - 1) * (score - cut) / self.unit(cut))

    def unit(self, threshold: float) -> float:
        """The unit of `calibrated` with this cut in force, in raw score."""
        good, bad = self.scores_normal, self.scores_anomalous
        unit = max(threshold - good.quantiles[10], good.std, 1e-9)
        return unit if bad is None else max(unit, (bad.quantiles[10] - threshold) / 2)

    def map_range(self, threshold: float | None = None) -> tuple[float, float] | None:
        """Map values of the coldest and the hottest colour, the same for every image.

        The pixel threshold lies in the middle, and three quarters of the good pixels stay cold: a
        good part looks calm. None where the calibration has no pixel values, or they overlap.

        `threshold`: the pixel threshold in force, where it is not the calibration's own.
        """
        middle = threshold if threshold is not None else self.pixel.value if self.pixel else None
        if middle is None or self.normal_pixels is None:
            return None
        low = self.normal_pixels.threshold_at(0.25)
        return (low, 2 * middle - low) if low < middle else None

    @classmethod
    def of(cls, bank: MemoryBank, head: str) -> Calibration:
        """The bank's calibration for a head. Raises `CalibrationError` when it has none."""
        stored = (bank.calibration or {}).get(head)
        if stored is None:
            known = ", ".join(sorted(bank.calibration or {})) or "none"
            raise CalibrationError(
                f"the bank holds no calibration for head {head!r} (it has: {known}); "
                "run mrad calibrate, or pass a threshold"
            )
        try:
            return cls.model_validate(stored)
        except ValidationError as error:
            raise CalibrationError(
                f"the bank's calibration for {head!r} cannot be used: {error}"
            ) from error

    def into(self, bank: MemoryBank) -> MemoryBank:
        """The bank with this calibration beside those of other heads."""
        others = bank.calibration or {}
        return bank.with_calibration({**others, self.head: self.model_dump(mode="json")})


def refuse_unreachable(value: float | None, name: str = "threshold") -> None:
    """Raises `CalibrationError` for a threshold that no score, or every score, reaches."""
    if value is not None and not 0 <= value <= above(1.0):
        raise CalibrationError(
            f"{name} is of the raw score, from 0 to 1, not {value:g}; calibrated_score runs to 100, "
            "and its threshold is 50 always"
        )


def above(value: float) -> float:
    """The next float32: maps are float32, and comparisons round the threshold to theirs."""
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))
