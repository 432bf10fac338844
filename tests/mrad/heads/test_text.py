"""The short-cut text tower equals CLIP's own, run the long way."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrad.errors import UnsupportedEncoderError
from mrad.heads.text import TextTower

PROMPTS = ("object.", "damaged object.")
N_CTX = 5


def the_long_way(clip: nn.Module, context: Tensor, deep: list[Tensor]) -> Tensor:
    """All 77 tokens of every prompt through open_clip's own blocks, as the release does it."""
    texts = [" ".join(["X"] * N_CTX) + " " + prompt for prompt in PROMPTS]
    ids = open_clip.SimpleTokenizer()(texts)
    features = []
    for pair in context:
        x = clip.token_embedding(ids)
        x = torch.cat([x[:, :1], pair, x[:, 1 + N_CTX :]], dim=1) + clip.positional_embedding
        for index, block in enumerate(clip.transformer.resblocks):
            if 0 < index <= len(deep):
                own = deep[index - 1].expand(2, -1, -1)
                x = torch.cat([x[:, :1], own, x[:, 1 + own.shape[1] :]], dim=1)
            x = block(x, attn_mask=clip.attn_mask)
        x = clip.ln_final(x)[torch.arange(2), ids.argmax(dim=-1)] @ clip.text_projection
        features.append(F.normalize(x, dim=-1))
    return torch.stack(features)


@pytest.mark.parametrize(("depth", "n_deep"), [(1, 0), (2, 3), (4, 5)])
def test_equals_clip_s_own_tower(tiny_clip, depth: int, n_deep: int):
    generator = torch.Generator().manual_seed(depth)
    context = torch.randn(3, 2, N_CTX, 32, generator=generator)
    deep = [torch.randn(n_deep, 32, generator=generator) for _ in range(depth - 1)]
    tower = TextTower(tiny_clip, "tiny", PROMPTS, N_CTX)
    with torch.no_grad():
        found = tower(context, tower.prefix(deep))
        wanted = the_long_way(tiny_clip, context, deep)
    assert found.shape == (3, 2, 48)
    assert (found - wanted).abs().max() < 2e-6


def test_gradients_equal_the_long_way(tiny_clip):
    generator = torch.Generator().manual_seed(7)
    context = torch.randn(2, 2, N_CTX, 32, generator=generator, requires_grad=True)
    deep = [torch.randn(2, 32, generator=generator, requires_grad=True) for _ in range(3)]
    tower = TextTower(tiny_clip, "tiny", PROMPTS, N_CTX)
    direction = torch.randn(48, generator=generator)
    inputs = [context, *deep]
    short = torch.autograd.grad((tower(context, tower.prefix(deep)) @ direction).sum(), inputs)
    long = torch.autograd.grad((the_long_way(tiny_clip, context, deep) @ direction).sum(), inputs)
    for one, other in zip(short, long, strict=True):
        assert one.abs().max() > 0
        assert (one - other).abs().max() < 1e-5


def test_more_deep_prompts_than_blocks_is_an_error(tiny_clip):
    tower = TextTower(tiny_clip, "tiny", PROMPTS, N_CTX)
    with pytest.raises(UnsupportedEncoderError, match="5 text blocks; this CLIP has 4"):
        tower.prefix([torch.zeros(2, 32)] * 4)


def test_a_text_tower_that_is_not_causal_is_refused(tiny_clip):
    clip = open_clip.model.CustomTextCLIP(
        embed_dim=48,
        vision_cfg=open_clip.CLIPVisionCfg(image_size=64, patch_size=16, width=64, layers=2),
        text_cfg=open_clip.CLIPTextCfg(width=32, heads=2, layers=2, no_causal_mask=True),
    )
    with pytest.raises(UnsupportedEncoderError, match="not causal"):
        TextTower(clip, "bidirectional", PROMPTS, N_CTX)


def test_a_custom_text_clip_with_the_same_weights_gives_the_same(tiny_clip):
    custom = open_clip.model.CustomTextCLIP(
        embed_dim=48,
        vision_cfg=open_clip.CLIPVisionCfg(image_size=64, patch_size=16, width=64, layers=4),
        text_cfg=open_clip.CLIPTextCfg(width=32, heads=2, layers=4),
    )
    names = custom.text.state_dict().keys()
    own = tiny_clip.state_dict()
    custom.text.load_state_dict({name: own[name] for name in names if name in own})
    context = torch.randn(1, 2, N_CTX, 32, generator=torch.Generator().manual_seed(0))
    plain, other = (TextTower(c, "tiny", PROMPTS, N_CTX) for c in (tiny_clip, custom))
    assert torch.equal(plain(context, plain.prefix([])), other(context, other.prefix([])))
