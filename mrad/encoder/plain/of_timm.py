"""timm's vision transformers, DINOv2's and DINOv3's among them: built, filled with weights, taken apart.

Every figure comes from timm's own description of the model: patch and input size, tokens before the
patches, mean and deviation of the pixels. Imported for a tower that is not kept yet
(`mrad.encoder.converted`); scoring with one that is needs no timm.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Attention, VisionTransformer  # type: ignore[attr-defined]
from torch import Tensor, nn

from mrad.encoder.kernels import Gated, Scale
from mrad.encoder.parts import has_norms, timm_block, timm_patches
from mrad.encoder.tower import TowerParts
from mrad.errors import EncoderError, UnsupportedEncoderError, WeightsNotFoundError


@dataclass(frozen=True)
class TimmName:
    """timm's name of a model and of one of its published weights: `ARCHITECTURE.TAG`."""

    architecture: str
    tag: str

    @classmethod
    def of(cls, base: str) -> TimmName:
        """With timm's own choice of a tag where none is named. Raises `EncoderError`."""
        architecture, _, tag = base.partition(".")
        if not timm.is_model(architecture):
            raise EncoderError(
                f"timm {timm.__version__} knows no model {architecture!r}; see timm.list_models()"
            )
        config = timm.get_pretrained_cfg(architecture)
        return cls(architecture, tag or (config.tag if config is not None else "") or "")

    def __str__(self) -> str:
        return ".".join(part for part in (self.architecture, self.tag) if part)


def build(name: TimmName) -> nn.Module:
    """The model without a classifier, its weights at random. Raises `EncoderError`."""
    try:
        model: nn.Module = timm.create_model(str(name), pretrained=False, num_classes=0)
    except (RuntimeError, ValueError) as error:
        known = ", ".join(timm.list_pretrained(f"{name.architecture}.*")) or "none"
        raise EncoderError(f"timm: {error} (weights of this model: {known})") from error
    return model.eval()


def fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict, timm's or as the model's authors published it.

    Raises `EncoderError` naming what is missing or left over: nothing stays at random.
    """
    config = config_of(model)
    convert: Any = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        state = state if convert is None else convert(state, model)
        classifiers = config.get("classifier") or ()
        own = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        dropped = tuple(f"{name}." for name in own)
        model.load_state_dict(
            {name: value for name, value in state.items() if not name.startswith(dropped)}
        )
    except (RuntimeError, KeyError, AttributeError) as error:
        lines = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        what = lines or str(error) or type(error).__name__
        raise EncoderError(
            f"{path} does not fit timm's {config.get('architecture')}: {what}"
        ) from error


def download(name: TimmName, folder: Path) -> Path:
    """The weights' safetensors from the hub. Raises what a hub client raises, `WeightsNotFoundError`."""
    from open_clip.pretrained import download_pretrained_from_hf

    config = timm.get_pretrained_cfg(str(name))
    if config is None or not config.hf_hub_id:
        known = ", ".join(timm.list_pretrained(f"{name.architecture}.*")) or "none"
        raise WeightsNotFoundError(
            f"timm has no weights {name.tag!r} of {name.architecture} on the hub (it has: {known}): "
            "bring a file with --weights"
        )
    file = config.hf_hub_filename or "model.safetensors"
    return Path(download_pretrained_from_hf(config.hf_hub_id, file, cache_dir=str(folder)))


def config_of(model: nn.Module) -> dict[str, Any]:
    """What timm says of a model and its weights."""
    return dict(getattr(model, "pretrained_cfg", None) or {})


def input_of(model: nn.Module) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """Native input size (height, width), and mean and deviation of the pixels.

    Raises `EncoderError` where the model does not say.
    """
    config: Any = config_of(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    try:
        return size or tuple(config["input_size"][1:]), tuple(config["mean"]), tuple(config["std"])
    except KeyError as error:
        raise EncoderError(
            f"this timm model does not say its {error.args[0]}: build it by timm.create_model"
        ) from error


def parts_of_timm(model: nn.Module) -> TowerParts:
    """The parts of a timm model. Raises `UnsupportedEncoderError` that says why it is refused."""
    vit: Any = model
    kind = type(model).__name__
    if type(model) is VisionTransformer:
        blocks, periods = [_block(block) for block in vit.blocks], None
    elif kind == "Eva":
        blocks, periods = [_eva_block(block) for block in vit.blocks], _periods(vit.rope)
    else:
        raise UnsupportedEncoderError(
            f"timm's {kind} is refused: a plain vision transformer is needed (VisionTransformer, as "
            "DINOv2's, or Eva, as DINOv3's)"
        )
    patches, side = timm_patches(vit.patch_embed)
    class_token, registers = vit.cls_token, getattr(vit, "reg_token", None)
    positions, extra = _positions(vit)
    return TowerParts(
        patches=patches,
        patch_size=side,
        class_token=None if class_token is None else class_token[0, 0],
        positions=positions,
        norm_pre=vit.norm_pre,
        blocks=blocks,
        norm_post=vit.norm,
        projection=None,
        registers=None if registers is None else registers[0] + extra,
        table=None if positions is None else tuple(vit.patch_embed.grid_size),
        resample="bicubic",
        periods=periods,
    )


def _positions(vit: Any) -> tuple[Tensor | None, Tensor | float]:
    """Positions of class token and patches [1 + N, W], zero where there is none; of the registers."""
    if vit.pos_embed is None:
        return None, 0.0
    table = vit.pos_embed[0]
    if vit.no_embed_class or not vit.num_prefix_tokens:
        return torch.cat([torch.zeros_like(table[:1]), table]), 0.0
    before, cells = table[: vit.num_prefix_tokens], table[vit.num_prefix_tokens :]
    if vit.cls_token is None:
        return torch.cat([torch.zeros_like(cells[:1]), cells]), before
    return torch.cat([before[:1], cells]), before[1:]


def _block(block: Any) -> dict[str, Any]:
    attention = block.attn
    if type(attention) is not Attention or getattr(attention, "gate", None) is not None:
        raise UnsupportedEncoderError(
            f"this timm model's attention ({type(attention).__name__}) is not the plain one"
        )
    return {**timm_block(block), "mlp": _mlp(block.mlp)}


def _eva_block(block: Any) -> dict[str, Any]:
    attention = block.attn
    kinds = type(block).__name__, type(attention).__name__
    if kinds != ("EvaBlock", "EvaAttention") or has_norms(attention) or attention.qkv is None:
        raise UnsupportedEncoderError(
            "this timm model's attention is not that of DINOv3: norms of its own, or separate "
            "projections"
        )
    if getattr(attention, "gate", None) is not None:
        raise UnsupportedEncoderError("this timm model gates its attention")
    bias = None
    if attention.q_bias is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    scales = (block.gamma_1, block.gamma_2)
    first, second = (nn.Identity() if g is None else Scale(g.detach().clone()) for g in scales)
    return {
        "heads": attention.num_heads,
        "norm1": block.norm1,
        "norm2": block.norm2,
        "scale1": first,
        "scale2": second,
        "mlp": _mlp(block.mlp),
        "qkv_weight": attention.qkv.weight,
        "qkv_bias": bias,
        "out_weight": attention.proj.weight,
        "out_bias": attention.proj.bias,
    }


def _mlp(mlp: Any) -> nn.Module:
    """timm's MLP, gated ones in one form."""
    kind = type(mlp).__name__
    if kind == "Mlp":
        found: nn.Module = mlp
        return found
    gated = isinstance(mlp.act, nn.SiLU) and isinstance(mlp.norm, nn.Identity)
    if kind == "GluMlp" and gated and not mlp.gate_last:
        return Gated(mlp.fc1, mlp.fc2)
    if kind == "SwiGLU" and gated:
        joined = nn.Linear(
            mlp.fc1_g.in_features, 2 * mlp.fc1_g.out_features, mlp.fc1_g.bias is not None
        )
        pair = mlp.fc1_g, mlp.fc1_x
        joined.weight.data = torch.cat([one.weight.detach() for one in pair])
        if mlp.fc1_g.bias is not None:
            joined.bias.data = torch.cat([one.bias.detach() for one in pair])
        return Gated(joined, mlp.fc2)
    raise UnsupportedEncoderError(f"this timm model has an MLP of an unknown kind ({kind})")


def _periods(rope: Any) -> Tensor | None:
    """Of DINOv3's rotary positions, the only ones that are known."""
    if rope is None:
        return None
    known = type(rope).__name__ == "RotaryEmbeddingDinoV3" and (
        rope.rotate_half,
        rope.grid_offset,
        rope.grid_indexing,
        rope.normalize_coords,
    ) == (True, 0, "ij", "separate")
    if not known:
        raise UnsupportedEncoderError(
            f"this timm model's rotary positions ({type(rope).__name__}) are not DINOv3's"
        )
    periods: Tensor = rope.periods
    return periods
