"""Scores of images, none of which retrieves itself -> a calibration.

Good images alone give thresholds, by the false alarms to expect; defects add probabilities and what a
threshold catches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch

from mrad.calibration import Calibration, Rule, Summary, Tail, Threshold
from mrad.confidence import Separation, independent
from mrad.detector import Detector
from mrad.errors import CalibrationError
from mrad.fitting import FITS, Points, Values, best_f1, by_false_alarms, reliability_of
from mrad.heads.nn import NNHead
from mrad.thresholds.near_duplicates import groups_of
from mrad.types import BoolArray

TARGET = 0.05
"""False-alarm rate that is asked for where nobody says one."""
FEWEST = 2
"""Independent images of a class for it to say anything: one cannot be judged without itself."""
MOST_MARKED = 0.5
"""Share of the good pixels above which the best F1 marks next to everything: maps tell nothing there."""
PIXELS_KEPT = 1_000
"""Of each class, per image, to choose a pixel threshold from."""
PER_IMAGE = (
    "score", "anomalous", "own_row", "peak", "whole", "top", "sketch", "similarity_image",
    "similarity_patch",
    "source",
)  # fmt: skip
"""What `Scored` holds one of for each image, where it was measured."""


@dataclass
class Scored:
    """What calibration needs of every image, in bounded memory."""

    score: list[float] = field(default_factory=list)
    anomalous: list[bool] = field(default_factory=list)
    own_row: list[int] = field(default_factory=list)
    """Row of the image's own entry, excluded while it was scored; -1 for none."""
    source: list[str] = field(default_factory=list)
    """What the image is called."""
    peak: list[float | None] = field(default_factory=list)
    """The largest map value within what is looked at."""
    whole: list[float] = field(default_factory=list)
    """What the image level alone says; empty where it was not kept."""
    top: list[float] = field(default_factory=list)
    """What the map alone says."""
    sketch: list[torch.Tensor | None] = field(default_factory=list)
    """What tells near-duplicates; None for images that are cut."""
    similarity_image: list[float] = field(default_factory=list)
    similarity_patch: list[float] = field(default_factory=list)
    pixels: list[Values] = field(default_factory=list)
    """Sampled map values; of one image and one class each."""
    pixel_image: list[int] = field(default_factory=list)
    pixel_truth: list[bool] = field(default_factory=list)
    pixel_weight: list[float] = field(default_factory=list)
    """Pixels that one sampled value stands for."""
    skipped: list[str] = field(default_factory=list)
    """Why images were left out: they, or their masks, cannot be read."""
    warnings: Counter[str] = field(default_factory=Counter)
    """Code -> images that were read with it, or whose masks were."""

    def some(self, images: Sequence[int]) -> Scored:
        """Those images alone."""
        count, found = len(self.score), Scored()
        for name in PER_IMAGE:
            if len(values := getattr(self, name)) == count:
                setattr(found, name, [values[i] for i in images])
        place = {image: number for number, image in enumerate(images)}
        for values, image, truth, weight in zip(
            self.pixels, self.pixel_image, self.pixel_truth, self.pixel_weight
        ):
            if image in place:
                found.pixels.append(values)
                found.pixel_image.append(place[image])
                found.pixel_truth.append(truth)
                found.pixel_weight.append(weight)
        return found

    def join(self, other: Scored) -> None:
        """Add the images of another."""
        self.pixel_image += [image + len(self.score) for image in other.pixel_image]
        for name in (*PER_IMAGE, "pixels", "pixel_truth", "pixel_weight", "skipped"):
            getattr(self, name).extend(getattr(other, name))
        self.warnings.update(other.warnings)

    def sample(
        self, image: int, truth: bool, values: Values, rng: np.random.Generator, most: int
    ) -> None:
        """Keep `most` of the map values of one image and one class, and what each stands for."""
        if not len(values):
            return
        count = min(most, len(values))
        # The largest normal values decide a false-alarm rate: strata by rank keep the tail's shape.
        ranked = np.sort(values)
        edges = np.linspace(0, len(ranked), count + 1)
        picked = (edges[:-1] + rng.random(count) * np.diff(edges)).astype(int)
        self.pixels.append(ranked[picked.clip(0, len(ranked) - 1)].astype(np.float64))
        self.pixel_image.append(image)
        self.pixel_truth.append(truth)
        self.pixel_weight.append(len(values) / count)


def calibrate(
    detector: Detector,
    scored: Scored,
    *,
    rule: Rule | None = None,
    target_fpr: float = TARGET,
    method: str = "platt",
    draws: int = 500,
    seed: int = 0,
    source: str = "",
    checkpoint: str = "",
) -> Calibration:
    """Thresholds, probabilities and reference statistics from scores.

    Args:
        detector: what scored.
        scored: two independent good images at least; near-duplicates count once. Fewer than two
            defective ones say nothing: the good ones are asked alone.
        rule: `f1`, the best on these images, or `fpr`, a wanted rate of false alarms; None: `f1` where
            there are defects. The pixel threshold is by `fpr` without masks, and where maps do not tell them.
        target_fpr: that rate: the share of good images to come that may be flagged.
        method: of probabilities, `platt` or `isotonic`.
        draws: of the bootstrap.
        seed: of whatever is drawn.
        source: the images' name, kept.
        checkpoint: the head's, kept.

    Raises `CalibrationError` with fewer images, an unknown `method`, or when defective images do not
    score higher.
    """
    score, truth = np.array(scored.score), np.array(scored.anomalous, dtype=bool)
    if method not in FITS:
        raise CalibrationError(f"method {method!r} is unknown; choose {' or '.join(FITS)}")
    cuts = thresholds_of(detector, scored, rule, target_fpr, draws, seed)
    separation = separation_of(scored)
    defects = int(truth.sum()) >= FEWEST and score[truth].mean() > score[~truth].mean()
    own = np.array(scored.own_row) >= 0
    settings = {name: getattr(detector, name) for name in ("fusion", "sigma", "top", "retrieval")}
    pixels = _pixel_points(scored)
    return Calibration(
        head=detector.head.name,
        settings=settings | {"checkpoint": checkpoint},
        scored="leave-one-out" if own.all() else "mixed" if own.any() else "held-out",
        made_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        source=source,
        normal=int((~truth).sum()),
        anomalous=int(truth.sum()),
        image=cuts.image,
        pixel=cuts.pixel,
        normal_scores=Tail.of(cuts.good),
        normal_pixels=_pixel_tail(pixels),
        normal_peaks=None if cuts.peaks is None else Tail.of(cuts.peaks),
        model=FITS[method](score, truth) if defects else None,
        prevalence=float(truth.mean()) if defects else None,
        reliability=reliability_of(score, truth, method, seed) if defects else None,
        separation=separation,
        scores_normal=Summary.of(score[~truth]),
        scores_anomalous=Summary.of(score[truth]) if truth.any() else None,
        similarity_image=Summary.of(np.array(scored.similarity_image)),
        similarity_patch=Summary.of(np.array(scored.similarity_patch)),
    )


@dataclass(frozen=True)
class Cuts:
    """Thresholds, and the good images that they rest on."""

    image: Threshold
    pixel: Threshold | None
    good: Values
    """Scores of independent good images."""
    peaks: Values | None
    """Their largest map values; None where one has no map."""


def thresholds_of(
    detector: Detector,
    scored: Scored,
    rule: Rule | None = None,
    target_fpr: float = TARGET,
    draws: int = 500,
    seed: int = 0,
) -> Cuts:
    """The thresholds of `calibrate`, which says what the arguments are. Raises `CalibrationError`."""
    score, truth = np.array(scored.score), np.array(scored.anomalous, dtype=bool)
    good = np.flatnonzero(~truth)
    group = groups_of([scored.sketch[place] for place in good], _known(detector, scored, good))
    alone = independent(score[good], group)
    defects = int(truth.sum()) >= FEWEST
    _check(score, truth, len(alone), rule)
    by_f1 = rule != "fpr" and defects
    if rule is None:  # where scores tell nothing, the best F1 flags nearly every good part
        separation = separation_of(scored)
        rule = "f1" if defects and separation is not None and separation.significant else "fpr"
    bad = score[truth] if defects else None
    peaks, pixels = _peaks(scored, good, group), _pixel_points(scored)
    if rule == "f1":
        points = Points.of(score, truth, np.arange(len(score)), np.ones(len(score)))
        image = best_f1(points, truth, draws, seed)
    else:
        image = by_false_alarms(alone, target_fpr, bad)
    pixel: Threshold | None = None
    if by_f1 and pixels is not None and bool(pixels.truth.any()):
        pixel = best_f1(pixels, truth, min(draws, 200), seed)
    if pixel is None or pixel.fpr > MOST_MARKED:
        pixel = pixel if peaks is None else by_false_alarms(peaks, target_fpr)
    return Cuts(image, pixel, alone, peaks)


def _check(score: Values, truth: BoolArray, independent: int, rule: Rule | None) -> None:
    good, bad = int((~truth).sum()), int(truth.sum())
    if independent < FEWEST:
        doubles = ", all photographs of the very same thing" if good > independent else ""
        raise CalibrationError(
            f"calibration needs at least two good images, there are {good}{doubles}: the memory judges "
            "each by the others. Add good images (ten are a good beginning), or pass a threshold"
        )
    if rule == "f1" and bad < FEWEST:
        raise CalibrationError(
            f"--rule f1 needs at least two defective images, there are {bad}; good images alone give a "
            "threshold by false alarms: --rule fpr"
        )
    if rule == "f1" and score[truth].mean() <= score[~truth].mean():
        raise CalibrationError(
            "defective images do not score higher than good ones here, so no threshold is the best for "
            "them; good images alone give one by false alarms: --rule fpr. Look at the memory (other "
            "products? too few images?) or train a head"
        )


def separation_of(scored: Scored) -> Separation | None:
    """How well the scores tell the classes apart; None with fewer than two images of one."""
    truth = np.array(scored.anomalous, dtype=bool)
    if min(truth.sum(), (~truth).sum()) < FEWEST:
        return None

    def separation(values: list[float]) -> Separation:
        score = np.array(values)
        return Separation.of(score[truth], score[~truth])

    found = separation(scored.score)
    if found.significant or len(scored.whole) != len(truth):
        return found
    for values, hint in ((scored.whole, "1"), (scored.top, "0")):
        other = separation(values)
        if other.significant:
            level = "image level" if hint == "1" else "map"
            text = f"the {level} alone can ({other.auroc:.2f}): calibrate and serve with --fusion {hint}"
            return found.model_copy(update={"hint": text})
    return found


def _known(detector: Detector, scored: Scored, good: npt.NDArray[np.int64]) -> list[int] | None:
    """The groups that head `nn` found among the memory's own images, whether they are cut or not."""
    if not isinstance(detector.head, NNHead):
        return None
    groups = detector.head.groups
    rows = [scored.own_row[place] for place in good]
    return [int(groups[row]) if row >= 0 else -1 for row in rows]


def _peaks(
    scored: Scored, good: npt.NDArray[np.int64], group: npt.NDArray[np.int64]
) -> Values | None:
    """The largest map value of independent good images; None where one has no map."""
    found = [scored.peak[place] for place in good]
    values = [peak for peak in found if peak is not None]
    return independent(np.array(values), group) if len(values) == len(found) else None


def _pixel_points(scored: Scored) -> Points | None:
    if not scored.pixels:
        return None
    lengths = [len(values) for values in scored.pixels]
    return Points.of(
        np.concatenate(scored.pixels),
        np.repeat(np.array(scored.pixel_truth, dtype=bool), lengths),
        np.repeat(np.array(scored.pixel_image), lengths),
        np.repeat(np.array(scored.pixel_weight), lengths),
    )


def _pixel_tail(pixels: Points | None) -> Tail | None:
    if pixels is None or pixels.truth.all():
        return None
    good = ~pixels.truth
    return Tail.of(pixels.value[good], np.rint(pixels.weight[good]).astype(np.int64).clip(1))
