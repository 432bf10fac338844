"""Regions of interest and named parts: drawn as masks or polygons, judged and remembered alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mrad import Detector, MemoryBank, Sample
from mrad.errors import DataError, LayoutError
from mrad.images.layout import Layout
from mrad.images.regions import Area, parse_area, read_parts, read_roi
from mrad.images.tiles import Tiling

SIZE = (120, 90)


def whole(area: Area, size=SIZE) -> np.ndarray:
    """Which pixels of a picture count, [h, w]."""
    (left, top, right, bottom), inside = area.inside(size)
    found = np.zeros(size[::-1], dtype=bool)
    found[top:bottom, left:right] = True if inside is None else inside
    return found


@pytest.fixture
def drawn() -> Image.Image:
    """An ellipse with a hole, an island in the hole, and a bar."""
    mask = Image.new("L", SIZE)
    pen = ImageDraw.Draw(mask)
    pen.ellipse((10, 10, 80, 70), fill=255)
    pen.ellipse((30, 25, 60, 55), fill=0)
    pen.rectangle((40, 35, 50, 45), fill=255)
    pen.rectangle((90, 5, 110, 80), fill=255)
    return mask


def test_a_mask_becomes_outlines_and_holes_and_comes_back(drawn, tmp_path):
    drawn.save(tmp_path / "roi.png")
    area = read_roi(tmp_path / "roi.png")
    truth, found = np.asarray(drawn) > 0, whole(area)
    assert (truth & found).sum() / (truth | found).sum() > 0.99
    assert Area.from_json(json.loads(json.dumps(area.to_json()))) == area
    twice = whole(area, (240, 180))
    assert abs(twice.mean() - truth.mean()) < 0.01


def test_a_box_is_exact_at_any_size():
    area = Area.of_box((10, 20, 50, 60), SIZE)
    assert area.inside(SIZE) == ((10, 20, 50, 60), None)
    assert area.inside((240, 180)) == ((20, 40, 100, 120), None)


@pytest.mark.parametrize(
    "facts",
    [
        {"box": [0, 0, 5, 5]},
        {"size": [9, 9]},
        {"size": [9, 9], "box": [5, 5, 5, 9]},
        {"size": [9, 9], "box": [1, 2, 3]},
        {"size": [9, 9], "polygons": [[[0, 0], [1, 1]]]},
        {"size": [9, 9], "polygons": [[[0, 0], [1, float("nan")], [3, 3]]]},
        {"size": [0, 9], "box": [0, 0, 5, 5]},
        {"size": [9, 9], "box": [0, 0, 5, 5], "polygons": [[[0, 0], [9, 0], [9, 9]]]},
        {"size": [9, 9], "box": [0, 0, 5, 5], "bxo": 1},
        {"size": [90, 90], "box": [-9, 0, 50, 50]},
        {"size": [90, 90], "box": [40, 40, 160, 160]},
        {"size": [90, 90], "polygons": [[[0, 0], [150, 0], [9, 9]]]},
        [1, 2],
        None,
    ],
)
def test_what_is_no_region_is_refused(facts):
    with pytest.raises(DataError):
        parse_area(facts)


def test_a_region_may_be_drawn_a_little_over_the_edge():
    area = parse_area({"size": [120, 90], "box": [-1, 0, 121.5, 90.4]})
    assert area.inside(SIZE) == ((0, 0, 120, 90), None)


def test_mistyped_names_in_a_file_of_parts_are_refused(tmp_path):
    part = {"box": [0, 0, 50, 50]}
    for facts in (
        {"size": [90, 90], "parts": {"lid": part}, "aling": True},
        {"size": [90, 90], "parts": {"lid": part | {"treshold": 0.4}}},
    ):
        (tmp_path / "parts.json").write_text(json.dumps(facts))
        with pytest.raises(DataError, match=r"'(aling|treshold)' is not known"):
            read_parts(tmp_path / "parts.json")


def test_a_picture_that_a_region_does_not_fit_is_refused():
    area = Area.of_box((10, 20, 50, 60), SIZE, "lid")
    with pytest.raises(LayoutError, match="part 'lid' was drawn on a picture of 120 x 90"):
        area.inside((90, 120))
    with pytest.raises(LayoutError, match="outside"):
        Area.of_box((510, 20, 550, 60), SIZE).inside(SIZE)


def test_files_say_what_is_wrong(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "black.png")
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "bare.json").write_text('{"polygons": [[[0, 0], [9, 0], [9, 9]]]}')
    for name, words in (
        ("black.png", "marks no pixel"),
        ("no.json", "no JSON"),
        ("bare.json", "size"),
    ):
        with pytest.raises(DataError, match=words):
            read_roi(tmp_path / name)
    assert read_roi(tmp_path / "bare.json", (20, 20)).size == (20, 20)
    with pytest.raises(DataError, match="cannot be read"):
        read_parts(tmp_path / "gone.json")
    with pytest.raises(DataError, match='needs "parts"'):
        read_parts(tmp_path / "bare.json")


def parts_file(folder: Path) -> Path:
    path = folder / "parts.json"
    path.write_text(json.dumps({
        "size": [240, 96],
        "parts": {
            "left": {"box": [0, 0, 96, 96]},
            "right": {"polygons": [[[144, 0], [240, 0], [240, 96], [144, 96]]]},
        },
    }))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def wide(make_image) -> list[Sample]:
    """Six pictures of 240 x 96; every other one has a defect at its right end."""
    samples = []
    for seed in range(6):
        picture, _ = make_image(seed, (240, 96))
        mask = Image.new("L", (240, 96))
        if seed % 2 == 0:
            bad, marked = make_image(seed + 50, (96, 96), defect=True)
            picture.paste(bad, (144, 0))
            mask.paste(marked, (144, 0))
        samples.append(Sample(picture, seed % 2 == 0, mask if seed % 2 == 0 else None, f"{seed}"))
    return samples


def test_each_part_has_its_own_score_and_the_picture_that_of_the_worst(
    tiny_encoder, wide, tmp_path
):
    layout = Layout(None, None, read_parts(parts_file(tmp_path)))
    bank = MemoryBank.from_samples(tiny_encoder, wide, layout=layout)
    assert dict(zip(bank.image.tile.tolist(), bank.image.labels.tolist())).keys() == {0, 1}
    assert not bank.image.labels[bank.image.tile == 0].any()  # left ends are good
    found = Detector(tiny_encoder, bank).predict([wide[0].image], evidence=1)[0]
    left, right = found.parts
    assert (left.name, right.name) == ("left", "right")
    assert right.score > left.score
    assert (found.score, found.class_score, found.top_score) == (
        right.score, right.class_score, right.top_score,
    )  # fmt: skip
    assert right.box == (144, 0, 240, 96)
    assert found.evidence[0].query_box == right.box
    assert not found.anomaly_map[:, 96:144].any()
    # A part is judged as the picture that it would be alone.
    crop = wide[0].image.crop((144, 0, 240, 96))
    alone = Detector(tiny_encoder, bank).predict([crop], layout=Layout())[0]
    assert alone.score == pytest.approx(right.score, abs=1e-6)


def test_parts_are_cut_into_tiles_too(tiny_encoder, wide, tmp_path):
    layout = Layout(Tiling(48), None, read_parts(parts_file(tmp_path)))
    places = layout.places((240, 96))
    assert [len(section.tiles) for section in places.sections] == [9, 9]
    numbers = [tile.number for tile in places.tiles]
    assert numbers == list(range(18))
    assert places.box_of(9) == places.sections[1].tiles[0].box
    bank = MemoryBank.from_samples(tiny_encoder, wide, layout=layout)
    found = Detector(tiny_encoder, bank).predict([wide[0].image])[0]
    assert len(found.tiles) == 18
    assert found.parts[1].score > found.parts[0].score


def test_outside_the_region_nothing_is_judged_or_remembered(tiny_encoder, wide, make_image):
    """Whatever happens out there, nothing changes."""
    roi = Area((((0, 0), (140, 0), (140, 60), (100, 96), (0, 96)),), (240, 96))
    layout = Layout(Tiling(96), roi)
    spoiled = []
    for sample in wide:
        image = sample.image.copy()
        image.paste((255, 0, 0), (141, 0, 240, 96))
        spoiled.append(Sample(image, sample.anomalous, sample.mask, sample.source))
    banks = [MemoryBank.from_samples(tiny_encoder, s, layout=layout) for s in (wide, spoiled)]
    for level in ("image", "patch"):
        keys = [getattr(bank, level).keys for bank in banks]
        np.testing.assert_array_equal(*keys)
    assert not banks[0].image.labels.any()  # the defects lie outside
    other = MemoryBank.from_samples(tiny_encoder, wide, layout=Layout(Tiling(96)))
    detector = Detector(tiny_encoder, other).with_layout(layout)
    one, two = (detector.predict([s.image], evidence=2)[0] for s in (wide[0], spoiled[0]))
    assert one.score == two.score
    np.testing.assert_array_equal(one.anomaly_map, two.anomaly_map)
    assert not one.anomaly_map[:, 141:].any()
    assert one.anomaly_map[:60, :140].all()


def test_the_top_share_counts_pixels_of_interest_only(tiny_encoder, tiny_bank, make_image):
    """A region that is the whole picture changes nothing; one that leaves out a half does."""
    image = make_image(3, (96, 96), defect=True)[0]
    detector = Detector(tiny_encoder, tiny_bank)
    all_of_it = Area((((0, 0), (96, 0), (96, 96), (0, 96), (0, 50)),), (96, 96))
    plain = detector.predict([image])[0]
    same = detector.predict([image], layout=Layout(None, all_of_it))[0]
    assert same.score == plain.score
    half = Area((((0, 0), (96, 0), (0, 96)),), (96, 96))
    other = detector.predict([image], layout=Layout(None, half))[0]
    inside = np.sort(plain.anomaly_map[other.anomaly_map > 0])  # a picture of the encoder's size
    assert other.top_score == pytest.approx(inside[-int(len(inside) * 0.01) :].mean(), abs=1e-6)
    assert other.class_score == plain.class_score  # the same tile: its bounding box is the picture
    assert (other.anomaly_map == 0).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("tiling", [None, Tiling(64)])
def test_only_pixels_of_the_region_are_scaled_and_encoded(tiny_encoder, wide, monkeypatch, tiling):
    """A region of a twentieth of the picture costs a twentieth, by a bank's layout and by a request's."""
    bank = MemoryBank.from_samples(tiny_encoder, wide, layout=Layout(tiling))
    large = Image.new("RGB", (1200, 960), (200, 30, 30))
    large.paste(wide[0].image, (100, 200))
    boxes = Layout(tiling, Area.of_box((100, 200, 340, 296), (1200, 960)))
    seen: list[tuple[int, int]] = []
    prepare = type(tiny_encoder).prepare_several

    def counted(self, images):
        seen.extend(image.size for image in images)
        return prepare(self, images)

    monkeypatch.setattr(type(tiny_encoder), "prepare_several", counted)
    (found,) = Detector(tiny_encoder, bank).predict([large], layout=boxes)
    tiles = boxes.places(large.size).tiles
    sizes = [(right - left, bottom - top) for left, top, right, bottom in (t.box for t in tiles)]
    assert sorted(seen) == sorted(sizes)
    assert all(t.box[0] >= 100 and t.box[2] <= 340 and t.box[1] >= 200 for t in tiles)
    assert sum(width * height for width, height in seen) < 2 * 240 * 96
    assert not found.anomaly_map[:200].any()
