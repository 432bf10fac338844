"""The oracle: a small CLIP and heads from `weights.py`, and what the paper's code computed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import torch

from mrad import Encoder, Features, MemoryBank, Sample
from mrad.encoder.weights import PAPER_IMAGE_SIZE

FOLDER = Path(__file__).parent


@pytest.fixture(scope="session")
def oracle_weights() -> ModuleType:
    """The module that makes every parameter from its name."""
    spec = importlib.util.spec_from_file_location("oracle_weights", FOLDER / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def expected() -> dict[str, np.ndarray]:
    """Array name -> what the released code computed."""
    with np.load(FOLDER / "expected.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def oracle_encoder(oracle_weights: ModuleType) -> Encoder:
    """The oracle's CLIP at the paper's input size, float32."""
    g = oracle_weights.GEOMETRY
    clip = open_clip.model.CLIP(
        embed_dim=g["embed_dim"],
        quick_gelu=True,
        vision_cfg=open_clip.CLIPVisionCfg(
            image_size=g["image_size"],
            patch_size=g["patch_size"],
            width=g["vision_width"],
            layers=g["vision_layers"],
            head_width=g["vision_width"] // g["vision_heads"],
        ),
        text_cfg=open_clip.CLIPTextCfg(
            width=g["text_width"], heads=g["text_heads"], layers=g["text_layers"]
        ),
    )
    state = {name: torch.from_numpy(value) for name, value in oracle_weights.clip_state().items()}
    clip.load_state_dict(state, strict=True)
    return Encoder.from_clip(clip, PAPER_IMAGE_SIZE, name="oracle", device="cpu")


@pytest.fixture(scope="session")
def manifest() -> dict[str, list[dict]]:
    """The six memory images and the three queries."""
    return json.loads((FOLDER / "images" / "manifest.json").read_text())


@pytest.fixture(scope="session")
def oracle_samples(manifest: dict[str, list[dict]]) -> list[Sample]:
    """The memory images as samples."""
    folder = FOLDER / "images"
    return [
        Sample(
            folder / item["image"],
            bool(item["anomaly"]),
            folder / item["mask"] if "mask" in item else None,
            source=item["image"],
        )
        for item in manifest["memory"]
    ]


@pytest.fixture(scope="session")
def oracle_bank(oracle_encoder: Encoder, oracle_samples: list[Sample]) -> MemoryBank:
    """The memory that the released code builds."""
    return MemoryBank.from_samples(oracle_encoder, oracle_samples, batch_size=3)


@pytest.fixture(scope="session")
def oracle_queries(manifest: dict[str, list[dict]]) -> list[Path]:
    """The query images."""
    return [FOLDER / "images" / item["image"] for item in manifest["query"]]


@pytest.fixture(scope="session")
def oracle_features(oracle_encoder: Encoder, oracle_queries: list[Path]) -> Features:
    """Features of the three queries, encoded in one batch."""
    return oracle_encoder.encode(oracle_queries, raw=True)
