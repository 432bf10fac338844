"""Looking at all of a picture coarsely, then closely at some of its tiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrad import Detector, MemoryBank
from mrad.errors import LayoutError, MRADError
from mrad.images.layout import PLAIN, Layout
from mrad.images.tiles import Tiling
from mrad.tiled import Canvas
from tests.fields import RULES, look

SIZE = (600, 400)


def bump(x, y):
    return 0.3 + 0.5 * np.exp(-((x - 470) ** 2 + (y - 130) ** 2) / 3000)


def test_only_the_strongest_tiles_are_looked_at_closely():
    places = Layout(Tiling(96, 0.25, closely=0.2)).places(SIZE)
    assert len(places.coarse.tiles) * 3 < len(places.tiles)
    coarse = look(Canvas(places.coarse, RULES, places), bump)
    close = coarse.closer()
    every, chosen = len(places.tiles), close.places.tiles
    assert len(chosen) == int(np.ceil(0.2 * every))
    shows = [t for t in places.tiles if t.box[0] <= 470 < t.box[2] and t.box[1] <= 130 < t.box[3]]
    assert set(shows) <= set(chosen)
    assert look(close, bump).closer() is None
    values, whole = close.map(), look(Canvas(replace(places, coarse=None), RULES), bump).map()
    seen = np.zeros(values.shape, bool)
    for tile in chosen:
        left, top, right, bottom = tile.box
        seen[top:bottom, left:right] = True
    assert not values[~seen].any(), "nothing is shown where nothing was looked at"
    assert values[seen].min() > 0.29, "no fading at the edge of what was looked at"
    assert values[130, 470] == pytest.approx(whole[130, 470], abs=1e-5)
    assert close.parts()[0].top_score == pytest.approx(
        look(Canvas(replace(places, coarse=None), RULES), bump).parts()[0].top_score, abs=1e-5
    )


def test_what_was_not_looked_at_closely_is_said():
    places = Layout(Tiling(96, 0.25, closely=0.2)).places(SIZE)
    close = look(look(Canvas(places.coarse, RULES, places), bump).closer(), bump)
    left = len(places.tiles) - len(close.places.tiles)
    (note,) = close.notes()
    assert note.startswith(f"looked_at_coarsely: {left} of {len(places.tiles)} tiles")
    told = close.tiles()
    assert len(told) == len(places.tiles)
    assert sum(not tile.closely for tile in told) == left
    assert not look(Canvas(Layout(Tiling(96)).places(SIZE), RULES), bump).notes()


def test_where_a_first_look_saves_nothing_there_is_none():
    assert Layout(Tiling(96, closely=0.5)).places((96, 96)).coarse is None
    assert Layout(Tiling(96, closely=0.9)).places((150, 96)).coarse is None
    assert Layout(Tiling(96)).places(SIZE).coarse is None
    for share in (0.0, 1.2, -1):
        with pytest.raises(MRADError):
            Tiling(96, closely=share)
    with pytest.raises(LayoutError, match="--tile"):
        PLAIN.looked_at_closely(0.5)


def test_the_share_is_kept_with_the_tiles():
    layout = Layout(Tiling(96, 0.1, closely=0.25))
    assert Layout.from_json(layout.to_json()) == layout
    assert "closely" not in Layout(Tiling(96)).to_json()["tiling"], "older banks stay as they are"


def test_a_detector_looks_at_the_chosen_tiles_as_it_would_without(
    tiny_encoder, tiny_samples, make_image
):
    """Tiles that are looked at have the very numbers that they have when all are."""
    bank = MemoryBank.from_samples(tiny_encoder, tiny_samples, layout=Layout(Tiling(96)))
    detector = Detector(tiny_encoder, bank)
    layout = bank.layout.looked_at_closely(0.25)
    images = [make_image(5, (500, 400), defect=True)[0], make_image(6, (80, 60))[0]]
    images.append(make_image(7, (400, 300))[0])
    every = detector.predict(images, batch_size=3)
    some = detector.predict(images, batch_size=3, layout=layout)
    for full, part in zip(every, some, strict=True):
        own = {tile.box: tile for tile in full.tiles}
        close = [tile for tile in part.tiles if tile.closely]
        assert len(part.tiles) == len(full.tiles)
        for tile in close:
            assert tile.class_score == pytest.approx(own[tile.box].class_score, abs=1e-6)
            assert tile.peak == pytest.approx(own[tile.box].peak, abs=1e-6)
        assert part.class_score <= full.class_score + 1e-6
        if not full.tiles:  # smaller than a tile
            assert (part.score, part.warnings) == (full.score, full.warnings)
            assert part.unseen(part.anomaly_map.shape) is None
            continue
        assert len(close) == int(np.ceil(0.25 * len(full.tiles)))
        unseen = part.unseen(part.anomaly_map.shape)
        assert not part.anomaly_map[unseen].any()
        assert part.anomaly_map[~unseen].min() > 0
        assert any(text.startswith("looked_at_coarsely") for text in part.warnings)


def test_leave_one_out_holds_in_the_first_look_too(tiny_encoder, tiny_samples):
    layout = Layout(Tiling(32, closely=0.3))
    bank = MemoryBank.from_samples(tiny_encoder, tiny_samples, layout=layout)
    assert len(bank.image) > 2 * len(tiny_samples), "its own pictures are looked at closely"
    detector, image = Detector(tiny_encoder, bank), tiny_samples[0].image
    asked: list[torch.Tensor | None] = []
    head = detector.head.__call__

    class Watching:
        def __getattr__(self, name):
            return getattr(real, name)

        def __call__(self, features, exclude=None):
            asked.append(exclude)
            return head(features, exclude)

    real = detector.head
    detector.head = Watching()
    (found,) = detector.judge([detector.decode(image)], exclude=[0])
    assert any(not tile.closely for tile in found.tiles)
    assert len(asked) >= 2
    assert all(bool((rows == 0).all()) for rows in asked)
