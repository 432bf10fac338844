"""MRAD-FT: retrieval with learned projections of queries and keys (docs/method.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from mrad.encoder.encoder import Encoder, Features
from mrad.errors import HeadError
from mrad.heads import HeadOutput, NoSettings
from mrad.heads.checkpoint import fill
from mrad.heads.choose import check_two_classes
from mrad.memory.bank import MemoryBank
from mrad.memory.level import LevelMemory
from mrad.retrieval.base import Retriever, at_reference_shares
from mrad.retrieval.choose import make_retriever

SAMPLE = 256
"""Queries from which approximate retrieval reads the head's sharpness and its own error."""


class FTWeights(nn.Module):
    """q' = A q + a, k' = B k + b at both levels, under the names of the paper's checkpoints."""

    def __init__(self, embed_dim: int, width: int) -> None:
        """`embed_dim` E of the class feature and the projected space, `width` W of a patch."""
        super().__init__()
        self.image_proj = nn.ModuleDict(
            {name: nn.Linear(embed_dim, embed_dim) for name in ("mlp1", "mlp2")}
        )
        pair = nn.ModuleList([nn.Linear(width, embed_dim) for _ in range(2)])
        self.patch_proj = nn.ModuleDict({"fc": pair})

    def image_query(self, query: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        return cast(Tensor, self.image_proj["mlp1"](query))

    def image_key(self, keys: Tensor) -> Tensor:
        """[n, E] -> [n, E]."""
        return cast(Tensor, self.image_proj["mlp2"](keys))

    @property
    def patch_query_layer(self) -> nn.Linear:
        """A and a of the patch level's queries."""
        return cast(nn.Linear, cast(nn.ModuleList, self.patch_proj["fc"])[0])

    def patch_query(self, query: Tensor) -> Tensor:
        """[..., W] -> [..., E]."""
        return cast(Tensor, self.patch_query_layer(query))

    def patch_key(self, keys: Tensor) -> Tensor:
        """[n, W] -> [n, E]."""
        return cast(Tensor, cast(nn.ModuleList, self.patch_proj["fc"])[1](keys))


class FTHead:
    """Plain dot product of projected queries and keys; the keys are projected once, in `attach`."""

    name = "ft"
    Config: type[BaseModel] = NoSettings

    def __init__(
        self, encoder: Encoder, config: BaseModel, state: Mapping[str, Tensor] | None = None
    ) -> None:
        """Raises `HeadError` without a checkpoint, `CheckpointError` naming an entry that is wrong."""
        if state is None:
            raise HeadError(
                f"{self.name} needs a checkpoint: train one by `mrad train {self.name}`"
            )
        self.encoder = encoder
        self.weights = self.build_weights(state)
        fill(self.weights, state)
        self.weights.requires_grad_(False).eval().to(encoder.device)

    def build_weights(self, state: Mapping[str, Tensor]) -> FTWeights:
        """Empty weights of the encoder's geometry."""
        return FTWeights(self.encoder.embed_dim, self.encoder.width)

    @torch.inference_mode()
    def attach(self, bank: MemoryBank, mode: str = "exact") -> None:
        """Project the memory's keys and index them."""
        check_two_classes(bank, self.name)
        self.levels = bank.image, bank.patch
        weights, device = self.weights, self.encoder.device
        image, patch = (
            torch.from_numpy(level.keys).to(device) for level in (bank.image, bank.patch)
        )
        self.image = self._retriever(
            bank.image, weights.image_key(image), weights.image_query(_some(image)), mode
        )
        self.patch = self._retriever(
            bank.patch, weights.patch_key(patch), weights.patch_query(_some(patch)), mode
        )

    def _retriever(
        self, level: LevelMemory, projected: Tensor, queries: Tensor, mode: str
    ) -> Retriever:
        keys = replace(level, keys=projected.cpu().numpy())
        return make_retriever(keys, mode=mode, device=self.encoder.device, queries=queries)

    @torch.inference_mode()
    def __call__(self, features: Features, exclude: Tensor | None = None) -> HeadOutput:
        """See `mrad.heads.Head`."""
        query = self.weights.patch_query(features.patch_query())
        batch, cells, width = query.shape
        rows = None if exclude is None else exclude.repeat_interleave(cells)
        patch = self.patch.probability(query.view(-1, width), rows)
        image = self.image.probability(self.weights.image_query(features.class_query()), exclude)
        return HeadOutput(
            at_reference_shares(patch, self.levels[1], rows).view(batch, cells),
            at_reference_shares(image, self.levels[0], exclude),
        )


def _some(keys: Tensor) -> Tensor:
    """Evenly spread keys, as stand-ins for what will be asked: [n, d] -> [at most SAMPLE, d]."""
    return keys[:: -(-len(keys) // SAMPLE) or 1]
