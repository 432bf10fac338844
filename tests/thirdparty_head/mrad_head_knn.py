"""A head of one's own: the k nearest keys vote, weighted by how near they are."""

import torch
from pydantic import BaseModel, Field

from mrad.heads import HeadOutput
from mrad.retrieval.choose import make_retriever


class KNNConfig(BaseModel):
    k: int = Field(default=5, ge=1)
    temperature: float = Field(default=0.05, gt=0)


class KNNHead:
    name = "knn"
    Config = KNNConfig

    def __init__(self, encoder, config, state=None):
        self.encoder, self.config = encoder, config

    def attach(self, bank, mode="exact"):
        device = self.encoder.device
        self.labels = {"image": bank.image.labels, "patch": bank.patch.labels}
        self.retrievers = {
            level: make_retriever(getattr(bank, level), mode=mode, device=device)
            for level in ("image", "patch")
        }

    def __call__(self, features, exclude=None):
        query = features.patch_query()
        batch, cells, width = query.shape
        rows = None if exclude is None else exclude.repeat_interleave(cells)
        patch = self.vote("patch", query.reshape(-1, width), rows)
        return HeadOutput(
            patch.view(batch, cells), self.vote("image", features.class_query(), exclude)
        )

    def vote(self, level, queries, exclude):
        similarity, keys = self.retrievers[level].nearest(queries, self.config.k, exclude)
        weights = torch.softmax(torch.from_numpy(similarity) / self.config.temperature, dim=1)
        votes = torch.from_numpy(self.labels[level][keys]).float()
        return (weights * votes).sum(dim=1).to(queries.device)
