"""A small labelled set on disk, and it as training data."""

from __future__ import annotations

from pathlib import Path

import pytest
from mrad_indexer.datasets import Record
from mrad_indexer.training.data import TrainingSet, training_set


@pytest.fixture(scope="session")
def records(make_image, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Twelve images, half of them defective, one of those without a mask."""
    folder: Path = tmp_path_factory.mktemp("set")
    found = []
    for seed in range(12):
        image, mask = make_image(seed, (80, 64), defect=seed % 2 == 0)
        path, mask_path = folder / f"{seed}.png", folder / f"{seed}_mask.png"
        image.save(path)
        if mask is not None and seed != 10:
            mask.save(mask_path)
        known = mask_path if mask_path.exists() else None
        found.append(Record(path, mask is not None, known, source=path.name))
    return found


@pytest.fixture(scope="session")
def training(tiny_encoder, records, tmp_path_factory) -> TrainingSet:
    """The twelve images, encoded."""
    return training_set(tiny_encoder, records, tmp_path_factory.mktemp("cache"))
