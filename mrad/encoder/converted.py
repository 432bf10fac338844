"""A tower in plain PyTorch and safetensors, so that inference needs neither open_clip nor timm.

The shipped encoder has a description beside its weights (`mrad/models/NAME.tower.json`); any other is
kept in the user's cache once it was loaded. A tower that cannot be described is loaded by open_clip
every time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mrad.encoder.identity import EncoderIdentity
from mrad.encoder.kernels import (
    Cut,
    Gated,
    Linear,
    Scale,
    Stem,
    activation_module,
    activation_name,
)
from mrad.encoder.tower import TowerParts
from mrad.files import atomic_write_bytes

logger = logging.getLogger(__name__)
VERSION = 1
NORMS = {"LayerNorm": "layer", "LayerNormFp32": "layer", "RmsNorm": "rms", "RMSNorm": "rms"}
"""Classes of open_clip, timm and PyTorch that compute the same thing."""


@dataclass(frozen=True)
class ConvertedTower:
    """What an encoder needs of a CLIP whose text tower nobody asks for."""

    parts: TowerParts
    identity: EncoderIdentity
    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Unknown(Exception):
    """A layer that has no place in a description."""


class _Tensors:
    """Collects tensors under names while parts are described."""

    def __init__(self) -> None:
        self.named: dict[str, Tensor] = {}

    def keep(self, name: str, value: Tensor | None) -> str | None:
        """The name under which a tensor is kept; None for none."""
        if value is None:
            return None
        self.named[name] = value.detach().float().cpu().contiguous()
        return name


def describe(parts: TowerParts) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """A description and the tensors that it names; None for a tower with other layers."""
    tensors = _Tensors()
    try:
        spec = {
            "version": VERSION,
            "patch_size": int(parts.patch_size),
            "patches": _patches(parts.patches, tensors),
            "class_token": tensors.keep("class_token", parts.class_token),
            "positions": tensors.keep("positions", parts.positions),
            "projection": tensors.keep("projection", parts.projection),
            "norm_pre": _norm("norm_pre", parts.norm_pre, tensors),
            "norm_post": _norm("norm_post", parts.norm_post, tensors),
            "blocks": [_block(f"block{i}", b, tensors) for i, b in enumerate(parts.blocks)],
            "registers": tensors.keep("registers", parts.registers),
            "table": None if parts.table is None else list(parts.table),
            "resample": parts.resample,
            "periods": tensors.keep("periods", parts.periods),
        }
    except _Unknown as reason:
        logger.info("this tower is not converted: %s", reason)
        return None
    return spec, tensors.named


def build(spec: Mapping[str, Any], tensor: Callable[[str], Tensor]) -> TowerParts:
    """The parts of a description; `tensor` gives one by its name."""

    def optional(name: str | None) -> Tensor | None:
        return None if name is None else tensor(name)

    def norm(found: Mapping[str, Any] | None) -> nn.Module:
        if found is None:
            return nn.Identity()
        weight, bias = optional(found["weight"]), optional(found["bias"])
        width = int(found["width"])
        made: nn.Module
        if found["kind"] == "rms":
            made = nn.RMSNorm(width, eps=found["eps"], elementwise_affine=weight is not None)
        else:
            affine = weight is not None
            made = nn.LayerNorm(width, found["eps"], affine, bias=bias is not None)
        made.load_state_dict(
            {k: v for k, v in (("weight", weight), ("bias", bias)) if v is not None}
        )
        return made

    def linear(found: Mapping[str, Any]) -> nn.Linear:
        weight, bias = tensor(found["weight"]), optional(found["bias"])
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        made.weight.data = weight
        if bias is not None:
            made.bias.data = bias
        return made

    def block(found: Mapping[str, Any]) -> dict[str, Any]:
        mlp = found["mlp"]
        first, second = linear(mlp["first"]), linear(mlp["second"])
        made: nn.Module
        if mlp["activation"] == GATED:
            made = Gated(first, second)
        else:
            middle = activation_module(mlp["activation"])
            made = nn.Sequential(
                OrderedDict((("first", first), ("activation", middle), ("second", second)))
            )
        return {
            "heads": found["heads"],
            "norm1": norm(found["norm1"]),
            "norm2": norm(found["norm2"]),
            "scale1": _scale_of(optional(found["scale1"])),
            "scale2": _scale_of(optional(found["scale2"])),
            "mlp": made,
            **{name: optional(found[name]) for name in PROJECTIONS},
        }

    patches, table = spec["patches"], spec.get("table")
    return TowerParts(
        patches=_patches_of(patches, tensor, optional),
        patch_size=spec["patch_size"],
        class_token=optional(spec["class_token"]),
        positions=optional(spec["positions"]),
        norm_pre=norm(spec["norm_pre"]),
        blocks=[block(found) for found in spec["blocks"]],
        norm_post=norm(spec["norm_post"]),
        projection=optional(spec["projection"]),
        registers=optional(spec.get("registers")),
        table=None if table is None else (int(table[0]), int(table[1])),
        resample=spec.get("resample", "bilinear"),
        periods=optional(spec.get("periods")),
    )


GATED = "gated silu"
"""An activation, beside those of `kernels.activation_name`."""
PROJECTIONS = ("qkv_weight", "qkv_bias", "out_weight", "out_bias")


def _scale_of(gamma: Tensor | None) -> nn.Module:
    return nn.Identity() if gamma is None else Scale(gamma)


def _patches(module: nn.Module, tensors: _Tensors) -> dict[str, Any]:
    if isinstance(module, Cut):
        product: Linear = module.product
        assert product.weight is not None  # not packed yet
        weight = product.weight.view(len(product.weight), 3, module.side, module.side)
        return {
            "kind": "cut",
            "weight": tensors.keep("patches.weight", weight),
            "bias": tensors.keep("patches.bias", product.bias),
        }
    if not isinstance(module, Stem):
        raise _Unknown(type(module).__name__)
    layers: list[dict[str, Any]] = []
    for layer in module.convolutions.modules():
        if isinstance(layer, nn.Sequential | nn.Identity):
            continue
        if isinstance(layer, nn.ReLU):
            layers.append({"kind": "relu"})
        elif type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
            name = f"patches.{len(layers)}"
            layers.append(
                {
                    "kind": "convolution",
                    "stride": list(layer.stride),
                    "padding": list(layer.padding),
                    "dilation": list(layer.dilation),
                    "weight": tensors.keep(f"{name}.weight", layer.weight),
                    "bias": tensors.keep(f"{name}.bias", layer.bias),
                }
            )
        else:
            raise _Unknown(type(layer).__name__)
    return {"kind": "stem", "layers": layers}


def _patches_of(
    found: Mapping[str, Any],
    tensor: Callable[[str], Tensor],
    optional: Callable[[str | None], Tensor | None],
) -> nn.Module:
    if found["kind"] == "cut":
        return Cut(tensor(found["weight"]), optional(found["bias"]))
    layers: list[nn.Module] = []
    for layer in found["layers"]:
        if layer["kind"] == "relu":
            layers.append(nn.ReLU())
            continue
        weight, bias = tensor(layer["weight"]), optional(layer["bias"])
        size = weight.shape[2], weight.shape[3]
        steps: dict[str, Any] = {
            name: tuple(layer[name]) for name in ("stride", "padding", "dilation")
        }
        made = nn.Conv2d(weight.shape[1], weight.shape[0], size, bias=bias is not None, **steps)
        made.weight.data = weight
        if bias is not None and made.bias is not None:
            made.bias.data = bias
        layers.append(made)
    return Stem(nn.Sequential(*layers))


def _norm(name: str, module: nn.Module, tensors: _Tensors) -> dict[str, Any] | None:
    if isinstance(module, nn.Identity):
        return None
    kind = NORMS.get(type(module).__name__)
    if kind is None:
        raise _Unknown(type(module).__name__)
    norm: Any = module
    return {
        "kind": kind,
        "eps": float(norm.eps),
        "width": int(norm.normalized_shape[0]),
        "weight": tensors.keep(f"{name}.weight", norm.weight),
        "bias": tensors.keep(f"{name}.bias", getattr(norm, "bias", None)),
    }


def _scale(name: str, module: nn.Module, tensors: _Tensors) -> str | None:
    if isinstance(module, nn.Identity):
        return None
    gamma = getattr(module, "gamma", None)
    if type(module).__name__ not in ("LayerScale", Scale.__name__) or gamma is None:
        raise _Unknown(type(module).__name__)
    return tensors.keep(name, gamma)


def _block(name: str, parts: Mapping[str, Any], tensors: _Tensors) -> dict[str, Any]:
    kept: dict[str, Any] = {
        "heads": int(parts["heads"]),
        "mlp": _mlp(f"{name}.mlp", parts["mlp"], tensors),
    }
    for part in ("norm1", "norm2"):
        kept[part] = _norm(f"{name}.{part}", parts[part], tensors)
    for part in ("scale1", "scale2"):
        kept[part] = _scale(f"{name}.{part}", parts[part], tensors)
    for part in PROJECTIONS:
        kept[part] = tensors.keep(f"{name}.{part}", parts[part])
    return kept


def _mlp(name: str, module: nn.Module, tensors: _Tensors) -> dict[str, Any]:
    """Two products with an activation between them; nothing else but what does nothing."""
    products: list[nn.Linear] = []
    activations = [GATED] if isinstance(module, Gated) else list[str]()
    for layer in module.children():
        if isinstance(layer, nn.Linear):
            products.append(layer)
        elif (known := activation_name(layer)) is not None and len(products) == 1:
            activations.append(known)
        elif not isinstance(layer, nn.Identity | nn.Dropout):
            raise _Unknown(type(layer).__name__)
    if len(products) != 2 or len(activations) != 1:
        raise _Unknown(f"an MLP of {len(products)} products and {len(activations)} activations")
    described = [
        {
            "weight": tensors.keep(f"{name}.{i}.weight", product.weight),
            "bias": tensors.keep(f"{name}.{i}.bias", product.bias),
        }
        for i, product in enumerate(products)
    ]
    return {"first": described[0], "activation": activations[0], "second": described[1]}


def write(tower: ConvertedTower, path: Path) -> bool:
    """Keep a tower in one safetensors file; False where it cannot be described."""
    described = describe(tower.parts)
    if described is None:
        return False
    spec, tensors = described
    for name, value in tensors.items():
        half = value.half()
        tensors[name] = half if torch.equal(half.float(), value) else value  # as they came
    facts = {
        "tower": spec,
        "identity": vars(tower.identity),
        "mean": list(tower.mean),
        "std": list(tower.std),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, save(tensors, {"mrad": json.dumps(facts)}))
    return True


def read(path: Path) -> ConvertedTower | None:
    """What `write` kept; None where the file is absent, damaged, or of another version."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["mrad"])
            if facts["tower"]["version"] != VERSION:
                return None
            parts = build(facts["tower"], lambda name: file.get_tensor(name).float())
        identity = EncoderIdentity(**facts["identity"])
        return ConvertedTower(parts, identity, tuple(facts["mean"]), tuple(facts["std"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if path.exists():
            logger.warning("%s is not used: %s", path, error)
        return None


def cache_path(folder: Path, name: str, weights: Path) -> Path:
    """Where the tower of a file of weights is kept; another file, or the file changed, is another."""
    found = weights.stat()
    facts = f"{VERSION}|{name}|{weights.resolve()}|{found.st_size}|{found.st_mtime_ns}"
    return folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.safetensors"


def shipped(description: Path, weights: Path) -> ConvertedTower:
    """The tower of a shipped CLIP: `description` names tensors of `weights`, which stay where they are."""
    facts = json.loads(description.read_text(encoding="utf-8"))
    with safe_open(weights, "pt") as file:

        def tensor(role: str) -> Tensor:
            place = facts["tensors"][role]
            value = file.get_tensor(place["name"]).float()
            value = value.T if place["transposed"] else value
            shaped: Tensor = value.reshape(place["shape"])  # a transposed one lies as it did
            return shaped

        parts = build(facts["tower"], tensor)
    identity = EncoderIdentity(**facts["identity"])
    return ConvertedTower(parts, identity, tuple(facts["mean"]), tuple(facts["std"]))
