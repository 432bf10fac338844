"""Each loss equals its definition in METHOD.md, written out the slow way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from indexer.train.losses import dice_loss, focal_loss, image_loss, upsampled
from indexer.train.masking import masked_probability, row_quantile, thresholds


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    patch = torch.rand(3, 25, generator=generator)
    mask = torch.rand(3, 20, 20, generator=generator) > 0.8
    return upsampled(patch, 20), mask, patch


def test_upsampling_is_bilinear_and_unblurred(maps):
    predicted, _, patch = maps
    wanted = F.interpolate(patch.view(3, 1, 5, 5), size=20, mode="bilinear", align_corners=False)
    assert torch.allclose(predicted, wanted[:, 0], atol=1e-6)


def test_focal(maps):
    predicted, mask, _ = maps
    total = 0.0
    for p, m in zip(predicted.flatten().double().tolist(), mask.flatten().tolist(), strict=True):
        target = np.clip([1 - m, m], 1e-5, 1 - 1e-5)
        picked = float(target @ [1 - p, p]) + 1e-5
        total += -((1 - picked) ** 2) * np.log(picked)
    assert float(focal_loss(predicted, mask)) == pytest.approx(total / mask.numel(), rel=1e-5)


def test_dice(maps):
    predicted, mask, _ = maps
    shares = []
    for p, m in zip(predicted.double().numpy(), mask.numpy(), strict=True):
        shares.append((2 * p[m].sum() + 1) / (p.sum() + m.sum() + 1))
    assert float(dice_loss(predicted, mask)) == pytest.approx(1 - np.mean(shares), rel=1e-5)
    assert float(dice_loss(mask.float(), mask)) == pytest.approx(0, abs=1e-6)


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
    cosine, limit = query @ keys.T, thresholds(query, keys, 0.8)
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
