"""What the scores of known images let one say, each with its 95 % interval.

False alarms, from good parts alone (conformal reasoning): where a new good part and the n known ones might
have come in any order, its score is above the k-th largest of theirs with probability k / (n + 1), whatever
the scores look like. And whether scores tell defective images from good ones at all.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

Values = npt.NDArray[np.float64]
SURE = 0.95
"""Of every interval here."""


class Promise(BaseModel):
    """The false-alarm rate of a threshold on good parts to come."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    rate: float
    """To expect: the mean over all sets of good parts that might have been there."""
    low: float
    high: float
    """Where the rate of this very threshold lies, 95 %."""
    parts: int = Field(ge=1)
    """Independent good parts that it rests on; near-duplicates count once."""

    @classmethod
    def of(cls, rank: int, parts: int) -> Promise:
        """Of a threshold just above the score of this rank (1: the largest) of so many parts."""
        from scipy.special import betaincinv  # seconds to import

        low, high = betaincinv(rank, parts - rank + 1, [(1 - SURE) / 2, (1 + SURE) / 2])
        return cls(rate=rank / (parts + 1), low=float(low), high=float(high), parts=parts)

    def keeps(self, target: float) -> bool:
        """Whether so few parts can promise a rate at all."""
        return self.rate <= target + 1e-9


def rank_of(target: float, parts: int) -> int:
    """Rank of the score above which a new good part lies with probability `target` at most.

    1, the largest, where so few parts can promise no rate that low.
    """
    return min(max(math.floor(target * (parts + 1) + 1e-9), 1), parts)


def independent(values: Values, group: npt.NDArray[np.int64]) -> Values:
    """The largest value of each group: photographs of the very same thing say one thing once."""
    _, place = np.unique(group, return_inverse=True)
    found = np.full(int(place.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(found, place, values)
    return found


def interval(falling: Values, rank: int) -> tuple[float, float]:
    """95 %: where a threshold of exactly the promised rate lies; falling values in [0, 1].

    1 where the parts do not bound it from above.
    """
    from scipy.stats import binom

    parts = len(falling)
    share = rank / (parts + 1)
    few, many = binom.ppf([(1 - SURE) / 2, (1 + SURE) / 2], parts, share).astype(int)
    high = float(falling[few - 1]) if few >= 1 else max(1.0, float(falling[0]))
    return float(falling[min(many, parts - 1)]), high


class Separation(BaseModel):
    """How well the scores told defective images from good ones: area under the ROC curve, 95 %."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    auroc: float
    low: float
    high: float
    hint: str = ""
    """What would tell them apart better, where that is known."""

    @classmethod
    def of(cls, bad: npt.NDArray[np.float64], good: npt.NDArray[np.float64]) -> Separation:
        """Of scores, at least one of each; the interval is Hanley and McNeil's."""
        above_, equal = (bad[:, None] > good).mean(), (bad[:, None] == good).mean()
        area = float(above_ + equal / 2)
        one, two = area / (2 - area), 2 * area**2 / (1 + area)
        square = area * (1 - area) + (len(bad) - 1) * (one - area**2)
        square += (len(good) - 1) * (two - area**2)
        error = math.sqrt(max(square, 0.0) / (len(bad) * len(good)))
        return cls(
            auroc=area, low=max(0.0, area - 1.96 * error), high=min(1.0, area + 1.96 * error)
        )

    @property
    def significant(self) -> bool:
        """Whether it is more than chance."""
        return self.low > 0.5
