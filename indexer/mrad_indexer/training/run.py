"""A whole training: data in, checkpoint and curves out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrad.encoder.encoder import Encoder
from mrad.errors import CheckpointError, HeadError
from mrad.heads.checkpoint import fill, load_checkpoint, save_checkpoint
from mrad.heads.clip import CLIPConfig
from mrad.heads.ft import FTWeights
from mrad.memory.bank import MemoryBank
from mrad_indexer.datasets import Record
from mrad_indexer.training.clip import train_clip
from mrad_indexer.training.compare import Comparison, compare, keep_aside, without
from mrad_indexer.training.curves import write_csv, write_png
from mrad_indexer.training.data import TrainingSet, training_set
from mrad_indexer.training.ft import train_ft
from mrad_indexer.training.loop import History, Progress
from mrad_indexer.training.recipe import CLIPRecipe, FTRecipe, ft_recipe


@dataclass(frozen=True)
class Trained:
    """What a training gave."""

    checkpoint: Path
    bank: MemoryBank
    history: History
    encode_seconds: float
    """What encoding the set once takes: the price of an epoch without a cache."""
    encoded: int
    """Images encoded now; the others came from the cache."""
    comparison: Comparison | None = None
    """On the images kept aside; None where none were."""

    def epoch_seconds(self) -> float:
        """Mean wall time of an epoch over the cache."""
        return sum(self.history.seconds.values()) / sum(self.history.epochs.values())

    def speedup(self) -> float:
        """How many times faster an epoch is than one that encodes every image again."""
        cached = self.epoch_seconds()
        return (self.encode_seconds + cached) / cached


def train(
    head: str,
    encoder: Encoder,
    records: Sequence[Record],
    checkpoint: Path,
    cache: Path,
    *,
    ft: FTRecipe | None = None,
    clip: CLIPRecipe | None = None,
    start_from: Path | None = None,
    bank: MemoryBank | None = None,
    bank_path: Path | None = None,
    metadata: dict[str, Any] | None = None,
    aside: float = 0.0,
    encoding: Callable[[int, int], None] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train `ft` or `clip` on labelled images and write `checkpoint`, its `.csv` and its `.png`.

    Args:
        start_from: an FT checkpoint of the same encoder to put the prompts on; None trains FT first.
        bank: the memory to retrieve from; None builds it of the same images, as the paper does.
        bank_path: where a memory built here is kept, so that the head can be used with it.
        metadata: kept in that memory, for whoever loads it.
        aside: share of each class that is not trained on; heads are compared on it (`compare`).
            The memory that is kept holds these images, too.

    Raises `CheckpointError` when `start_from` is another encoder's, `HeadError` for a `bank` of tiles,
    `NonFiniteError`, `DataError`.
    """
    ft, clip = ft or ft_recipe("paper", head), clip or CLIPRecipe()
    if bank is not None and not bank.layout.plain:
        raise HeadError(
            "this memory looks at pictures in tiles, regions or parts, and heads are trained on whole "
            "ones: train on pictures of single tiles with a memory of their own, or judge with tf, nn or "
            "combined, which need no training"
        )
    frozen = None if start_from is None else load_ft(start_from, encoder)
    trained_on, kept = keep_aside(records, aside)
    data = training_set(
        encoder,
        trained_on,
        cache,
        bank=without(bank, encoder, kept) if bank is not None and kept else bank,
        progress=encoding,
    )
    memory = data.bank
    if bank is None and bank_path is not None:
        if kept:
            memory = training_set(encoder, records, cache).bank
        memory = replace(memory, metadata=memory.metadata | (metadata or {})).save(bank_path)
    history, config = History(), CLIPConfig()
    weights = frozen or train_ft(encoder, data, ft, history, progress)
    if head == "clip":
        weights = train_clip(encoder, data, weights, clip, history, progress, config)
    save_checkpoint(
        checkpoint,
        head,
        weights.state_dict(),
        config.model_dump() if head == "clip" else {},
        encoder.identity,
        memory.digest,
        _account(head, ft, clip, start_from, data, history),
    )
    write_csv(history, checkpoint.with_suffix(".csv"))
    write_png(history, checkpoint.with_suffix(".png"))
    found = compare(head, checkpoint, encoder, data.bank, kept) if kept else None
    features = data.features
    return Trained(checkpoint, memory, history, features.encode_seconds, features.encoded, found)


def load_ft(path: Path, encoder: Encoder) -> FTWeights:
    """The projections of an FT or CLIP checkpoint. Raises `CheckpointError`."""
    loaded = load_checkpoint(path)
    if loaded.head not in ("ft", "clip"):
        raise CheckpointError(f"{path} belongs to head {loaded.head!r}, which has no projections")
    loaded.check(loaded.head, encoder)
    weights = FTWeights(encoder.embed_dim, encoder.width)
    names = weights.state_dict().keys()
    fill(weights, {name: value for name, value in loaded.tensors.items() if name in names})
    return weights.requires_grad_(False).eval().to(encoder.device)


def _account(
    head: str,
    ft: FTRecipe,
    clip: CLIPRecipe,
    start_from: Path | None,
    data: TrainingSet,
    history: History,
) -> dict[str, Any]:
    """What the checkpoint says about how it came to be."""
    recipes = {} if start_from else {"ft": ft.model_dump()}
    if head == "clip":
        recipes["clip"] = clip.model_dump()
    return {
        "recipe": recipes,
        "start_from": start_from.name if start_from else None,
        "images": len(data),
        "masks": int(data.masked.sum()),
        "image_keys": len(data.bank.image),
        "patch_keys": len(data.bank.patch),
        "final_loss": {
            stage: history.epoch_mean(stage, epochs) for stage, epochs in history.epochs.items()
        },
    }
