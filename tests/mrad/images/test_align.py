"""Parts that move: found by a reference picture's features, looked at upright, told where they are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mrad import Detector, MemoryBank, Sample
from mrad.errors import DataError, DoubtfulImageError, LayoutError
from mrad.images.align import Reference
from mrad.images.layout import Layout
from mrad.images.options import ReadOptions
from mrad.images.regions import Area, read_alignment
from mrad.images.tiles import Tiling
from tests.plates import LEFT, RIGHT, SIZE, carried, moved, plate


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.of(plate())


MOVES = [((0, 0), 0.0), ((37, -22), 0.0), ((-12, 18), 7.0), ((5, 3), -25.0), ((0, 0), 90.0)]


@pytest.mark.parametrize(("shift", "turn"), MOVES)
def test_what_was_shifted_and_turned_is_found(reference, shift, turn):
    move = reference.find(moved(plate(), shift, turn))
    a, b, c, d, e, f = move.matrix
    for x, y in ((100, 100), (370, 250), (240, 180)):
        found = np.array([a * x + b * y + c, d * x + e * y + f])
        assert np.abs(found - carried((x, y), shift, turn)).max() < 1.5


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", SIZE, (90, 90, 90)),
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (360, 480, 3), np.uint8)),
        plate(5),
        plate().resize((1, 1)),
        plate().resize((240, 180)).crop((0, 0, 240, 180)).resize((960, 720)).crop((0, 0, 480, 360)),
    ],
    ids=["flat", "noise", "another product", "one pixel", "twice as near"],
)
def test_what_cannot_be_aligned_is_not(reference, picture):
    with pytest.raises(LayoutError, match="could not be aligned"):
        reference.find(picture)


def test_a_picture_without_features_is_no_reference():
    with pytest.raises(DataError, match="too few to align"):
        Reference.of(Image.new("RGB", SIZE))


def test_a_reference_is_kept_with_the_layout(reference):
    layout = Layout(None, None, (Area.of_box(LEFT, SIZE, "left"),), reference)
    kept = Layout.from_json(json.loads(json.dumps(layout.to_json())))
    assert kept == layout
    assert kept.align.find(plate()).matrix == reference.find(plate()).matrix
    assert len(reference.features) < 30_000
    broken = layout.to_json() | {"align": {"size": [1, 1], "features": "AAAA"}}
    with pytest.raises(DataError):
        Layout.from_json(broken).align.find(plate())


@pytest.fixture(scope="module")
def aligned(tiny_encoder, reference) -> Detector:
    """A memory of plates that lay a little otherwise each time, in two parts."""
    parts = (Area.of_box(LEFT, SIZE, "left"), Area.of_box(RIGHT, SIZE, "right"))
    layout = Layout(None, None, parts, reference)
    samples = []
    for number, (shift, turn) in enumerate((((0, 0), 0.0), ((14, 6), 2.0), ((-9, 11), -3.0))):
        samples.append(Sample(moved(plate(), shift, turn), False, source=f"good{number}"))
        mask = Image.new("L", SIZE)
        ImageDraw.Draw(mask).rectangle((300, 170, 330, 200), fill=255)
        mask = mask.rotate(turn, translate=shift)
        bad = moved(plate(defect=True), shift, turn)
        samples.append(Sample(bad, True, mask, f"bad{number}"))
    return Detector(
        tiny_encoder, MemoryBank.from_samples(tiny_encoder, samples, layout=layout), "tf"
    )


def test_the_memory_knows_the_same_part_in_every_picture(aligned):
    """The defect lies in the right part of each, as its mask says, however the picture lay."""
    level = aligned.bank.image
    assert level.labels[level.tile == 0].sum() == 0
    assert level.labels[level.tile == 1].tolist() == [0, 1] * 3
    good = level.keys[(level.tile == 1) & (level.labels == 0)]
    assert (good @ good.T).min() > 0.98


@pytest.mark.parametrize(("shift", "turn"), MOVES)
def test_a_part_is_judged_where_it_is(aligned, shift, turn):
    (still,) = aligned.predict([plate(defect=True)])
    (found,) = aligned.predict([moved(plate(defect=True), shift, turn)])
    assert not any(text.startswith("not_aligned") for text in found.warnings)
    assert found.score == pytest.approx(still.score, abs=2e-3)
    x, y = carried((315, 185), shift, turn)
    left, top, right, bottom = found.parts[1].box
    assert left < x < right
    assert top < y < bottom
    row, column = np.unravel_index(found.anomaly_map.argmax(), found.anomaly_map.shape)
    assert np.hypot(column - x, row - y) < 50
    assert found.anomaly_map.shape == SIZE[::-1]
    unmoved = aligned.with_layout(replace(aligned.layout, align=None))
    (blind,) = unmoved.predict([moved(plate(defect=True), shift, turn)])
    if turn == 90:
        assert abs(blind.score - still.score) > abs(found.score - still.score)


def test_a_failure_is_said_and_strict_input_refuses(aligned):
    (found,) = aligned.predict([plate(5)])
    (note,) = (text for text in found.warnings if text.startswith("not_aligned"))
    assert "where they were drawn" in note
    assert found.parts[0].box == LEFT
    with pytest.raises(DoubtfulImageError, match="not_aligned"):
        aligned.decode(plate(5), ReadOptions(strict=True))


def test_what_cannot_be_aligned_is_not_remembered(aligned, tiny_encoder):
    with pytest.raises(LayoutError, match="could not be aligned"):
        MemoryBank.from_samples(tiny_encoder, [Sample(plate(5), False)], layout=aligned.layout)


def test_tiles_of_a_picture_that_moved_are_told_in_its_own_pixels(aligned):
    cut = aligned.with_layout(replace(aligned.layout, tiling=Tiling(64)))
    (found,) = cut.predict([moved(plate(defect=True), (30, 20))], evidence=1)
    boxes = [tile.box for tile in found.tiles]
    assert (LEFT[0] + 30, LEFT[1] + 20) == pytest.approx(boxes[0][:2], abs=2)
    assert found.evidence[0].query_box in boxes


def test_what_counts_is_told_in_the_pictures_own_pixels(aligned):
    decoded = aligned.decode(moved(plate(), (30, 20)))
    counted = decoded.shown.counted()
    assert counted[150 + 20, 150 + 30]
    assert counted.mean() == pytest.approx(decoded.places.counted().mean(), abs=0.005)
    assert not counted[LEFT[1] + 5, LEFT[0] + 5]


def test_the_file_says_what_pictures_are_aligned_with(tmp_path, reference):
    plate().save(tmp_path / "first.png")
    path = tmp_path / "parts.json"
    facts = {"size": SIZE, "parts": {"left": {"box": LEFT}}}
    for align, first, wanted in (
        (None, "first.png", False),
        (False, "first.png", False),
        (True, None, True),
        (True, "first.png", reference),
        ("first.png", None, reference),
    ):
        path.write_text(json.dumps(facts if align is None else facts | {"align": align}))
        assert read_alignment(path, first and tmp_path / first) == wanted
    path.write_text(json.dumps(facts | {"align": 3}))
    with pytest.raises(DataError, match="align"):
        read_alignment(path)
    with pytest.raises(LayoutError, match="reference picture"):
        Layout().with_regions(None, (), True)


def test_a_grey_picture_is_turned_as_one_of_three_channels_is(reference):
    grey = moved(plate(), (5, 3), -25.0).convert("L")
    colour = grey.convert("RGB")
    assert reference.find(grey) == reference.find(colour)
    upright = [reference.find(grey).upright(one).convert("RGB") for one in (grey, colour)]
    assert np.array_equal(*map(np.asarray, upright))
