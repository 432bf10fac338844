"""Each loss equals its definition in docs/method.md, written out the slow way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mrad_indexer.training.losses import dice_loss, focal_loss, image_loss
from mrad_indexer.training.masking import masked_probability, row_quantile


@pytest.fixture
def maps():
    """Patch probabilities, two of them extreme; masks; the maps as docs/method.md has them."""
    generator = torch.Generator().manual_seed(0)
    patch = torch.rand(3, 25, generator=generator)
    patch[0, :2] = torch.tensor([0.0, 1.0])
    mask = torch.rand(3, 20, 20, generator=generator) > 0.8
    return patch, mask, upsampled(patch)


def upsampled(patch):
    cells = patch.view(-1, 1, 5, 5)
    return F.interpolate(cells, size=20, mode="bilinear", align_corners=False)[:, 0]


def slow_focal(predicted, mask, gamma):
    hot = torch.stack([~mask, mask]).to(predicted.dtype).clamp(1e-5, 1 - 1e-5)
    picked = (hot * torch.stack([1 - predicted, predicted])).sum(dim=0) + 1e-5
    return -((1 - picked).clamp_min(1e-12) ** gamma * picked.log()).mean()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
def test_focal(maps, gamma):
    patch, mask, predicted = maps
    wanted = slow_focal(predicted.double(), mask, gamma)
    assert float(focal_loss(patch, mask, gamma)) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.0])
def test_the_gradient_of_focal_is_autograd_s(maps, gamma):
    patch, mask, _ = maps
    patch = patch.clamp(0.01, 0.99)  # autograd's own powers are not finite at the ends
    wanted = patch.double().requires_grad_()
    slow_focal(upsampled(wanted), mask, gamma).backward()
    found = patch.clone().requires_grad_()
    (3 * focal_loss(found, mask, gamma)).backward()
    assert torch.allclose(found.grad.double(), 3 * wanted.grad, rtol=1e-4, atol=1e-8)


def test_focal_is_finite_where_the_map_is_certain():
    patch = torch.ones(1, 25).requires_grad_()
    focal_loss(patch, torch.ones(1, 20, 20, dtype=torch.bool)).backward()
    assert torch.isfinite(patch.grad).all()


def test_dice(maps):
    patch, mask, predicted = maps
    shares = []
    for p, m in zip(predicted.double().numpy(), mask.numpy(), strict=True):
        shares.append((2 * p[m].sum() + 1) / (p.sum() + m.sum() + 1))
    assert float(dice_loss(patch, mask)) == pytest.approx(1 - np.mean(shares), rel=1e-5)
    assert float(dice_loss(torch.ones(3, 25), mask | True)) == pytest.approx(0, abs=1e-6)


def test_image_loss_takes_probabilities_as_logits():
    probability, labels = torch.tensor([0.2, 0.7]), torch.tensor([0, 1])
    wanted = -np.mean(
        [np.log(1 / (1 + np.exp((0.2 - 0.8) / 0.07))), np.log(1 / (1 + np.exp((0.3 - 0.7) / 0.07)))]
    )
    assert float(image_loss(probability, labels)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("quantile", [0.2, 0.8, 0.85, 0.95, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_row_quantile_is_torch_s(quantile, count):
    values = torch.randn(5, count, generator=torch.Generator().manual_seed(count))
    assert torch.allclose(row_quantile(values, quantile), values.quantile(quantile, 1), atol=1e-6)


def test_masking_hides_the_nearest_keys_by_unprojected_cosine():
    generator = torch.Generator().manual_seed(3)
    query = F.normalize(torch.randn(6, 8, generator=generator), dim=-1)
    keys = F.normalize(torch.randn(20, 8, generator=generator), dim=-1)
    keys[4] = query[0]  # its own key
    anomalous = torch.arange(20) % 2 == 0
    cosine = query @ keys.T
    limit = row_quantile(cosine, 0.8)
    similarity = torch.randn(6, 20, generator=generator)
    found = masked_probability(similarity, cosine, limit, anomalous)
    for row in range(6):
        kept = [i for i in range(20) if cosine[row, i] <= np.quantile(cosine[row].numpy(), 0.8)]
        assert len(kept) == 16
        weights = torch.softmax(similarity[row, kept], dim=0)
        assert float(found[row]) == pytest.approx(
            float(weights @ anomalous[kept].float()), rel=1e-4
        )
    assert cosine[0, 4] > limit[0]
