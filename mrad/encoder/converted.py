"""A tower in plain PyTorch and safetensors, so that inference needs neither open_clip nor timm.

The shipped encoder has a description beside its weights (`mrad/models/NAME.tower.json`); any other is
kept in the user's cache once it was loaded. A tower that cannot be described is loaded by open_clip
every time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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
VERSION = 2
Keep = Callable[[str, Tensor | None], str | None]
"""Keeps a tensor under a name."""
KINDS = {
    "Sequential": "sequence",
    "Gated": "gated",
    "Identity": "identity",
    "Dropout": "identity",
    "ReLU": "relu",
    "Linear": "linear",
    "Conv2d": "convolution",
    "LayerNorm": "layer",
    "LayerNormFp32": "layer",
    "RmsNorm": "rms",
    "RMSNorm": "rms",
    "LayerScale": "scale",
    "Scale": "scale",
}
"""By the classes of open_clip, timm and PyTorch that compute the same thing."""
STEPS = ("stride", "padding", "dilation")
TENSORS = ("class_token", "positions", "projection", "registers", "periods")
LAYERS = ("norm1", "norm2", "scale1", "scale2", "mlp")
PROJECTIONS = ("qkv_weight", "qkv_bias", "out_weight", "out_bias")
"""Of a block."""


@dataclass(frozen=True)
class ConvertedTower:
    """What an encoder needs of a CLIP whose text tower nobody asks for."""

    parts: TowerParts
    identity: EncoderIdentity
    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Unknown(Exception):
    """A layer that has no place in a description."""


def describe(parts: TowerParts) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """A description and the tensors that it names; None for a tower with other layers."""
    named: dict[str, Tensor] = {}
    keep = partial(_keep, named)
    try:
        spec = {
            "version": VERSION,
            "patch_size": int(parts.patch_size),
            "patches": _patches(parts.patches, keep),
            "norm_pre": _layer("norm_pre", parts.norm_pre, keep),
            "norm_post": _layer("norm_post", parts.norm_post, keep),
            "blocks": [_block(f"block{i}", block, keep) for i, block in enumerate(parts.blocks)],
            "table": None if parts.table is None else list(parts.table),
            "resample": parts.resample,
            **{name: keep(name, getattr(parts, name)) for name in TENSORS},
        }
    except _Unknown as reason:
        logger.info("this tower is not converted: %s", reason)
        return None
    return spec, named


def build(spec: Mapping[str, Any], tensor: Callable[[str], Tensor]) -> TowerParts:
    """The parts of a description; `tensor` gives one by its name."""

    def optional(name: str | None) -> Tensor | None:
        return None if name is None else tensor(name)

    def block(found: Mapping[str, Any]) -> dict[str, Any]:
        layers = {name: _built(found[name], tensor) for name in LAYERS}
        return {"heads": found["heads"], **layers, **{n: optional(found[n]) for n in PROJECTIONS}}

    patches, table = spec["patches"], spec["table"]
    if patches["kind"] == "cut":
        made: nn.Module = Cut(tensor(patches["weight"]), optional(patches["bias"]))
    else:
        made = Stem(_built(patches, tensor))
    return TowerParts(
        patches=made,
        patch_size=spec["patch_size"],
        norm_pre=_built(spec["norm_pre"], tensor),
        blocks=[block(found) for found in spec["blocks"]],
        norm_post=_built(spec["norm_post"], tensor),
        table=None if table is None else (int(table[0]), int(table[1])),
        resample=spec["resample"],
        **{name: optional(spec[name]) for name in TENSORS},
    )


def _keep(named: dict[str, Tensor], name: str, value: Tensor | None) -> str | None:
    """The name under which a tensor is kept; None for none."""
    if value is None:
        return None
    named[name] = value.detach().float().cpu().contiguous()
    return name


def _patches(module: nn.Module, keep: Keep) -> dict[str, Any]:
    if isinstance(module, Cut):
        product: Linear = module.product
        assert product.weight is not None  # not packed yet
        weight = product.weight.view(len(product.weight), 3, module.side, module.side)
        bias = keep("patches.bias", product.bias)
        return {"kind": "cut", "weight": keep("patches.weight", weight), "bias": bias}
    if not isinstance(module, Stem):
        raise _Unknown(type(module).__name__)
    whole = module.convolutions.modules()
    layers = [one for one in whole if not isinstance(one, nn.Sequential | nn.Identity)]
    return _layer("patches", nn.Sequential(*layers), keep)


def _block(name: str, parts: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
    mlp = parts["mlp"]
    layers = [one for one in mlp.children() if not isinstance(one, nn.Identity | nn.Dropout)]
    products = [isinstance(one, nn.Linear) for one in layers]
    if products != ([True, True] if isinstance(mlp, Gated) else [True, False, True]):
        raise _Unknown(f"an MLP of {', '.join(type(one).__name__ for one in layers)}")
    inside = mlp if isinstance(mlp, Gated) else nn.Sequential(*layers)
    described = {
        part: _layer(f"{name}.{part}", parts[part], keep) for part in LAYERS if part != "mlp"
    }
    return {
        "heads": int(parts["heads"]),
        "mlp": _layer(f"{name}.mlp", inside, keep),
        **described,
        **{part: keep(f"{name}.{part}", parts[part]) for part in PROJECTIONS},
    }


def _layer(name: str, module: Any, keep: Keep) -> dict[str, Any]:
    """A layer's kind, what it is set to, the names of its tensors, and the layers inside it."""
    kind = KINDS.get(type(module).__name__) or activation_name(module)
    plain = (
        getattr(module, "groups", 1) == 1 and getattr(module, "padding_mode", "zeros") == "zeros"
    )
    if kind is None or not plain:
        raise _Unknown(type(module).__name__)
    found: dict[str, Any] = {"kind": kind}
    if kind in ("layer", "rms"):
        found |= {"eps": float(module.eps), "width": int(module.normalized_shape[0])}
    if kind == "convolution":
        found |= {part: list(getattr(module, part)) for part in STEPS}
    for part in ("weight", "bias", "gamma"):
        if (value := getattr(module, part, None)) is not None:
            found[part] = keep(f"{name}.{part}", value)
    inside = [_layer(f"{name}.{i}", one, keep) for i, one in enumerate(module.children())]
    return found | ({"layers": inside} if inside else {})


def _built(found: Mapping[str, Any], tensor: Callable[[str], Tensor]) -> nn.Module:
    """The layer of a description."""
    kind, inside = found["kind"], [_built(one, tensor) for one in found.get("layers", ())]
    own = {part: tensor(found[part]) for part in ("weight", "bias") if part in found}
    shape: Any = own["weight"].shape if own else ()
    steps: dict[str, Any] = {step: tuple(found[step]) for step in STEPS if step in found}
    bias = "bias" in own
    if kind == "scale":
        return Scale(tensor(found["gamma"]))
    makers: dict[str, Callable[[], nn.Module]] = {
        "sequence": lambda: nn.Sequential(*inside),
        "gated": lambda: Gated(*inside),
        "identity": nn.Identity,
        "relu": nn.ReLU,
        "linear": lambda: nn.Linear(shape[1], shape[0], bias),
        "layer": lambda: nn.LayerNorm(found["width"], found["eps"], bool(own), bias),
        "rms": lambda: nn.RMSNorm(found["width"], found["eps"], bool(own)),
        "convolution": lambda: nn.Conv2d(shape[1], shape[0], shape[2:], bias=bias, **steps),
    }
    with torch.device("meta"):  # nothing is drawn at random first
        made = makers.get(kind, lambda: activation_module(kind))()
    if own:
        made.load_state_dict(own, assign=True)
    return made


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
