"""Maps against SciPy and torch; regions and overlays as people see them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from skimage.segmentation import find_boundaries

from mrad.errors import MRADError
from mrad.maps import anomaly_map, outline, overlay, regions, resize_map, top_mean

seeds = st.integers(0, 2**32 - 1)


def grids(seed: int, batch: int, grid: int) -> torch.Tensor:
    return torch.rand(batch, grid * grid, generator=torch.Generator().manual_seed(seed))


def slow_map(patch: torch.Tensor, size: int, sigma: float) -> np.ndarray:
    """What the released code does, one image at a time."""
    grid = round(len(patch) ** 0.5)
    big = F.interpolate(
        patch.view(1, 1, grid, grid), size=(size, size), mode="bilinear", align_corners=False
    )
    return gaussian_filter(big[0, 0].numpy(), sigma=sigma) if sigma else big[0, 0].numpy()


@settings(max_examples=30, deadline=None)
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from([0, 0.7, 4.0, 9]),
)
def test_maps_are_torchs_interpolation_and_scipys_gaussian(seed, batch, grid, patch, sigma):
    values = grids(seed, batch, grid)
    size = grid * patch
    maps = anomaly_map(values, size, sigma)
    assert maps.shape == (batch, size, size)
    assert maps.dtype == torch.float32
    for found, cells in zip(maps, values):
        np.testing.assert_allclose(found, slow_map(cells, size, sigma), atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 12), st.integers(1, 14))
def test_maps_stay_within_the_probabilities_and_are_monotone(seed, grid, patch):
    low = grids(seed, 2, grid)
    high = (low + 0.1 * grids(seed + 1, 2, grid)).clamp(max=1)
    one, other = anomaly_map(low, grid * patch), anomaly_map(high, grid * patch)
    assert float(one.min()) >= float(low.min()) - 1e-5
    assert float(one.max()) <= float(low.max()) + 1e-5
    assert bool((other >= one - 1e-6).all())


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 9))
def test_a_turned_grid_gives_a_turned_map(seed, grid):
    values = grids(seed, 1, grid)
    turned = values.view(1, grid, grid).rot90(1, (1, 2)).reshape(1, -1)
    wanted = anomaly_map(values, grid * 8).rot90(1, (1, 2))
    torch.testing.assert_close(anomaly_map(turned, grid * 8), wanted, atol=1e-6, rtol=0)


def test_a_flat_grid_gives_a_flat_map_and_no_square_is_refused():
    flat = anomaly_map(torch.full((1, 49), 0.375), 98)
    torch.testing.assert_close(flat, torch.full((1, 98, 98), 0.375), atol=1e-6, rtol=0)
    with pytest.raises(MRADError, match="48 patch values"):
        anomaly_map(torch.zeros(1, 48), 98)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 300), st.integers(1, 300))
def test_no_value_of_a_map_exceeds_1(grid, side, size):
    """Sums of weights in float32 come to a hair more; a map that is shown or sent must not."""
    square = anomaly_map(torch.ones(1, grid * grid), grid * 14)[0]
    assert 0.999 < float(square.max()) <= 1
    assert 0.999 < float(resize_map(square, (side, size)).max()) <= 1


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 30), st.sampled_from([0.0, 0.01, 0.5, 1.0]))
def test_the_top_score_is_the_mean_of_the_largest(seed, side, fraction):
    maps = torch.rand(2, side, side, generator=torch.Generator().manual_seed(seed))
    found = top_mean(maps, fraction)
    count = max(1, int(side * side * fraction))
    for value, one in zip(found, maps):
        wanted = np.sort(one.numpy().ravel())[::-1][:count].mean()
        assert float(value) == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("size", [(40, 40), (80, 25), (7, 300), (1, 1), (13, 9)])
def test_maps_come_at_the_size_of_the_input(size):
    values = torch.rand(40, 40)
    found = resize_map(values, size)
    assert found.shape == size[::-1]
    assert found.dtype == np.float32
    assert values.min() - 1e-5 <= found.min()
    assert found.max() <= values.max() + 1e-5
    flat = resize_map(torch.full((40, 40), 0.25), size)
    np.testing.assert_allclose(flat, 0.25, atol=1e-6)


def test_enlarging_is_torchs_bilinear_and_the_same_size_changes_nothing():
    values = torch.rand(20, 20)
    np.testing.assert_array_equal(resize_map(values, (20, 20)), values)
    wanted = F.interpolate(values[None, None], size=(30, 50), mode="bilinear")[0, 0]
    np.testing.assert_array_equal(resize_map(values, (50, 30)), wanted)


def test_regions_are_boxes_peaks_and_outlines_strongest_first():
    values = np.zeros((20, 30), np.float32)
    values[2:6, 3:9] = 0.6
    values[4, 5] = 0.7
    values[10:19, 20:28] = 0.8
    values[12, 22] = 0.95
    first, second = regions(values, 0.5)
    assert first.box == (20, 10, 28, 19)
    assert (first.area, first.peak_at, second.peak_at) == (72, (22, 12), (5, 4))
    assert first.peak == pytest.approx(0.95)
    assert second.box == (3, 2, 9, 6)
    xs, ys = zip(*second.polygon)
    assert abs(min(xs) - 3) <= 1
    assert abs(max(xs) - 9) <= 1
    assert abs(min(ys) - 2) <= 1
    assert abs(max(ys) - 6) <= 1
    assert [r.box for r in regions(values, 0.5, min_area=30)] == [first.box]
    assert regions(values, 0.99) == []


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 25), st.integers(1, 25), st.floats(0.05, 0.95))
def test_regions_partition_what_is_at_or_above_the_threshold(seed, width, height, threshold):
    values = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    found = regions(values, threshold)
    assert sum(region.area for region in found) == int((values >= threshold).sum())
    assert [r.peak for r in found] == sorted((r.peak for r in found), reverse=True)
    for region in found:
        left, top, right, bottom = region.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        x, y = region.peak_at
        assert values[y, x] == np.float32(region.peak) >= threshold
        assert len(region.polygon) >= 3
        for px, py in region.polygon:
            assert left <= px <= right
            assert top <= py <= bottom


def test_diagonal_neighbours_are_one_region_with_one_outline():
    (region,) = regions(np.eye(9, dtype=np.float32), 0.5)
    assert region.area == 9
    xs, ys = zip(*region.polygon)
    for values in (xs, ys):
        assert min(values) <= 1
        assert max(values) >= 8


def test_an_outline_holds_its_region():
    values = np.zeros((60, 60), np.float32)
    y, x = np.mgrid[:60, :60]
    values[(x - 30) ** 2 + ((y - 25) * 1.5) ** 2 < 400] = 1
    (region,) = regions(values, 0.5)
    drawn = Image.new("1", (60, 60))
    ImageDraw.Draw(drawn).polygon([(px - 0.5, py - 0.5) for px, py in region.polygon], fill=1)
    both, either = np.asarray(drawn) & (values > 0), np.asarray(drawn) | (values > 0)
    assert both.sum() / either.sum() > 0.93


def test_overlays_keep_the_image_where_it_is_cold_and_colour_it_where_it_is_hot():
    image = Image.new("RGB", (30, 20), (100, 100, 100))
    values = np.zeros((20, 30), np.float32)
    values[5:9, 10:15] = 1.0
    shown = np.asarray(overlay(image, values))
    assert shown.shape == (20, 30, 3)
    assert (shown[0, 0] == 100).all()
    assert shown[6, 12, 0] > 150
    fixed = np.asarray(overlay(image, values * 0.2, low=0.5, high=1.0))
    assert (fixed == 100).all()  # with fixed limits, a weak map shows nothing
    flat = np.asarray(overlay(image, np.full((20, 30), 0.3, np.float32)))
    assert (flat == 100).all()
    with pytest.raises(MRADError, match=r"the map is \(30, 20\), the image \(20, 30\)"):
        overlay(image.rotate(90, expand=True), values)
    assert overlay(image.convert("L"), values).mode == "RGB"


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_an_outline_is_scikit_images_boundary(seed, height, width):
    inside = np.random.default_rng(seed).random((height, width)) < 0.7
    for thick, mode in ((False, "inner"), (True, "thick")):
        found = find_boundaries(inside, mode=mode)
        np.testing.assert_array_equal(outline(inside, thick=thick), found)


@pytest.mark.parametrize("kind", ["smooth", "noise", "steps", "flat", "unknown"])
def test_the_top_of_a_map_is_that_of_all_its_pixels_in_order(kind):
    """To the digit: only what cannot be among the largest is not put in order."""
    noise = torch.rand(4, 1, 22, 22, generator=torch.Generator().manual_seed(0))
    maps = F.interpolate(noise, size=264, mode="bilinear")[:, 0]
    if kind == "noise":
        maps = torch.rand(4, 264, 264, generator=torch.Generator().manual_seed(1)) ** 8
    elif kind == "steps":
        maps = maps.round(decimals=1)
    elif kind == "flat":
        maps = torch.full_like(maps, 0.3)
    elif kind == "unknown":
        maps[1, 5, 7] = torch.nan
    for fraction in (0.0, 0.001, 0.01, 0.05, 0.5, 1.0):
        count = max(1, int(264 * 264 * fraction))
        wanted = maps.flatten(1).topk(count, dim=1).values.mean(dim=1)
        assert torch.equal(top_mean(maps, fraction).nan_to_num(9.0), wanted.nan_to_num(9.0))
