"""What is said of a memory that is too large to keep every single patch."""

from __future__ import annotations

from pathlib import Path

import pytest
from mrad_indexer.cli.common.advice import within_bound, worth

from mrad import Encoder, MemoryBank, Sample
from mrad.memory.coreset import bounded
from tests.indexer.conftest import Mrad


@pytest.fixture
def good_only(tiny_encoder: Encoder, make_image) -> MemoryBank:
    samples = [
        Sample(make_image(n, (64, 48))[0], anomalous=False, source=f"{n}.png") for n in range(6)
    ]
    return MemoryBank.from_samples(tiny_encoder, samples)


def test_patches_that_found_no_room_are_told(good_only: MemoryBank, tiny_encoder: Encoder) -> None:
    cells = tiny_encoder.grid**2
    assert within_bound(good_only) == ""
    fewer = bounded(good_only, cells, 4 * cells)
    assert "patches of 4 of 6 good images" in within_bound(fewer)
    assert "4 of 6 good images" in worth(fewer, "nn")
    assert "of 6 good images" not in worth(fewer, "tf"), "tf asks no single patches"


def test_an_inspected_bank_tells_it_too(
    good_only: MemoryBank, tiny_encoder: Encoder, tmp_path: Path, mrad: Mrad
) -> None:
    cells = tiny_encoder.grid**2
    bounded(good_only, cells, 4 * cells).save(tmp_path / "bank")
    said = " ".join(mrad("bank", "inspect", tmp_path / "bank").output.split())
    assert "patches of 4 of 6 good images" in said
