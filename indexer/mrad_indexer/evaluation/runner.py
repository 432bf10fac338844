"""A dataset through one or several detectors -> scores, metrics, curves. One encoding for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from mrad.detector import Detector
from mrad.errors import DataError, MRADError
from mrad.images.guard import codes
from mrad.images.layout import Places
from mrad.maps import at_shape
from mrad.types import BoolArray, Prediction
from mrad_indexer.datasets import Dataset
from mrad_indexer.evaluation.judging import Batch, by_layout, judged, refused
from mrad_indexer.evaluation.metrics import (
    FUSIONS,
    Curve,
    ImageMetrics,
    PixelMetrics,
    PixelScores,
    auroc_by_fusion,
    image_metrics,
)

METRICS = (
    ("image", "auroc"),
    ("image", "ap"),
    ("image", "f1_max"),
    ("pixel", "auroc"),
    ("pixel", "ap"),
    ("pixel", "f1_max"),
    ("pixel", "aupro"),
)


@dataclass(frozen=True)
class ImageScore:
    """One image's scores, raw probabilities."""

    source: str
    object_name: str
    defect: str
    anomalous: bool
    score: float
    class_score: float
    top_score: float
    in_memory: bool
    record: int
    """Row in the dataset evaluated."""


@dataclass(frozen=True)
class PartResult:
    """One named part of an object's images: its own figures, truth being what is marked inside it."""

    name: str
    images: int
    anomalous: int
    image: ImageMetrics
    pixel: PixelMetrics


@dataclass(frozen=True)
class ObjectResult:
    """One object under one candidate."""

    name: str
    images: int
    anomalous: int
    masked: int
    """Anomalous images with a mask; only they and the normal ones count for pixels."""
    image: ImageMetrics
    image_auroc_by_fusion: Mapping[float, float | None]
    """Weight of the image probability -> what `image.auroc` would be with it."""
    pixel: PixelMetrics
    curves: Mapping[str, Curve]
    low: float
    high: float
    """Map values at which colours start and end: 1 % of all pixels below, 0.1 % above."""
    scores: tuple[ImageScore, ...]
    parts: tuple[PartResult, ...] = ()
    """Of a memory whose layout names parts."""


@dataclass(frozen=True)
class CandidateResult:
    """One detector: its objects and the mean over them."""

    name: str
    config: Mapping[str, Any]
    objects: tuple[ObjectResult, ...]
    finish_seconds: float
    """Retrieval, scoring and maps, all images."""

    def mean(self, level: str, metric: str) -> float | None:
        """Mean over the objects for which the metric is defined; None when for none."""
        return _mean(getattr(getattr(item, level), metric) for item in self.objects)

    def mean_by_fusion(self) -> dict[float, float | None]:
        """Weight of the image probability -> mean image AUROC, as `mean` takes it."""
        return {w: _mean(item.image_auroc_by_fusion[w] for item in self.objects) for w in FUSIONS}

    @property
    def in_memory(self) -> int:
        """Evaluated images that the memory itself holds: above 0 the figures flatter."""
        return sum(score.in_memory for item in self.objects for score in item.scores)


@dataclass(frozen=True)
class Evaluation:
    """Everything that the table, the JSON and the report show."""

    dataset: Mapping[str, Any]
    candidates: tuple[CandidateResult, ...]
    settings: Mapping[str, Any]
    encode_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; scores of every image included, curves not."""
        content = asdict(self)
        for candidate, result in zip(content["candidates"], self.candidates):
            candidate["mean"] = {f"{a}_{b}": result.mean(a, b) for a, b in METRICS}
            candidate["mean_image_auroc_by_fusion"] = result.mean_by_fusion()
            candidate["images_in_memory"] = result.in_memory
            for item in candidate["objects"]:
                item.pop("curves")
        return content


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None


@dataclass
class _Tally:
    """What is collected while images stream by."""

    pixels: PixelScores = field(default_factory=PixelScores)
    scores: list[ImageScore] = field(default_factory=list)
    masked: int = 0
    parts: dict[str, _Part] = field(default_factory=dict)


@dataclass
class _Part:
    """The same of one named part; images of which nobody knows where the defect is are left out."""

    pixels: PixelScores = field(default_factory=PixelScores)
    scores: list[float] = field(default_factory=list)
    labels: list[bool] = field(default_factory=list)


def evaluate(
    detectors: Mapping[str, Detector],
    dataset: Dataset,
    *,
    batch_size: int = 8,
    resolution: int | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score every image once per detector.

    Args:
        detectors: name -> detector; all on the same encoder, which then runs once for all whose banks
            look at images alike (as a whole, or in the same tiles).
        resolution: side to which maps and masks are brought for pixel metrics (the paper: the
            encoder's input); None: each image's own size.
        configs: name -> what to print about it.
        progress: called with the number of images done.

    Images go by one object at a time, so that memory holds one object's histograms and one batch.
    An image that cannot be read, whose mask cannot, or that a layout does not fit or cannot align, is left out
    for all detectors, counted and named, as in a build. Where they look at images in several ways, each image
    is opened once more to find that out first. Raises `MRADError` when detectors differ in encoder, `DataError`
    when nothing of an object is left.
    """
    identities = {str(detector.encoder.identity) for detector in detectors.values()}
    if len(identities) != 1:
        raise MRADError(f"one comparison needs one encoder, these are {sorted(identities)}")
    groups = by_layout(detectors)
    finish = dict.fromkeys(detectors, 0.0)
    results: dict[str, list[ObjectResult]] = {name: [] for name in detectors}
    encode_seconds, done = 0.0, 0
    warnings: Counter[str] = Counter()
    skipped: list[str] = []
    mixed = 1.0
    first = next(iter(detectors))
    passes = 1 if len(groups) == 1 else 2 * len(groups)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done // passes)

    for object_name in dataset.objects:
        every = [i for i, r in enumerate(dataset.records) if r.object_name == object_name]
        tallies = {name: _Tally() for name in detectors}
        pixels: list[int] = []
        left_out: dict[int, str] = {}
        if len(groups) > 1:  # figures are of the images that all of them can look at
            left_out = refused(groups, dataset, every, resolution, lambda: advance(1))
        chosen = [row for row in every if row not in left_out]
        advance((len(every) - len(chosen)) * len(groups))
        for group in groups:
            with closing(judged(group, dataset, chosen, batch_size, resolution)) as batches:
                for batch in batches:
                    encode_seconds += batch.encode_seconds
                    if group is groups[0]:
                        warnings.update(codes(batch.warnings))
                    if batch.skipped and len(groups) > 1:
                        (why, *_) = batch.skipped.values()
                        raise DataError(f"{why}; it could be read a moment before: evaluate again")
                    left_out.update(batch.skipped)
                    for name in group:
                        finish[name] += batch.finish_seconds[name]
                        doubts = _collect(tallies[name], dataset, batch, name)
                        if name == first:
                            warnings.update(codes(doubts))
                            sizes = (prediction.size for prediction in batch.predictions[name])
                            pixels += [width * height for width, height in sizes]
                    advance(len(batch.rows) + len(batch.skipped))
        skipped += left_out.values()
        if not tallies[first].scores:
            by = " by every candidate" if len(groups) > 1 else ""
            (why, *_) = left_out.values()
            raise DataError(f"no image of {object_name} can be judged{by}, the first: {why}")
        mixed = max(mixed, max(pixels) / min(pixels))
        for name, tally in tallies.items():
            results[name].append(_result(object_name, tally))
    return Evaluation(
        dataset={
            "layout": dataset.name,
            "root": str(dataset.root),
            "counts": dict(dataset.counts),
            "objects": list(dataset.objects),
            "warnings": dict(warnings.most_common()),
            "skipped": skipped,
            "mixed": mixed,
        },
        candidates=tuple(
            CandidateResult(name, (configs or {}).get(name, {}), tuple(items), finish[name])
            for name, items in results.items()
        ),
        settings={"batch_size": batch_size, "resolution": resolution or "each image's own"},
        encode_seconds=encode_seconds,
    )


def _collect(tally: _Tally, dataset: Dataset, batch: Batch, name: str) -> list[tuple[str, ...]]:
    """Keep a batch's scores and pixels; returns the masks' warnings."""
    doubts = []
    judgements = zip(
        batch.rows,
        batch.predictions[name],
        batch.places,
        batch.known[name],
        batch.masks,
    )
    for row, prediction, places, in_memory, mask in judgements:
        record, counted = dataset.records[row], places.counted()
        if mask is not None:
            doubts.append(mask.warnings)
        tally.scores.append(
            ImageScore(
                source=record.source,
                object_name=record.object_name,
                defect=record.defect,
                anomalous=record.anomalous,
                score=prediction.score,
                class_score=prediction.class_score,
                top_score=prediction.top_score,
                in_memory=in_memory,
                record=row,
            )
        )
        if mask is not None and prediction.anomaly_map is not None:
            values = prediction.anomaly_map
            within = None if counted is None else at_shape(counted, values.shape)
            if mask.ignore.any():
                clear = ~at_shape(mask.ignore, values.shape)
                within = clear if within is None else within & clear
            anomalous = at_shape(mask.anomalous, values.shape)
            tally.pixels.add(values, anomalous, within)
            tally.masked += record.anomalous
            _collect_parts(tally, prediction, places, anomalous, within)
    return doubts


def _collect_parts(
    tally: _Tally,
    prediction: Prediction,
    places: Places,
    anomalous: BoolArray,
    within: BoolArray | None,
) -> None:
    """Each part's score against what is marked inside it, and its pixels; masks at the map's size."""
    values = prediction.anomaly_map
    if not prediction.parts or values is None:
        return
    scale = values.shape[1] / places.size[0], values.shape[0] / places.size[1]
    for part, section in zip(prediction.parts, places.sections):
        left, top, right, bottom = (round(e * scale[i % 2]) for i, e in enumerate(section.box))
        cut = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
        inside = np.ones(values[cut].shape, dtype=bool)
        if section.inside is not None:
            inside = at_shape(section.inside, inside.shape)
        if within is not None:
            inside = inside & within[cut]
        own = tally.parts.setdefault(part.name, _Part())
        own.scores.append(part.score)
        own.labels.append(bool((anomalous[cut] & inside).any()))
        own.pixels.add(values[cut], anomalous[cut], inside)


def _result(name: str, tally: _Tally) -> ObjectResult:
    labels = [score.anomalous for score in tally.scores]
    seen = bool(len(tally.pixels.normal))
    return ObjectResult(
        name=name,
        images=len(labels),
        anomalous=sum(labels),
        masked=tally.masked,
        image=image_metrics([score.score for score in tally.scores], labels),
        image_auroc_by_fusion=auroc_by_fusion(
            [score.top_score for score in tally.scores],
            [score.class_score for score in tally.scores],
            labels,
        ),
        pixel=tally.pixels.metrics(),
        curves=tally.pixels.curves(),
        low=tally.pixels.quantile(0.01) if seen else 0.0,
        high=tally.pixels.quantile(0.999) if seen else 1.0,
        scores=tuple(tally.scores),
        parts=tuple(
            PartResult(
                part,
                len(own.labels),
                sum(own.labels),
                image_metrics(own.scores, own.labels),
                own.pixels.metrics(),
            )
            for part, own in tally.parts.items()
        ),
    )
