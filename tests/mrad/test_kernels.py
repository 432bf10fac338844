"""Products, and whether values are finite: as PyTorch says, in less time."""

from __future__ import annotations

import pytest
import torch

from mrad.encoder.kernels import all_finite, product


@pytest.mark.parametrize("shape", [(50, 20, 32), (1, 1, 3), (0, 4, 8), (4, 0, 8)])
def test_products_are_those_of_pytorch_whatever_the_strides(shape) -> None:
    rows, columns, width = shape
    wide, tall = torch.randn(rows, 2 * width), torch.randn(width, columns)
    for one in (wide[:, :width].contiguous(), wide[:, ::2], wide[::2, width:]):
        with torch.inference_mode():
            found = product(one, tall.T)
        torch.testing.assert_close(found, one @ tall, atol=1e-5, rtol=1e-5)
    learning = torch.randn(3, width, requires_grad=True)
    product(learning, torch.ones(2, width)).sum().backward()
    assert torch.equal(learning.grad, torch.full((3, width), 2.0))


def test_whether_all_values_are_finite_is_not_a_matter_of_their_sum() -> None:
    values = torch.full((3, 4), 3e38)
    assert all_finite(values)
    for value in (torch.nan, torch.inf, -torch.inf):
        values[1, 2] = value
        assert not all_finite(values)
    values[1, 1] = -values[1, 2]
    assert not all_finite(values)
    assert all_finite(torch.empty(0, 4))
