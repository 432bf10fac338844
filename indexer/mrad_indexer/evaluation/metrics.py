"""Image and pixel metrics (docs/method.md). Pixels stream through histograms.

Scores of TF differ in the third or fourth digit, so equal-width bins would blur them. Pixels are
binned by the leading bits of their float32 pattern, which keeps their order and is fine wherever
they lie: BINS_PER_OCTAVE steps between any two powers of two (2.4e-7 below one half).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.integrate import trapezoid
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from mrad.errors import MRADError, NonFiniteError
from mrad.maps import fuse
from mrad.types import BoolArray, FloatArray

Float64Array = npt.NDArray[np.float64]

SHIFT = 3
BINS_PER_OCTAVE = 1 << (23 - SHIFT)
FLOOR = 2.0**-12
"""Smaller map values share one bin: no threshold lies there."""
FPR_LIMIT = 0.3
FUSIONS = (0.0, 0.5, 0.7, 0.9, 1.0)
"""Weights of the image probability to compare: the map alone, some between, the image level alone."""
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int8)


@dataclass(frozen=True)
class Curve:
    """Points of a ROC, precision-recall or PRO curve, thinned for drawing."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class ImageMetrics:
    """Of one object's images. None where one of the classes is missing."""

    auroc: float | None
    ap: float | None
    f1_max: float | None
    f1_threshold: float | None


@dataclass(frozen=True)
class PixelMetrics:
    """Of one object's pixels. None where no pixel, or every pixel, is anomalous."""

    auroc: float | None
    ap: float | None
    f1_max: float | None
    f1_threshold: float | None
    aupro: float | None
    binning_error: float
    """No more than this can binning have moved `auroc`."""


NO_PIXELS = PixelMetrics(None, None, None, None, None, 0.0)


def image_metrics(scores: Sequence[float], labels: Sequence[bool]) -> ImageMetrics:
    """`scores` [n], `labels` [n], True for anomalous. Raises `NonFiniteError`."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if not np.isfinite(values).all():
        raise NonFiniteError("an image score is NaN or infinite")
    if len(truth) == 0 or truth.all() or not truth.any():
        return ImageMetrics(None, None, None, None)
    f1, threshold = f1_max(values, truth)
    return ImageMetrics(
        auroc=float(roc_auc_score(truth, values)),
        ap=float(average_precision_score(truth, values)),
        f1_max=f1,
        f1_threshold=threshold,
    )


def auroc_by_fusion(
    tops: Sequence[float], images: Sequence[float], labels: Sequence[bool]
) -> dict[float, float | None]:
    """Weight of the image probability -> image AUROC (docs/method.md), from a score's two parts.

    `tops`: mean of each map's largest values; `images`: image probabilities; `labels`: True for
    anomalous; all [n]. Raises `NonFiniteError`.
    """
    top, image = torch.tensor(tops, dtype=torch.float64), torch.tensor(images, dtype=torch.float64)
    return {w: image_metrics(fuse(top, image, w).tolist(), labels).auroc for w in FUSIONS}


def f1_max(values: Float64Array, truth: BoolArray) -> tuple[float, float]:
    """Largest F1 over all thresholds, and the threshold (`value >= threshold` is anomalous)."""
    precision, recall, thresholds = precision_recall_curve(truth, values)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    return float(f1[best]), float(thresholds[best])


def bin_of(values: FloatArray) -> npt.NDArray[np.int64]:
    """Order-preserving bin of each value in [0, 1]."""
    clipped = np.maximum(np.asarray(values, dtype=np.float32), np.float32(FLOOR))
    return (np.ascontiguousarray(clipped).view(np.uint32) >> SHIFT).astype(np.int64)


def value_of(bins: npt.NDArray[np.int64]) -> FloatArray:
    """Smallest value of each bin."""
    return (bins.astype(np.uint32) << np.uint32(SHIFT)).view(np.float32)


class PixelScores:
    """Map values of many images in bounded memory: counts of good and bad pixels for each bin.

    A third row gives each anomalous pixel 1 / (area of its region), which is what PRO sums: the
    mean over regions of the part found at a threshold is this row's cumulative sum over the number
    of regions. So AUPRO costs one pass over the pixels, whatever the number of regions and
    thresholds. At most 12 * 2^20 bins of 24 bytes, 300 MB; where all values lie in [0.45, 0.55], 8 MB.
    """

    def __init__(self) -> None:
        self.first = 0
        self.normal = np.zeros(0, dtype=np.int64)
        self.anomalous = np.zeros(0, dtype=np.int64)
        self.region = np.zeros(0, dtype=np.float64)
        self.regions = 0

    def add(self, values: FloatArray, mask: BoolArray, counted: BoolArray | None = None) -> None:
        """One image: map float32 [H, W] in [0, 1] and its anomalous pixels, bool [H, W].

        `counted` bool [H, W]: pixels of interest, None for all.

        Raises `MRADError` when the shapes differ, `NonFiniteError` on NaN.
        """
        if values.shape != mask.shape:
            raise MRADError(f"the map is {values.shape}, its mask {mask.shape}")
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1.0001:
            raise NonFiniteError("a map holds values that are not probabilities")
        bins = bin_of(values)
        self._cover(int(bins.min()), int(bins.max()) + 1)
        bins -= self.first
        if counted is not None:
            mask = mask & counted
        np.add.at(self.normal, bins[~mask if counted is None else counted & ~mask], 1)
        if not mask.any():
            return
        inside = bins[mask]
        labels, count = ndimage.label(mask, structure=EIGHT_NEIGHBOURS)
        own = labels[mask]
        np.add.at(self.anomalous, inside, 1)
        np.add.at(self.region, inside, (1.0 / np.bincount(own, minlength=count + 1).clip(1))[own])
        self.regions += count

    def _cover(self, first: int, end: int) -> None:
        """Make room for bins [first, end)."""
        if not len(self.normal):
            self.first = first
        before, after = max(0, self.first - first), max(0, end - self.first - len(self.normal))
        if before or after:
            room = (before, after)
            self.normal, self.anomalous = np.pad(self.normal, room), np.pad(self.anomalous, room)
            self.region = np.pad(self.region, room)
            self.first -= before

    def metrics(self) -> PixelMetrics:
        """Everything about the pixels added so far."""
        normal, anomalous = int(self.normal.sum()), int(self.anomalous.sum())
        if not normal or not anomalous:
            return NO_PIXELS
        threshold, fp, tp, pro = self._cumulative()
        fpr, recall = fp / normal, tp / anomalous
        f1 = 2 * tp / (fp + tp + anomalous)
        best = int(f1.argmax())
        counts = np.diff(fp, prepend=0) * np.diff(tp, prepend=0)
        return PixelMetrics(
            auroc=area(_from_zero(fpr), _from_zero(recall)),
            ap=float(np.sum(np.diff(recall, prepend=0) * tp / (tp + fp))),
            f1_max=float(f1[best]),
            f1_threshold=float(threshold[best]),
            aupro=area(_from_zero(fpr), _from_zero(pro), FPR_LIMIT),
            binning_error=float(counts.sum() / 2 / normal / anomalous),
        )

    def curves(self, points: int = 300) -> dict[str, Curve]:
        """`roc`, `pr` and `pro`, at most about `points` each; empty without both classes."""
        normal, anomalous = int(self.normal.sum()), int(self.anomalous.sum())
        if not normal or not anomalous:
            return {}
        _, fp, tp, pro = self._cumulative()
        fpr, recall = _from_zero(fp / normal), _from_zero(tp / anomalous)
        return {
            "roc": thin(fpr, recall, points),
            "pr": thin(recall[1:], tp / (tp + fp), points),
            "pro": thin(fpr, _from_zero(pro), points),
        }

    def quantile(self, share: float) -> float:
        """Value below which `share` of all pixels lie; raises when empty."""
        counts = self.normal + self.anomalous
        if not counts.sum():
            raise MRADError("no pixel has been added yet")
        place = int(np.searchsorted(np.cumsum(counts), share * counts.sum(), side="left"))
        return float(value_of(np.array([self.first + min(place, len(counts) - 1)]))[0])

    def _cumulative(self) -> tuple[FloatArray, Float64Array, Float64Array, Float64Array]:
        """Threshold, false and true positives, PRO, from the highest value down."""
        used = np.flatnonzero((self.normal > 0) | (self.anomalous > 0))[::-1]
        fp = np.cumsum(self.normal[used]).astype(np.float64)
        tp = np.cumsum(self.anomalous[used]).astype(np.float64)
        pro = np.cumsum(self.region[used]) / max(self.regions, 1)
        return value_of(used + self.first), fp, tp, pro


def area(x: Float64Array, y: Float64Array, limit: float = 1.0) -> float:
    """Trapezoidal area under a curve of rising `x` up to `limit`, divided by `limit`.

    The curve is cut at the limit by linear interpolation, as AUPRO wants (FPR up to 0.3).
    """
    end = int(np.searchsorted(x, limit, side="right"))
    x_cut, y_cut = x[:end], y[:end]
    if end < len(x) and x_cut[-1] < limit:
        y_end = y[end - 1] + (y[end] - y[end - 1]) * (limit - x[end - 1]) / (x[end] - x[end - 1])
        x_cut, y_cut = np.append(x_cut, limit), np.append(y_cut, y_end)
    return float(trapezoid(y_cut, x_cut) / limit)


def thin(x: Float64Array, y: Float64Array, points: int) -> Curve:
    """A curve with few enough points to draw: even steps in x and in y, both ends kept."""
    half = points // 2
    by_x = np.searchsorted(x, np.linspace(x[0], x[-1], half)).clip(0, len(x) - 1)
    by_index = np.linspace(0, len(x) - 1, half).astype(int)
    chosen = np.unique(np.concatenate([by_x, by_index]))
    return Curve(tuple(x[chosen].tolist()), tuple(y[chosen].tolist()))


def _from_zero(values: Float64Array) -> Float64Array:
    return np.concatenate([[0.0], values])
