"""The top of a map of spreads: measured as it is, not as a probability."""

from __future__ import annotations

import torch

from mrad.heads import load_head
from mrad.maps import anomaly_map, smoothed


def test_the_top_of_a_map_of_spreads_is_not_cut_at_one(tiny_encoder) -> None:
    head = load_head("nn", tiny_encoder)
    cells = tiny_encoder.grid**2
    tops = head.tops(torch.stack([torch.full((cells,), level) for level in (-3.0, 0.5, 7.0)]))
    torch.testing.assert_close(tops, torch.tensor([-3.0, 0.5, 7.0]), atol=1e-4, rtol=1e-4)


def test_a_map_of_probabilities_stays_one(tiny_encoder) -> None:
    patch = torch.rand(2, tiny_encoder.grid**2)
    side = tiny_encoder.image_size
    torch.testing.assert_close(anomaly_map(patch, side), smoothed(patch, side))
    assert float(anomaly_map(torch.ones_like(patch), side).max()) <= 1
