"""Every number of the train-free line equals the paper's code, as a share of each array's range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mrad import Detector, Encoder, Features, MemoryBank, Sample
from mrad.images.reader import load_image
from mrad.maps import anomaly_map

QUERIES = (0, 1, 2)


def error(found: np.ndarray | torch.Tensor | float, wanted: np.ndarray) -> float:
    """Largest absolute error over the range of the wanted array (over 1 for a single number)."""
    found = np.asarray(found, dtype=np.float64)
    assert found.shape == wanted.shape
    spread = float(np.ptp(wanted)) if wanted.size > 1 else 1.0
    return float(np.abs(found - wanted).max()) / spread


@pytest.fixture(scope="session")
def detector(oracle_encoder: Encoder, oracle_bank: MemoryBank) -> Detector:
    return Detector(oracle_encoder, oracle_bank)


@pytest.mark.parametrize("q", QUERIES)
def test_pixels(q, oracle_encoder, oracle_queries, expected):
    pixels = oracle_encoder.preprocess(load_image(oracle_queries[q]))
    assert error(pixels[:, ::37, ::37], expected[f"q{q}_pixels"]) <= 1e-6


@pytest.mark.parametrize("q", QUERIES)
def test_features(q: int, oracle_encoder: Encoder, oracle_features: Features, expected):
    query = oracle_features.patch_query()[q]
    joint = oracle_encoder.project_patch(oracle_features.patch[q])
    joint = torch.nn.functional.normalize(joint, dim=-1)
    raw = oracle_features.patch_raw
    assert raw is not None
    assert error(oracle_features.class_feature[q], expected[f"q{q}_cls"]) <= 2e-5
    assert error(raw[q, ::37], expected[f"q{q}_patch_raw"]) <= 2e-5
    assert error(query[::37], expected[f"q{q}_patch"]) <= 2e-5
    assert error(joint[::37], expected[f"q{q}_patch_joint"]) <= 2e-5


def test_keys(oracle_bank: MemoryBank, expected):
    assert error(oracle_bank.image.keys, expected["image_keys"]) <= 2e-5
    assert np.array_equal(np.eye(2)[oracle_bank.image.labels], expected["image_values"])
    order = match(oracle_bank.patch.keys, expected["patch_keys"])
    assert sorted(order) == list(range(len(order)))
    assert error(oracle_bank.patch.keys[order], expected["patch_keys"]) <= 2e-5
    assert np.array_equal(np.eye(2)[oracle_bank.patch.labels[order]], expected["patch_values"])


def match(found: np.ndarray, wanted: np.ndarray) -> list[int]:
    """The release lists patch keys in another order: the row of `found` for each wanted key."""
    return [int(np.abs(found - key).sum(axis=1).argmin()) for key in wanted]


@pytest.mark.parametrize("q", QUERIES)
def test_probabilities_map_and_score(q, detector, oracle_features, expected):
    output = detector.head(oracle_features)
    square = anomaly_map(output.patch, detector.encoder.image_size)[q]
    prediction = detector.finish(oracle_features, [(64, 64)] * 3)[q]
    assert error(output.image[q], expected[f"q{q}_tf_class"]) <= 1e-6
    assert error(output.patch[q], expected[f"q{q}_tf_patch"]) <= 1e-4
    assert error(square[::7, ::7], expected[f"q{q}_tf_map"]) <= 1e-4
    assert error(prediction.top_score, expected[f"q{q}_tf_top"]) <= 1e-6
    assert error(prediction.score, expected[f"q{q}_tf_score"]) <= 1e-6


def test_order_of_the_memory_does_not_matter(
    oracle_encoder: Encoder, oracle_samples: list[Sample], oracle_features: Features, expected
):
    shuffled = [oracle_samples[i] for i in (4, 1, 5, 0, 3, 2)]
    bank = MemoryBank.from_samples(oracle_encoder, shuffled, batch_size=2)
    scores = [p.score for p in Detector(oracle_encoder, bank).finish(oracle_features, [(8, 8)] * 3)]
    assert error(scores, np.array([expected[f"q{q}_tf_score"] for q in QUERIES])) <= 1e-4
    assert np.abs(np.array(scores) - [expected[f"q{q}_tf_score"] for q in QUERIES]).max() <= 1e-6


def test_batch_composition_and_repetition_give_the_same_numbers(
    detector: Detector, oracle_queries: list[Path], oracle_features: Features
):
    alone = [detector.predict([query])[0] for query in oracle_queries]
    together = detector.predict(oracle_queries, batch_size=2)
    for one, other in zip(alone, together, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert np.abs(one.anomaly_map - other.anomaly_map).max() <= 1e-5
    again = detector.encoder.encode(oracle_queries)
    assert torch.equal(again.class_feature, oracle_features.class_feature)
    assert torch.equal(again.patch, oracle_features.patch)
