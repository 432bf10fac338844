"""Pictures cut into tiles: the plan, the blend, the score, the memory, leave-one-out, evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mrad import Detector, MemoryBank, Sample
from mrad.errors import MRADError
from mrad.heads.levels import levels_by_place
from mrad.images.layout import PLAIN, Layout
from mrad.images.tiles import Tiling, auto_tiling
from mrad.maps import anomaly_map, map_operator, top_mean
from mrad.tiled import Axis, Canvas, blend, tops_around
from tests.fields import RULES, look


def canvas_of(size, tiling, field) -> Canvas:
    """A canvas whose patch probabilities are `field(x, y)` at each patch's centre."""
    return look(Canvas(Layout(tiling).places(size), RULES), field)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.77])
@pytest.mark.parametrize("size", [(64, 64), (65, 64), (100, 300), (20, 500), (641, 377)])
def test_tiles_cover_every_pixel_and_share_at_least_the_overlap(size, overlap):
    tiling = Tiling(64, overlap)
    seen = np.zeros(size[::-1], dtype=int)
    tiles = Layout(tiling).places(size).tiles
    assert len(tiles) == tiling.count(size)
    for tile in tiles:
        left, top, right, bottom = tile.box
        assert (right - left, bottom - top) == (min(64, size[0]), min(64, size[1]))
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    for length in size:
        starts = tiling.starts(length)
        gaps = np.diff(starts)
        assert (gaps > 0).all()
        assert (gaps <= round(64 * (1 - overlap))).all()


def test_a_tiling_that_cannot_be_is_refused():
    for side, overlap in ((4, 0.25), (64, -0.1), (64, 1.0)):
        with pytest.raises(MRADError):
            Tiling(side, overlap)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("size", [(200, 150), (517, 391), (96, 1000)])
def test_the_map_of_a_constant_field_is_constant(size, overlap):
    canvas = canvas_of(size, Tiling(96, overlap), lambda x, y: 0 * x + 0 * y + 0.37)
    values = canvas.map()
    assert values.shape == size[::-1]
    np.testing.assert_allclose(values, 0.37, atol=2e-6)
    assert canvas.parts()[0].top_score == pytest.approx(0.37, abs=2e-6)


def test_a_slope_has_no_seams():
    """Where tiles meet the map goes on as it does inside them."""
    canvas = canvas_of((400, 300), Tiling(120, 0.25), lambda x, y: x / 400 + 0 * y)
    steps = np.diff(canvas.map(), axis=1)[50:250, 40:360]
    assert np.abs(steps - 1 / 400).max() < 0.6 / 400
    along = np.abs(np.diff(canvas.map(), axis=0))
    assert along.max() < 1e-6


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_a_shift_by_half_a_tile_moves_the_map_by_as_much(overlap):
    def bump(at):
        return lambda x, y: np.exp(-((x - at) ** 2 + (y - 150) ** 2) / 800)

    maps = [canvas_of((600, 300), Tiling(120, overlap), bump(at)).map() for at in (230, 290)]
    moved = maps[1][:, 60:]
    inside = slice(60, 480)
    difference = np.abs(maps[0][:, :-60] - moved)[:, inside]
    # With half a tile in common the grid of tiles moves by just as much; else patches lie elsewhere.
    assert difference.max() < (1e-5 if overlap == 0.5 else 0.12)
    peaks = [np.unravel_index(values.argmax(), values.shape) for values in maps]
    assert peaks[1][1] - peaks[0][1] == pytest.approx(60, abs=1 if overlap == 0.5 else 8)


def test_the_score_is_that_of_the_worst_place():
    canvas = canvas_of((500, 400), Tiling(100, 0.25), lambda x, y: (x > 460) & (y > 360))
    (part,) = canvas.parts()
    section = canvas.places.sections[0]
    whole = blend(section, canvas._grids, (480, 384), RULES.operator)
    last = anomaly_map(canvas._grids[canvas.places.tiles[-1].number].reshape(1, -1), 96)
    assert part.top_score == pytest.approx(float(top_mean(last)[0]), abs=1e-6)
    assert part.top_score > float(top_mean(whole[None])[0])


def test_both_terms_of_a_score_are_of_tiles_that_overlap():
    """A defect at the edge of two tiles raises the top of one and the level of the other."""
    canvas = canvas_of((500, 400), Tiling(100, 0.25), lambda x, y: 0 * x + 0 * y + 0.4)
    tops, levels = canvas._tops, canvas._levels
    numbers = [t.number for t in canvas.places.tiles]
    here, beside, far = numbers[0], numbers[1], numbers[20]
    tops[beside], levels[here], levels[far] = 0.9, 0.6, 0.62
    (part,) = canvas.parts()
    assert (part.top_score, part.class_score) == (pytest.approx(0.9), 0.6)
    assert part.score == pytest.approx(0.3 * 0.9 + 0.7 * 0.6)
    assert canvas.evidence_queries("")[0].box == canvas.places.tiles[0].box


@pytest.mark.parametrize(("overlap", "reach"), [(0.0, 0), (0.25, 1), (0.6, 2)])
def test_only_tiles_that_share_pixels_lend_their_top(overlap, reach):
    layout = Layout(Tiling(100, overlap))
    (section,) = layout.places((1000, 500)).sections
    across = len(section.columns)
    tops = torch.zeros(len(section.tiles))
    row, column = 2, 4
    tops[row * across + column] = 1.0
    found = tops_around(section, tops).view(-1, across)
    wanted = torch.zeros_like(found)
    wanted[row - reach : row + reach + 1, column - reach : column + reach + 1] = 1
    torch.testing.assert_close(found, wanted)
    kept = frozenset(tile.number for tile in section.tiles[::3])
    some = replace(section, only=kept)
    own = torch.arange(len(kept)).float()
    boxes = torch.tensor([tile.box for tile in section.tiles if tile.number in kept])
    shared = [
        (boxes[:, :2] < box[2:]).all(dim=1) & (boxes[:, 2:] > box[:2]).all(dim=1) for box in boxes
    ]
    lent = torch.stack([own[beside].amax() for beside in shared])
    assert bool((lent > own).any()) is (reach > 0)
    torch.testing.assert_close(tops_around(some, own), lent)


def test_a_tile_takes_part_by_its_shares_alone():
    operator = map_operator(6, 96, 4.0)
    axis = Axis.of((0, 60, 90), 96, 186, 186, operator)
    total = torch.zeros(186)
    for span, matrix in zip(axis.spans, axis.operators):
        total[span] += matrix.sum(dim=1)
    torch.testing.assert_close(total, torch.ones(186), atol=1e-5, rtol=0)


def test_auto_follows_pictures_encoder_and_smallest_defects():
    assert auto_tiling([(900, 900)], 264, 22) is None
    assert auto_tiling([(4000, 3000)], 264, 22) == Tiling(660)
    assert auto_tiling([(500, 1250)], 518, 37) == Tiling(500)
    assert auto_tiling([(4000, 3000)], 264, 22, [20.0] * 5) == Tiling(440)
    assert auto_tiling([(4000, 3000)], 264, 22, [3.0]) == Tiling(264)
    assert auto_tiling([], 264, 22) is None


@pytest.fixture(scope="module")
def wide(make_image):
    """Six pictures of 240 x 96: three good ones, three with a defect at one end."""
    samples = []
    for seed in range(6):
        picture, _ = make_image(seed, (240, 96))
        image, mask = make_image(seed + 50, (96, 96), defect=True)
        whole = Image.new("L", (240, 96))
        if seed % 2 == 0:
            picture.paste(image, (144, 0))
            whole.paste(mask, (144, 0))
        bad = seed % 2 == 0
        samples.append(Sample(picture, bad, whole if bad else None, f"{seed}.png", "", "blob"))
    return samples


@pytest.fixture(scope="module")
def tiled_bank(tiny_encoder, wide):
    return MemoryBank.from_samples(
        tiny_encoder, wide, layout=Layout(Tiling(96, 0.25)), batch_size=4
    )


def test_keys_know_their_tile_and_a_tile_is_labelled_by_what_it_shows(tiled_bank, wide):
    count = Tiling(96).count((240, 96))
    image = tiled_bank.image
    assert len(tiled_bank.entries) == len(wide)
    for row, sample in enumerate(wide):
        own = image.entry == row
        labels = dict(zip(image.tile[own].tolist(), image.labels[own].tolist()))
        assert labels[0] == 0  # the good end of a defective picture is good
        assert labels[count - 1] == int(sample.anomalous)
    assert set(tiled_bank.patch.tile.tolist()) == set(range(count))


def test_without_a_mask_nobody_knows_which_tile_is_defective(tiny_encoder, wide):
    bare = Sample(wide[0].image, True)
    bank = MemoryBank.from_samples(tiny_encoder, [bare, wide[1]], layout=Layout(Tiling(96)))
    assert set(bank.image.entry.tolist()) == {1}
    assert len(bank.entries) == 2


def test_a_bank_keeps_its_layout_and_tiles(tiled_bank, tmp_path):
    tiled_bank.save(tmp_path / "bank")
    loaded = MemoryBank.load(tmp_path / "bank")
    assert loaded.layout == Layout(Tiling(96, 0.25))
    np.testing.assert_array_equal(loaded.image.tile, tiled_bank.image.tile)
    shorter = loaded.remove(loaded.entries[0].entry_id)
    np.testing.assert_array_equal(
        shorter.patch.tile, tiled_bank.patch.tile[tiled_bank.patch.entry > 0]
    )


def test_leave_one_out_leaves_out_the_whole_picture(tiny_encoder, tiled_bank, wide):
    detector = Detector(tiny_encoder, tiled_bank)
    decoded = [detector.decode(sample.image) for sample in wide]
    without = list(detector.judge(decoded, evidence=3, exclude=list(range(6))))
    within = list(detector.judge(decoded, evidence=3))
    for row, (out, inside) in enumerate(zip(without, within)):
        own = tiled_bank.entries[row].entry_id
        assert own not in {e.entry_id for e in out.evidence}
        assert inside.evidence[0].entry_id == own
        assert inside.evidence[0].similarity == pytest.approx(1, abs=1e-5)
        fewer = Detector(tiny_encoder, tiled_bank.remove(own)).predict([wide[row].image])[0]
        assert out.top_score == pytest.approx(fewer.top_score, abs=2e-3)


def test_evidence_shows_the_tile_here_and_there(tiny_encoder, tiled_bank, wide):
    detector = Detector(tiny_encoder, tiled_bank)
    (found,) = detector.predict([wide[2].image], evidence=1)
    whole, local = found.evidence
    tiles = [tile.box for tile in found.tiles]
    strongest = max(found.tiles, key=lambda tile: tile.class_score)
    assert whole.query_box == strongest.box
    assert whole.tile == strongest.box  # it is a picture of the memory, so it finds itself
    assert local.tile in tiles
    left, top, right, bottom = local.query_box
    assert right - left == bottom - top == 96 // tiny_encoder.grid
    _, x = np.unravel_index(found.anomaly_map.argmax(), found.anomaly_map.shape)
    assert x >= 144  # where the defect was put
    assert found.size == (240, 96)
    assert found.anomaly_map.shape == (96, 240)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_of_tiles_change_nothing(tiny_encoder, tiled_bank, wide, make_image, batch_size):
    images = [wide[0].image, make_image(9, (50, 40))[0], wide[1].image, make_image(8, (96, 700))[0]]
    detector = Detector(tiny_encoder, tiled_bank)
    alone = [detector.predict([image], batch_size=8)[0] for image in images]
    for one, other in zip(detector.predict(images, batch_size=batch_size), alone, strict=True):
        assert one.size == other.size
        assert one.score == pytest.approx(other.score, abs=1e-6)
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-5)


@pytest.mark.parametrize("size", [(80, 64), (96, 96), (31, 90), (7, 5)])
def test_one_tile_that_covers_the_picture_is_todays_number_to_the_digit(
    tiny_encoder, tiny_bank, make_image, size
):
    """The same keys, with and without tiles that are larger than the picture."""
    image = make_image(77, size, defect=True)[0]
    tiled = replace(tiny_bank, metadata={"layout": Layout(Tiling(96)).to_json()})
    plain = Detector(tiny_encoder, tiny_bank).predict([image], evidence=2)[0]
    other = Detector(tiny_encoder, tiled).predict([image], evidence=2)[0]
    assert (other.score, other.class_score, other.top_score) == (
        plain.score, plain.class_score, plain.top_score,
    )  # fmt: skip
    np.testing.assert_array_equal(other.anomaly_map, plain.anomaly_map)
    assert other.evidence == plain.evidence
    assert other.tiles == ()


def test_a_large_map_is_scaled_down_unless_asked_for_in_full(tiny_encoder, tiled_bank, make_image):
    image = make_image(5, (400, 300))[0]
    detector = Detector(tiny_encoder, tiled_bank)
    small = detector.predict([image], map_pixels=30_000)[0]
    full = detector.predict([image], map_pixels=None)[0]
    assert small.anomaly_map.shape == (150, 200)
    assert full.anomaly_map.shape == (300, 400)
    shrunk = full.anomaly_map.reshape(150, 2, 200, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(small.anomaly_map, shrunk, atol=2e-3)
    assert small.score == full.score


def test_a_plain_layout_is_no_layout():
    assert PLAIN.plain
    assert PLAIN.to_json() == {}
    assert Layout.from_json({}) == PLAIN
    assert PLAIN.places((30, 20)).whole


def test_a_good_tile_is_no_suspect_for_where_it_lies(tiny_encoder, make_image):
    """Defects at one place only: what good tiles have there is not held against them."""
    samples = []
    for seed in range(16):
        picture, mask = make_image(seed, (192, 96))[0], Image.new("L", (192, 96))
        picture.paste(make_image(99, (96, 96))[0], (96, 0))
        if seed % 2:
            marked, bad = make_image(99, (96, 96), defect=True)
            picture.paste(marked, (96, 0))
            mask.paste(bad, (96, 0))
        samples.append(Sample(picture, bool(seed % 2), mask if seed % 2 else None, f"{seed}.png"))
    bank = MemoryBank.from_samples(tiny_encoder, samples, layout=Layout(Tiling(96, 0.0)))
    detector = Detector(tiny_encoder, bank, "tf")
    usual = levels_by_place(bank, detector.head)
    left, right = Layout(Tiling(96, 0.0)).places((192, 96)).tiles
    places = [bank.places([(0, tile.number)])[0] for tile in (left, right)]
    assert usual[places[1]] * usual[places[0]] < 0
    assert None not in usual
    (found,) = detector.predict([samples[0].image])
    raw = detector.head(
        detector.encode([detector.decode(samples[0].image.crop(right.box), layout=PLAIN)])
    )
    assert found.tiles[1].class_score == pytest.approx(
        float(raw.image[0]) - usual[places[1]], abs=1e-6
    )
