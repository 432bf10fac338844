"""The training loop: resumable, seeded, logged. Every batch is a function of seed and number."""

from __future__ import annotations

import json
import math
import timeit
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mrad.encoder.kernels import has_bf16
from mrad.errors import NonFiniteError
from mrad.images.preprocess import OPENAI_MEAN, OPENAI_STD
from mrad.models.architecture import FINE, PATCH, SIDE
from pretraining import losses
from pretraining.losses import Batch, Heads
from pretraining.model import NAME, average, build, fold, image_features, text_features
from pretraining.scenes import KINDS, Pair, Tiles, coverage, make_pair, near
from pretraining.statistics import Targets

TILE = 400
"""Side of a surface from which crops are taken, pixels."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    steps: int = 5000
    pairs: int = 16
    side: int = 132
    """Of pictures, pixels: they see a window of the position table."""
    sample_pairs: int = 100
    """Of the encoder's own size: what the hand-made statistics' means and deviations are taken of."""
    tiles: int = 48
    batches_per_tiles: int = 40
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 60
    weights: tuple[float, ...] = (0.5, 2.0, 1.0, 1.0, 0.5, 3.0, 1.0)
    """Of the losses in the order of `LOSSES`."""

    boost: float = 1.5
    """Contrast of defects at the first step; 1 from `boost_until` (share of the steps) on."""
    boost_until: float = 0.25

    def boost_at(self, step: int) -> float:
        """Contrast of defects at a step."""
        done = min(1.0, step / (self.boost_until * self.steps))
        return float(self.boost ** (1 - done))


LOSSES = ("clip", "dense", "retrieval", "image_retrieval", "kind", "statistics", "fine")


class Batches(Dataset[dict[str, Any]]):
    """Batch number -> arrays, whichever process makes it."""

    def __init__(self, recipe: Recipe, first: int = 0) -> None:
        self.recipe, self.first = recipe, first
        self._tiles: tuple[int, Tiles] | None = None

    def __len__(self) -> int:
        return self.recipe.steps - self.first

    def __getitem__(self, index: int) -> dict[str, Any]:
        recipe, step = self.recipe, index + self.first
        rng = np.random.default_rng((recipe.seed, 1, step))
        tiles = self._tiles_of(step // recipe.batches_per_tiles)
        side, boost = recipe.side, recipe.boost_at(step)
        pairs = [make_pair(rng, tiles, side, boost) for _ in range(recipe.pairs)]
        free = (SIDE - side) // PATCH + 1
        corner = tuple(int(v) for v in rng.integers(0, free, 2))
        return {**_arrays(pairs, side), "corner": corner}

    def _tiles_of(self, number: int) -> Tiles:
        if self._tiles is None or self._tiles[0] != number:
            rng = np.random.default_rng((self.recipe.seed, 0, number))
            self._tiles = number, Tiles(rng, self.recipe.tiles, TILE)
        return self._tiles[1]


def _arrays(pairs: list[Pair], side: int) -> dict[str, Any]:
    pictures = np.stack([p.good for p in pairs] + [p.bad for p in pairs])
    return {
        "pictures": (pictures * 255).round().astype(np.uint8),
        "cells": _targets([p.mask for p in pairs], side // PATCH, 0.05),
        "fine": _targets([p.mask for p in pairs], side // FINE, 0.3),
        "kinds": np.array([p.kind for p in pairs]),
        "captions": [p.captions[0] for p in pairs] + [p.captions[1] for p in pairs],
    }


def _targets(masks: list[Any], grid: int, least: float) -> Any:
    """[2P, N] int8: 1 where that share of a cell is anomalous, -1 around and below, else 0."""
    good = np.zeros((len(masks), grid, grid), np.int8)
    shares = np.stack([coverage(mask, grid) for mask in masks])
    around = np.stack([near(share) for share in shares])
    bad = np.where(shares >= least, 1, np.where(around, -1, 0)).astype(np.int8)
    return np.concatenate([good, bad]).reshape(2 * len(masks), -1)


def prepare(raw: dict[str, Any], tokenizer: Any, device: torch.device) -> Batch:
    """Arrays -> tensors on the device."""
    pixels = torch.as_tensor(raw["pictures"]).to(device).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(OPENAI_MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(OPENAI_STD, device=device).view(3, 1, 1)
    captions = raw["captions"]
    same = torch.tensor([[a == b for b in captions] for a in captions])
    return Batch(
        pixels=((pixels - mean) / std).contiguous(),
        cells=torch.as_tensor(raw["cells"]).to(device),
        fine=torch.as_tensor(raw["fine"]).to(device),
        kinds=torch.as_tensor(raw["kinds"]).to(device),
        tokens=tokenizer(captions).to(device),
        same=same.to(device),
    )


def pays_in_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 are the faster ones. A CPU may have instructions for it that are not,
    so there it is tried; narrowly faster is not enough, for the conversions cost too.
    """
    if device.type != "cpu" or not has_bf16(device):
        return has_bf16(device)
    return product_seconds(torch.bfloat16) < 0.8 * product_seconds(torch.float32)


def product_seconds(dtype: torch.dtype) -> float:
    """Of a product as those in the tower, on the CPU: the shortest of nine."""
    left, right = torch.ones(4096, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
    return min(timeit.repeat(lambda: left @ right, number=1, repeat=9))


class Training:
    """Model, training heads, optimiser and the step they stand at."""

    def __init__(self, recipe: Recipe, out: Path, device: torch.device) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        self.bf16 = pays_in_bf16(device)
        self.tokenizer = open_clip.SimpleTokenizer()
        self.clip: Any = build(recipe.seed)
        stem = self.clip.visual.trunk.patch_embed.backbone
        self.targets = Targets(self._sample(), SIDE // PATCH)
        self.heads = Heads(stem[-1].out_channels, stem[-1].in_channels, len(KINDS))
        self.clip.to(device)
        self.heads.to(device)
        self.scale = nn.Parameter(torch.tensor([10.0, 10.0], device=device).log())
        self.optimiser = self._optimiser()
        self.step = 0
        self._resume()

    def _sample(self) -> Tensor:
        """Pictures of the encoder's own size, on the device that trains."""
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, 2))
        tiles = Tiles(rng, recipe.tiles, TILE)
        pairs = [make_pair(rng, tiles, SIDE) for _ in range(recipe.sample_pairs)]
        return prepare(_arrays(pairs, SIDE), self.tokenizer, self.device).pixels

    def _optimiser(self) -> torch.optim.Optimizer:
        named = [*self.clip.parameters(), *self.heads.parameters()]
        groups = [
            {"params": [p for p in named if p.ndim > 1], "weight_decay": self.recipe.weight_decay},
            {"params": [self.scale, *(p for p in named if p.ndim <= 1)], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, self.recipe.lr, betas=(0.9, 0.98), fused=True)

    def run(self, workers: int, save_every: int = 100) -> None:
        """Train to the end of the recipe."""
        loader = DataLoader(
            Batches(self.recipe, self.step), batch_size=None, num_workers=workers,
            prefetch_factor=6 if workers else None,
        )  # fmt: skip
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns) as progress, (self.out / "log.jsonl").open("a") as log:
            task = progress.add_task(NAME, total=self.recipe.steps, completed=self.step)
            for raw in loader:
                record = self.advance(raw)
                log.write(json.dumps(record) + "\n")
                log.flush()
                progress.update(task, advance=1, description=f"loss {record['loss']:.3f}")
                if self.step % save_every == 0 or self.step == self.recipe.steps:
                    self._save()

    def finish(self) -> None:
        """Make the trained tower what is shipped, behind the last checkpoint."""
        fold(self.clip.cpu())

    def advance(self, raw: dict[str, Any]) -> dict[str, float]:
        """One step on a batch of `Batches`; returns its number, losses and readings."""
        batch = prepare(raw, self.tokenizer, self.device)
        self.clip.train()
        rate = self._rate()
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr * rate
        self.optimiser.zero_grad(set_to_none=True)
        parts, readings = self._losses(batch, raw["corner"])
        loss = torch.stack([w * p for w, p in zip(self.recipe.weights, parts)]).sum()
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss.item()} at step {self.step}")
        loss.backward()
        nn.utils.clip_grad_norm_(self.clip.parameters(), 5.0)
        self.optimiser.step()
        with torch.no_grad():
            self.scale.clamp_(max=math.log(50.0))
        self.step += 1
        named = {name: float(part.detach()) for name, part in zip(LOSSES, parts)}
        return {"step": self.step, "loss": float(loss.detach()), **named, **readings}

    def _rate(self) -> float:
        """Warm-up, then a straight line to zero."""
        recipe = self.recipe
        if self.step < recipe.warmup:
            return (self.step + 1) / recipe.warmup
        return (recipe.steps - self.step) / max(1, recipe.steps - recipe.warmup)

    def _losses(
        self, batch: Batch, corner: tuple[int, int]
    ) -> tuple[list[Tensor], dict[str, float]]:
        # Sums and losses stay float32.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            images, patch, fine, grid = image_features(self.clip.visual, batch.pixels, corner)
        images, patch, fine = images.float(), patch.float(), fine.float()
        texts = text_features(self.clip, batch.tokens)
        scale = self.scale.exp()
        projection = self.clip.visual.head.proj.weight.T
        dense, log_odds = losses.dense_loss(patch, projection, texts, batch.cells, scale[1])
        wanted = self.targets(batch.pixels, grid)
        parts = [
            losses.clip_loss(images, texts, batch.same, scale[0]),
            dense,
            losses.retrieval_loss(patch, batch.cells),
            losses.image_retrieval_loss(images),
            losses.kind_loss(self.heads.kind(patch), batch.cells, batch.kinds),
            F.smooth_l1_loss(self.heads.statistics(patch), average(wanted, grid)),
            losses.balanced(self.heads.fine(fine).flatten(1), batch.fine),
        ]
        return parts, _readings(images, texts, log_odds, batch.cells)

    def _save(self) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "clip": self.clip.state_dict(),
            "heads": self.heads.state_dict(),
            "scale": self.scale.detach(),
            "optimiser": self.optimiser.state_dict(),
        }
        temporary = self.out / "checkpoint.tmp"
        torch.save(state, temporary)
        temporary.replace(self.out / "checkpoint.pt")

    def _resume(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(f"{path} belongs to another recipe; choose another --out")
        self.clip.load_state_dict(state["clip"])
        self.heads.load_state_dict(state["heads"])
        with torch.no_grad():
            self.scale.copy_(state["scale"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])
        # What a cut-off run logged behind its checkpoint is done, and logged, again.
        log = self.out / "log.jsonl"
        if log.exists():
            log.write_text("".join(log.read_text().splitlines(keepends=True)[: self.step]))


@torch.no_grad()
def _readings(images: Tensor, texts: Tensor, log_odds: Tensor, cells: Tensor) -> dict[str, float]:
    """How often a defective cell, and a defective picture, stands above its flawless twin."""
    pairs = len(images) // 2
    direction = (texts[pairs:] - texts[:pairs]).repeat(2, 1)
    score = (nn.functional.normalize(images, dim=-1) * direction).sum(dim=1)
    good, bad = log_odds[cells == 0], log_odds[cells == 1]
    cutoff = good.quantile(0.95) if len(good) < 1_000_000 else good[:1_000_000].quantile(0.95)
    return {
        "pairs_right": float((score[pairs:] > score[:pairs]).float().mean()),
        "cells_found": float((bad > cutoff).float().mean()) if len(bad) else 0.0,
    }
