"""Training of MRAD-FT's projections (docs/method.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.heads.ft import FTWeights
from mrad.types import ANOMALOUS
from mrad_indexer.training.data import TrainingSet
from mrad_indexer.training.loop import History, Progress, optimise
from mrad_indexer.training.losses import dice_loss, focal_loss, image_loss
from mrad_indexer.training.masking import masked_probability, row_quantile
from mrad_indexer.training.recipe import FTRecipe, Stage
from mrad_indexer.training.start import ft_start


class Memory:
    """The keys of both levels on one device, and the thresholds that mask a query's own ones."""

    def __init__(self, data: TrainingSet, recipe: Stage, device: torch.device) -> None:
        self.data, self.recipe = data, recipe
        image, patch = data.bank.image, data.bank.patch
        self.image_keys = torch.from_numpy(image.keys).to(device)
        self.patch_keys = torch.from_numpy(patch.keys).to(device)
        self.image_anomalous = torch.from_numpy(image.labels == ANOMALOUS).to(device)
        self.patch_anomalous = torch.from_numpy(patch.labels == ANOMALOUS).to(device)
        self._thresholds: dict[int, Tensor] = {}

    def image_probability(self, weights: FTWeights, features: Features) -> Tensor:
        """[B], over the keys that are not masked out."""
        query = features.class_query()
        similarity = weights.image_query(query) @ weights.image_key(self.image_keys).T
        cosine = query @ self.image_keys.T
        limit = row_quantile(cosine, self.recipe.image_quantile)
        return masked_probability(similarity, cosine, limit, self.image_anomalous)

    def patch_probability(self, weights: FTWeights, features: Features, rows: list[int]) -> Tensor:
        """[B, N], over the keys that are not masked out. `rows` of the images in the set."""
        keys, layer = weights.patch_key(self.patch_keys), weights.patch_query_layer
        # (A q + a).k' = q.(A^T k') + a.k': the keys, fewer than a batch's patches, take the matrix.
        turned, shift = (keys @ layer.weight).T, keys @ layer.bias
        found = []
        # One image at a time: its products fit in the cache.
        for query, row in zip(features.patch_query(), rows):
            cosine = query @ self.patch_keys.T
            if row not in self._thresholds:  # unprojected features never change
                self._thresholds[row] = row_quantile(cosine, self.recipe.patch_quantile)
            similarity = torch.addmm(shift, query, turned)
            limit = self._thresholds[row]
            found.append(masked_probability(similarity, cosine, limit, self.patch_anomalous))
        return torch.stack(found)


def train_ft(
    encoder: Encoder,
    data: TrainingSet,
    recipe: FTRecipe,
    history: History,
    progress: Progress | None = None,
) -> FTWeights:
    """Train projections of `encoder`'s geometry; losses and times go into `history`.

    Raises `NonFiniteError`.
    """
    weights = ft_start(encoder, data, recipe).to(encoder.device)
    memory = Memory(data, recipe, encoder.device)

    def losses(rows: list[int]) -> dict[str, Tensor]:
        features = data.features.batch(rows, encoder.device)
        image = memory.image_probability(weights, features)
        labels = data.labels[rows].to(encoder.device)
        terms = {"image": recipe.image_weight * image_loss(image, labels, recipe.image_temperature)}
        known = data.masked[rows].nonzero().flatten()
        if len(known):
            chosen = [rows[i] for i in known.tolist()]
            if len(chosen) < len(rows):
                features = Features(features.class_feature[known], features.patch[known])
            patch = memory.patch_probability(weights, features, chosen)
            terms |= map_losses(patch, data.masks(chosen).to(patch.device), recipe)
        return terms

    optimise("ft", recipe, len(data), weights.parameters(), losses, history, progress)
    return weights.requires_grad_(False).eval()


def map_losses(patch: Tensor, mask: Tensor, recipe: Stage) -> dict[str, Tensor]:
    """Focal and Dice terms of patch probabilities [B, N] against masks [B, S, S]."""
    return {
        "focal": recipe.focal_weight * focal_loss(patch, mask, recipe.focal_gamma),
        "dice": recipe.dice_weight * dice_loss(patch, mask),
    }
