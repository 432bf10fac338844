"""Training of MRAD-CLIP's prompts on top of a trained FT (docs/method.md)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mrad.encoder.encoder import Encoder
from mrad.errors import DataError
from mrad.heads.clip import CLIPConfig, CLIPWeights, prompt_probability, region_priors
from mrad.heads.ft import FTWeights
from mrad.heads.text import TextTower
from mrad_indexer.training.data import TrainingSet
from mrad_indexer.training.ft import Memory, map_losses
from mrad_indexer.training.loop import History, Progress, optimise
from mrad_indexer.training.losses import TINY, dice_loss
from mrad_indexer.training.recipe import CLIPRecipe
from mrad_indexer.training.start import linear_start


def train_clip(
    encoder: Encoder,
    data: TrainingSet,
    ft: FTWeights,
    recipe: CLIPRecipe,
    history: History,
    progress: Progress | None = None,
    config: CLIPConfig | None = None,
) -> CLIPWeights:
    """Train context, deep prompts and `prompt_proj`; FT's projections stay as they are.

    Raises `NonFiniteError`, `UnsupportedEncoderError`, `DataError`.
    """
    config, device = config or CLIPConfig(), encoder.device
    text = TextTower(encoder.clip, encoder.name, config.prompts, recipe.n_ctx).to(device)
    weights = start(encoder, ft, text, recipe).to(device)
    learned = [*weights.prompt_proj.parameters(), *weights.prompt_learner.parameters()]
    rows_known = data.masked.nonzero().flatten().tolist()
    if not rows_known:
        raise DataError("no image has a known mask, and prompts train on masks alone")
    priors, lengths = _frozen(encoder, data, weights, recipe, config)
    projection = encoder.tower.projection.detach()

    def losses(picked: list[int]) -> dict[str, Tensor]:
        rows = [rows_known[i] for i in picked]
        prefix = text.prefix(weights.deep(config.half_deep_prompts))
        features = text(weights.context(priors[rows]), prefix)
        # (P q).t = q.(P^T t): two texts of an image take the matrix, not its patches.
        scaled = data.features.batch(rows, device).patch / lengths[rows, :, None]
        patch = prompt_probability(scaled, features @ projection.T, config.temperature)
        mask = data.masks(rows).to(device)
        normal = dice_loss(1 - patch, ~mask)
        return map_losses(patch, mask, recipe) | {"normal_dice": recipe.normal_dice_weight * normal}

    optimise("clip", recipe, len(rows_known), learned, losses, history, progress)
    return weights.requires_grad_(False).eval()


@torch.no_grad()
def _frozen(
    encoder: Encoder,
    data: TrainingSet,
    weights: FTWeights,
    recipe: CLIPRecipe,
    config: CLIPConfig,
) -> tuple[Tensor, Tensor]:
    """What no step changes: priors [n, 2, E], and lengths of the joint patch features [n, N]."""
    memory = Memory(data, recipe, encoder.device)
    priors, lengths = [], []
    for start_row in range(0, len(data), recipe.batch_size):
        rows = list(range(start_row, min(start_row + recipe.batch_size, len(data))))
        features = data.features.batch(rows, encoder.device)
        patch = memory.patch_probability(weights, features, rows)
        joint = encoder.project_patch(features.patch)
        length = joint.norm(dim=-1).clamp_min(TINY)
        priors.append(region_priors(joint / length[..., None], patch > config.region_threshold))
        lengths.append(length)
    return torch.cat(priors), torch.cat(lengths)


def start(encoder: Encoder, ft: FTWeights, text: TextTower, recipe: CLIPRecipe) -> CLIPWeights:
    """Weights before the first step: FT's projections, and prompts by the recipe's seed.

    CLIPs with few text blocks get as many deep prompts as they have room for.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    depth = min(recipe.depth, len(text.blocks))
    weights = CLIPWeights(
        encoder.embed_dim, encoder.width, text.width, recipe.n_ctx, depth, recipe.n_deep
    )
    weights.image_proj.load_state_dict(ft.image_proj.state_dict())
    weights.patch_proj.load_state_dict(ft.patch_proj.state_dict())
    for name in ("mlp1", "mlp2"):
        linear_start(cast(nn.Linear, weights.prompt_proj[name]), generator)
    for prompt in weights.prompt_learner.parameters():
        nn.init.normal_(prompt, std=recipe.prompt_std, generator=generator)
    return weights
