"""What is usual of each place of a product, with and without some of the images that say so."""

from __future__ import annotations

import torch

from mrad.heads.good_parts.cells import LeftOutCells
from mrad.heads.good_parts.standard import CellScale, CellSums


def test_images_taken_away_say_nothing_and_the_others_are_not_looked_at_again():
    distances = torch.rand(9, 7, generator=torch.manual_seed(0))
    distances[2, 3] = torch.nan
    distances[:, 5] = 0.3
    group = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7])
    expected = CellScale.of(distances[2:])
    found = CellSums.of(distances).less(CellSums.of(distances[:2])).scale()
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.spread, expected.spread)
    found = LeftOutCells(distances[None], group, None).left_out()
    torch.testing.assert_close(found[:2], expected(distances[:2]))


def test_a_place_leans_on_all_others_and_never_varies_by_nothing():
    same = CellScale.of(torch.full((3, 4), 0.5))
    assert bool((same.spread > 0).all())
    distances = torch.tensor([[0.1, 0.9], [0.3, 0.9]])
    scale = CellScale.of(distances)
    count, share, every = 2, 2, distances.flatten()
    mean = (distances.sum(dim=0) + share * every.mean()) / (count + share)
    square = (distances - mean).square().sum(dim=0)
    spread = ((square + share * every.var()) / (count + share)).sqrt()
    torch.testing.assert_close(scale.mean[0], mean)
    torch.testing.assert_close(scale.spread[0], spread + spread.mean())
