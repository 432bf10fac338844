"""The training loop: resumable, seeded, logged. Every batch is a function of seed and number."""

from __future__ import annotations

import json
import math
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

from mrad.errors import NonFiniteError
from mrad.preprocess import OPENAI_MEAN, OPENAI_STD
from pretraining import losses
from pretraining.losses import Batch, Heads
from pretraining.model import NAME, average, build, image_features, text_features
from pretraining.scenes import KINDS, Pair, Tiles, coverage, make_pair, near
from pretraining.start import start
from pretraining.statistics import Targets
from pretraining.teacher import Teacher
from pretraining.whiten import whiten

PATCH = 12
TILE = 400
"""Side of a surface from which crops are taken, pixels."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    steps: int = 2400
    pairs: int = 16
    side: int = 132
    """Pictures of the first part, pixels: a window of the position table."""
    large_from: float = 0.6
    """Share of the steps after which pictures have the encoder's own size."""
    large_pairs: int = 4
    large_side: int = 264
    start_pairs: int = 80
    """Of the sample on which the first weights are solved for."""
    sample_pairs: int = 200
    """Of the sample on which the last weights are solved for, and of those that the trees learn from."""
    teacher_samples: int = 4
    tiles: int = 48
    batches_per_tiles: int = 40
    lr: float = 1e-3
    slow_share: float = 0.2
    """Of the rate, for what the patch features pass through."""
    weight_decay: float = 0.05
    warmup: int = 60
    weights: tuple[float, ...] = (0.5, 2.0, 1.0, 1.0, 0.5, 10.0, 3.0)
    """Of the losses in the order of `LOSSES`."""

    boost: float = 1.5
    """Contrast of defects at the first step; 1 from `boost_until` (share of the steps) on."""
    boost_until: float = 0.25

    def boost_at(self, step: int) -> float:
        """Contrast of defects at a step."""
        done = min(1.0, step / (self.boost_until * self.steps))
        return float(self.boost ** (1 - done))

    def is_large(self, step: int) -> bool:
        """Whether a step's pictures have the encoder's own size."""
        return step >= self.large_from * self.steps


CLASS_ONLY = {
    "visual.proj",
    "visual.class_embedding",
    *(f"visual.transformer.resblocks.3.{part}"
      for part in ("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")),
}  # fmt: skip
"""Parameters of the image tower that patch features do not depend on."""
LOSSES = ("clip", "dense", "retrieval", "image_retrieval", "kind", "statistics", "teacher")


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
        large = recipe.is_large(step)
        side = recipe.large_side if large else recipe.side
        tiles = self._tiles_of(step // recipe.batches_per_tiles)
        count = recipe.large_pairs if large else recipe.pairs
        pairs = [make_pair(rng, tiles, side, recipe.boost_at(step)) for _ in range(count)]
        free = (recipe.large_side - side) // PATCH + 1
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
        "cells": _targets([p.mask for p in pairs], side // PATCH),
        "kinds": np.array([p.kind for p in pairs]),
        "captions": [p.captions[0] for p in pairs] + [p.captions[1] for p in pairs],
    }


def _targets(masks: list[Any], grid: int) -> Any:
    """[2P, N] int8: 1 where a twentieth of a cell is anomalous, -1 around and below, else 0."""
    good = np.zeros((len(masks), grid, grid), np.int8)
    shares = np.stack([coverage(mask, grid) for mask in masks])
    around = np.stack([near(share) for share in shares])
    bad = np.where(shares >= 0.05, 1, np.where(around, -1, 0)).astype(np.int8)
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
        kinds=torch.as_tensor(raw["kinds"]).to(device),
        tokens=tokenizer(captions).to(device),
        same=same.to(device),
    )


class Training:
    """Model, training heads, optimiser and the step they stand at."""

    def __init__(self, recipe: Recipe, out: Path, device: torch.device) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        self.tokenizer = open_clip.SimpleTokenizer()
        self.clip: Any = build(recipe.seed)
        self.targets, self.heads = self._start()
        self.teacher = self._teacher()
        self.clip.to(device)
        self.heads.to(device)
        self.scale = nn.Parameter(torch.tensor([10.0, 10.0], device=device).log())
        self.optimiser = self._optimiser()
        self.step = 0
        self._resume()

    def _sample(self, stream: int, count: int) -> Batch:
        """Pairs of the encoder's own size, on which weights are solved for."""
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, stream))
        tiles = Tiles(rng, recipe.tiles, TILE)
        pairs = [make_pair(rng, tiles, recipe.large_side) for _ in range(count)]
        return prepare(_arrays(pairs, recipe.large_side), self.tokenizer, torch.device("cpu"))

    def _start(self) -> tuple[Targets, Heads]:
        """Lay the image tower out on a first sample; what its features are to hold from then on,
        and a reading of it that is right already."""
        grid, visual = self.recipe.large_side // PATCH, self.clip.visual
        sample = self._sample(2, self.recipe.start_pairs)
        targets = Targets(sample.pixels, grid)
        defect = torch.where(sample.cells < 0, 0.3, sample.cells.float())[..., None]
        wanted = targets(sample.pixels, grid)
        both = torch.cat([wanted, (defect - defect.mean()) / defect.std()], dim=-1)
        explained = start(visual, sample.pixels, sample.cells, both)[:-1].mean()
        print(f"before the first step the patch features explain {explained:.2f} of the statistics")
        heads = Heads(visual.conv1.weight.shape[0], len(KINDS))
        with torch.no_grad():
            parts = [image_features(visual, p, (0, 0))[1] for p in sample.pixels.split(16)]
            features = F.pad(torch.cat(parts), (0, 1), value=1.0).flatten(0, 1)
            solved = torch.linalg.lstsq(features, average(wanted, grid).flatten(0, 1)).solution
            heads.statistics.weight.copy_(solved[:-1].T)
            heads.statistics.bias.copy_(solved[-1])
        return Targets(sample.pixels.to(self.device), grid), heads

    def _teacher(self) -> Teacher:
        recipe = self.recipe
        numbers = range(recipe.teacher_samples)
        samples = (self._sample(4 + number, recipe.sample_pairs) for number in numbers)
        return Teacher(samples, recipe.large_side // PATCH)

    def _optimiser(self) -> torch.optim.Optimizer:
        """Adam. What patch features pass through has a start worth keeping and learns slowly;
        texts, the class token's own last MLP, projections and readings start from nothing."""
        slow: list[nn.Parameter] = []
        tables: list[nn.Parameter] = []
        rest: list[nn.Parameter] = [self.scale]
        for name, value in [*self.clip.named_parameters(), *self.heads.named_parameters()]:
            kept = name.startswith("visual.") and name not in CLASS_ONLY
            kept = kept or name.startswith("statistics.")
            (slow if kept else tables if value.ndim > 1 else rest).append(value)
        decay, share = self.recipe.weight_decay, self.recipe.slow_share
        groups = [
            {"params": slow, "weight_decay": 0.0, "share": share},
            {"params": tables, "weight_decay": decay, "share": 1.0},
            {"params": rest, "weight_decay": 0.0, "share": 1.0},
        ]
        return torch.optim.AdamW(groups, self.recipe.lr, betas=(0.9, 0.98))

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
                record = self._advance(raw)
                log.write(json.dumps(record) + "\n")
                log.flush()
                progress.update(task, advance=1, description=f"loss {record['loss']:.3f}")
                if self.step % save_every == 0 or self.step == self.recipe.steps:
                    self._save()

    def finish(self) -> float:
        """The trained tower with whitened patch features; returns `whiten`'s explained share.

        Behind the last checkpoint, so that a resumed run does it once too.
        """
        sample = self._sample(3, self.recipe.sample_pairs)
        return whiten(self.clip.cpu().visual, sample.pixels, sample.cells)

    def _advance(self, raw: dict[str, Any]) -> dict[str, float]:
        batch = prepare(raw, self.tokenizer, self.device)
        rate = self._rate()
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr * rate * group["share"]
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
        # Products in bfloat16 are more than twice as fast here; sums and losses stay float32.
        with torch.autocast(self.device.type, torch.bfloat16):
            images, patch, grid = image_features(self.clip.visual, batch.pixels, corner)
        images, patch = images.float(), patch.float()
        texts = text_features(self.clip, batch.tokens)
        scale = self.scale.exp()
        dense, log_odds = losses.dense_loss(
            patch, self.clip.visual.proj, texts, batch.cells, scale[1]
        )
        wanted = self.targets(batch.pixels, grid)
        read, odds = self.heads.statistics(patch), self.teacher(batch.pixels, grid)
        parts = [
            losses.clip_loss(images, texts, batch.same, scale[0]),
            dense,
            losses.retrieval_loss(patch, batch.cells),
            losses.image_retrieval_loss(images),
            losses.kind_loss(self.heads.kind(patch), batch.cells, batch.kinds),
            F.smooth_l1_loss(read, average(wanted, grid)),
            F.smooth_l1_loss(self.heads.teacher(patch), average(odds, grid)),
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
