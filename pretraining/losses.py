"""What the small CLIP is trained by: captions against images and patches, memories against both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.statistics import MIXES, STATISTICS

SHARPNESS = 8.0
"""Of q.k in the retrieval loss: TF's is 1, where gradients would be faint; order is the same."""


@dataclass(frozen=True)
class Batch:
    """P pairs: pictures 0 to P - 1 are flawless, P to 2P - 1 the same with a defect."""

    pixels: Tensor  # [2P, 3, S, S], normalised
    cells: Tensor  # [2P, N] target: 1 anomalous, 0 normal, -1 neither
    fine: Tensor  # the same of the stem's places
    kinds: Tensor  # [P]
    tokens: Tensor  # [2P, L]
    same: Tensor  # [2P, 2P] bool: the captions are equal


class Heads(nn.Module):
    """Linear readings that only training needs; they are not shipped."""

    def __init__(self, width: int, channels: int, kinds: int) -> None:
        super().__init__()
        self.kind = nn.Linear(width, kinds)
        self.statistics = nn.Linear(width, STATISTICS + MIXES)
        self.fine = nn.Conv2d(channels, 1, 1)


def clip_loss(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """CLIP's contrast of pictures and captions, both ways; equal captions are all right answers."""
    logits = scale * F.normalize(images, dim=-1) @ texts.T
    right = same.float() / same.sum(dim=1, keepdim=True)
    loss: Tensor = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    return loss


def balanced(log_odds: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy where each class has half of the weight; -1 is left out."""
    positive, negative = target == 1, target == 0
    loss = F.binary_cross_entropy_with_logits(log_odds, positive.float(), reduction="none")
    parts = [loss[m].sum() / m.sum().clamp_min(8) for m in (positive, negative)]
    return 0.4 * parts[0] + 0.6 * parts[1]


def dense_loss(
    patch: Tensor, projection: Tensor, texts: Tensor, cells: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Each joint patch feature against its own pair's flawless and damaged captions.

    Returns the loss and the log-odds [2P, N].
    """
    pairs = len(texts) // 2
    joint = F.normalize(patch @ projection, dim=-1)
    direction = (texts[pairs:] - texts[:pairs]).repeat(2, 1)
    log_odds = scale * torch.einsum("bne,be->bn", joint, direction)
    return balanced(log_odds, cells), log_odds


def region_keys(patch: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The memory's keys (docs/method.md): normalised means of regions, labels, owners' pairs."""
    pairs = len(patch) // 2
    owner = torch.arange(len(patch), device=patch.device) % pairs
    keys, labels, owners = [], [], []
    for label in (0, 1):
        member = (cells == label).float()
        count = member.sum(dim=1)
        mean = torch.einsum("bn,bnw->bw", member, patch) / count.clamp_min(1)[:, None]
        keys.append(F.normalize(mean[count > 0], dim=-1))
        labels.append(torch.full_like(owner[count > 0], label))
        owners.append(owner[count > 0])
    return torch.cat(keys), torch.cat(labels), torch.cat(owners)


def retrieval_log_odds(
    queries: Tensor, owner: Tensor, keys: Tensor, labels: Tensor, owners: Tensor
) -> Tensor:
    """What MRAD-TF computes, sharpened, from the keys of OTHER pairs; classes weigh the same."""
    scores = SHARPNESS * queries @ keys.T
    scores = scores.masked_fill(owner[:, None] == owners[None], -torch.inf)
    sums = [scores[:, labels == c].logsumexp(dim=1) for c in (0, 1)]
    counts = [(labels == c).sum().clamp_min(1).log() for c in (0, 1)]
    return (sums[1] - counts[1] - sums[0] + counts[0]) * 4


def retrieval_loss(patch: Tensor, cells: Tensor) -> Tensor:
    """Patches ask the regions of all other pictures of the batch."""
    keys, labels, owners = region_keys(patch, cells)
    pairs = len(patch) // 2
    owner = (torch.arange(len(patch), device=patch.device) % pairs).repeat_interleave(
        patch.shape[1]
    )
    known = cells.flatten() >= 0
    queries = F.normalize(patch.flatten(0, 1)[known], dim=-1)
    log_odds = retrieval_log_odds(queries, owner[known], keys, labels, owners)
    target = cells.flatten()[known]
    asked = log_odds.detach().isfinite()  # not where the others show no defect at all
    return balanced(log_odds[asked], target[asked])


def image_retrieval_loss(images: Tensor) -> Tensor:
    """Pictures ask the class features of all other pairs."""
    pairs = len(images) // 2
    labels = torch.arange(len(images), device=images.device) // pairs
    owner = torch.arange(len(images), device=images.device) % pairs
    unit = F.normalize(images, dim=-1)
    return balanced(retrieval_log_odds(unit, owner, unit, labels, owner), labels)


def kind_loss(reading: Tensor, cells: Tensor, kinds: Tensor) -> Tensor:
    """Which defect a cell shows: [2P, N, K] against flawless or the pair's defect."""
    target = torch.where(cells == 1, kinds.repeat(2)[:, None], 0)
    known = cells >= 0
    loss = F.cross_entropy(reading[known], target[known], reduction="none")
    positive = target[known] > 0
    parts = [loss[m].sum() / m.sum().clamp_min(8) for m in (positive, ~positive)]
    return (parts[0] + parts[1]) / 2
