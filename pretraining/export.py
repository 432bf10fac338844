"""A trained CLIP -> half-precision safetensors; its log -> a picture of the curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mrad import Encoder
from mrad.encoder.converted import ConvertedTower, describe_shipped
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
