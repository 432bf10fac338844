"""Batches of tiles encoded side by side: the same features in the same order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from mrad.encoder.stream import encode_tiles
from mrad.images.layout import PLAIN, Places


@dataclass(frozen=True)
class Cut:
    """A picture that is looked at whole."""

    image: Image.Image
    places: Places
    pixels: None = None


@pytest.fixture
def pictures() -> list[Cut]:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(11)]
    return [Cut(image, PLAIN.places(image.size)) for image in images]


@pytest.fixture
def cores(monkeypatch):
    """Two cores, whatever this machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_batches_side_by_side_are_those_of_one_after_the_other(
    tiny_encoder, pictures, cores
) -> None:
    found = list(encode_tiles(tiny_encoder, iter(pictures), 2))
    assert [picture for batch, _ in found for picture, _ in batch] == pictures
    alone = torch.cat([tiny_encoder.encode([cut.image]).patch for cut in pictures])
    together = torch.cat([features.patch for _, features in found])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert torch.get_num_threads() == cores


def test_groups_share_no_batch_and_are_the_same_to_the_last_bit_beside_others(
    mini_encoder, pictures, cores
) -> None:
    """As a build that goes on with its last shard alone. The number of threads shows in the last bits."""
    groups = [pictures[:7], [], pictures[7:9], pictures[9:]]
    stream = [item for group in groups for item in (*group, None)]
    found = list(encode_tiles(mini_encoder, stream, 3))
    sizes = [len(batch) for batch, _ in found]
    assert sizes == [3, 3, 1, 2, 2]
    alone = [pair for group in groups for pair in encode_tiles(mini_encoder, group, 3)]
    assert [picture for batch, _ in found for picture, _ in batch] == pictures
    for (_, mine), (_, theirs) in zip(found, alone, strict=True):
        assert torch.equal(mine.class_feature, theirs.class_feature)
        assert torch.equal(mine.patch, theirs.patch)


def test_the_next_group_is_under_way_while_the_last_batch_is_awaited(
    tiny_encoder, pictures, cores
) -> None:
    taken = []

    def stream():
        for number, cut in enumerate(pictures):
            if number in (4, 8):
                yield None
            taken.append(number)
            yield cut

    batches = encode_tiles(tiny_encoder, stream(), 2)
    next(batches), next(batches)  # the whole of the first group
    assert max(taken) >= 4
    batches.close()


def test_threads_are_as_before_when_the_caller_stops_early(tiny_encoder, pictures, cores) -> None:
    batches = encode_tiles(tiny_encoder, iter(pictures), 2)
    next(batches)
    batches.close()
    assert torch.get_num_threads() == cores


def test_a_picture_that_fails_is_raised_to_the_caller(tiny_encoder, pictures, cores) -> None:
    class Broken:
        places = pictures[0].places
        pixels = None

        @property
        def image(self):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(encode_tiles(tiny_encoder, iter([*pictures, Broken()]), 2))
    assert torch.get_num_threads() == cores
