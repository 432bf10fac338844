"""Where FT's projections begin, by the recipe's `start` and seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrad.encoder.encoder import Encoder
from mrad.errors import NonFiniteError
from mrad.heads.ft import FTWeights
from mrad_indexer.training.data import TrainingSet
from mrad_indexer.training.losses import TINY
from mrad_indexer.training.recipe import FTRecipe

STRIDE = 7
"""Every how many patches a covariance is taken of: neighbours say the same again. Odd, so that a
square grid is not read in columns."""


def ft_start(encoder: Encoder, data: TrainingSet, recipe: FTRecipe) -> FTWeights:
    """Weights before the first step; no global random state is touched. Raises `NonFiniteError`."""
    generator = torch.Generator().manual_seed(recipe.seed)
    weights = FTWeights(encoder.embed_dim, encoder.width)
    image, patch = weights.image_proj, cast(nn.ModuleList, weights.patch_proj["fc"])
    levels = (
        (cast(nn.Linear, image["mlp1"]), cast(nn.Linear, image["mlp2"]), _class_queries),
        (cast(nn.Linear, patch[0]), cast(nn.Linear, patch[1]), _patch_queries),
    )
    for query, key, queries in levels:
        if recipe.start == "linear":
            linear_start(query, generator)
            linear_start(key, generator)
            continue
        if recipe.start == "isometry":
            nn.init.orthogonal_(query.weight, math.sqrt(recipe.sharpness), generator)
            nn.init.zeros_(query.bias)
        else:
            whitened_start(query, queries(data), recipe, generator)
        key.load_state_dict(query.state_dict())
    return weights


def linear_start(layer: nn.Linear, generator: torch.Generator) -> None:
    """torch's own start of a linear layer, with a generator."""
    bound = layer.in_features**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator)


@torch.no_grad()
def whitened_start(
    layer: nn.Linear, queries: Iterable[Tensor], recipe: FTRecipe, generator: torch.Generator
) -> None:
    """Centre the features and give every direction of theirs the same variance.

    `queries`: pieces [m, d] of what will be asked. A direction of variance v is divided by
    sqrt(v + shrinkage * mean variance), so that those which hold only noise are not blown up to the
    size of the others; the mean of |q'|^2 comes to about `sharpness`. A layer that narrows keeps the
    directions of most variance.
    """
    mean, covariance = _moments(queries)
    variance, directions = torch.linalg.eigh(covariance)
    kept = min(layer.in_features, layer.out_features)
    variance, directions = variance[-kept:].clamp_min(0), directions[:, -kept:]
    floor = max(recipe.shrinkage * float(covariance.diagonal().mean()), TINY)
    scale = (recipe.sharpness / kept / (variance + floor)).sqrt()
    # A random turn changes no product; it spreads every direction over all outputs, as Adam's steps are.
    turn = torch.empty(layer.out_features, kept)
    nn.init.orthogonal_(turn, generator=generator)
    weight = turn @ (directions * scale).T.float()
    layer.weight.copy_(weight)
    layer.bias.copy_(-weight @ mean.float())


def _moments(pieces: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d], float64, of rows that come in pieces."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for piece in pieces:
        rows = piece.double().cpu()
        count, total, square = count + len(rows), total + rows.sum(dim=0), square + rows.T @ rows
    if not torch.isfinite(square).all():
        raise NonFiniteError("a feature is not finite, so the projections cannot start from them")
    mean = total / count
    return mean, square / count - torch.outer(mean, mean)


def _class_queries(data: TrainingSet) -> Iterable[Tensor]:
    yield F.normalize(data.features.class_feature, dim=-1)


def _patch_queries(data: TrainingSet) -> Iterable[Tensor]:
    for row in range(len(data)):
        yield data.features.batch([row]).patch_query()[0, ::STRIDE]
