"""How much each statistic of an image counts, by what good images and defects were seen."""

from __future__ import annotations

import pytest
import torch

from mrad.heads.good_parts.classes import GoodClasses
from mrad.heads.good_parts.standard import Blend, Scale, trust


def statistics(
    good: int, bad: int, shift: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Map tops [V], parts [2, V] (a distance, and what another head says) and which are good."""
    noise = torch.Generator().manual_seed(0)
    top, distance, other = (
        1 + 0.1 * torch.randn(good + 50, generator=noise, dtype=torch.float64)[: good + bad]
        for _ in range(3)
    )
    for values in (top, distance):
        values[good:] = 1.1
    other[good:] = 1 + 0.1 * shift
    return top, torch.stack([distance, other]), torch.arange(good + bad) < good


def test_trust_grows_with_both_classes_and_is_none_without_either() -> None:
    assert trust(40, 0) == trust(0, 10) == 0
    assert trust(5, 2) < trust(40, 2) < trust(40, 10) < trust(400, 100) < 1


def test_without_defects_only_distances_count_and_alike() -> None:
    top, parts, good = statistics(40, 0, 0)
    assert Blend.of(top, parts, good, 1).weights == pytest.approx((1, 1, 0))


def test_another_head_counts_by_what_it_tells_and_more_with_more_defects() -> None:
    few, many = (Blend.of(*statistics(40, n, 5.0), 1).weights for n in (2, 20))
    assert 0 < few[2] < many[2]
    assert many[2] > many[0]
    useless = Blend.of(*statistics(40, 20, -5.0), 1).weights
    assert useless[2] == 0
    assert useless[0] > 0


def test_a_head_that_was_seen_of_three_good_images_is_not_used() -> None:
    assert Blend.of(*statistics(3, 10, 5.0), 1).weights[2] == 0
    assert Blend.of(*statistics(4, 10, 5.0), 1).weights[2] > 0


def test_few_values_that_are_no_distances_are_taken_to_spread_more() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    plain = float(values.double().std())
    assert Scale.of(values, distance=False).spread == pytest.approx(plain * (2 * 1.2) ** 0.5)


def test_class_features_are_judged_by_how_they_vary_or_by_the_nearest_of_too_few() -> None:
    noise = torch.Generator().manual_seed(1)
    keys = torch.nn.functional.normalize(torch.randn(6, 8, generator=noise), dim=1)
    asked = keys[:2] + 0.1
    every = GoodClasses(keys, torch.arange(6))
    torch.testing.assert_close(every.distance(asked), every.spread(asked))
    left = torch.arange(6) == 0
    others = GoodClasses(keys[1:], torch.arange(5))
    torch.testing.assert_close(every.distance(asked, left), others.spread(asked))
    two = GoodClasses(keys[:2], torch.arange(2))
    torch.testing.assert_close(two.distance(asked), two.nearest(asked))
    assert two.left_out(keys[:2], torch.arange(2)).isfinite().all()
    one = GoodClasses(keys[:1], torch.zeros(1))
    assert one.left_out(keys[:1], torch.zeros(1)).isnan().all()
    assert one.distance(keys[:1], torch.tensor([True])).tolist() == [2.0]


@pytest.mark.parametrize("images", [6, 40])
def test_how_all_good_images_vary_is_worked_out_once(monkeypatch, images):
    solved, cholesky = [], torch.linalg.cholesky
    monkeypatch.setattr(torch.linalg, "cholesky", lambda x: solved.append(len(x)) or cholesky(x))
    keys, asked = torch.randn(images, 16), torch.randn(3, 16)
    good = GoodClasses(keys, torch.arange(images))
    first = good.distance(asked)
    assert torch.equal(good.distance(asked), first)
    assert solved == [min(images, 16)]
    assert not torch.equal(good.distance(asked, torch.arange(images) == 2), first)
    assert len(solved) == 2
