"""Self-retrieval masking: an image that is also in the memory must not simply find itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def row_quantile(values: Tensor, quantile: float) -> Tensor:
    """Quantile of each row, [M, n] -> [M], interpolated linearly as NumPy and torch do.

    `torch.quantile` sorts every row and refuses 2^24 elements; two order statistics are enough.
    """
    count = values.shape[1]
    position = quantile * (count - 1)
    low = int(position)
    if values.is_cuda:
        largest = values.topk(count - low, dim=1).values.flip(1)
    else:  # NumPy selects in vector registers, several times faster than torch's topk
        largest = torch.from_numpy(np.partition(values.numpy(), low, axis=1)[:, low:])
    lower, above = largest[:, 0], largest[:, 1:]
    upper = above.amin(dim=1) if above.shape[1] else lower
    return lower + (position - low) * (upper - lower)


def masked_probability(
    similarity: Tensor, cosine: Tensor, threshold: Tensor, anomalous: Tensor
) -> Tensor:
    """Retrieval over the keys that are not masked: [M, n] -> anomalous probability [M].

    `similarity` of projected features, written over; `cosine` of unprojected ones; `anomalous` bool
    [n]: the values.
    """
    scores = similarity.masked_fill_(cosine > threshold[:, None], -torch.inf)
    return torch.softmax(scores, dim=1) @ anomalous.to(scores.dtype)
