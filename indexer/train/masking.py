"""Self-retrieval masking: an image that is also in the memory must not simply find itself."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 4_096


def row_quantile(values: Tensor, quantile: float) -> Tensor:
    """Quantile of each row, [M, n] -> [M], interpolated linearly as NumPy and torch do.

    `torch.quantile` sorts every row and refuses 2^24 elements; only the upper share is needed.
    """
    count = values.shape[1]
    position = quantile * (count - 1)
    low = int(position)
    top = values.topk(count - low, dim=1).values  # descending: the last is order statistic `low`
    lower, upper = top[:, -1], top[:, -2] if count - low > 1 else top[:, -1]
    return lower + (position - low) * (upper - lower)


def thresholds(queries: Tensor, keys: Tensor, quantile: float) -> Tensor:
    """[M] cosines above which a query's keys are masked out; both sides L2-normalised."""
    blocks = queries.split(ROWS)
    return torch.cat([row_quantile(block @ keys.T, quantile) for block in blocks])


def masked_probability(
    similarity: Tensor, cosine: Tensor, threshold: Tensor, anomalous: Tensor
) -> Tensor:
    """Retrieval over the keys that are not masked: [M, n] -> anomalous probability [M].

    `similarity` of projected, `cosine` of unprojected features; `anomalous` bool [n]: the values.
    """
    scores = similarity.masked_fill(cosine > threshold[:, None], -torch.inf)
    return torch.softmax(scores, dim=1) @ anomalous.to(scores.dtype)
