"""Every number of FT and CLIP equals the paper's code, as a share of each array's range."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mrad import Detector, Encoder, Features, MemoryBank
from mrad.heads.checkpoint import save_checkpoint
from mrad.maps import anomaly_map

QUERIES = (0, 1, 2)
HEADS = ("ft", "clip")
ENTRIES = {
    "ft": ("image_proj", "patch_proj"),
    "clip": ("image_proj", "patch_proj", "prompt_proj", "prompt_learner"),
}


def error(found: np.ndarray | torch.Tensor | float, wanted: np.ndarray) -> float:
    """Largest absolute error over the range of the wanted array (over 1 for a single number)."""
    found = np.asarray(found, dtype=np.float64)
    assert found.shape == wanted.shape
    spread = float(np.ptp(wanted)) if wanted.size > 1 else 1.0
    return float(np.abs(found - wanted).max()) / spread


@pytest.fixture(scope="session")
def oracle_heads(
    oracle_encoder: Encoder,
    oracle_bank: MemoryBank,
    oracle_weights: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Detector]:
    """A detector for each head, its checkpoint written to disk and read back."""
    folder: Path = tmp_path_factory.mktemp("heads")
    state = oracle_weights.head_state()
    detectors = {}
    for head in HEADS:
        tensors = {
            f"{entry}.{name}": torch.from_numpy(value)
            for entry in ENTRIES[head]
            for name, value in state[entry].items()
        }
        path = folder / f"{head}.safetensors"
        save_checkpoint(path, head, tensors, {}, oracle_encoder.identity)
        detectors[head] = Detector(oracle_encoder, oracle_bank, head, checkpoint=path)
    return detectors


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("q", QUERIES)
def test_probabilities_map_and_score(q, head, oracle_heads, oracle_features, expected):
    detector = oracle_heads[head]
    output = detector.head(oracle_features)
    square = anomaly_map(output.patch, detector.encoder.image_size)[q]
    prediction = detector.finish(oracle_features, [(64, 64)] * 3)[q]
    assert error(output.image[q], expected[f"q{q}_{head}_class"]) <= 1e-4
    # The oracle's clip_patch is the retrieval that the priors rest on, not what becomes the map.
    retrieved = output.patch if head == "ft" else detector.head.retrieve(oracle_features).patch
    assert error(retrieved[q], expected[f"q{q}_{head}_patch"]) <= 1e-4
    assert error(square[::7, ::7], expected[f"q{q}_{head}_map"]) <= 1e-4
    assert error(prediction.top_score, expected[f"q{q}_{head}_top"]) <= 1e-4
    assert error(prediction.score, expected[f"q{q}_{head}_score"]) <= 1e-4


@pytest.mark.parametrize("q", QUERIES)
def test_priors_and_text(q, oracle_heads, oracle_features: Features, expected):
    head, encoder = oracle_heads["clip"].head, oracle_heads["clip"].encoder
    joint = F.normalize(encoder.project_patch(oracle_features.patch), dim=-1)
    priors = head.priors(joint, oracle_heads["ft"].head(oracle_features).patch)
    assert error(priors[q], expected[f"q{q}_clip_prior"]) <= 1e-4
    assert error(head.text_features(priors)[q], expected[f"q{q}_clip_text"]) <= 1e-4


def test_both_regions_occur_in_the_oracle(oracle_heads, oracle_features):
    """Otherwise the priors above would be compared on a degenerate case."""
    anomalous = oracle_heads["ft"].head(oracle_features).patch > 0.5
    assert anomalous.any(dim=1).all()
    assert not anomalous.all(dim=1).any()
