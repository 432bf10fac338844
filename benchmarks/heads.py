"""TF, FT and CLIP side by side on the shipped small CLIP, in-domain and across.

`python -m benchmarks heads`: the sets, halves and metrics of `benchmarks.mini`. FT and CLIP are
trained on the half that fills the memory, so nothing of the tested half is seen before; the values of
the `few-images` recipe were chosen within that half. `map alone` judges images by their maps, as
the linear probe, which knows no class feature, must: what the image level adds is the difference.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from mrad_indexer.training.cache import CachedFeatures
from mrad_indexer.training.clip import train_clip
from mrad_indexer.training.data import TrainingSet
from mrad_indexer.training.ft import train_ft
from mrad_indexer.training.loop import History
from mrad_indexer.training.recipe import FEW_IMAGES, CLIPRecipe, FTRecipe

from benchmarks.mini import DATA, SETS, Encoded, Judge, encode_set, halves, measure
from benchmarks.tables import Table, main
from mrad.encoder.encoder import Encoder, Features
from mrad.heads import Head, NoSettings, load_head
from mrad.heads.clip import CLIPConfig, CLIPHead
from mrad.heads.ft import FTHead
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry
from mrad.memory.keys import Piece, keys_of
from mrad.types import Sample

NAME = "heads"
PAPER = FTRecipe()
FEW_CLIP = CLIPRecipe(epochs=10, learning_rate=1e-3)
FT_ROW = "FT, few images"
BATCH = 16


def bank_of(encoder: Encoder, memory: Encoded) -> MemoryBank:
    """The memory of already encoded pictures."""
    blank = np.zeros((1, 1), np.uint8)
    entries, keys = [], []
    for row, label in enumerate(memory.labels):
        entry = Entry.of(Sample(blank, bool(label)), (encoder.image_size,) * 2)
        features = Features(memory.image[row : row + 1], memory.patch[row : row + 1])
        entries.append(entry)
        keys += keys_of(encoder, features, 0, entry, Piece(0, bool(entry.label), memory.masks[row]))
    dims = (encoder.embed_dim, encoder.width)
    return MemoryBank.from_keys(encoder.identity, entries, keys, dims=dims)


def training_set_of(encoder: Encoder, memory: Encoded) -> TrainingSet:
    """The same pictures as training reads them."""
    count = len(memory.labels)
    place = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    patches = memory.patch.numpy().astype(np.float16)
    sizes = ((encoder.image_size, encoder.image_size),) * count
    features = CachedFeatures(memory.image, (patches,), place, sizes, 0.0, 0)
    return TrainingSet(
        features,
        torch.from_numpy(memory.labels).long(),
        np.packbits(memory.masks.reshape(count, -1), axis=1),
        torch.ones(count, dtype=torch.bool),
        encoder.image_size,
        bank_of(encoder, memory),
    )


def trained_heads(
    encoder: Encoder, data: TrainingSet, seed: int, quick: bool
) -> tuple[dict[str, Head], dict[str, float]]:
    """Every head on this memory, and the seconds of an epoch of each training."""
    history = History()
    one = {"epochs": 1} if quick else {}
    few = FEW_IMAGES.model_copy(update={"seed": seed, **one})
    paper = PAPER.model_copy(update={"seed": seed})
    prompts = FEW_CLIP.model_copy(update={"seed": seed, **one})
    weights = train_ft(encoder, data, few, history)
    by_paper = train_ft(encoder, data, paper, History())
    prompted = train_clip(encoder, data, weights, prompts, history)
    heads: dict[str, Head] = {
        "TF": load_head("tf", encoder),
        "FT, paper": FTHead(encoder, NoSettings(), by_paper.state_dict()),
        FT_ROW: FTHead(encoder, NoSettings(), weights.state_dict()),
        "CLIP": CLIPHead(encoder, CLIPConfig(), prompted.state_dict()),
    }
    for head in heads.values():
        head.attach(data.bank)
    return heads, {s: history.seconds[s] / history.epochs[s] for s in history.seconds}


def judged_by(head: Head, map_alone: bool = False) -> Judge:
    """A head as `measure` wants it; the memory is attached already."""

    def judge(
        memory: Encoded, test: Encoded, grid: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        outputs = [
            head(Features(test.image[row : row + BATCH], test.patch[row : row + BATCH]))
            for row in range(0, len(test.labels), BATCH)
        ]
        patch, image = zip(*((output.patch, output.image) for output in outputs))
        return torch.cat(patch), None if map_alone else torch.cat(image)

    return judge


def run(quick: bool) -> list[Table]:
    """The heads' table and the training's."""
    encoder = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    limit = 24 if quick else None
    found = {n: encode_set(encoder, DATA / n, limit) for n in SETS if (DATA / n).is_dir()}
    figures: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    epochs: list[list[str | int | float | None]] = []
    for memory, (encoded, seconds) in found.items():
        for seed in range(1 if quick else 5):
            kept = encoded.of(halves(encoded.labels, seed)[0])
            started = time.perf_counter()
            data = training_set_of(encoder, kept)
            heads, per_epoch = trained_heads(encoder, data, seed, quick)
            whole = time.perf_counter() - started
            for test, (other, _) in found.items():
                held = other.of(halves(other.labels, seed)[1])
                judges = {name: judged_by(head) for name, head in heads.items()}
                judges |= {f"{FT_ROW}, map alone": judged_by(heads[FT_ROW], map_alone=True)}
                for name, judge in judges.items():
                    result = measure(judge, kept, held, encoder)
                    figures.setdefault((name, memory, test), []).append(result)
            if seed == 0:
                epochs.append(_epoch_row(memory, len(kept.labels), seconds, per_epoch, whole))
    return [_heads_table(figures), _epochs_table(epochs)]


def _epoch_row(
    name: str, images: int, seconds: float, per_epoch: dict[str, float], whole: float
) -> list[str | int | float | None]:
    encode, cached = images * seconds, per_epoch["ft"]
    return [name, images, encode, cached, (encode + cached) / cached, per_epoch["clip"], whole]


def _heads_table(figures: dict[tuple[str, str, str], list[tuple[float, float, float]]]) -> Table:
    rows = []
    for key in sorted(figures, key=lambda k: (k[1], k[2])):
        values = np.array(figures[key])
        rows.append([*key, *(f"{v.mean():.3f} ({v.max() - v.min():.3f})" for v in values.T)])
    columns = ["head", "memory of", "tested on", "image AUROC", "pixel AUROC", "AUPRO"]
    return Table(
        "Heads on mrad-mini: five seeds, mean and spread (largest - smallest)", columns, rows
    )


def _epochs_table(rows: list[list[str | int | float | None]]) -> Table:
    columns = [
        "set", "images", "encode once, s", "FT epoch over the cache, s",
        "faster than encoding every epoch", "CLIP epoch, s", "all trainings, s",
    ]  # fmt: skip
    return Table("Training over features computed once", columns, rows)


if __name__ == "__main__":
    main(run)
