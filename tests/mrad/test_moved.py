"""A good picture that was taught is known again where it moved by a few pixels; not with a new defect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mrad_service.memory import DurableMemory
from PIL import Image, ImageDraw, ImageEnhance
from scipy.ndimage import gaussian_filter, shift

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.memory.contents import PICTURES, add_picture
from mrad.memory.entry import Key
from mrad.memory.keys import encode_samples
from mrad.memory.operations import pack_keys, unpack_keys
from mrad.retrieval.moved import Picture, same_moved
from mrad.thresholds.taught import as_taught
from mrad.types import ANOMALOUS, NORMAL
from tests.mrad.boards import bank_of_boards, opened, recompressed

EDGE = 8
"""Pixels cut off on each side, so that real content comes into view."""


def at(image: Image.Image, right: int, down: int) -> Image.Image:
    """What a camera sees of a larger scene that lies so far to the right and down."""
    left, top = EDGE - right, EDGE - down
    return image.crop((left, top, left + image.width - 2 * EDGE, top + image.height - 2 * EDGE))


def shown(image: Image.Image) -> list[Image.Image]:
    """Moved, and recompressed or brightened too."""
    moved = [at(image, *by) for by in ((2, 1), (3, -2), (-1, 2))]
    return [*moved, recompressed(moved[0]), ImageEnhance.Brightness(moved[1]).enhance(1.03)]


@pytest.fixture(scope="module")
def bank(mini_encoder: Encoder, demo_images: Path) -> MemoryBank:
    return bank_of_boards(mini_encoder, demo_images)


@pytest.fixture(scope="module")
def scene(demo_images: Path) -> Image.Image:
    return opened(sorted((demo_images / "query" / "good").glob("*.png"))[0])


def taught(bank: MemoryBank, encoder: Encoder, *samples: Sample) -> MemoryBank:
    for entry, keys in encode_samples(encoder, samples, layout=bank.layout):
        bank = bank.add(entry, keys)
    return bank


def known(detector: Detector, images: list[Image.Image]) -> list[bool]:
    return [one.recognised is not None for one in detector.predict(images, maps=False)]


@pytest.mark.parametrize("head", ["tf", "nn", "combined"])
def test_a_moved_good_picture_is_recognised_and_judged_normal_until_it_is_forgotten(
    mini_encoder: Encoder, bank: MemoryBank, scene: Image.Image, head: str
) -> None:
    now = taught(bank, mini_encoder, Sample(at(scene, 0, 0), False, source="board"))
    detector = Detector(mini_encoder, now, head)
    for found in detector.predict(shown(scene)):
        assert found.recognised is not None
        assert (found.recognised.label, found.recognised.source) == (NORMAL, "board")
        judged = as_taught(found, None, 0.0, 0.0)
        assert judged.score < 0
        assert judged.anomaly_map is not None
        assert judged.anomaly_map.max() < 0
    without = detector.with_bank(now.remove(now.entries[-1].entry_id))
    assert not without.bank.pictures
    assert not any(known(without, shown(scene)))
    as_before = detector.with_bank(replace(now, pictures={}))  # taught by an earlier release
    assert known(as_before, [at(scene, 0, 0), *shown(scene)]) == [True] + 5 * [False]


@pytest.mark.parametrize("size", [0.015, 0.03, 0.06])
def test_with_a_small_new_defect_it_is_not(
    mini_encoder: Encoder, bank: MemoryBank, demo_images: Path, size: float
) -> None:
    rng = np.random.default_rng(4)
    for path in sorted((demo_images / "query" / "good").glob("*.png")):
        scene = opened(path)
        now = taught(bank, mini_encoder, Sample(at(scene, 0, 0), False))
        side = max(4, round(size * min(scene.size)))
        x, y = (int(v) for v in rng.integers(2 * EDGE, min(scene.size) - side - 2 * EDGE, 2))
        here = np.asarray(scene)[y : y + side, x : x + side].mean()
        spot = tuple(int(here + (40 if here < 128 else -40)) for _ in range(3))
        ImageDraw.Draw(scene).ellipse((x, y, x + side, y + side), fill=spot)
        assert not any(known(Detector(mini_encoder, now, "nn"), shown(scene))), path.name


def test_what_was_taught_last_decides_of_a_moved_picture_too(
    mini_encoder: Encoder, bank: MemoryBank, scene: Image.Image
) -> None:
    both = Sample(at(scene, 0, 0), False), Sample(at(scene, 0, 0), True)
    now = taught(bank, mini_encoder, *both)
    told = Detector(mini_encoder, now, "nn").predict([at(scene, 2, 1)])[0].recognised
    assert told is not None
    assert (told.label, told.contradicts) == (ANOMALOUS, (now.entries[-2].entry_id,))


def test_it_survives_a_restart_an_export_and_is_gone_with_its_entry(
    mini_encoder: Encoder, bank: MemoryBank, scene: Image.Image, tmp_path: Path
) -> None:
    bank.save(tmp_path / "bank")
    lesson = Sample(at(scene, 0, 0), False)
    ((entry, keys),) = encode_samples(mini_encoder, [lesson])
    with DurableMemory.open(tmp_path / "bank") as memory:
        memory.add(entry, keys)
        memory.export(tmp_path / "copy")
        assert known(Detector(mini_encoder, memory.bank, "nn"), [at(scene, 2, 1)]) == [True]
    for name in ("bank", "copy"):
        again = MemoryBank.load(tmp_path / name)
        assert known(Detector(mini_encoder, again, "nn"), [at(scene, 2, 1)]) == [True]
    with DurableMemory.open(tmp_path / "bank") as memory:
        memory.remove(entry.entry_id)
        assert not memory.bank.pictures
    assert not MemoryBank.load(tmp_path / "bank").pictures


def test_an_older_database_has_keys_without_pictures() -> None:
    vectors = np.arange(5, dtype=np.float32)
    keys = [Key("image", 0, "a", "image", 9, vectors[:2]), Key("local", 0, "a", "", 1, vectors[2:])]
    facts, _ = pack_keys(keys)
    assert facts == '[["image",0,"image",9,0,2],["local",0,"",1,0,3]]', "as they were"
    for packed in (keys, [keys[0]._replace(picture=b"levels"), keys[1]]):
        facts, data = pack_keys(packed)
        for one, other in zip(unpack_keys("a", facts, data), packed, strict=True):
            assert np.array_equal(one.vector, other.vector)
            assert one.picture == other.picture
    with pytest.raises(ValueError, match="are listed"):
        unpack_keys("a", facts, data[:-1])


def test_the_newest_pictures_are_held_up_to_a_bound() -> None:
    held: dict[str, bytes] = {}
    for number in range(6):
        key = Key("image", 0, str(number), "image", 1, np.ones(1, np.float32))
        add_picture(held, [key._replace(picture=bytes(PICTURES // 3))])
    assert list(held) == ["3", "4", "5"]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 9999),
    right=st.floats(-3, 3),
    down=st.floats(-3, 3),
    gain=st.floats(0.97, 1.03),
    contrast=st.sampled_from([-90, -50, 50, 90]),
)
def test_pixels_tell_a_move_from_a_defect(
    seed: int, right: float, down: float, gain: float, contrast: int
) -> None:
    """Of blobs and edges at random."""
    assume(max(abs(right), abs(down)) > 0.2)
    rng, side = np.random.default_rng(seed), 264
    wide = gaussian_filter(rng.normal(size=(side + 20, side + 20)), 3)
    scene = 128 + 60 * np.tanh(20 * wide)

    def seen(values: npt.NDArray[np.float64], by: tuple[float, float] = (0, 0)) -> Picture:
        moved = shift(values, by, order=3)[10:-10, 10:-10] + rng.normal(0, 1, (side, side))
        return (moved.clip(0, 255)[..., None]).round().astype(np.uint8)

    before = seen(scene)
    assert same_moved(before, seen(gain * scene, (down, right)))
    x, y = rng.integers(40, side - 40, 2)
    rows, columns = np.mgrid[: side + 20, : side + 20]
    bad = scene + contrast * (np.hypot(rows - y, columns - x) < 3)
    assert not same_moved(before, seen(gain * bad, (down, right)))
    assert not same_moved(before, seen(gain * scene)), "not moved: features tell more"
    assert not same_moved(before, seen(gain * scene, (9, 0))), "too far"
