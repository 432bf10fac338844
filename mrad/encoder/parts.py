"""Taking the two paths' parts out of a built CLIP, or saying why that tower is refused.

Accepted: open_clip's own VisionTransformer with class-token pooling and plain attention, and timm's
VisionTransformer behind open_clip with a class token, learned absolute positions, plain attention
and a linear head, also behind convolutions (`mrad-mini`). Refused, for the V-V path or the class
feature is not defined there: towers without a class token (SigLIP, average or attention pooling,
CoCa), with rotary or relative positions (EVA-02, PE), with query/key norms or scaled-cosine
attention, with register tokens, and convolutional towers (ResNet, ConvNeXt). docs/encoders.md lists
them by name.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from mrad.encoder.kernels import Cut, Stem
from mrad.encoder.tower import TowerParts
from mrad.errors import UnsupportedEncoderError


def parts_of(visual: nn.Module) -> TowerParts:
    """The parts of `clip.visual`. Raises `UnsupportedEncoderError` that says why."""
    if isinstance(visual, VisionTransformer):
        return _open_clip_parts(visual)
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        return _timm_parts(visual, trunk)
    raise UnsupportedEncoderError(
        f"{type(visual).__name__} is no vision transformer: the V-V path needs its value projections"
    )


def block_parts(block: Any) -> dict[str, Any]:
    """What `kernels` reads of an open_clip block, of the image tower's and of the text tower's."""
    attention = block.attn
    return {
        "heads": attention.num_heads,
        "norm1": block.ln_1,
        "norm2": block.ln_2,
        "scale1": block.ls_1,
        "scale2": block.ls_2,
        "mlp": block.mlp,
        "qkv_weight": attention.in_proj_weight,
        "qkv_bias": attention.in_proj_bias,
        "out_weight": attention.out_proj.weight,
        "out_bias": attention.out_proj.bias,
    }


def _open_clip_parts(visual: VisionTransformer) -> TowerParts:
    if visual.attn_pool is not None or visual.pool_type != "tok":
        raise UnsupportedEncoderError(
            "this tower pools without a class token (CoCa, SigLIP, average pooling); the image "
            "level of the memory is defined on a class token"
        )
    if visual.proj is None:
        raise UnsupportedEncoderError("this tower has no projection to the joint space")
    blocks = []
    for block in visual.transformer.resblocks:
        if not isinstance(block, ResidualAttentionBlock):
            raise UnsupportedEncoderError(
                "this tower's attention has query/key norms or scaling of its own; softmax(v vT) "
                "is defined on plain attention"
            )
        blocks.append(block_parts(block))
    return TowerParts(
        patches=Cut(visual.conv1.weight, None),
        patch_size=visual.conv1.weight.shape[-1],
        class_token=visual.class_embedding,
        positions=visual.positional_embedding,
        norm_pre=visual.ln_pre,
        blocks=blocks,
        norm_post=visual.ln_post,
        projection=visual.proj,
    )


def _timm_parts(visual: nn.Module, trunk: nn.Module) -> TowerParts:
    _refuse_timm(visual, trunk)
    model: Any = trunk
    projection: Any = getattr(visual.head, "proj", None)
    patches, patch_size = timm_patches(model.patch_embed)
    return TowerParts(
        patches=patches,
        patch_size=patch_size,
        class_token=model.cls_token[0, 0],
        positions=_timm_positions(model),
        norm_pre=model.norm_pre,
        blocks=[timm_block(block) for block in model.blocks],
        norm_post=model.norm,
        projection=projection.weight.T,
    )


def _refuse_timm(visual: nn.Module, trunk: nn.Module) -> None:
    name = type(trunk).__name__
    if not isinstance(trunk, TimmViT):
        raise UnsupportedEncoderError(
            f"timm's {name} behind open_clip is refused: not a plain vision transformer "
            "(rotary or relative positions, convolutions or windows change the attention)"
        )
    if trunk.cls_token is None or trunk.global_pool != "token":
        raise UnsupportedEncoderError(
            f"timm's {name} pools by {trunk.global_pool!r}, not by a class token, which the image "
            "level of the memory needs"
        )
    if trunk.num_prefix_tokens != 1 or trunk.pos_embed is None:
        raise UnsupportedEncoderError(f"timm's {name} has register tokens or no position table")
    projection = getattr(visual.head, "proj", None)
    if not isinstance(projection, nn.Linear) or projection.bias is not None:
        raise UnsupportedEncoderError(f"timm's {name} has no plain linear head to the joint space")


def timm_patches(embed: Any) -> tuple[nn.Module, int]:
    """What makes the patches, and the side of one in pixels."""
    if type(embed) is HybridEmbed:
        side: Any = embed.feat_ratio()
        return Stem(nn.Sequential(embed.backbone, embed.proj)), int(side)
    plain = type(embed) is PatchEmbed and isinstance(embed.norm, nn.Identity)
    if not plain or embed.proj.kernel_size != embed.proj.stride:
        raise UnsupportedEncoderError(
            f"timm's {type(embed).__name__} does not cut its input into plain patches (they overlap, "
            "or a norm follows them)"
        )
    return Cut(embed.proj.weight, embed.proj.bias), embed.proj.weight.shape[-1]


def _timm_positions(model: Any) -> torch.Tensor:
    table: torch.Tensor = model.pos_embed[0]
    if model.no_embed_class:
        return torch.cat([torch.zeros_like(table[:1]), table])
    return table


def has_norms(attention: Any) -> bool:
    """Whether timm's attention has norms of its own."""
    found = (getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm"))
    return any(norm is not None and not isinstance(norm, nn.Identity) for norm in found)


def timm_block(block: Any) -> dict[str, Any]:
    """What `kernels` reads of a block of timm's plain transformer. Raises `UnsupportedEncoderError`."""
    attention = block.attn
    if has_norms(attention) or not hasattr(attention, "qkv") or not hasattr(block, "ls1"):
        raise UnsupportedEncoderError(
            "this timm tower's attention has query/key norms or no joint projection; softmax(v vT) "
            "is defined on plain attention"
        )
    return {
        "heads": attention.num_heads,
        "norm1": block.norm1,
        "norm2": block.norm2,
        "scale1": block.ls1,
        "scale2": block.ls2,
        "mlp": block.mlp,
        "qkv_weight": attention.qkv.weight,
        "qkv_bias": attention.qkv.bias,
        "out_weight": attention.proj.weight,
        "out_bias": attention.proj.bias,
    }
