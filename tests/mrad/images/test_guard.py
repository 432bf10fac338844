"""What sets a picture apart from a memory's: how small it is, and its shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from mrad import Detector, MemoryBank, Sample
from mrad.images.guard import InputProfile, code_of
from mrad.images.layout import Layout
from mrad.images.regions import Area
from mrad.images.tiles import Tiling


def test_a_picture_of_a_few_pixels_or_of_another_shape_is_warned_of(tiny_encoder, make_image):
    samples = [Sample(make_image(seed, (120, 90))[0], False) for seed in range(3)]
    detector = Detector(tiny_encoder, MemoryBank.from_samples(tiny_encoder, samples))

    def told(size: tuple[int, int]) -> set[str]:
        (found,) = detector.predict([make_image(9, size)[0]])
        return {code_of(text) for text in found.warnings}

    assert told((120, 90)) == set()
    assert told((100, 110)) == set()
    assert "too_small" in told((3, 3))
    assert "too_small" in told((300, 20))
    assert "other_shape" in told((300, 60))
    assert "other_shape" in told((60, 120))


def test_a_thumbnail_among_larger_images_is_warned_of(tiny_encoder, make_image):
    large = tiny_encoder.image_size * 4
    samples = [Sample(make_image(seed, (large, large))[0], False) for seed in range(3)]
    layout = Layout(roi=Area.of_box((0, 0, large // 2, large // 2), (large, large)))
    for own, scale in ((Layout(), 0.15), (layout, 0.3)):
        bank = MemoryBank.from_samples(tiny_encoder, samples, layout=own)
        detector = Detector(tiny_encoder, bank)
        small, half = (make_image(9, (round(large * s),) * 2)[0] for s in (scale, 0.6))
        told = [{code_of(t) for t in p.warnings} for p in detector.predict([small, half])]
        assert ["too_small" in codes for codes in told] == [True, False]


def test_a_memory_of_small_pictures_takes_small_ones(tiny_encoder, make_image):
    samples = [Sample(make_image(seed, (20, 16))[0], False) for seed in range(3)]
    bank = MemoryBank.from_samples(tiny_encoder, samples)
    assert InputProfile.of(bank.metadata["input"]).side == 16
    (found,) = Detector(tiny_encoder, bank).predict([make_image(9, (20, 16))[0]])
    assert "too_small" not in {code_of(text) for text in found.warnings}


def test_shapes_are_joined_widened_and_kept():
    one = InputProfile(1, side=90, aspect=(1.0, 1.2))
    other = InputProfile(1, side=40, aspect=(0.5, 1.1))
    both = one.joined(other)
    assert (both.side, both.aspect) == (40, (0.5, 1.2))
    assert InputProfile.of(both.as_json()) == both
    one, other = replace(one, largest=120), replace(other, largest=0)
    assert InputProfile().joined(one).largest == one.joined(InputProfile()).largest == 120
    assert one.joined(other).largest == 0, "of some nobody knows"
    assert one.widened((9.0, 9.0), (200, 50)).aspect == (1.0, 4.0)
    older = {name: v for name, v in one.as_json().items() if name not in ("side", "aspect")}
    assert not InputProfile.of(older).widened((9.0, 9.0), (200, 50)).side, "nothing is known"


def test_regions_and_scales_that_the_memory_does_not_know_are_warned_of(tiny_encoder, make_image):
    def detector(size: tuple[int, int], layout: Layout | None = None) -> Detector:
        samples = [Sample(make_image(seed, size)[0], False) for seed in range(3)]
        bank = MemoryBank.from_samples(tiny_encoder, samples, layout=layout or Layout())
        return Detector(tiny_encoder, bank)

    def told(detector: Detector, size: tuple[int, int], layout: Layout | None = None) -> set[str]:
        (found,) = detector.predict([make_image(9, size)[0]], layout=layout)
        return {code_of(text) for text in found.warnings} & {"other_region", "other_scale"}

    corner = Layout(roi=Area.of_box((0, 0, 80, 80), (240, 240)))
    whole = detector((240, 240))
    assert not told(whole, (240, 240)) | told(whole, (480, 480)), "framed alike"
    assert told(whole, (240, 240), corner) == {"other_region"}, "three times larger than known"
    own = detector((240, 240), corner)
    assert not told(own, (240, 240)) | told(own, (480, 480))
    assert told(own, (240, 240), Layout()) == {"other_region"}

    tiled = detector((240, 240), Layout(Tiling(80)))
    assert not told(tiled, (240, 240)) | told(tiled, (240, 300))
    assert told(tiled, (120, 120)) == told(tiled, (480, 480)) == {"other_scale"}, "same shape"
    assert told(tiled, (40, 40)) == {"other_scale"}, "less than a tile"
    aside = Layout(Tiling(80), Area.of_box((10, 10, 90, 90), (240, 240)))
    assert told(tiled, (240, 240), aside) == {"other_region"}, "no tile of the memory lies there"

    parts = detector((80, 80))
    boxes = [(x, 30, x + 80, 110) for x in (20, 140)]
    named = tuple(Area.of_box(box, (240, 240), f"{box[0]}") for box in boxes)
    assert not told(parts, (240, 240), Layout(parts=named)), "parts as large as its images"
    panels = detector((80, 80), Layout(Tiling(80, 0)))
    assert not told(panels, (240, 240)), "parts and panels of them"
    assert told(panels, (40, 40)) == {"other_scale"}


@pytest.mark.parametrize("layout", [Layout(), Layout(Tiling(80))])
def test_a_strip_may_be_longer_than_the_memorys_where_it_is_cut(tiny_encoder, make_image, layout):
    samples = [Sample(make_image(seed, (96, 200))[0], False) for seed in range(3)]
    bank = MemoryBank.from_samples(tiny_encoder, samples, layout=layout)

    def told(size: tuple[int, int]) -> set[str]:
        (found,) = Detector(tiny_encoder, bank).predict([make_image(9, size)[0]])
        return {code_of(text) for text in found.warnings} & {"other_shape"}

    assert bool(told((96, 800))) == layout.plain, "squeezed as a whole"
    assert told((300, 2400)), "three times as wide, too"


def test_a_lost_frame_among_the_good_parts_does_not_make_lost_frames_usual(
    tiny_encoder, make_image
):
    black = Image.new("RGB", (64, 64))

    def told(good: int, flat: int) -> set[str]:
        samples = [Sample(make_image(seed)[0], False) for seed in range(good)]
        samples += [Sample(Image.new("RGB", (64, 64), (n, n, n)), False) for n in range(flat)]
        bank = MemoryBank.from_samples(tiny_encoder, samples)
        assert InputProfile.of(bank.metadata["input"]).flat == flat
        (found,) = Detector(tiny_encoder, bank).predict([black])
        return {code_of(text) for text in found.warnings} & {"uniform", "too_dark", "low_contrast"}

    assert told(4, 0) == told(4, 1) == {"uniform", "too_dark", "low_contrast"}
    assert told(2, 3) == told(0, 3) == set()  # a product that is flat


def test_a_flat_lesson_leaves_what_is_usual():
    one = InputProfile(9, (90.0, 110.0), (40.0, 50.0), side=64, aspect=(1.0, 1.0), largest=64)
    taught = one.widened((0.0, 0.0), (64, 64))
    assert (taught.brightness, taught.contrast, taught.flat) == (one.brightness, one.contrast, 1)
    assert InputProfile.of(taught.as_json()) == taught
    older = {"images": 3, "brightness": [0, 9], "contrast": [0.2, 3], "depths": {}}
    assert InputProfile.of(older).flat == 3, "as it was understood then"
