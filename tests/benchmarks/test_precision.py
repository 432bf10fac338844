"""What decides whether a precision may be offered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.int8 import Int8Linear
from benchmarks.precision import datasets, verdict
from mrad.encoder.kernels import Linear


@pytest.mark.parametrize(
    ("ranks", "found", "kept"),
    [
        ([0.9995, 0.9999], (80.05, 70.0), "yes"),
        ([0.9985, 0.9999], (80.0, 70.0), "NO"),  # one map is enough
        ([0.9999], (80.11, 70.0), "NO"),
        ([0.9999], (80.0, 69.85), "NO"),
        ([0.9999, float("nan")], (80.0, 70.0), "NO"),
    ],
)
def test_every_map_and_both_areas_must_hold(
    ranks: list[float], found: tuple[float, float], kept: str
) -> None:
    assert verdict(ranks, (80.0, 70.0), found)[-1] == kept


def test_both_halves_have_both_classes() -> None:
    for records in datasets(quick=True).values():
        for half in (records[::2], records[1::2]):
            assert {record.anomalous for record in half} == {False, True}


def test_int8_is_the_product_within_its_steps() -> None:
    rng = np.random.default_rng(0)
    x, weight = (
        torch.from_numpy(rng.normal(size=s).astype(np.float32)) for s in ((1, 50, 64), (32, 64))
    )
    x = (x + 5).bfloat16()  # mostly shared
    bias = torch.arange(32.0)
    wanted = F.linear(x.float(), weight, bias)
    found = Int8Linear(weight, bias, "none")(x).float()
    apart = wanted - wanted.mean(dim=1, keepdim=True)
    wrong = (found - found.mean(dim=1, keepdim=True)) - apart
    assert float(wrong.norm() / apart.norm()) < 0.03
    half = Linear(weight, bias, torch.bfloat16)(x).float()
    assert float((found - half).mean().abs()) < 0.1
