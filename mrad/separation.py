"""Whether scores tell defective images from good ones at all."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict


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
    def tells(self) -> bool:
        """Whether it is more than chance."""
        return self.low > 0.5
