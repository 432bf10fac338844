"""What an image adds to the patch level: region means, every patch, or few that cover them."""

from __future__ import annotations

import numpy as np
import pytest

from mrad import Encoder, MemoryBank, Sample
from mrad.errors import MRADError
from mrad.images.masks import read_mask
from mrad.images.reader import load_image
from mrad.memory.entry import Entry, Key
from mrad.memory.keys import Piece, parse_patch_keys, region_grid
from mrad.memory.keys import keys_of as every_key


def keys_of(*arguments: object) -> list[Key]:
    """Those of the paper's two levels."""
    return [key for key in every_key(*arguments) if key.level != "local"]


def test_every_patch_a_key(tiny_encoder: Encoder, tiny_samples: list[Sample]) -> None:
    sample = tiny_samples[0]
    image = load_image(sample.image)
    features, entry = tiny_encoder.encode([image]), Entry.of(sample, image.size)
    mask = read_mask(sample.mask, image.size).anomalous
    normal, anomalous = region_grid(mask, True, tiny_encoder.image_size, tiny_encoder.grid)
    whole, *keys = keys_of(tiny_encoder, features, 0, entry, Piece(0, True, mask), "all")
    assert (whole.level, whole.region) == ("image", "image")
    assert [k.label for k in keys] == [0] * int(normal.sum()) + [1] * int(anomalous.sum())
    assert {(k.level, k.size) for k in keys} == {("patch", 1)}
    assert [k.region for k in keys] == ["anomalous" if k.label else "normal" for k in keys]
    wanted = features.patch_query()[0][anomalous].numpy()
    np.testing.assert_allclose(np.stack([k.vector for k in keys if k.label]), wanted, atol=1e-7)
    good = Entry.of(tiny_samples[1], image.size)
    _, *keys = keys_of(tiny_encoder, features, 0, good, Piece(0, False), "all")
    assert len(keys) == tiny_encoder.grid**2
    assert not any(k.label for k in keys)


def test_few_patches_of_each_region(tiny_encoder: Encoder, tiny_samples: list[Sample]) -> None:
    image = load_image(tiny_samples[0].image)
    features, entry = tiny_encoder.encode([image]), Entry.of(tiny_samples[0], image.size)
    mask = read_mask(tiny_samples[0].mask, image.size).anomalous
    every = {
        k.vector.tobytes()
        for k in keys_of(tiny_encoder, features, 0, entry, Piece(0, True, mask), "all")
    }
    _, *few = keys_of(tiny_encoder, features, 0, entry, Piece(0, True, mask), 2)
    assert [k.label for k in few] == [0, 0, 1, 1]
    assert {k.vector.tobytes() for k in few} < every
    _, *means = keys_of(tiny_encoder, features, 0, entry, Piece(0, True, mask))
    assert [k.label for k in means] == [0, 1]
    assert all(k.size > 1 for k in means)


def test_a_memory_knows_what_a_region_adds(
    tiny_encoder: Encoder, tiny_samples: list[Sample]
) -> None:
    bank = MemoryBank.from_samples(tiny_encoder, tiny_samples[:4], patch_keys=3)
    assert bank.patch_keys == 3
    assert len(bank.patch) > 2 * len(bank.entries)
    assert MemoryBank.from_samples(tiny_encoder, tiny_samples[:2]).patch_keys == "regions"


@pytest.mark.parametrize("text", ["0", "-3", "every", "1.5", ""])
def test_nonsense_is_refused(text: str) -> None:
    assert [parse_patch_keys(t) for t in ("regions", "all", "16", 4)] == ["regions", "all", 16, 4]
    with pytest.raises(MRADError, match="`regions`, `all`, or a number"):
        parse_patch_keys(text)


def test_an_images_patches_are_kept_as_the_encoder_gave_them(
    tiny_encoder: Encoder, tiny_samples: list[Sample]
) -> None:
    sample = tiny_samples[0]
    image = load_image(sample.image)
    features, entry = tiny_encoder.encode([image], raw=True), Entry.of(sample, image.size)
    mask = read_mask(sample.mask, image.size).anomalous
    keys = every_key(tiny_encoder, features, 0, entry, Piece(0, True, mask))
    local = [key for key in keys if key.level == "local"]
    normal, anomalous = region_grid(mask, True, tiny_encoder.image_size, tiny_encoder.grid)
    assert len(local) == tiny_encoder.grid**2
    assert [k.region == "normal" for k in local] == normal.tolist()
    assert [k.region == "anomalous" for k in local] == anomalous.tolist()
    np.testing.assert_array_equal(np.stack([k.vector for k in local]), features.patch_raw[0])
