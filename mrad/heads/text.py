"""CLIP's causal text tower with learnable context and deep prompts, computing only what is read.

Two facts save most of the work without changing a number. The tower is causal, so a sequence may
end with its end-of-text token. And what stands before an image's own tokens is the same for every
image: the start token, and from the second block on the deep prompts in tokens 1 to n, so that
their keys and values are computed once (`prefix`), not for each image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrad.encoder.parts import block_parts
from mrad.encoder.tower import Block
from mrad.errors import UnsupportedEncoderError

PLACEHOLDER = "X"
KeyValue = tuple[Tensor, Tensor]


class CausalBlock(Block):
    """A text block that continues a sequence whose beginning is already known."""

    def prefix(self, x: Tensor) -> tuple[KeyValue, Tensor]:
        """The shared beginning [1, P, T]: its keys and values, and its output [1, P, T]."""
        q, k, v = self._qkv(self._normed(x))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return (k, v), self._mlp(x + self._out(attended.transpose(1, 2).flatten(2)))

    def suffix(self, x: Tensor, before: KeyValue, keep: int) -> Tensor:
        """[M, L, T] behind the P tokens of `before` -> output of its last `keep` tokens."""
        q, k, v = self._qkv(self._normed(x))
        batch, known = len(x), before[0].shape[2]
        k = torch.cat([before[0].expand(batch, -1, -1, -1), k], dim=2)
        v = torch.cat([before[1].expand(batch, -1, -1, -1), v], dim=2)
        places = torch.arange(k.shape[2], device=x.device)
        mask = places[None] <= places[known + x.shape[1] - keep :, None]
        attended = F.scaled_dot_product_attention(q[:, :, -keep:], k, v, attn_mask=mask)
        return self._mlp(x[:, -keep:] + self._out(attended.transpose(1, 2).flatten(2)))


class TextTower(nn.Module):
    """Frozen; float32. Turns a pair of contexts (normal, anomalous) into a pair of text features."""

    embedding: Tensor
    positions: Tensor
    projection: Tensor
    ends: Tensor

    def __init__(self, clip: nn.Module, name: str, prompts: tuple[str, str], n_ctx: int) -> None:
        """`clip` an open_clip model; `prompts` what follows the `n_ctx` placeholders.

        Raises `UnsupportedEncoderError` for a text tower that is not CLIP's causal one.
        """
        super().__init__()
        text = text_part(clip)
        ids, ends = tokenize(name, prompts, n_ctx, text)
        self.n_ctx, self.width = n_ctx, int(text.positional_embedding.shape[1])
        self.blocks = nn.ModuleList(
            CausalBlock(block_parts(block), torch.float32) for block in text.transformer.resblocks
        )
        self.norm = copy.deepcopy(text.ln_final).float()
        self.register_buffer("embedding", text.token_embedding.weight.detach()[ids].float().clone())
        positions = text.positional_embedding.detach()[: ids.shape[1]]
        self.register_buffer("positions", positions.float().clone())
        projection = text.text_projection
        weight = projection.weight.T if isinstance(projection, nn.Linear) else projection
        self.register_buffer("projection", weight.detach().float().clone())
        self.register_buffer("ends", ends)
        self.requires_grad_(False).eval()

    def prefix(self, deep: Sequence[Tensor]) -> list[KeyValue]:
        """Keys and values of the shared beginning in every block, given the deep prompts.

        `deep[i]` [n, T] replaces tokens 1 to n in block i + 1. Compute it once for fixed prompts.
        """
        if len(deep) >= len(self.blocks):
            raise UnsupportedEncoderError(
                f"{len(deep)} deep prompts need {len(deep) + 1} text blocks; this CLIP has "
                f"{len(self.blocks)}"
            )
        x = (self.embedding[:1, :1] + self.positions[:1]).float()
        known = []
        for index, block in enumerate(self.blocks):
            if 0 < index <= len(deep):
                x = torch.cat([x[:, :1], deep[index - 1][None]], dim=1)
            pair, x = cast(CausalBlock, block).prefix(x)
            known.append(pair)
        return known

    def forward(self, context: Tensor, prefix: Sequence[KeyValue]) -> Tensor:
        """`context` [B, 2, n_ctx, T] -> text features [B, 2, E], L2-normalised."""
        batch, length = len(context), self.positions.shape[0]
        tail = self.embedding[:, 1 + self.n_ctx :].expand(batch, -1, -1, -1)
        x = (torch.cat([context, tail], dim=2) + self.positions[1:]).flatten(0, 1)
        last = length - int(self.ends.min())
        for index, block in enumerate(self.blocks):
            after = index + 1
            keep = last if after == len(self.blocks) else length - prefix[after][0].shape[2]
            x = cast(CausalBlock, block).suffix(x, prefix[index], keep)
        places = self.ends - (length - x.shape[1])
        pairs = self.norm(x).view(batch, 2, -1, self.width)
        ended = pairs[:, torch.arange(2, device=x.device), places]
        return F.normalize(ended @ self.projection, dim=-1)


def text_part(clip: nn.Module) -> Any:
    """The module that holds the text tower. Raises `UnsupportedEncoderError`."""
    text: Any = getattr(clip, "text", clip)
    needed = ("token_embedding", "positional_embedding", "ln_final", "transformer")
    if not all(hasattr(text, part) for part in needed) or not hasattr(
        text.transformer, "resblocks"
    ):
        raise UnsupportedEncoderError(
            f"{type(text).__name__} is not CLIP's text tower; the clip head puts learned tokens "
            "into CLIP's own. Use tf or ft with this encoder"
        )
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax"))
    causal = getattr(text, "attn_mask", None) is not None
    if pool not in ("argmax", "eos") or not causal or getattr(text, "cls_emb", None) is not None:
        raise UnsupportedEncoderError(
            "this text tower is not causal or does not pool at the end-of-text token; the clip "
            "head's prompts are defined for CLIP's. Use tf or ft with this encoder"
        )
    return text


def tokenize(name: str, prompts: tuple[str, str], n_ctx: int, text: Any) -> tuple[Tensor, Tensor]:
    """Token ids int64 [2, L] up to the later end-of-text token, and both ends int64 [2]."""
    length = int(text.positional_embedding.shape[0])
    known = name in open_clip.list_models()
    tokenizer = (
        open_clip.get_tokenizer(name, context_length=length)
        if known
        else open_clip.SimpleTokenizer(context_length=length)
    )
    prefix = " ".join([PLACEHOLDER] * n_ctx)
    ids = tokenizer([f"{prefix} {prompt}" for prompt in prompts])
    ends = ids.argmax(dim=-1)
    if int(ids.max()) >= text.token_embedding.weight.shape[0] or int(ends.min()) < n_ctx + 1:
        raise UnsupportedEncoderError(
            f"CLIP's tokenizer does not fit this text tower ({text.token_embedding.weight.shape[0]} "
            f"tokens, {length} places); use tf or ft with this encoder"
        )
    return ids[:, : int(ends.max()) + 1], ends
