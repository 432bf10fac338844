"""MRAD-CLIP: prompts biased by what FT found in the image (docs/method.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mrad.encoder.encoder import Encoder, Features
from mrad.errors import CheckpointError
from mrad.heads import HeadOutput
from mrad.heads.ft import FTHead, FTWeights
from mrad.heads.text import TextTower, text_part


class CLIPConfig(BaseModel):
    """What is not in the weights; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid")

    normal_prompt: str = "object."
    """What follows the learned context of the normal prompt."""
    anomalous_prompt: str = "damaged object."
    temperature: float = Field(default=0.07, gt=0)
    """Of the softmax over the two prompts."""
    region_threshold: float = 0.5
    """FT probability above which a patch belongs to the anomalous region."""
    half_deep_prompts: bool = True
    """Round the deep prompts to half precision before use, as the release does."""

    @property
    def prompts(self) -> tuple[str, str]:
        """Normal, anomalous."""
        return self.normal_prompt, self.anomalous_prompt


class PromptLearner(nn.Module):
    """Learned context [1, 1, n_ctx, T] of both prompts, and the deep prompts [n, T]."""

    def __init__(self, width: int, n_ctx: int, depth: int, n_deep: int) -> None:
        super().__init__()
        self.ctx_pos = nn.Parameter(torch.empty(1, 1, n_ctx, width))
        self.ctx_neg = nn.Parameter(torch.empty(1, 1, n_ctx, width))
        self.compound_prompts_text = nn.ParameterList(
            torch.empty(n_deep, width) for _ in range(depth - 1)
        )


class CLIPWeights(FTWeights):
    """FT's projections, the prompts, and what adds the priors to them."""

    def __init__(
        self, embed_dim: int, width: int, text_width: int, n_ctx: int, depth: int, n_deep: int
    ) -> None:
        """`depth` text blocks, less the first, get `n_deep` deep prompt tokens each."""
        super().__init__(embed_dim, width)
        self.prompt_proj = nn.ModuleDict(
            {name: nn.Linear(embed_dim, text_width) for name in ("mlp1", "mlp2")}
        )
        self.prompt_learner = PromptLearner(text_width, n_ctx, depth, n_deep)

    def context(self, priors: Tensor) -> Tensor:
        """Priors [B, 2, E] -> context tokens [B, 2, n_ctx, T]: each learned token plus its bias."""
        learner = self.prompt_learner
        learned = torch.cat([learner.ctx_pos, learner.ctx_neg], dim=1)
        bias = [self.prompt_proj[name](priors[:, i]) for i, name in enumerate(("mlp1", "mlp2"))]
        return learned + torch.stack(bias, dim=1)[:, :, None]

    def deep(self, half: bool) -> list[Tensor]:
        """The deep prompts as they are used."""
        prompts = [cast(Tensor, prompt) for prompt in self.prompt_learner.compound_prompts_text]
        return [prompt.half().float() if half else prompt for prompt in prompts]


def region_priors(joint: Tensor, anomalous: Tensor) -> Tensor:
    """Prior tokens [B, 2, E]: mean joint feature of the normal and of the anomalous region.

    `joint` [B, N, E] normalised, `anomalous` bool [B, N]. An empty region gives zero.
    """
    regions = torch.stack([~anomalous, anomalous], dim=1).to(joint.dtype)
    return regions @ joint / regions.sum(dim=2, keepdim=True).clamp_min(1)


def prompt_probability(joint: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Patches [B, N, E] against text [B, 2, E], both normalised -> anomalous probability [B, N].

    The paper's (p_anomalous + 1 - p_normal) / 2 is p_anomalous, for the two sum to one.
    """
    logits = joint @ text.transpose(1, 2) / temperature
    return torch.softmax(logits, dim=-1)[..., 1]


class CLIPHead(FTHead):
    """The image probability is FT's; the map compares patches with the image's own two prompts."""

    name = "clip"
    Config = CLIPConfig

    def __init__(
        self, encoder: Encoder, config: CLIPConfig, state: Mapping[str, Tensor] | None = None
    ) -> None:
        """Raises `HeadError`, `CheckpointError`, `UnsupportedEncoderError` (no CLIP text tower)."""
        super().__init__(encoder, config, state)
        self.config = config
        weights = cast(CLIPWeights, self.weights)
        n_ctx = weights.prompt_learner.ctx_pos.shape[2]
        tower = TextTower(encoder.clip, encoder.name, config.prompts, n_ctx)
        self.text = tower.to(encoder.device)
        with torch.inference_mode():
            self.prefix = self.text.prefix(weights.deep(config.half_deep_prompts))

    def build_weights(self, state: Mapping[str, Tensor]) -> CLIPWeights:
        """Empty weights; the numbers of context tokens and deep prompts are read off `state`."""
        deep = "prompt_learner.compound_prompts_text."
        for name in ("prompt_learner.ctx_pos", "prompt_learner.ctx_neg"):
            if name not in state or state[name].ndim != 4:
                raise CheckpointError(f"the checkpoint lacks {name} [1, 1, n_ctx, width]")
        depth = 1 + sum(name.startswith(deep) for name in state)
        first = state.get(f"{deep}0")
        return CLIPWeights(
            self.encoder.embed_dim,
            self.encoder.width,
            int(text_part(self.encoder.clip).positional_embedding.shape[1]),
            int(state["prompt_learner.ctx_pos"].shape[2]),
            depth,
            0 if first is None else int(first.shape[0]),
        )

    @torch.inference_mode()
    def __call__(self, features: Features, exclude: Tensor | None = None) -> HeadOutput:
        """See `mrad.heads.Head`."""
        found = self.retrieve(features, exclude)
        joint = F.normalize(self.encoder.project_patch(features.patch), dim=-1)
        text = self.text_features(self.priors(joint, found.patch))
        return HeadOutput(prompt_probability(joint, text, self.config.temperature), found.image)

    def retrieve(self, features: Features, exclude: Tensor | None = None) -> HeadOutput:
        """What FT says: the image probability, and the patches that the priors rest on."""
        return super().__call__(features, exclude)

    def priors(self, joint: Tensor, patch: Tensor) -> Tensor:
        """Prior tokens [B, 2, E] from joint features [B, N, E] and FT's probabilities [B, N]."""
        return region_priors(joint, patch > self.config.region_threshold)

    def text_features(self, priors: Tensor) -> Tensor:
        """One pair of prompts for each image, all in one batch: [B, 2, E] -> [B, 2, E]."""
        text: Tensor = self.text(cast(CLIPWeights, self.weights).context(priors), self.prefix)
        return text
