"""A trained CLIP -> half-precision safetensors; its log -> a picture of the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mrad import Encoder
from mrad.encoder.converted import ConvertedTower, describe
from mrad.encoder.parts import parts_of
from pretraining.model import NAME


def export(clip: nn.Module, out: Path) -> Path:
    """Write `mrad-mini.safetensors` into the folder `out`; returns its path."""
    state = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in clip.state_dict().items()
        if value.is_floating_point() and name != "attn_mask"
    }
    path = out / f"{NAME}.safetensors"
    save_file(state, path, metadata={"format": "pt", "model": NAME})
    return path


def export_tower(clip: nn.Module, out: Path) -> Path:
    """Write `mrad-mini.tower.json` beside the exported weights; returns its path."""
    weights = out / f"{NAME}.safetensors"
    clip.load_state_dict(load_file(weights), strict=False)  # as rounded
    encoder = Encoder.from_clip(clip, name=NAME, device="cpu")
    prepare = encoder.preprocess
    tower = ConvertedTower(parts_of(clip.visual), encoder.identity, prepare.mean, prepare.std)
    path = out / f"{NAME}.tower.json"
    path.write_text(json.dumps(describe_shipped(tower, weights), indent=1) + "\n")
    return path


def describe_shipped(tower: ConvertedTower, weights: Path) -> dict[str, Any]:
    """The description that `shipped` reads: every tensor is found again in the file of weights.

    Raises `ValueError` for a tower that cannot be described, or whose tensors the file has not.
    """
    described = describe(tower.parts)
    if described is None:
        raise ValueError("this tower has layers that a description does not know")
    spec, tensors = described
    places = {}
    with safe_open(weights, "pt") as file:
        stored = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    for role, value in tensors.items():
        for name, found in stored.items():
            if found.numel() != value.numel():
                continue
            plain = torch.equal(found.reshape(value.shape), value)
            if plain or (found.ndim == 2 and torch.equal(found.T.reshape(value.shape), value)):
                shape = list(value.shape)
                places[role] = {"name": name, "shape": shape, "transposed": not plain}
                break
        else:
            raise ValueError(f"{weights} has no tensor that is {role}")
    return {
        "identity": vars(tower.identity),
        "mean": list(tower.mean),
        "std": list(tower.std),
        "tower": spec,
        "tensors": places,
    }


def curves(log: Path, picture: Path) -> None:
    """Losses and readings against steps, smoothed over 25."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in log.read_text().splitlines()]
    names = [name for name in records[0] if name != "step"]
    figure, axes = plt.subplots(2, 5, figsize=(16, 6), constrained_layout=True)
    for name, axis in zip(names, axes.flat, strict=True):
        values = np.array([record[name] for record in records])
        window = min(25, len(values))
        axis.plot(np.convolve(values, np.ones(window) / window, mode="valid"), linewidth=1)
        axis.set_title(name, fontsize=9)
    figure.savefig(picture, dpi=80)
    plt.close(figure)
