"""Weights for heads on any encoder, seeded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mrad import Encoder
from mrad.heads.checkpoint import save_checkpoint
from mrad.heads.clip import CLIPWeights
from mrad.heads.ft import FTWeights
from mrad.heads.text import text_part

State = dict[str, torch.Tensor]


def random_state(head: str, encoder: Encoder, seed: int = 0) -> State:
    """Sharp random weights, so that probabilities fall on both sides of 0.5."""
    if head == "ft":
        weights = FTWeights(encoder.embed_dim, encoder.width)
    else:
        width = text_part(encoder.clip).positional_embedding.shape[1]
        weights = CLIPWeights(encoder.embed_dim, encoder.width, width, 3, 3, 2)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * 4 * value.shape[-1] ** -0.5
        for name, value in weights.state_dict().items()
    }


@pytest.fixture(scope="session")
def make_state() -> Callable[..., State]:
    """`make_state(head, encoder, seed=0)` -> the tensors of a checkpoint."""
    return random_state


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """`make_checkpoint(head, encoder, state=None, **fields)` -> a file."""

    def write(head: str, encoder: Encoder, state: State | None = None) -> Path:
        path = tmp_path / f"{head}.safetensors"
        tensors = random_state(head, encoder) if state is None else state
        save_checkpoint(path, head, tensors, {}, encoder.identity, "feed", {"images": 3})
        return path

    return write
