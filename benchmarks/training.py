"""An epoch over cached features against one that encodes every image anew.

`python -m benchmarks training`: the small CLIP with a memory of its own images, and the paper's
ViT-L/14-336 at 518 px with a memory of VisA's size. Pixels, features and keys are random, and so are
the large CLIP's weights: only time is measured.
"""

from __future__ import annotations

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from mrad_indexer.training.cache import CachedFeatures
from mrad_indexer.training.clip import train_clip
from mrad_indexer.training.data import TrainingSet
from mrad_indexer.training.ft import train_ft
from mrad_indexer.training.loop import History
from mrad_indexer.training.recipe import CLIPRecipe, FTRecipe
from mrad_indexer.training.start import ft_start

from benchmarks.geometry import Geometry
from benchmarks.tables import Table, main, middle, paired, ratio
from mrad.encoder.encoder import Encoder
from mrad.encoder.weights import PAPER_IMAGE_SIZE
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key
from mrad.types import Level

NAME = "training"
VISA = (2_162, 3_360)
"""Image and patch keys of the paper's larger memory."""
Row = list[str | int | float | None]


def large() -> Encoder:
    """The paper's encoder with random weights, text tower and all."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-L-14-336-quickgelu", pretrained=None)
    return Encoder.from_clip(
        clip, PAPER_IMAGE_SIZE, name="ViT-L-14-336", device="cpu", precision="fp32"
    )


def random_set(encoder: Encoder, images: int, keys: tuple[int, int]) -> TrainingSet:
    """`images` of random features, every second with a mask, and a memory of (image, patch) keys."""
    torch.manual_seed(1)
    side, cells = encoder.image_size, encoder.grid**2
    patch = torch.randn(images, cells, encoder.width).numpy().astype(np.float16)
    place = np.stack([np.zeros(images, np.int64), np.arange(images)], axis=1)
    sizes = ((side, side),) * images
    features = CachedFeatures(
        torch.randn(images, encoder.embed_dim), (patch,), place, sizes, 0.0, images
    )
    labels = torch.arange(images) % 2
    masks = np.zeros((images, side, side), bool)
    masks[1::2, side // 4 : side // 2, side // 4 : side // 2] = True
    return TrainingSet(
        features,
        labels,
        np.packbits(masks.reshape(images, -1), axis=1),
        torch.ones(images, dtype=torch.bool),
        side,
        random_bank(encoder, keys),
    )


def random_bank(encoder: Encoder, keys: tuple[int, int]) -> MemoryBank:
    """Unit keys of both classes in turn, each an entry of its own."""
    entries, found = [], []
    levels: tuple[tuple[Level, int, int], ...] = (
        ("image", keys[0], encoder.embed_dim),
        ("patch", keys[1], encoder.width),
    )
    for level, count, dim in levels:
        vectors = F.normalize(torch.randn(count, dim), dim=-1).numpy()
        for row, vector in enumerate(vectors):
            entry = Entry(f"{level}-{row}", row % 2)
            region = "image" if level == "image" else ("normal", "anomalous")[row % 2]
            entries.append(entry)
            found.append(Key(level, row % 2, entry.entry_id, region, 1, vector))
    dims = (encoder.embed_dim, encoder.width)
    return MemoryBank.from_keys(encoder.identity, entries, found, dims=dims)


def rows_of(
    name: str, encoder: Encoder, images: int, keys: tuple[int, int], encoded: int, runs: int
) -> list[Row]:
    """A row for each head; every training as the recipe has it, divided by its epochs.

    `encoded`: images of a timed encode, in one batch.
    """
    data = random_set(encoder, images, keys)
    pixels = torch.rand(encoded, 3, encoder.image_size, encoder.image_size)
    ft, clip = FTRecipe(), CLIPRecipe()
    frozen = ft_start(encoder, data, ft)
    trainings = {
        "ft": (lambda: train_ft(encoder, data, ft, History()), ft.epochs),
        "clip": (lambda: train_clip(encoder, data, frozen, clip, History()), clip.epochs),
    }
    rows: list[Row] = []
    for head, (training, epochs) in trainings.items():
        encode, whole = paired(lambda: encoder.encode_pixels(pixels), training, runs)
        once = [seconds / encoded for seconds in encode]
        cached = [seconds / epochs / images for seconds in whole]
        anew = [slow + fast for slow, fast in zip(once, cached, strict=True)]
        gain = str(ratio(anew, cached))
        rows.append([name, head, keys[1], middle(once), middle(cached), gain])
    return rows


def run(quick: bool) -> list[Table]:
    """The table."""
    mini = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    rows = rows_of("mrad-mini", mini, *((16, (16, 24), 2, 1) if quick else (96, (96, 144), 8, 5)))
    encoder = Geometry.tiny().encoder() if quick else large()
    name = "tiny" if quick else "ViT-L/14-336 at 518 px"
    rows += rows_of(name, encoder, *((8, (20, 30), 1, 1) if quick else (8, VISA, 1, 3)))
    columns = [
        "encoder", "head", "patch keys", "encoding an image", "an image of an epoch over the cache",
        "an epoch that encodes anew is longer by",
    ]  # fmt: skip
    return [Table("An epoch over the cache", columns, rows)]


if __name__ == "__main__":
    main(run)
