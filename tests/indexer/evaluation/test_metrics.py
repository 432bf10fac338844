"""Streamed metrics against scikit-learn and against the definition of AUPRO."""

from __future__ import annotations

import numpy as np
import pytest
from mrad_indexer.evaluation.metrics import (
    FLOOR,
    PixelScores,
    area,
    bin_of,
    f1_max,
    image_metrics,
    value_of,
)
from scipy import ndimage
from skimage import measure
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from mrad.errors import MRADError, NonFiniteError


def maps_and_masks(seed: int, count: int = 6, low: float = 0.0, high: float = 1.0):
    """Smooth noise, warmer where the mask is; squeezed into [low, high]."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        mask = ndimage.gaussian_filter(rng.normal(size=(60, 80)), 4) > (0.12 if i % 3 else 9)
        raw = ndimage.gaussian_filter(rng.normal(size=(60, 80)), 2) * 4 + mask
        yield (low + (high - low) / (1 + np.exp(-raw))).astype(np.float32), mask


def pro_by_definition(maps, masks, limit=0.3):
    """Every value a threshold; mean over 8-connected regions of the part found (slow)."""
    thresholds = np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]
    regions = [
        np.sort(values[labels == k])
        for values, mask in zip(maps, masks)
        for labels in [measure.label(mask, connectivity=2)]
        for k in range(1, labels.max() + 1)
    ]
    normal = np.sort(np.concatenate([v[~m] for v, m in zip(maps, masks)]))
    fpr = 1 - np.searchsorted(normal, thresholds, side="left") / len(normal)
    found = [1 - np.searchsorted(r, thresholds, side="left") / len(r) for r in regions]
    fpr, pro = np.append(0, fpr), np.append(0, np.mean(found, axis=0))
    grid = np.linspace(0, limit, 200_001)
    return np.trapezoid(np.interp(grid, fpr, pro), grid) / limit


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.495, 0.505), (0.99, 1.0)])
def test_streamed_pixels_equal_sklearn_and_the_definition(low, high):
    pairs = list(maps_and_masks(0, low=low, high=high))
    scores = PixelScores()
    for values, mask in pairs:
        scores.add(values, mask)
    flat = np.concatenate([v.ravel() for v, _ in pairs])
    truth = np.concatenate([m.ravel() for _, m in pairs])
    got = scores.metrics()
    tight = 5e-4
    assert got.auroc == pytest.approx(roc_auc_score(truth, flat), abs=got.binning_error + 1e-9)
    assert got.binning_error < tight
    assert got.ap == pytest.approx(average_precision_score(truth, flat), abs=tight)
    best, _ = f1_max(flat.astype(np.float64), truth)
    assert got.f1_max == pytest.approx(best, abs=tight)
    maps, masks = zip(*pairs)
    assert got.aupro == pytest.approx(pro_by_definition(maps, masks), abs=1e-3)


def test_the_f1_threshold_reproduces_its_f1():
    pairs = list(maps_and_masks(3, low=0.48, high=0.52))
    scores = PixelScores()
    for values, mask in pairs:
        scores.add(values, mask)
    got = scores.metrics()
    said = np.concatenate([(v >= got.f1_threshold).ravel() for v, _ in pairs])
    truth = np.concatenate([m.ravel() for _, m in pairs])
    f1 = 2 * (said & truth).sum() / (said.sum() + truth.sum())
    assert f1 == pytest.approx(got.f1_max, abs=1e-9)


def test_order_of_images_and_growth_of_the_histogram_do_not_matter():
    pairs = [*maps_and_masks(1, low=0.6, high=0.7), *maps_and_masks(2, low=0.1, high=0.9)]
    forward, backward = PixelScores(), PixelScores()
    for values, mask in pairs:
        forward.add(values, mask)
    for values, mask in reversed(pairs):
        backward.add(values, mask)
    assert forward.metrics() == pytest.approx(backward.metrics()) or (
        forward.metrics().aupro == pytest.approx(backward.metrics().aupro, abs=1e-12)
        and forward.metrics().auroc == backward.metrics().auroc
    )


def test_a_small_region_counts_as_much_as_a_large_one():
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = True
    mask[15, 15] = True
    values = np.zeros((20, 20), np.float32)
    values[15, 15] = 1.0  # only the single pixel is found before any false alarm
    scores = PixelScores()
    scores.add(values, mask)
    assert scores.regions == 2
    half_then_ramp = 0.5 + 0.5 * 0.3 / 2  # from 0.5 straight to 1 over FPR 0..1
    assert scores.metrics().aupro == pytest.approx(half_then_ramp, abs=1e-9)


def test_bins_keep_the_order_and_the_threshold_convention():
    values = np.sort(np.random.default_rng(0).uniform(FLOOR, 1, 10_000).astype(np.float32))
    bins = bin_of(values)
    assert (np.diff(bins) >= 0).all()
    assert (value_of(bins) <= values).all()
    assert ((values - value_of(bins)) / values).max() < 2e-6


def test_memory_stays_small_where_probabilities_crowd():
    scores = PixelScores()
    for values, mask in maps_and_masks(0, low=0.48, high=0.52):
        scores.add(values, mask)
    assert len(scores.normal) < 200_000


def test_one_class_gives_none_and_bad_maps_are_refused():
    scores = PixelScores()
    scores.add(np.full((4, 4), 0.5, np.float32), np.zeros((4, 4), bool))
    assert scores.metrics().auroc is None
    assert scores.curves() == {}
    with pytest.raises(MRADError, match="mask"):
        scores.add(np.zeros((4, 4), np.float32), np.zeros((4, 5), bool))
    with pytest.raises(NonFiniteError):
        scores.add(np.full((4, 4), np.nan, np.float32), np.zeros((4, 4), bool))


def test_image_metrics_equal_sklearn_and_need_both_classes():
    rng = np.random.default_rng(0)
    truth = rng.random(50) > 0.5
    values = truth * 0.01 + rng.normal(0.5, 0.01, 50)
    got = image_metrics(values.tolist(), truth.tolist())
    assert got.auroc == roc_auc_score(truth, values)
    assert got.ap == average_precision_score(truth, values)
    said = values >= got.f1_threshold
    assert got.f1_max == pytest.approx(2 * (said & truth).sum() / (said.sum() + truth.sum()))
    assert image_metrics([0.1, 0.2], [True, True]).auroc is None
    with pytest.raises(NonFiniteError):
        image_metrics([float("nan"), 0.2], [True, False])


def test_curves_start_and_end_where_they_must():
    scores = PixelScores()
    pairs = list(maps_and_masks(0))
    for values, mask in pairs:
        scores.add(values, mask)
    roc = scores.curves()["roc"]
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    flat = np.concatenate([v.ravel() for v, _ in pairs])
    truth = np.concatenate([m.ravel() for _, m in pairs])
    fpr, tpr, _ = roc_curve(truth, flat)
    assert np.interp(0.2, roc.x, roc.y) == pytest.approx(np.interp(0.2, fpr, tpr), abs=0.01)


def test_area_is_cut_by_interpolation():
    x, y = np.array([0.0, 0.2, 0.4]), np.array([0.0, 1.0, 1.0])
    assert area(x, y, 0.3) == pytest.approx((0.1 + 0.1) / 0.3)
    assert area(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == pytest.approx(0.5)
