"""TF, FT and CLIP side by side on the shipped small CLIP, in-domain and across.

`python -m benchmarks heads`: the sets, halves and metrics of `benchmarks.mini`. FT and CLIP are
trained on the half that fills the memory, so nothing of the tested half is seen before; the values of
the `few-images` recipe were chosen within that half.
"""

from __future__ import annotations

import numpy as np
import torch
from mrad_indexer.training.cache import CachedFeatures
from mrad_indexer.training.clip import train_clip
from mrad_indexer.training.data import TrainingSet
from mrad_indexer.training.ft import train_ft
from mrad_indexer.training.loop import History
from mrad_indexer.training.recipe import FEW_IMAGES, CLIPRecipe, FTRecipe

from benchmarks.mini import SETS, Encoded, Judge, encode_set, halves, measure
from benchmarks.tables import DATA, Table
from mrad.encoder.encoder import Encoder, Features
from mrad.heads import Head, NoSettings, load_head
from mrad.heads.clip import CLIPConfig, CLIPHead
from mrad.heads.ft import FTHead
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry
from mrad.memory.keys import Piece, keys_of
from mrad.types import Sample

PAPER = FTRecipe()
FEW_CLIP = CLIPRecipe(epochs=10, learning_rate=1e-3)
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


def trained_heads(encoder: Encoder, data: TrainingSet, seed: int, quick: bool) -> dict[str, Head]:
    """Every head on this memory."""
    one = {"epochs": 1} if quick else {}
    few = FEW_IMAGES.model_copy(update={"seed": seed, **one})
    paper = PAPER.model_copy(update={"seed": seed})
    prompts = FEW_CLIP.model_copy(update={"seed": seed, **one})
    weights = train_ft(encoder, data, few, History())
    by_paper = train_ft(encoder, data, paper, History())
    prompted = train_clip(encoder, data, weights, prompts, History())
    heads: dict[str, Head] = {
        "TF": load_head("tf", encoder),
        "FT, paper": FTHead(encoder, NoSettings(), by_paper.state_dict()),
        "FT, few images": FTHead(encoder, NoSettings(), weights.state_dict()),
        "CLIP": CLIPHead(encoder, CLIPConfig(), prompted.state_dict()),
    }
    for head in heads.values():
        head.attach(data.bank)
    return heads


def judged_by(head: Head) -> Judge:
    """A head as `measure` wants it; the memory is attached already."""

    def judge(
        memory: Encoded, test: Encoded, grid: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        outputs = [
            head(Features(test.image[row : row + BATCH], test.patch[row : row + BATCH]))
            for row in range(0, len(test.labels), BATCH)
        ]
        patch, image = zip(*((output.patch, output.image) for output in outputs))
        return torch.cat(patch), torch.cat(image)

    return judge


def run(quick: bool) -> list[Table]:
    """One table."""
    encoder = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    limit = 24 if quick else None
    found = {n: encode_set(encoder, DATA / n, limit) for n in SETS if (DATA / n).is_dir()}
    figures: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for memory, (encoded, _) in found.items():
        for seed in range(1 if quick else 5):
            kept = encoded.of(halves(encoded.labels, seed)[0])
            heads = trained_heads(encoder, training_set_of(encoder, kept), seed, quick)
            for test, (other, _) in found.items():
                held = other.of(halves(other.labels, seed)[1])
                for name, head in heads.items():
                    result = measure(judged_by(head), kept, held, encoder)
                    figures.setdefault((name, memory, test), []).append(result)
    return [_heads_table(figures)]


def _heads_table(figures: dict[tuple[str, str, str], list[tuple[float, float, float]]]) -> Table:
    rows = []
    for key in sorted(figures, key=lambda k: (k[1], k[2])):
        values = np.array(figures[key])
        rows.append([*key, *(f"{v.mean():.3f} ({v.max() - v.min():.3f})" for v in values.T)])
    columns = ["head", "memory of", "tested on", "image AUROC", "pixel AUROC", "AUPRO"]
    return Table(
        "Heads on mrad-mini: five seeds, mean and spread (largest - smallest)", columns, rows
    )
