"""Heads that compare with good parts, on pictures that are cut: places are not mixed up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mrad import Detector, MemoryBank, Sample
from mrad.heads.good_parts.standard import Blend, CellScale
from mrad.images.layout import Layout
from mrad.images.tiles import Tiling
from mrad.types import WHOLE

LAYOUT = Layout(Tiling(96, 0.25))


def test_what_is_usual_is_usual_of_a_place() -> None:
    """A calm tile and a lively one: the same distance is much there and little here."""
    torch.manual_seed(0)
    places = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)] * 60
    distances = 0.1 + 0.01 * torch.randn(120, 4)
    distances[1::2] += 0.4 + 0.05 * torch.randn(60, 4)
    scale = CellScale.of(distances, places)
    calm, lively = (scale(torch.full((1, 4), 0.5), [place]) for place in places[:2])
    assert calm.min() > 3
    assert lively.abs().max() < 1
    unknown = scale(torch.full((1, 4), 0.5), [(0.1, 0, 0.6, 1)])
    assert torch.equal(unknown, scale(torch.full((1, 4), 0.5), [None]))
    assert lively.max() < unknown.min() < calm.max()
    alone = CellScale.of(distances, [WHOLE] * 120)
    torch.testing.assert_close(alone(distances[:1], [WHOLE]), alone(distances[:1], [None]))


def test_a_tile_without_a_defect_is_none_when_weights_are_chosen() -> None:
    top = torch.cat([torch.randn(40), torch.randn(20) + 5, torch.randn(200)])
    parts = torch.stack([torch.randn(260)]).double()
    good, bad = torch.zeros(260, dtype=torch.bool), torch.zeros(260, dtype=torch.bool)
    good[:40], bad[40:60] = True, True
    told, without = (
        Blend.of(top, parts, good, 1, bad),
        Blend.of(top[:60], parts[:, :60], good[:60], 1),
    )
    assert told.weights == without.weights
    assert told.weights != Blend.of(top, parts, good, 1).weights


@pytest.fixture(scope="module")
def wide(make_image) -> list[Sample]:
    """Good pictures of 240 x 96 whose left ends are empty, all alike, and a defective one."""
    samples = []
    for seed in range(7):
        picture, _ = make_image(seed, (240, 96))
        mask = Image.new("L", (240, 96))
        if seed == 6:
            bad, marked = make_image(56, (96, 96), defect=True)
            picture.paste(bad, (144, 0))
            mask.paste(marked, (144, 0))
        picture.paste((128, 128, 128), (0, 0, 96, 96))
        samples.append(Sample(picture, seed == 6, mask if seed == 6 else None, f"{seed}.png"))
    return samples


@pytest.mark.parametrize("head", ["nn", "combined"])
def test_good_parts_in_tiles_are_judged_and_leave_out_whole_pictures(tiny_encoder, wide, head):
    samples = wide if head == "combined" else wide[:6]
    bank = MemoryBank.from_samples(tiny_encoder, samples, layout=LAYOUT)
    detector = Detector(tiny_encoder, bank, head)
    assert len(set(detector.head.groups.tolist())) == len(samples), "empty corners make no doubles"
    assert len(set(detector.head.places)) == LAYOUT.tiling.count((240, 96))
    decoded = [detector.decode(sample.image) for sample in wide[:3]]
    without = list(detector.judge(decoded, evidence=3, exclude=[0, 1, 2]))
    for row, found in enumerate(without):
        assert found.evidence
        assert bank.entries[row].entry_id not in {one.entry_id for one in found.evidence}
        inside = detector.predict([wide[row].image])[0]
        assert found.score > inside.score
    bad = detector.predict([wide[6].image])[0]
    _, x = np.unravel_index(bad.anomaly_map.argmax(), bad.anomaly_map.shape)
    assert x >= 96 or head == "nn"
    # A picture of another size has tiles where the memory has none: judged on the scale of all.
    assert np.isfinite(detector.predict([wide[0].image.resize((300, 200))])[0].score)


def test_tiles_that_show_no_defect_are_no_defects(tiny_encoder, wide):
    bank = MemoryBank.from_samples(tiny_encoder, wide, layout=LAYOUT)
    head = Detector(tiny_encoder, bank, "nn").head
    own = head.views.rows == 6
    tiles = np.isin(bank.image.tile, head.views.tiles[own]) & (bank.image.entry == 6)
    labels = bank.image.labels[tiles]
    assert set(labels.tolist()) == {0, 1}


def test_one_tile_that_covers_the_picture_is_todays_number(tiny_encoder, make_image):
    samples = [Sample(make_image(seed, (90, 80))[0], False) for seed in range(5)]
    image = make_image(40, (96, 60), defect=True)[0]
    plain, tiled = (
        Detector(tiny_encoder, MemoryBank.from_samples(tiny_encoder, samples, layout=layout), "nn")
        for layout in (Layout(), Layout(Tiling(96)))
    )
    one, other = (detector.predict([image])[0] for detector in (plain, tiled))
    assert one.score == other.score
    np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
